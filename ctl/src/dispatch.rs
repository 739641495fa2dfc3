//! Executes a command: one arm for each.

use std::process::ExitCode;

use crate::{
    cell, cells,
    cli::{Cli, Command, Describe, Explain, Get, GroupSelection, Watch},
    connect::Connection,
    explain, groups, locks,
    output::Output,
    reach,
    report::Report,
    store,
};

/// Exit status if a requested space has no group.
const NO_SUCH_SPACE: u8 = 3;

pub(crate) async fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { flags, output, command } = cli;
    let output = &Output::new(&output);
    let connection = &Connection::new(&flags)?;
    let print = |report: Report| report.print(output);
    match command {
        Command::Get(what) => return get(connection, what, output).await,
        Command::Describe(Describe::Group { name }) => {
            print(groups::describe(connection, &name).await?)?;
        }
        Command::Explain(question) => return explain(connection, question, output).await,
        Command::WhoCanReach { to } => print(reach::who_can_reach(connection, to).await?)?,
        Command::Watch(Watch::Locks(which)) | Command::WatchLocks(which) => {
            locks::watch(connection, which.lock, output).await?;
        }
        Command::Status => print(store::status(connection).await?)?,
        Command::Containers => print(cell::containers(connection).await?)?,
        Command::Rules { handle } => print(cell::rules(connection, handle).await?)?,
        Command::Reconcile => print(cell::reconcile(connection).await?)?,
        Command::Cell => print(cell::status(connection).await?)?,
        Command::Locks { presences } => print(locks::list(connection, presences).await?)?,
        Command::Cells => print(cells::list(connection).await?)?,
        Command::Groups { name, selection } => {
            return list_groups(connection, name, selection, output).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn get(connection: &Connection, what: Get, output: &Output) -> anyhow::Result<ExitCode> {
    let report = match what {
        Get::Locks => locks::list(connection, false).await?,
        Get::Presences => locks::list(connection, true).await?,
        Get::Groups(selection) => return list_groups(connection, None, selection, output).await,
        Get::Cells => cells::list(connection).await?,
    };
    report.print(output)?;
    Ok(ExitCode::SUCCESS)
}

async fn list_groups(
    connection: &Connection,
    name: Option<String>,
    selection: GroupSelection,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let found = groups::groups(connection, name, selection.spaces).await?;
    found.reports.iter().try_for_each(|report| report.print(output))?;
    Ok(if found.spaces_known { ExitCode::SUCCESS } else { NO_SUCH_SPACE.into() })
}

async fn explain(
    connection: &Connection,
    question: Explain,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let Explain { space, staging, to, handle, protocol, destination, exit_code } = question;
    let (report, code) = match (space.zip(to), handle.zip(protocol).zip(destination)) {
        (Some((space, to)), _) => reach::explain(connection, space, staging, to).await?,
        (None, Some(((handle, protocol), destination))) => {
            explain::explain(connection, handle, protocol, &destination).await?
        }
        (None, None) => unreachable!("clap requires the one or the other"),
    };
    report.print(output)?;
    Ok(if exit_code { code.into() } else { ExitCode::SUCCESS })
}
