//! Description of a service for the command line and for errors before the log is set up.

use std::ffi::OsString;
use std::process::ExitCode;

/// Description of a service.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// Program name.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// `env!("CARGO_PKG_VERSION")` of the service.
    pub version: &'static str,
    /// The flag that names the configuration, without dashes.
    pub config_flag: &'static str,
    /// Exit code and error prefix for a bad configuration.
    pub config_error: ConfigError,
}

/// How the process exits when its configuration cannot be used; the originals differ here.
#[derive(Debug, Clone, Copy)]
pub struct ConfigError {
    /// The exit code.
    pub exit: u8,
    /// Prefix of each problem on standard error.
    pub prefix: &'static str,
}

/// A flag of one service, in addition to the common ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    /// Whether the flag prints to standard output; the log then goes to standard error.
    pub prints: bool,
}

/// A subcommand that runs instead of the service; its name is the first argument.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// Runs the subcommand. The first argument is the name; flags have two dashes.
    pub run: fn(Vec<OsString>) -> ExitCode,
}
