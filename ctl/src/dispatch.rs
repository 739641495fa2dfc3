//! Executes a command: one arm for each.

use std::process::ExitCode;

use proto::{models::TypeCode, policy_v1::ContainersRequest};

use crate::{
    cell, cells, changes, claim,
    cli::{
        Cli, Command, ContainerSelection, ContextCommand, Describe, Explain, Get, GroupSelection,
        LockCommand, PresenceCommand, Watch,
    },
    complete,
    confirm::confirm,
    connect::Connection,
    containers,
    context::{self, CloudController},
    denied, describe, diff, doctor,
    everywhere::{self, Subject},
    explain,
    flags::Flags,
    freeze, groups, history, locks,
    output::Output,
    reach,
    report::{self, Report},
    rollout::{self, RolloutCommand},
    store, sync, top, unused, version, watching, what_if,
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
    let Some(command) = offline(&flags, command, output).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let connection = &Connection::new(&flags)?;
    match command {
        Command::Top { interval, once } => {
            return top::run(connection, interval, once, output.color).await;
        }
        Command::Watch(Watch::Locks(which)) | Command::WatchLocks(which) => {
            locks::watch(connection, which.lock, output).await?;
        }
        Command::Watch(Watch::Changes) => changes::watch(connection, output).await?,
        Command::Watch(Watch::Cells) => watching::cells(connection, output).await?,
        Command::Denied(selection) if selection.follow => {
            denied::follow(connection, &selection, output).await?;
        }
        command => {
            let (reports, code) = judged(connection, command).await?;
            reports.iter().try_for_each(|report| report.print(output))?;
            return Ok(code.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Executes a command; returns its reports and the exit status.
async fn judged(connection: &Connection, command: Command) -> anyhow::Result<(Vec<Report>, u8)> {
    let (report, code) = match command {
        Command::Explain(question) => explain(connection, question).await?,
        Command::WhatIf(change) => {
            let (report, changes) = what_if::what_if(connection, &change).await?;
            (report, if changes { CHANGES } else { 0 })
        }
        Command::Diff { cc_url, cc_ca } => {
            let url = cc_url.filter(|url| !url.is_empty());
            let (report, any) = diff::diff(connection, CloudController { url, ca: cc_ca }).await?;
            (report, if any { DIFFERENT } else { 0 })
        }
        Command::Unused(what) => {
            let (reports, complete) = unused::list(connection, what).await?;
            return Ok((reports, if complete { 0 } else { INCOMPLETE }));
        }
        Command::Doctor => {
            let (report, failed) = doctor::run(connection).await?;
            (report, u8::from(failed))
        }
        Command::Get(Get::Groups(selection)) => return groups(connection, None, selection).await,
        Command::Groups { name, selection } => return groups(connection, name, selection).await,
        command => (answer(connection, command).await?, 0),
    };
    Ok((vec![report], code))
}

/// Executes a command that succeeds with one report.
async fn answer(connection: &Connection, command: Command) -> anyhow::Result<Report> {
    match command {
        Command::Get(what) => get(connection, what).await,
        Command::Describe(what) => describe(connection, what).await,
        Command::WhoCanReach { to } => reach::who_can_reach(connection, to).await,
        Command::Denied(selection) => denied::list(connection, &selection).await,
        Command::Trace { change } => changes::trace(connection, &change).await,
        Command::History(what) => history(connection, what).await,
        Command::Status => store::status(connection).await,
        Command::Containers => cell::containers(connection).await,
        Command::Rules { handle } => cell::rules(connection, handle).await,
        Command::Cell => cell::status(connection).await,
        Command::Locks { presences } => locks::list(connection, presences).await,
        Command::Cells => cells::list(connection).await,
        Command::Lock(LockCommand::Claim(what)) => {
            claim::claim(connection, what, TypeCode::Lock).await
        }
        Command::Presence(PresenceCommand::Claim(what)) => {
            claim::claim(connection, what, TypeCode::Presence).await
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
        Command::Reconcile { cell: None, .. } => cell::reconcile(connection).await,
        Command::Freeze(what) => freeze::freeze(connection, what).await,
        Command::Unfreeze(what) => freeze::unfreeze(connection, what).await,
        Command::Rollout(RolloutCommand::Status) => {
            Ok(rollout::report(store::fetch_status(connection).await?))
        }
        Command::Rollout(RolloutCommand::Finish(what)) => rollout::finish(connection, what).await,
        Command::Context(_)
        | Command::Completion { .. }
        | Command::Complete { .. }
        | Command::Version
        | Command::Top { .. }
        | Command::Watch(_)
        | Command::WatchLocks(_)
        | Command::Explain(_)
        | Command::WhatIf(_)
        | Command::Diff { .. }
        | Command::Unused(_)
        | Command::Doctor
        | Command::Groups { .. } => unreachable!("executed before"),
    }
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

async fn get(connection: &Connection, what: Get) -> anyhow::Result<Report> {
    match what {
        Get::Locks => locks::list(connection, false).await,
        Get::Presences => locks::list(connection, true).await,
        Get::Cells => cells::list(connection).await,
        Get::Containers(ContainerSelection { handle, app, space, cell, address }) => {
            let selection = ContainersRequest {
                cell_id: cell.unwrap_or_default(),
                app_guid: app.unwrap_or_default(),
                space_guid: space.unwrap_or_default(),
                handle: handle.unwrap_or_default(),
                address: address.unwrap_or_default(),
                ..ContainersRequest::default()
            };
            containers::list(connection, &selection).await
        }
        Get::Changes { last, group } => changes::list(connection, last, group).await,
        Get::Groups(_) => unreachable!("executed before"),
    }
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

async fn groups(
    connection: &Connection,
    name: Option<String>,
    selection: GroupSelection,
) -> anyhow::Result<(Vec<Report>, u8)> {
    let found = groups::groups(connection, name, selection.spaces).await?;
    Ok((found.reports, if found.spaces_known { 0 } else { NO_SUCH_SPACE }))
}

async fn explain(connection: &Connection, question: Explain) -> anyhow::Result<(Report, u8)> {
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
    Ok((report, if exit_code { code } else { 0 }))
}
