//! Random trouble for a foundation of real processes, with a history of all operations and
//! observations, and a checker of the laws of docs/architecture.md.
//!
//! The checker ([`check`]) is pure: history in, violations out. The runner starts every part in
//! a network namespace of its own, harms the parts and the links between them as the seed says,
//! and writes the history. Guide: docs/reliability.md.

mod changes;
pub mod check;
mod churn;
mod foundation;
pub mod history;
mod links;
mod owners;
mod record;
mod run;
mod schedule;
mod site;
mod stores;

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

use crate::run::Options;
use crate::schedule::Shape;
use crate::site::{Plane, Site};

/// How many violations are printed; all are in the file `violations`.
const MOST_VIOLATIONS: usize = 40;

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
    /// Only judge this history
    #[arg(long)]
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
pub fn main(arguments: Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, the error cannot be printed.
            let _ = writeln!(std::io::stderr(), "chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Some(history) = &arguments.check {
        return judge(history);
    }
    let Arguments { duration, seed, backend, plane, cells, name, state_dir, bin_dir, .. } =
        arguments;
    runtime::tls::install_provider();
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let own = std::env::current_exe()?;
    let beside = own.parent().context("this executable lies in a directory")?;
    let binaries = bin_dir.map_or_else(|| Ok(beside.to_owned()), std::path::absolute)?;
    let directory = state_dir.map_or_else(|| cluster::default_directory(&name), Ok)?;
    let (state, left) = State::take(&std::path::absolute(directory)?)?;
    let instances = if backend.dialect().is_some() { 3 } else { 1 };
    let shape = Shape {
        lock_servers: instances,
        policy_stores: instances,
        syncers: 3,
        cells,
        has_database: backend.dialect().is_some(),
    };
    progress(&format!(
        "chaos --duration {}s --seed {seed} --backend {} --plane {} --cells {cells}",
        duration.as_secs(),
        backend.name(),
        plane.name()
    ));
    let history = state.directory().join("history.jsonl");
    let backend_name = backend.name().to_owned();
    let options = Options {
        name,
        seed,
        duration,
        backend: backend_name,
        plane,
        shape,
        binaries,
        history: history.clone(),
    };
    in_router(options, state, &left, backend.dialect())?;
    judge(&history)
}

/// Builds the network, and runs in the namespace of its router, from which all parts are
/// reachable.
fn in_router(
    options: Options,
    mut state: State,
    left: &state::Made,
    dialect: Option<Dialect>,
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
        let database = dialect.map(site::database);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let outcome = runtime.block_on(run::play(options, network, state, database));
        runtime.shutdown_background();
        outcome
    };
    // A thread is in the namespace of the thread that starts it.
    let thread = builder.block_on(resident.run(move || thread::spawn(inside)))?;
    thread.join().map_err(|_panic| anyhow!("the run panicked"))?
}

/// Judges a history; prints the counts and the violations.
fn judge(path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    let entries = history::parse(&text).map_err(|why| anyhow!("{}: {why}", path.display()))?;
    let violations = check::check(&entries).map_err(anyhow::Error::msg)?;
    let mut out = std::io::stdout().lock();
    for (kind, count) in check::count(&entries).kinds {
        writeln!(out, "{count:9} {kind}")?;
    }
    writeln!(out, "{:9} violations", violations.len())?;
    out.flush()?;
    if violations.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = violations
        .iter()
        .map(|violation| {
            let check::Violation { law, at, what } = violation;
            format!("law {law} at {:.3} s: {what}", at.seconds())
        })
        .collect();
    let file = path.with_file_name("violations");
    std::fs::write(&file, lines.join("\n") + "\n")?;
    for line in lines.iter().take(MOST_VIOLATIONS) {
        progress(line);
    }
    let seed = check::begin(&entries).map_err(anyhow::Error::msg)?.seed;
    bail!("{} violations with seed {seed}; history and logs: {}", lines.len(), path.display())
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
