//! `portcullisctl`, the command line for operators. Queries the lock server and the policy store
//! over mutual TLS, and a cell's agent over its Unix socket, and prints a table or, with `--json`,
//! one JSON object per line (docs/portcullisctl.md).
//!
//! [`cli::Cli`] is the command line, [`run`] executes it.
//!
//! Not in this crate: decisions and texts of the servers, which come from
//! [`lock_server`](../lock_server/index.html), [`policy_store`](../policy_store/index.html) and
//! [`cell_agent`](../cell_agent/index.html) over the contracts in [`proto`].

mod cell;
pub mod cli;
mod connect;
mod context;
mod escape;
mod explain;
mod field;
mod groups;
mod locks;
mod natural;
mod reach;
mod report;
mod store;
pub mod target;

use std::process::ExitCode;

use cli::{Cli, Command};
use report::Report;

/// Exit status if a requested space has no group.
const NO_SUCH_SPACE: u8 = 3;

/// Runs one command; errors go to stderr as one line, exit 1.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    runtime::tls::install_provider();
    let json = cli.json;
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(execute(cli)));
    match done {
        Ok(code) => code,
        Err(error) => {
            report::complain(&error, json);
            ExitCode::FAILURE
        }
    }
}

async fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { flags, json, command } = cli;
    let connection = connect::Connection::new(&flags)?;
    let print = |report: Report| report.print(json);
    match command {
        Command::Locks { presences } => print(locks::list(&connection, presences).await?)?,
        Command::WatchLocks { lock } => locks::watch(&connection, lock, json).await?,
        Command::Status => print(store::status(&connection).await?)?,
        Command::Cells => print(store::cells(&connection).await?)?,
        Command::Groups { name, spaces } => {
            let found = groups::groups(&connection, name, spaces).await?;
            found.reports.into_iter().try_for_each(print)?;
            if !found.spaces_known {
                return Ok(NO_SUCH_SPACE.into());
            }
        }
        Command::Containers => print(cell::containers(&connection).await?)?,
        Command::Rules { handle } => print(cell::rules(&connection, handle).await?)?,
        Command::Explain { space, staging, to, handle, protocol, destination, exit_code } => {
            let (report, code) = match (space.zip(to), handle.zip(protocol).zip(destination)) {
                (Some((space, to)), _) => reach::explain(&connection, space, staging, to).await?,
                (None, Some(((handle, protocol), destination))) => {
                    explain::explain(&connection, handle, protocol, &destination).await?
                }
                (None, None) => unreachable!("clap requires the one or the other"),
            };
            print(report)?;
            if exit_code {
                return Ok(code.into());
            }
        }
        Command::WhoCanReach { to } => print(reach::who_can_reach(&connection, to).await?)?,
        Command::Reconcile => print(cell::reconcile(&connection).await?)?,
        Command::Cell => print(cell::status(&connection).await?)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Field;

    fn documented<T>(command: &str, fields: &[Field<T>]) {
        let text = include_str!("../../docs/portcullisctl.md");
        let section = text.split("\n## ").find(|section| section.starts_with(command));
        let section = section.unwrap_or_else(|| panic!("no section for {command}"));
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let rows = rows.map(|row| row.split('|').take(3).collect::<Vec<_>>().join("|") + "|");
        let expected = fields.iter().map(Field::documented);
        let expected = expected.map(|(key, kind)| format!("| `{key}` | {kind} |"));
        assert_eq!(rows.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{command}");
    }

    #[test]
    fn every_field_is_documented_with_its_type() {
        documented("locks", locks::LOCKS);
        documented("watch-locks", locks::EVENTS);
        documented("status", store::STATUS);
        documented("cells", store::CELLS);
        documented("groups\n", groups::GROUPS);
        documented("groups NAME, rules", cell::RULES);
        documented("containers", cell::CONTAINERS);
        documented("explain\n", explain::EXPLAINED);
        documented("explain --space", reach::EXPLAINED);
        documented("who-can-reach", reach::REACHING);
        documented("reconcile", cell::RECONCILED);
        documented("cell\n", cell::AGENT);
    }
}
