//! `cell-agent render`: prints the table that the agent would apply, from files,
//! without a cell, a kernel or root.
//!
//! - Uses the agent's own steps (read, plan, render); no logic of its own.
//! - Rules that the agent would isolate are left out and reported on standard error,
//!   and are no failure. A file that cannot be read at all is one.
//! - Equal files give equal text.

mod config;
mod groups;
mod print;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, ValueEnum};
use runtime::process::Command;

use crate::{
    containers::Snapshot,
    explain::why_denied,
    groups::page,
    plan::{Known, Refused, Ruleset, plan},
    plane::{iptables::chains::Family, nftables},
    underlay,
};
use config::Config;

/// The subcommand.
pub const RENDER: Command =
    Command { name: "render", summary: "Print the table for given files, without root", run };

/// Print the table that the agent would apply for these files
#[derive(Debug, Parser)]
#[command(name = "render", bin_name = "cell-agent render", after_help = FORMATS)]
struct Arguments {
    /// Data plane [default: that of the configuration]
    #[arg(long, value_enum)]
    plane: Option<PlaneName>,
    /// Configuration of the agent (JSON); only keys that affect rules are read, and all of
    /// them have defaults
    #[arg(long, value_name = "FILE")]
    config_file: PathBuf,
    /// Container metadata store, in the format of the CNI plugin
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// Security groups: a response of policy-server-internal with the list
    /// `security_groups`, or the bare list; `rules` is a list, or a string that contains
    /// JSON. Repeatable, once per page
    #[arg(long, value_name = "FILE", required = true)]
    security_groups: Vec<PathBuf>,
    /// Output format of iptables rules
    #[arg(long, value_enum, default_value = "save")]
    format: Format,
    /// Print all containers in this family only, as on a cell where the CNI plugin creates
    /// chains for both [default: each container in the family of its address]
    #[arg(long, value_enum)]
    family: Option<FamilyName>,
    /// Interface through which packets leave, nftables only; repeatable [default: interfaces of
    /// this machine with an address of `underlay_ips`]
    #[arg(long, value_name = "NAME")]
    underlay_interface: Vec<String>,
}

const FORMATS: &str = "\
iptables: the chains `asg-...` and their parents `netout-...`, as iptables prints them. \
`save` is the format of iptables-save, which iptables-restore --noflush accepts if the \
CNI plugin's chains exist; `rules` is the format of iptables -S. \
The chains are sorted by name. IPv6 follows after a line `# ip6tables`.
nftables: input for nft -f.
Rules and containers that cannot be enforced are left out and reported on standard error.
Exit code: 0 success, 1 if a file cannot be used, 2 invalid command line.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlaneName {
    Nftables,
    Iptables,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Format of iptables-save
    Save,
    /// Format of iptables -S
    Rules,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FamilyName {
    Ipv4,
    Ipv6,
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Self {
        match name {
            FamilyName::Ipv4 => Self::V4,
            FamilyName::Ipv6 => Self::V6,
        }
    }
}

/// Messages for standard error.
#[derive(Debug, Default)]
struct Notes(Vec<String>);

impl Notes {
    fn of(&mut self, path: &Path, problem: impl std::fmt::Display) {
        self.0.push(format!("{}: {problem}", path.display()));
    }
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _closed = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let mut notes = Notes::default();
    let table = table(&arguments, &mut notes);
    let mut stderr = io::stderr().lock();
    for note in notes.0.iter().chain(table.as_ref().err().into_iter().flatten()) {
        let _closed = writeln!(stderr, "cell-agent render: {note}");
    }
    let Ok(table) = table else { return ExitCode::FAILURE };
    match io::stdout().lock().write_all(table.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _closed = writeln!(stderr, "cell-agent render: standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The rendered text, or the errors of the files.
fn table(arguments: &Arguments, notes: &mut Notes) -> Result<String, Vec<String>> {
    let path = &arguments.config_file;
    let config = runtime::config::load::<Config>(path);
    let Config { mut settings, underlay, plane, enabled } =
        config.map_err(|error| error.lines().collect::<Vec<_>>())?.config;
    let plane = arguments.plane.unwrap_or(plane);
    settings.by_address = plane == PlaneName::Nftables;
    if plane == PlaneName::Nftables {
        settings.underlay = match arguments.underlay_interface.as_slice() {
            [] => underlay::interfaces(&underlay).unwrap_or_else(|error| {
                let problem = "packets that leave by any interface are decided";
                notes.of(path, format_args!("underlay_ips: {error:#}; {problem}"));
                Vec::new()
            }),
            named => named.to_vec(),
        };
    }
    let settings = Arc::new(settings);
    let snapshot = snapshot(&arguments.store, notes).map_err(|problem| vec![problem])?;
    let known = known(&arguments.security_groups, &snapshot, notes).map_err(|p| vec![p])?;
    let ruleset = match enabled {
        true => plan(&settings, &snapshot, &known, &Refused::default()),
        false => Ruleset::empty(settings),
    };
    if !enabled {
        notes.of(path, "enable_asg_syncing is false: nothing is enforced");
    }
    tell_isolated(&ruleset, &known, &arguments.store, notes);
    Ok(match plane {
        PlaneName::Nftables if !enabled => String::new(),
        PlaneName::Nftables => {
            let table = nftables::render::render(&ruleset, "");
            table.block() + &table.elements()
        }
        PlaneName::Iptables => {
            let family = arguments.family.map(Family::from);
            let (text, waiting) = print::iptables(&ruleset, family, arguments.format);
            for (handle, reason) in waiting {
                notes.of(&arguments.store, format_args!("container {handle}: {reason}"));
            }
            text
        }
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))
}

fn snapshot(path: &Path, notes: &mut Notes) -> Result<Snapshot, String> {
    let snapshot = Snapshot::parse(&read(path)?);
    let snapshot = snapshot.map_err(|problem| format!("{}: {problem}", path.display()))?;
    for problem in &snapshot.problems {
        notes.of(path, problem);
    }
    Ok(snapshot)
}

/// The groups of all pages, as if the source had sent the groups of every space that
/// has a container.
fn known(paths: &[PathBuf], snapshot: &Snapshot, notes: &mut Notes) -> Result<Known, String> {
    let mut entries = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        let page = groups::read(&read(path)?);
        let page = page.map_err(|problem| format!("{}: {problem}", path.display()))?;
        if page.next != 0 && index + 1 == paths.len() {
            notes.of(path, format_args!("next: {}: there is another page", page.next));
        }
        entries.extend(page.groups);
    }
    let (groups, problems) = page::collect(entries, &page::Groups::new());
    let last = paths.last().map_or(Path::new(""), PathBuf::as_path);
    problems.iter().for_each(|problem| notes.of(last, problem));
    let belongs =
        snapshot.containers.values().filter_map(|container| container.belongs.as_ref().ok());
    let spaces = belongs.map(|belongs| belongs.space.clone()).collect();
    Ok(Known { spaces, groups, ..Known::default() })
}

/// Reports rules and containers that the agent would leave out.
fn tell_isolated(ruleset: &Ruleset, known: &Known, store: &Path, notes: &mut Notes) {
    let isolated = ruleset.policies.values().flat_map(|policy| &policy.rules.isolated);
    let sentence = |(problem, at): &(_, model::effective::Source)| {
        let name = known.groups.get(&at.group).map(|read| read.stored.group.name.as_str());
        let name = name.unwrap_or_default();
        format!("group {:?} ({name}): rule {}: {problem}", at.group, at.rule)
    };
    let sentences: BTreeSet<String> = isolated.map(sentence).collect();
    notes.0.extend(sentences);
    for (handle, planned) in &ruleset.containers {
        let reason = why_denied(&planned.assignment);
        if !reason.is_empty() {
            notes.of(store, format_args!("container {handle}: denied: {reason}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_its_help_says_the_formats() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_long_help().to_string();
        for word in ["iptables-save", "iptables -S", "nft -f", "--security-groups <FILE>"] {
            assert!(help.contains(word), "{word}: {help}");
        }
    }
}
