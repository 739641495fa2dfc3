//! The cell agent's program.

use std::process::ExitCode;

/// Returns the memory of closed connections to the system: after 5,000 connections to the cell's
/// socket, the C library keeps 113 MiB.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Huge pages would make the small heap of an idle agent larger. If prctl is not permitted, they
    // stay enabled.
    let _stay = nix::sys::prctl::set_thp_disable(true);
    runtime::process::main::<cell_agent::app::App>()
}
