//! A rolling swap of a foundation, as operators do it with cf-deployment, and the way back,
//! under load: originals (their stand-ins) are replaced by Portcullis one job at a time, on
//! the same databases, with the same configuration files.
//!
//! Order and result: docs/rolling-swap.md. The control plane is on the loopback address,
//! the cells are network namespaces of a [`cluster`] network, the database is a private
//! server.

mod changes;
mod database;
mod foundation;
pub mod front;
mod ledger;
mod locks;
pub mod packets;
mod plan;
mod report;
mod site;
mod stage;
mod starts;
pub mod versions;
mod watchers;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use cluster::network;
use cluster::process;
use cluster::state::{self, State};
use cluster::topology::Name;
use originals::sql::Dialect;

/// Swap a foundation of the originals to Portcullis and back, under load
///
/// Prints a table with a row for each step. Exit code 1 if a lock or presence was lost, a
/// lock was held twice, a packet was judged wrongly, a change did not come into force in
/// time, a container would not have started, a watcher was more than 5 s behind, or a process
/// ended by itself. Needs root.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The database of the foundation; a private server is started
    #[arg(long, value_enum)]
    database: Kind,
    /// Time under load after each step, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Number of times that the foundation is swapped and rolled back
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Write the table to this file, as Markdown
    #[arg(long)]
    report: Option<PathBuf>,
    /// Prefix of the names of all network namespaces
    #[arg(long, default_value = "swap", value_parser = Name::parse)]
    name: Name,
    /// Directory of files and logs, which stay after the end
    /// [default: ~/.local/state/portcullis/NAME]
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Directory of the services' executables [default: that of this program]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Prefix of the programs of iptables, for example iptables-nft
    #[arg(long, default_value = "iptables-legacy")]
    iptables: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// PostgreSQL
    Postgres,
    /// MariaDB
    Mysql,
}

impl From<Kind> for Dialect {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Postgres => Self::Postgres,
            Kind::Mysql => Self::MySql,
        }
    }
}

/// Runs the swap.
///
/// Returns the exit code of the process.
pub fn main(arguments: Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, the error cannot be printed.
            let _ = writeln!(std::io::stderr(), "swap: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { database, seconds, rounds, report, name, state_dir, bin_dir, iptables } =
        arguments;
    runtime::tls::install_provider();
    let own = std::env::current_exe()?;
    let beside = own.parent().context("this executable lies in a directory")?;
    let binaries = bin_dir.unwrap_or_else(|| beside.to_owned());
    let directory = state_dir.map_or_else(|| cluster::default_directory(&name), Ok)?;
    let (state, left) = State::take(&std::path::absolute(directory)?)?;
    progress("a private database server");
    let server = database::Server::start(database.into());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let options = plan::Options { name, seconds, rounds, binaries, iptables };
    let outcome = runtime.block_on(async {
        process::end_leftovers(&left.still_running(&state::boot())).await;
        network::remove_leftovers(&left.namespaces)?;
        plan::play(options, state, server).await
    });
    runtime.shutdown_background();
    let outcome = outcome?;
    if let Some(file) = &report {
        let written = std::fs::write(file, &outcome.table);
        written.with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut out = std::io::stdout().lock();
    out.write_all(outcome.table.as_bytes()).and_then(|()| out.flush()).context("cannot print")?;
    if outcome.faults.is_empty() {
        return Ok(());
    }
    for fault in outcome.faults.iter().take(MOST_FAULTS) {
        progress(fault);
    }
    bail!("{} faults", outcome.faults.len());
}

/// How many faults are printed; the table has their number.
const MOST_FAULTS: usize = 40;

/// Prints a line of progress.
fn progress(line: &str) {
    // If standard error is closed, nobody wants to see the progress.
    let _ = writeln!(std::io::stderr(), "{line}");
}
