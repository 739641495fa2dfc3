//! Completions for shells. A script of a few lines asks the hidden command `__complete`, which
//! knows the commands and flags from their definition, and names from the servers.
//!
//! clap_complete can do so in a module that is not stable, which also needs an unstable feature
//! of clap.

use std::time::Duration;

use clap::{Command, CommandFactory as _, Parser as _};

use crate::{
    cells,
    cli::{Cli, Shell},
    connect::Connection,
    containers, context, escape,
    flags::Flags,
    groups, locks,
};

/// The script that registers completions.
pub(crate) fn script(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!("complete/bash.sh"),
        Shell::Zsh => include_str!("complete/zsh.sh"),
        Shell::Fish => include_str!("complete/fish.fish"),
    }
}

/// Most time for names from servers: a user waits for them.
const PATIENCE: Duration = Duration::from_secs(1);

/// Kinds of names that servers or files have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Groups,
    Cells,
    Containers,
    Apps,
    Spaces,
    Locks,
    Contexts,
}

/// What can stand in place of the last word.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    fixed: Vec<String>,
    names: Option<Names>,
}

/// The candidates for the last of `words`, the words after the program's name.
pub(crate) async fn candidates(flags: &Flags, words: &[String]) -> Vec<String> {
    let last = words.last().map_or("", String::as_str);
    let Wanted { fixed, names } = wanted(&Cli::command(), words);
    let mut found = fixed;
    if let Some(names) = names {
        // Addresses and certificates may be among the words.
        let typed = Cli::try_parse_from(global(&Cli::command(), words)).map(|cli| cli.flags).ok();
        let flags = typed.as_ref().unwrap_or(flags);
        let listed = tokio::time::timeout(PATIENCE, list(flags, names)).await;
        // Without an answer there are no names: an error would be in the user's way.
        found.extend(listed.ok().and_then(Result::ok).unwrap_or_default());
    }
    // A name with other characters could not be typed as it is shown.
    found.retain(|name| name.starts_with(last) && escape::escape(name) == name.as_str());
    found.sort();
    found.dedup();
    found
}

/// A complete command line with the flags of all commands among the words.
fn global(root: &Command, words: &[String]) -> Vec<String> {
    let mut line = vec!["portcullisctl".to_owned()];
    let mut words = words.iter().take(words.len().saturating_sub(1));
    while let Some(word) = words.next() {
        if let Some(flag) = flag(root, root, word) {
            line.push(word.clone());
            if flag.get_action().takes_values() && !word.contains('=') {
                line.extend(words.next().cloned());
            }
        }
    }
    line.push("version".to_owned());
    line
}

async fn list(flags: &Flags, names: Names) -> anyhow::Result<Vec<String>> {
    if names == Names::Contexts {
        return context::names();
    }
    let connection = &Connection::new(flags)?;
    Ok(match names {
        Names::Groups => {
            let groups = groups::fetch(connection, &[]).await?;
            groups.into_iter().map(|group| group.group.name).collect()
        }
        Names::Cells => {
            let cells = cells::fetch(connection, "").await?;
            cells.iter().map(|seen| seen.id().to_owned()).collect()
        }
        Names::Containers | Names::Apps | Names::Spaces => {
            let found = containers::fetch(connection, &Default::default()).await?;
            let containers = found.into_iter().filter_map(|placed| placed.container);
            let name = |container: proto::cell_v1::Container| match names {
                Names::Apps => container.app_guid,
                Names::Spaces => container.space_guid,
                _ => container.handle,
            };
            containers.map(name).collect()
        }
        Names::Locks => {
            let held = locks::fetch_all(connection).await?;
            held.into_iter().map(|held| held.lock.key).collect()
        }
        Names::Contexts => Vec::new(),
    })
}

/// Follows the words through the definition of the commands.
fn wanted(root: &Command, words: &[String]) -> Wanted {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, rest)| (last, rest));
    let mut command = root;
    let mut path: Vec<&str> = Vec::new();
    let mut values = 0;
    let mut open: Option<&clap::Arg> = None;
    for word in before {
        if open.take().is_some() {
            continue;
        }
        if let Some(flag) = flag(root, command, word) {
            let takes = flag.get_action().takes_values() && !word.contains('=');
            open = takes.then_some(flag);
        } else if let Some(found) = command.find_subcommand(word) {
            command = found;
            path.push(found.get_name());
        } else if !word.starts_with('-') {
            values += 1;
        }
    }
    if let Some(flag) = open {
        return of_argument(flag, &path);
    }
    if last.starts_with('-') {
        let flags = root.get_arguments().filter(|flag| flag.is_global_set());
        let flags = flags.chain(command.get_arguments()).filter(|flag| !flag.is_hide_set());
        let names = flags.filter_map(clap::Arg::get_long).map(|name| format!("--{name}"));
        return Wanted { fixed: names.collect(), names: None };
    }
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
    let commands: Vec<String> = commands.map(|command| command.get_name().to_owned()).collect();
    if !commands.is_empty() && values == 0 {
        return Wanted { fixed: commands, names: None };
    }
    match command.get_positionals().nth(values) {
        Some(argument) => of_argument(argument, &path),
        None => Wanted { fixed: Vec::new(), names: None },
    }
}

fn flag<'a>(root: &'a Command, command: &'a Command, word: &str) -> Option<&'a clap::Arg> {
    let name = word.strip_prefix("--").map(|name| name.split('=').next().unwrap_or(name));
    let short = word.strip_prefix('-').filter(|rest| rest.chars().count() == 1);
    let short = short.and_then(|rest| rest.chars().next());
    let mut arguments = command.get_arguments().chain(root.get_arguments());
    arguments.find(|argument| match name {
        Some(name) => argument.get_long() == Some(name),
        None => short.is_some() && argument.get_short() == short,
    })
}

fn of_argument(argument: &clap::Arg, path: &[&str]) -> Wanted {
    let id = argument.get_id().as_str();
    let fixed = match id {
        "output" => ["table", "wide", "json", "yaml", "fields="].map(str::to_owned).to_vec(),
        _ => {
            let values = argument.get_possible_values();
            values.iter().map(|value| value.get_name().to_owned()).collect()
        }
    };
    let names = match (path, id) {
        (_, "app") => Some(Names::Apps),
        (_, "space" | "spaces") | (["describe", "space"], _) => Some(Names::Spaces),
        (_, "cell") | (["describe", "cell"], _) => Some(Names::Cells),
        (_, "context") | (["context", "use" | "show"], _) => Some(Names::Contexts),
        (_, "group" | "change") | (["describe", "group"] | ["groups"], _) => Some(Names::Groups),
        (
            ["describe", "container"] | ["get", "containers"] | ["explain"],
            "handle" | "container",
        ) => Some(Names::Containers),
        (["lock", "release"] | ["watch", "locks"] | ["watch-locks"], "lock") => Some(Names::Locks),
        _ => None,
    };
    Wanted { fixed, names }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str) -> Wanted {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        wanted(&Cli::command(), &words)
    }

    #[test]
    fn commands_flags_and_values_are_completed() {
        let first = ask("").fixed;
        assert!(first.contains(&"get".to_owned()) && first.contains(&"doctor".to_owned()));
        assert!(!first.contains(&"__complete".to_owned()), "{first:?}");
        let kinds = ask("--policy-store a:1 get ").fixed;
        assert!(kinds.contains(&"changes".to_owned()), "{kinds:?}");
        let flags = ask("explain --").fixed;
        for flag in ["--to", "--app", "--policy-store", "--no-headers"] {
            assert!(flags.contains(&flag.to_owned()), "{flag}: {flags:?}");
        }
        assert_eq!(ask("--color ").fixed, ["auto", "always", "never"]);
        assert_eq!(ask("completion ").fixed, ["bash", "zsh", "fish"]);
        assert!(ask("get cells -o ").fixed.contains(&"wide".to_owned()));
    }

    #[test]
    fn flags_among_the_words_count() {
        let words =
            ["--ca", "/ca", "describe", "--policy-store=a:1", "group", "--yes", "--json", "x"];
        let line = global(&Cli::command(), &words.map(str::to_owned));
        assert_eq!(
            line,
            ["portcullisctl", "--ca", "/ca", "--policy-store=a:1", "--json", "version"]
        );
        assert_eq!(Cli::parse_from(line).flags.policy_store.as_deref(), Some("a:1"));
    }

    #[test]
    fn names_come_from_the_servers() {
        for (line, names) in [
            ("describe group ", Names::Groups),
            ("trace w", Names::Groups),
            ("get changes --group ", Names::Groups),
            ("describe cell ", Names::Cells),
            ("reconcile --cell ", Names::Cells),
            ("describe container ", Names::Containers),
            ("explain --container ", Names::Containers),
            ("explain --app ", Names::Apps),
            ("get groups --space ", Names::Spaces),
            ("lock release ", Names::Locks),
            ("watch locks ", Names::Locks),
            ("context use ", Names::Contexts),
            ("--context ", Names::Contexts),
        ] {
            assert_eq!(ask(line).names, Some(names), "{line}");
        }
        for line in ["describe ", "lock claim ", "describe group a ", "get cells -o "] {
            assert_eq!(ask(line).names, None, "{line}");
        }
    }
}
