//! Executes a command: one arm for each.

use std::process::ExitCode;

use proto::{models::TypeCode, policy_v1::ContainersRequest};

use crate::{
    cell, cells, changes,
    claim::{self, Wanted},
    cli::{
        Claim, Cli, Command, ContainerSelection, ContextCommand, DeniedSelection, Describe,
        Explain, Get, GroupSelection, LockCommand, PresenceCommand, Watch,
    },
    complete,
    confirm::confirm,
    connect::Connection,
    containers, context, denied, describe,
    diff::{self, CloudController},
    doctor,
    everywhere::{self, Subject},
    explain,
    flags::Flags,
    freeze, groups, history, locks,
    output::Output,
    reach,
    report::{self, Report},
    rollout::{self, RolloutCommand},
    store, sync, top, unused, version, watching,
    what_if::{self, Asked},
};

/// Exit status if `diff` finds differences.
const DIFFERENT: u8 = 3;
/// Exit status if `what-if` finds that a change opens or closes connections.
const CHANGES: u8 = 2;
/// Exit status if `unused` does not know all uses of the period.
const INCOMPLETE: u8 = 3;
/// Exit status if a requested space has no group.
const NO_SUCH_SPACE: u8 = 3;

pub(crate) async fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { flags, output, command } = cli;
    let output = &Output::new(&output);
    let command = match offline(&flags, command, output).await? {
        Some(command) => command,
        None => return Ok(ExitCode::SUCCESS),
    };
    let connection = &Connection::new(&flags)?;
    let print = |report: Report| report.print(output);
    match command {
        Command::Get(what) => return get(connection, what, output).await,
        Command::Describe(what) => print(describe(connection, what).await?)?,
        Command::Explain(question) => return explain(connection, question, output).await,
        Command::WhoCanReach { to } => print(reach::who_can_reach(connection, to).await?)?,
        Command::Denied(selection) => return denied(connection, selection, output).await,
        Command::WhatIf(change) => {
            let (report, changes) = what_if::what_if(connection, &Asked(change)).await?;
            print(report)?;
            return Ok(if changes { CHANGES.into() } else { ExitCode::SUCCESS });
        }
        Command::Trace { change } => print(changes::trace(connection, &change).await?)?,
        Command::Watch(what) => watch(connection, what, output).await?,
        Command::Diff { cc_url, cc_ca } => {
            let url = cc_url.filter(|url| !url.is_empty());
            let (report, any) = diff::diff(connection, CloudController { url, ca: cc_ca }).await?;
            print(report)?;
            return Ok(if any { DIFFERENT.into() } else { ExitCode::SUCCESS });
        }
        Command::Unused(what) => {
            let (reports, complete) = unused::list(connection, what).await?;
            reports.iter().try_for_each(|report| report.print(output))?;
            return Ok(if complete { ExitCode::SUCCESS } else { INCOMPLETE.into() });
        }
        Command::History(what) => print(history(connection, what).await?)?,
        Command::Doctor => {
            let (report, failed) = doctor::run(connection).await?;
            print(report)?;
            return Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        Command::Lock(_)
        | Command::Presence(_)
        | Command::Sync { .. }
        | Command::Freeze(_)
        | Command::Unfreeze(_)
        | Command::Rollout(_) => {
            print(act(connection, command).await?)?;
        }
        Command::Reconcile { .. } => print(act(connection, command).await?)?,
        Command::Context(_)
        | Command::Completion { .. }
        | Command::Complete { .. }
        | Command::Version => {
            unreachable!("offline has executed these")
        }
        Command::Status => print(store::status(connection).await?)?,
        Command::Containers => print(cell::containers(connection).await?)?,
        Command::Rules { handle } => print(cell::rules(connection, handle).await?)?,
        Command::Top { interval, once } => {
            return top::run(connection, interval, once, output.color).await;
        }
        Command::Cell => print(cell::status(connection).await?)?,
        Command::WatchLocks(which) => locks::watch(connection, which.lock, output).await?,
        Command::Locks { presences } => print(locks::list(connection, presences).await?)?,
        Command::Cells => print(cells::list(connection).await?)?,
        Command::Groups { name, selection } => {
            return list_groups(connection, name, selection, output).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Executes commands that need no connection, even with an invalid context. Returns any
/// other command.
async fn offline(
    flags: &Flags,
    command: Command,
    output: &Output,
) -> anyhow::Result<Option<Command>> {
    match command {
        Command::Context(ContextCommand::Use { name }) => context::switch(&name)?.print(output)?,
        Command::Context(ContextCommand::List) => context::list()?.print(output)?,
        Command::Context(ContextCommand::Show { name }) => {
            context::show(name.as_deref())?.print(output)?;
        }
        Command::Context(ContextCommand::Add { name, file }) => {
            context::add(&name, &file)?.print(output)?;
        }
        Command::Completion { shell } => report::text(complete::script(shell))?,
        Command::Complete { words } => {
            let lines = complete::candidates(flags, &words).await;
            report::text(&lines.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        }
        Command::Version => version::version().print(output)?,
        other => return Ok(Some(other)),
    }
    Ok(None)
}

/// Executes commands that change something.
async fn act(connection: &Connection, command: Command) -> anyhow::Result<Report> {
    match command {
        Command::Lock(LockCommand::Claim(what)) => claim(connection, what, TypeCode::Lock).await,
        Command::Presence(PresenceCommand::Claim(what)) => {
            claim(connection, what, TypeCode::Presence).await
        }
        Command::Lock(LockCommand::Release { lock, owner, yes }) => {
            claim::release(connection, lock, owner, yes).await
        }
        Command::Sync { syncer_admin, accept_removal } => {
            sync::sync(connection, &syncer_admin, accept_removal).await
        }
        Command::Reconcile { cell: Some(cell), yes } => {
            let question = format!("Compare and repair the kernel's rules on the cell {cell}?");
            confirm(&question, yes)?;
            cell::reconcile_on(connection, &cell).await
        }
        Command::Freeze(what) => freeze::freeze(connection, what).await,
        Command::Unfreeze(what) => freeze::unfreeze(connection, what).await,
        Command::Rollout(RolloutCommand::Status) => {
            Ok(rollout::report(store::fetch_status(connection).await?))
        }
        Command::Rollout(RolloutCommand::Finish(what)) => rollout::finish(connection, what).await,
        Command::Reconcile { cell: None, .. } => cell::reconcile(connection).await,
        _ => unreachable!("no other command changes anything"),
    }
}

async fn claim(connection: &Connection, what: Claim, code: TypeCode) -> anyhow::Result<Report> {
    let Claim { claimed, owner, value, ttl, yes } = what;
    claim::claim(connection, Wanted { key: claimed, owner, value, ttl, code }, yes).await
}

async fn get(connection: &Connection, what: Get, output: &Output) -> anyhow::Result<ExitCode> {
    let report = match what {
        Get::Locks => locks::list(connection, false).await?,
        Get::Presences => locks::list(connection, true).await?,
        Get::Groups(selection) => return list_groups(connection, None, selection, output).await,
        Get::Cells => cells::list(connection).await?,
        Get::Containers(ContainerSelection { handle, app, space, cell, address }) => {
            let selection = ContainersRequest {
                cell_id: cell.unwrap_or_default(),
                app_guid: app.unwrap_or_default(),
                space_guid: space.unwrap_or_default(),
                handle: handle.unwrap_or_default(),
                address: address.unwrap_or_default(),
                ..ContainersRequest::default()
            };
            containers::list(connection, &selection).await?
        }
        Get::Changes { last, group } => changes::list(connection, last, group).await?,
    };
    report.print(output)?;
    Ok(ExitCode::SUCCESS)
}

async fn history(connection: &Connection, what: history::History) -> anyhow::Result<Report> {
    let history::History { group, since, last, command } = what;
    match command {
        None => {
            let last = usize::try_from(last).unwrap_or(usize::MAX);
            history::list(connection, group, since, last).await
        }
        Some(history::HistoryCommand::Show { generation }) => {
            history::show(connection, generation).await
        }
        Some(history::HistoryCommand::Diff { from, to }) => {
            history::diff(connection, from, to).await
        }
    }
}

async fn describe(connection: &Connection, what: Describe) -> anyhow::Result<Report> {
    match what {
        Describe::Group { name } => groups::describe(connection, &name).await,
        Describe::Cell { name } => describe::cell(connection, &name).await,
        Describe::Container { handle } => describe::container(connection, &handle).await,
        Describe::Space { guid } => describe::space(connection, &guid).await,
    }
}

async fn watch(connection: &Connection, what: Watch, output: &Output) -> anyhow::Result<()> {
    match what {
        Watch::Locks(which) => locks::watch(connection, which.lock, output).await,
        Watch::Changes => changes::watch(connection, output).await,
        Watch::Cells => watching::cells(connection, output).await,
    }
}

async fn denied(
    connection: &Connection,
    selection: DeniedSelection,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let DeniedSelection { app, space, container, cell, since, follow } = selection;
    let wanted = denied::Selection { app, space, container, cell, since };
    match follow {
        true => denied::follow(connection, &wanted, output).await?,
        false => denied::list(connection, &wanted).await?.print(output)?,
    }
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
    let Explain { app, space, container, staging, to, handle, protocol, destination, exit_code } =
        question;
    let subject = app.map(Subject::App).or(space.map(Subject::Space));
    let subject = subject.or(container.map(Subject::Container));
    let (report, code) = match (subject.zip(to), handle.zip(protocol).zip(destination)) {
        (Some((subject, to)), _) => everywhere::explain(connection, &subject, staging, to).await?,
        (None, Some(((handle, protocol), destination))) => {
            explain::explain(connection, handle, protocol, &destination).await?
        }
        (None, None) => unreachable!("clap requires the one or the other"),
    };
    report.print(output)?;
    Ok(if exit_code { code.into() } else { ExitCode::SUCCESS })
}
