//! The lock server's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::process::main::<lock_server::app::App>()
}
