//! The development Cloud Controller and UAA.

use std::path::PathBuf;
use std::process::ExitCode;

/// The command line of `portcullis-dev cloud-controller`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration file (JSON).
    #[arg(long, value_name = "FILE")]
    pub config_file: PathBuf,
}

/// Serves until it is interrupted, and returns the exit code of the process.
pub fn main(arguments: Arguments) -> ExitCode {
    let Arguments { config_file: _ } = arguments;
    ExitCode::FAILURE
}
