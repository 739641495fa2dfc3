//! What a service says of itself, for the command line and the first errors.

use std::ffi::OsString;
use std::process::ExitCode;

/// What a service says of itself.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// The name of the program.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// `env!("CARGO_PKG_VERSION")` of the service.
    pub version: &'static str,
    /// The flag that names the configuration, without dashes.
    pub config_flag: &'static str,
    /// What a bad configuration does.
    pub config_error: ConfigError,
}

/// How the process ends when its configuration cannot be used; the originals
/// differ in it.
#[derive(Debug, Clone, Copy)]
pub struct ConfigError {
    /// The exit code.
    pub exit: u8,
    /// What stands before each problem on standard error.
    pub prefix: &'static str,
}

/// A flag of one service, beside those that all have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Without dashes.
    pub name: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    /// Whether it asks for something on standard output; the log goes to standard
    /// error then.
    pub prints: bool,
}

/// What a program does instead of serving, when its name is the first argument.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// Does it. The first argument is the name; flags have two dashes.
    pub run: fn(Vec<OsString>) -> ExitCode,
}
