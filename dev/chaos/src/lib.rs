//! Random trouble for a foundation of real processes, with a history of all operations and
//! observations, and a checker of the laws of docs/architecture.md.
//!
//! The checker ([`check`]) is pure: history in, violations out. The runner starts every part in
//! a network namespace of its own, harms the parts and the links between them as the seed says,
//! and writes the history. Guide: docs/reliability.md.

mod changes;
pub mod check;
mod churn;
mod config;
mod database;
mod delay;
mod disk;
mod fault;
mod foundation;
pub mod history;
mod links;
mod owners;
mod part;
mod record;
mod run;
mod schedule;
mod shrink;
mod site;
mod stores;
mod verdict;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use cluster::network::{self, Network};
use cluster::process;
use cluster::state::{self, State};
use cluster::topology::Name;
use cni::namespace::Resident;
use storage::server::Dialect;

use crate::database::{Database, Replication};
use crate::fault::Fault;
use crate::part::Shape;
use crate::run::{BOUNDS, Options};
use crate::site::{Binaries, Plane, Site};
use crate::verdict::Verdict;

/// Random trouble for a foundation of real processes, judged by the ten laws
///
/// Prints the seed and each fault, then the counts. Exit code 1 if a law was violated; the state
/// directory then has the history, the violations and all logs. Needs root.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Time during which faults happen, for example 60s or 1h
    #[arg(long, default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// Seed of the schedule of faults [default: a random one]
    #[arg(long)]
    seed: Option<u64>,
    /// Database of lock servers and policy stores: one of each with SQLite, three of each with
    /// a private server
    #[arg(long, value_enum, default_value_t = Backend::Sqlite)]
    backend: Backend,
    /// Data plane of the cells
    #[arg(long, value_enum, default_value_t = Plane::Nftables)]
    plane: Plane,
    /// Number of cells
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=16))]
    cells: u8,
    /// Replica of the PostgreSQL server, which takes over in a failover
    #[arg(long, value_enum, default_value_t = Replication::None)]
    replication: Replication,
    /// Directory of an earlier release's programs, which take the place of the current ones at
    /// times
    #[arg(long, value_name = "DIR")]
    earlier_dir: Option<PathBuf>,
    /// Play the faults of this file, as an earlier run wrote it, instead of random ones
    #[arg(long, value_name = "FILE")]
    schedule: Option<PathBuf>,
    /// After a violation, run again up to so many times to find the faults that it needs
    #[arg(long, value_name = "RUNS", default_value_t = 0)]
    shrink: usize,
    /// Only judge this history
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Prefix of the names of all network namespaces
    #[arg(long, default_value = "chaos", value_parser = Name::parse)]
    name: Name,
    /// Directory of files and logs, which stay after the end
    /// [default: ~/.local/state/portcullis/NAME]
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Directory of the services' executables [default: that of this program]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    /// SQLite
    Sqlite,
    /// PostgreSQL
    Postgres,
    /// MariaDB
    Mysql,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
        }
    }

    fn dialect(self) -> Option<Dialect> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some(Dialect::Postgres),
            Self::Mysql => Some(Dialect::MySql),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is no duration: expected a number with s, m or h");
    let unit = text.chars().last().ok_or_else(error)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(error()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| error())?;
    match number.checked_mul(factor) {
        Some(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("a duration is 1s to 24h".to_owned()),
    }
}

/// Runs the trouble, and judges the history.
///
/// Returns the exit code of the process.
pub fn main(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, the error cannot be printed.
            let _ = writeln!(std::io::stderr(), "chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(history) = &arguments.check {
        return Verdict::read(history)?.print(history);
    }
    runtime::tls::install_provider();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let directory = match &arguments.state_dir {
        Some(directory) => std::path::absolute(directory)?,
        None => cluster::default_directory(&arguments.name)?,
    };
    let options = options(arguments, seed)?;
    let faults = match &arguments.schedule {
        Some(file) => read(file)?,
        None => {
            let heal = Duration::from_micros(BOUNDS.heal);
            schedule::schedule(seed, options.shape, arguments.duration, heal)
        }
    };
    progress(&format!(
        "chaos --duration {}s --seed {seed} --backend {} --replication {} --plane {} --cells {}",
        arguments.duration.as_secs(),
        options.backend,
        options.replication.name(),
        options.plane.name(),
        options.shape.cells,
    ));
    let (file, verdict) = once(&options, &directory, &faults)?;
    let Some((started, at, law)) = verdict.first() else { return verdict.print(&file) };
    write(&directory.join("schedule.json"), &faults)?;
    let mut near = shrink::near(&faults, started, at, BOUNDS);
    if arguments.shrink > 0 {
        near = shrink::reduce(near, arguments.shrink, |rest| {
            progress(&format!("shrinking: {} faults", rest.len()));
            let (_, verdict) = once(&options, &directory.join("shrink"), rest)?;
            Ok(verdict.has(law))
        })?;
    }
    let shrunken = directory.join("shrunken.json");
    write(&shrunken, &near)?;
    progress(&format!("{} faults near the first violation: {}", near.len(), shrunken.display()));
    verdict.print(&file)
}

/// What to run, from the arguments.
fn options(arguments: &Arguments, seed: u64) -> anyhow::Result<Options> {
    let Arguments { backend, replication, plane, cells, name, bin_dir, earlier_dir, .. } =
        arguments;
    let dialect = backend.dialect();
    if *replication != Replication::None && dialect != Some(Dialect::Postgres) {
        bail!("--replication needs --backend postgres");
    }
    let own = std::env::current_exe()?;
    let beside = own.parent().context("this executable lies in a directory")?;
    let current = std::path::absolute(bin_dir.as_deref().unwrap_or(beside))?;
    let earlier = earlier_dir.as_deref().map(std::path::absolute).transpose()?;
    let instances = if dialect.is_some() { 3 } else { 1 };
    let shape = Shape {
        lock_servers: instances,
        policy_stores: instances,
        syncers: 3,
        cells: *cells,
        has_database: dialect.is_some(),
        has_replica: *replication != Replication::None,
        has_earlier: earlier.is_some(),
    };
    Ok(Options {
        name: name.clone(),
        seed,
        backend: backend.name().to_owned(),
        dialect,
        replication: *replication,
        plane: *plane,
        shape,
        binaries: Binaries { current, earlier },
    })
}

/// Plays the faults, and judges the history. Returns the file of the history.
fn once(
    options: &Options,
    directory: &Path,
    faults: &[Fault],
) -> anyhow::Result<(PathBuf, Verdict)> {
    let (state, left) = State::take(directory)?;
    let history = directory.join("history.jsonl");
    in_router(options.clone(), history.clone(), state, &left, faults.to_vec())?;
    let verdict = Verdict::read(&history)?;
    Ok((history, verdict))
}

/// Builds the network, and runs in the namespace of its router, from which all parts are
/// reachable.
fn in_router(
    options: Options,
    history: PathBuf,
    mut state: State,
    left: &state::Made,
    faults: Vec<Fault>,
) -> anyhow::Result<()> {
    let builder = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let router = options.name.router();
    let mut network = Network::new(options.name.clone());
    let raised = builder.block_on(async {
        process::end_leftovers(&left.still_running(&state::boot())).await;
        network::remove_leftovers(&left.namespaces)?;
        network.raise(Site::places(options.shape), &mut state).await
    });
    if let Err(error) = raised {
        // The first error is reported.
        let _ = network.lower(&mut state);
        return Err(error);
    }
    let resident = Resident::of(&router)?;
    let inside = move || -> anyhow::Result<()> {
        let start = |dialect| Database::start(dialect, options.replication);
        let database = options.dialect.map(start);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let played = run::play(options, &history, network, state, database, &faults);
        let outcome = runtime.block_on(played);
        runtime.shutdown_background();
        outcome
    };
    // A thread is in the namespace of the thread that starts it.
    let thread = builder.block_on(resident.run(move || thread::spawn(inside)))?;
    thread.join().map_err(|_panic| anyhow!("the run panicked"))?
}

fn read(file: &Path) -> anyhow::Result<Vec<Fault>> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no schedule", file.display()))
}

fn write(file: &Path, faults: &[Fault]) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(faults)?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Prints a line of progress.
fn progress(line: &str) {
    // If standard error is closed, nobody reads the progress.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "s", "1", "1d", "-1s", "0s", "25h", "1.5h", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
