//! The cell agent's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::process::main::<cell_agent::app::App>()
}
