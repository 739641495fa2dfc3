//! `portcullisctl`: what the parts of Portcullis know, for people.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    ctl::run(ctl::cli::Cli::parse())
}
