//! The operator's command line. It asks the lock server and the policy store
//! over mutual TLS, and a cell's agent over its Unix socket, and prints a table
//! or, with `--json`, one JSON object a line.

mod cell;
pub mod cli;
mod connect;
mod explain;
mod locks;
mod report;
mod store;

use std::process::ExitCode;

use cli::{Cli, Command};
use report::Report;

/// Runs one command; errors go to stderr as one line, exit 1.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    runtime::tls::install_provider();
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(execute(cli)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn execute(cli: Cli) -> anyhow::Result<()> {
    let Cli { connection, json, command } = cli;
    let print = |report: Report| report.print(json);
    match command {
        Command::Locks { presences } => print(locks::list(&connection, presences).await?),
        Command::WatchLocks { lock } => locks::watch(&connection, lock, json).await,
        Command::Status => print(store::status(&connection).await?),
        Command::Cells => print(store::cells(&connection).await?),
        Command::Groups { spaces } => print(store::groups(&connection, spaces).await?),
        Command::Containers => print(cell::containers(&connection).await?),
        Command::Rules { handle } => print(cell::rules(&connection, handle).await?),
        Command::Explain { handle, protocol, destination } => {
            print(explain::explain(&connection, handle, protocol, &destination).await?)
        }
        Command::Reconcile => print(cell::reconcile(&connection).await?),
        Command::Cell => print(cell::status(&connection).await?),
    }
}
