//! `portcullisctl`: shows the state of Portcullis to operators.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    ctl::run(ctl::cli::Cli::parse())
}
