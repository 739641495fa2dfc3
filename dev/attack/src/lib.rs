//! Attacks on every listener of the services ("door"), while an honest client does its normal
//! call.
//!
//! Invariants:
//! - The services are real processes with real certificates; each door has its own, on which all
//!   attacks run one after another, so that leaks add up.
//! - The attacker's threads have the lowest priority, and attacks are paced: an attacker of a
//!   real foundation has a machine of his own.
//! - `judge` is pure: figures in, problems out.
//!
//! Results: docs/reliability.md. The module [`call`] is also the client of hostile tests.

mod attacks;
pub mod call;
mod context;
mod dial;
mod frame;
mod got;
mod honest;
mod judge;
mod measure;
mod run;
mod table;
mod target;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::gettid;
use tokio::signal::unix::{SignalKind, signal};

use attacks::{ALL, Attack};
use run::Options;
use target::Door;

/// Attack every listener of the services, while an honest client works
///
/// Prints a table with a row for each attack on each door. Exit code 1 if the honest client had
/// a failure, if its 99th percentile more than doubled (below the floor it is never too high), or
/// if memory or open files were above their bounds. Needs root for the doors of the cell agent.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Length of each attack, and of the measurements before and after
    #[arg(long, default_value = "5s", value_parser = load::positive_length)]
    duration: Duration,
    /// Attack only these doors
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Door>,
    /// Run only these attacks, see --list
    #[arg(long, value_delimiter = ',', value_parser = named)]
    attack: Vec<&'static str>,
    /// Print all attacks and their doors, and exit
    #[arg(long)]
    list: bool,
    /// Number of keys of the attack `keys`
    #[arg(long, default_value_t = 20_000)]
    keys: u64,
    /// 99th percentile in milliseconds up to which the latency always holds
    #[arg(long, default_value_t = 5.0)]
    floor: f64,
    /// A tenth of the connections, and latency is not judged
    #[arg(long)]
    quick: bool,
    /// Priority (nice) of the attacker's threads
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(-20..=19))]
    attacker_nice: i32,
    /// Write the table to this file as well
    #[arg(long)]
    report: Option<PathBuf>,
    /// Directory of the services' executables [default: that of this program]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

fn named(name: &str) -> Result<&'static str, String> {
    let attack = ALL.iter().find(|attack| attack.name == name);
    attack.map(|attack| attack.name).ok_or_else(|| "no such attack, see --list".to_owned())
}

impl Arguments {
    fn doors(&self) -> Vec<Door> {
        if self.only.is_empty() { Door::ALL.to_vec() } else { self.only.clone() }
    }

    fn attacks(&self, door: Door) -> Vec<&'static Attack> {
        let selected = |name| self.attack.is_empty() || self.attack.contains(&name);
        ALL.iter().filter(|attack| selected(attack.name) && (attack.on)(door).is_some()).collect()
    }

    fn options(&self) -> Options {
        Options {
            duration: self.duration,
            floor: (!self.quick).then_some(self.floor),
            divisor: if self.quick { 10 } else { 1 },
            keys: self.keys,
            binaries: self.bin_dir.clone(),
        }
    }
}

/// Runs the attacks, and returns the exit code of the process.
pub fn main(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // If standard error is closed, the error cannot be printed.
            let _ = writeln!(std::io::stderr(), "attack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row holds.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.list {
        say(&list())?;
        return Ok(true);
    }
    runtime::tls::install_provider();
    load::connect::raise_descriptor_limit()?;
    let doors = arguments.doors();
    if doors.iter().any(|door| door.is_cell()) {
        // Before a second thread exists: all threads must be in the new namespace.
        load::leave_network()?;
    }
    let nice = arguments.attacker_nice;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(move || set_priority(nice))
        .enable_all()
        .build()?;
    let mut table = table::HEAD.to_owned();
    say(&table)?;
    let mut holds = true;
    for door in doors {
        let attacks = arguments.attacks(door);
        if attacks.is_empty() {
            continue;
        }
        runtime.block_on(async {
            let done = |judged: run::Judged| {
                holds &= judged.problems.is_empty();
                let row = table::row(&judged);
                table.push_str(&row);
                say(&row)
            };
            let options = arguments.options();
            // Dropped processes are killed.
            tokio::select! {
                ended = run::door(door, &attacks, &options, done) => ended,
                stopped = stopped() => stopped,
            }
        })?;
    }
    runtime.shutdown_background();
    if table == table::HEAD {
        bail!("none of these attacks is possible on these doors");
    }
    if let Some(path) = &arguments.report {
        std::fs::write(path, &table).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(holds)
}

/// Fails on SIGTERM and SIGINT.
async fn stopped() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;
    tokio::select! {
        _ = terminate.recv() => bail!("stopped by SIGTERM"),
        _ = interrupt.recv() => bail!("stopped by SIGINT"),
    }
}

/// Sets the priority of the calling thread.
fn set_priority(nice: i32) {
    let (nice, thread) = (nice.to_string(), gettid().to_string());
    let mut command = Command::new("renice");
    command.args(["-n", &nice, "-p", &thread]).stdout(Stdio::null()).stderr(Stdio::null());
    // Without renice the attacker is only stronger.
    let _stronger = command.status();
}

fn list() -> String {
    let mut text = String::new();
    for attack in ALL {
        let doors = Door::ALL.into_iter().filter(|door| (attack.on)(*door).is_some());
        let doors: Vec<&str> = doors.map(Door::name).collect();
        text += &format!("{:14} {}\n{:14} {}\n", attack.name, attack.about, "", doors.join(", "));
    }
    text
}

/// Writes to standard output and flushes.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot print")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn attacks_have_names_of_their_own_and_a_door() {
        let names: BTreeSet<_> = ALL.iter().map(|attack| attack.name).collect();
        assert_eq!(names.len(), ALL.len());
        for attack in ALL {
            assert!(Door::ALL.iter().any(|door| (attack.on)(*door).is_some()), "{}", attack.name);
        }
        assert_eq!(named("ping"), Ok("ping"));
        assert!(named("pong").is_err());
    }
}
