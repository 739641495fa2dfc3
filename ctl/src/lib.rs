//! `portcullisctl`, the command line for operators. Queries the lock server and the policy store
//! over mutual TLS, and a cell's agent over its Unix socket, and prints a table, JSON or YAML
//! (docs/portcullisctl.md).
//!
//! [`cli::Cli`] is the command line, [`run`] executes it, `dispatch` has one arm per command. The
//! fields of a command's result are one list (`field`), from which `report` makes all formats.
//!
//! Not in this crate: decisions and texts of the servers, which come from
//! [`lock_server`](../lock_server/index.html), [`policy_store`](../policy_store/index.html) and
//! [`cell_agent`](../cell_agent/index.html) over the contracts in [`proto`].

mod asking;
pub mod binding;
mod cell;
mod cells;
mod changes;
mod claim;
pub mod cli;
mod complete;
mod confirm;
mod connect;
mod containers;
mod context;
mod data;
mod denied;
mod describe;
mod diff;
mod dispatch;
mod doctor;
mod escape;
mod everywhere;
mod explain;
mod field;
pub mod flags;
mod freeze;
mod groups;
mod history;
mod locks;
mod natural;
pub mod output;
mod reach;
mod refused;
mod removal;
mod report;
mod rollout;
mod store;
mod stores;
mod sync;
pub mod target;
mod text;
mod time_point;
mod top;
mod unused;
mod version;
mod watching;
mod what_if;

use std::process::ExitCode;

use cli::Cli;
use output::Output;

/// Runs one command; errors go to stderr as one line, exit 1.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    runtime::tls::install_provider();
    let json = Output::new(&cli.output).is_json();
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(dispatch::execute(cli)));
    match done {
        Ok(code) => code,
        Err(error) => {
            report::complain(&error, json);
            ExitCode::FAILURE
        }
    }
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
        documented("get locks", locks::LOCKS);
        documented("watch locks", locks::EVENTS);
        documented("status", store::STATUS);
        documented("get cells", cells::CELLS);
        documented("get groups", groups::GROUPS);
        documented("describe group", groups::DESCRIBED);
        documented("groups NAME, rules", cell::RULES);
        documented("containers", cell::CONTAINERS);
        documented("explain\n", explain::EXPLAINED);
        documented("explain --app", everywhere::EXPLAINED);
        documented("Containers of an explanation", everywhere::KERNELS);
        documented("get containers", containers::PLACED);
        documented("get changes", changes::CHANGES);
        documented("trace", changes::TRACED);
        documented("Stages of a change", changes::STAGES);
        documented("Slowest cells of a change", changes::SLOWEST);
        documented("diff", diff::DIFFERENCES);
        documented("unused\n", unused::UNUSED);
        documented("Coverage of the uses", unused::COVERAGE);
        documented("history\n", history::HISTORY);
        documented("history show", history::SHOWN);
        documented("Cells of a generation", history::REACHED);
        documented("history diff", history::DIFFERENCE);
        documented("doctor", doctor::CHECKS);
        documented("lock claim", claim::CLAIMED);
        documented("lock release", claim::RELEASED);
        documented("sync", sync::SYNCED);
        documented("freeze", freeze::RELEASE);
        documented("rollout status", rollout::ROLLOUT);
        documented("context", context::CONTEXTS);
        documented("version", version::VERSION);
        documented("describe cell", describe::CELL_FIELDS);
        documented("describe container", describe::CONTAINER_FIELDS);
        documented("describe space", describe::SPACE_FIELDS);
        documented("Apps of a space", describe::APPS);
        documented("who-can-reach", reach::REACHING);
        documented("denied", denied::DENIED);
        documented("what-if", what_if::ANSWERED);
        documented("Places of a change", what_if::PLACES);
        documented("Areas of a change", what_if::AREAS);
        documented("Remarks on rules", what_if::REMARKS);
        documented("reconcile", cell::RECONCILED);
        documented("cell\n", cell::AGENT);
    }
}
