//! Command line in the style of Go's flag package: `-config=F`, `-config F`, `--config=F` and
//! `--config F` are equivalent.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};

use super::about::{self, About, Flag};

/// Command-line options of one program, in addition to the common ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    /// Its own flags.
    pub(crate) flags: &'static [Flag],
    /// Flags of its tasks.
    pub(crate) tasks: Vec<Flag>,
    /// Its subcommands, for the help text.
    pub(crate) commands: &'static [about::Command],
    /// The service has persistent state that can be backed up.
    pub(crate) keeps: bool,
}

/// What to do with the configuration, once it is valid.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Serve with these flags.
    Run(Vec<Flag>),
    /// Report that it is valid.
    Check,
    /// Back up the persistent state of the configuration's process to this file.
    Backup(PathBuf),
    /// Run this task instead of serving.
    Task(Flag),
}

const CHECK: &str = "check-config";
const BACKUP: &str = "backup-to";
const EXTRA: &str = "extra";

/// Parses the arguments; the first is the program.
///
/// # Errors
/// clap's own: help, the version, or a wrong flag with the usage.
pub(crate) fn parse(
    about: &About,
    own: &Own,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Option<(PathBuf, Request)>, clap::Error> {
    let mut matches = command(about, own).try_get_matches_from(double_dashes(arguments))?;
    let check = matches.get_flag(CHECK);
    let backup = matches.try_remove_one::<OsString>(BACKUP).ok().flatten().map(PathBuf::from);
    let flags = own.flags.iter().filter(|flag| matches.get_flag(flag.name)).copied().collect();
    let task = own.tasks.iter().find(|task| matches.get_flag(task.name)).copied();
    let path = matches.remove_one::<OsString>(about.config_flag);
    let request = match (backup, task) {
        _ if check => Request::Check,
        (Some(to), _) => Request::Backup(to),
        (None, Some(task)) => Request::Task(task),
        (None, None) => Request::Run(flags),
    };
    Ok(path.filter(|path| !path.is_empty()).map(|path| (path.into(), request)))
}

fn command(about: &About, own: &Own) -> Command {
    let flag = |flag: &Flag| {
        Arg::new(flag.name).long(flag.name).action(ArgAction::SetTrue).help(flag.help)
    };
    let backup = || {
        Arg::new(BACKUP)
            .long(BACKUP)
            .value_name("FILE")
            .value_parser(clap::builder::OsStringValueParser::new())
            .help("Copy the configured SQLite database to FILE, also while it is in use, and exit")
    };
    Command::new(about.name)
        .bin_name(about.name)
        .about(about.summary)
        .version(about.version)
        .args_override_self(true)
        .arg(
            Arg::new(about.config_flag)
                .long(about.config_flag)
                .value_name("FILE")
                .value_parser(clap::value_parser!(OsString))
                .help("Configuration file (JSON)"),
        )
        .arg(
            Arg::new(CHECK)
                .long(CHECK)
                .action(ArgAction::SetTrue)
                .help("Check the configuration file, print all problems, and exit"),
        )
        .args(own.flags.iter().chain(&own.tasks).map(flag))
        .args(own.keeps.then(backup))
        .arg(
            // The originals ignore arguments after their flags.
            Arg::new(EXTRA).hide(true).num_args(0..).value_parser(clap::value_parser!(OsString)),
        )
        .after_help(after_help(own.commands))
}

fn after_help(commands: &[about::Command]) -> String {
    let flags = "Flags take one dash or two. A value follows after a space or an equals sign.";
    let mut text = String::new();
    if !commands.is_empty() {
        text.push_str("Commands (COMMAND --help for details):\n");
        for command in commands {
            text.push_str(&format!("  {}  {}\n", command.name, command.summary));
        }
        text.push('\n');
    }
    text + flags
}

/// Adds the second dash to single-dash flags in all arguments but the first, which is the program.
pub(crate) fn double_dashes(
    arguments: impl IntoIterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next();
    program.into_iter().chain(arguments.map(double_dash))
}

/// Adds the second dash to a single-dash long flag.
fn double_dash(argument: OsString) -> OsString {
    let bytes = argument.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'=');
    let name = &bytes[..end.unwrap_or(bytes.len())];
    let single = name.len() > 2 && name[0] == b'-' && name[1] != b'-';
    if !single {
        return argument;
    }
    let mut doubled = b"-".to_vec();
    doubled.extend_from_slice(bytes);
    OsString::from_vec(doubled)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::super::about::ConfigError;
    use super::*;

    const ABOUT: About = About {
        name: "lock-server",
        summary: "A lock service",
        version: "1.2.3",
        config_flag: "config",
        config_error: ConfigError { exit: 2, prefix: "invalid-config-file" },
    };

    const ONCE: Flag = Flag { name: "once", help: "One pass", prints: false };
    const OWN: Own = Own {
        flags: &[ONCE],
        tasks: Vec::new(),
        commands: &[about::Command {
            name: "render",
            summary: "Print the rules",
            run: |_| std::process::ExitCode::SUCCESS,
        }],
        keeps: false,
    };

    fn run(path: impl Into<PathBuf>) -> Option<(PathBuf, Request)> {
        Some((path.into(), Request::Run(Vec::new())))
    }

    fn parsed(arguments: &[&str]) -> Result<Option<(PathBuf, Request)>, clap::Error> {
        let all = ["lock-server"].iter().chain(arguments);
        parse(&ABOUT, &OWN, all.map(OsString::from))
    }

    #[test]
    fn the_config_flag_has_all_forms_of_go() {
        let ways: [&[&str]; 8] = [
            &["-config=/a/b.json"],
            &["-config", "/a/b.json"],
            &["--config=/a/b.json"],
            &["--config", "/a/b.json"],
            &["--config=other", "-config=/a/b.json"],
            &["extra", "-config=/a/b.json", "words"],
            &["-config=/a/b.json", "--", "-x"],
            &["-config=/a/b.json", "-"],
        ];
        for way in ways {
            let request = parsed(way).expect("a known flag");
            assert_eq!(request, run("/a/b.json"), "{way:?}");
        }
        let request = parsed(&["-config=a=b.json"]).expect("a known flag");
        assert_eq!(request, run("a=b.json"));
    }

    #[test]
    fn a_path_need_not_be_text() {
        let path = OsString::from_vec(b"/a/\xff.json".to_vec());
        let mut argument = OsString::from("-config=");
        argument.push(&path);
        let request = parse(&ABOUT, &OWN, ["lock-server".into(), argument]).expect("a known flag");
        assert_eq!(request, run(path));
    }

    #[test]
    fn checking_needs_a_configuration_too() {
        let request = parsed(&["-check-config", "-config=a"]).expect("known flags");
        assert_eq!(request, Some(("a".into(), Request::Check)));
        for nothing in [&["--check-config"][..], &[], &["-config="]] {
            assert_eq!(parsed(nothing).expect("known flags"), None);
        }
    }

    #[test]
    fn a_service_has_flags_of_its_own() {
        let request = parsed(&["-once", "-config=a"]).expect("known flags");
        assert_eq!(request, Some(("a".into(), Request::Run(vec![ONCE]))));
        let without = parse(&ABOUT, &Own::default(), ["x", "--once"].map(OsString::from));
        without.expect_err("another service's flag");
    }

    #[test]
    fn only_a_service_with_state_has_a_backup_flag() {
        let arguments = ["lock-server", "-config=a", "-backup-to=b"].map(OsString::from);
        let own = |keeps| Own { keeps, ..Own::default() };
        let request = parse(&ABOUT, &own(true), arguments.clone()).expect("known flags");
        assert_eq!(request, Some(("a".into(), Request::Backup("b".into()))));
        let error = parse(&ABOUT, &own(false), arguments).expect_err("there is no such flag");
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
    }

    #[test]
    fn help_and_version_are_printed() {
        for help in ["-h", "-help", "--help"] {
            let error = parsed(&[help]).expect_err(help);
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::DisplayHelp, 0));
            let text = error.to_string();
            assert!(text.contains("--config <FILE>") && text.contains("A lock service"), "{text}");
            assert!(!text.contains("extra"), "{text}");
            assert!(text.contains("--once") && text.contains("render  Print the rules"), "{text}");
        }
        for version in ["-version", "--version"] {
            let error = parsed(&[version]).expect_err(version);
            assert_eq!(error.to_string(), "lock-server 1.2.3\n");
        }
    }

    #[test]
    fn an_unknown_flag_is_an_error_with_the_usage() {
        for unknown in [&["-confg=a"][..], &["--verbose"], &["-x"], &["-config"]] {
            let error = parsed(unknown).expect_err("unknown");
            assert_eq!(error.exit_code(), 2, "{unknown:?}");
            assert!(error.use_stderr(), "{unknown:?}");
        }
        assert!(parsed(&["-x"]).expect_err("unknown").to_string().contains("Usage: lock-server"));
    }
}
