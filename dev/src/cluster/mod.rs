//! The local cluster: every part of Portcullis as a process of its own, with
//! cells in network namespaces.

use std::process::ExitCode;

/// The command line of `portcullis-dev cluster`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the cluster until it is interrupted, and tears it down.
///
/// Returns the exit code of the process.
pub fn main(arguments: Arguments) -> ExitCode {
    let Arguments {} = arguments;
    ExitCode::FAILURE
}
