//! The command line, in the manner of Go's flag package: `-config=F`,
//! `-config F`, `--config=F` and `--config F` are the same.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};

use crate::process::About;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Serve with this configuration.
    Run(PathBuf),
    /// Say whether this configuration is good.
    Check(PathBuf),
    /// No configuration was named.
    NoConfig,
}

const CHECK: &str = "check-config";
const EXTRA: &str = "extra";

/// Parses the arguments, the first of which is the program.
///
/// # Errors
/// clap's own: help, the version, or a wrong flag with the usage.
pub(crate) fn parse(
    about: &About,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Request, clap::Error> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next();
    let arguments = program.into_iter().chain(arguments.map(double_dash));
    let mut matches = command(about).try_get_matches_from(arguments)?;
    let check = matches.get_flag(CHECK);
    let path = matches.remove_one::<OsString>(about.config_flag);
    Ok(match path.filter(|path| !path.is_empty()).map(PathBuf::from) {
        None => Request::NoConfig,
        Some(path) if check => Request::Check(path),
        Some(path) => Request::Run(path),
    })
}

fn command(about: &About) -> Command {
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
                .help("The configuration, a JSON file"),
        )
        .arg(
            Arg::new(CHECK)
                .long(CHECK)
                .action(ArgAction::SetTrue)
                .help("Read the configuration, say what is wrong with it, and exit"),
        )
        .arg(
            // The originals ignore what follows their flags.
            Arg::new(EXTRA).hide(true).num_args(0..).value_parser(clap::value_parser!(OsString)),
        )
        .after_help(
            "A flag may have one dash or two, and its value after a space or an equals sign.",
        )
}

/// Gives a long flag with one dash its second one.
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
