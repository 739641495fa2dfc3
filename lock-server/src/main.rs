//! The lock server's process.

use std::process::ExitCode;

/// Calls get their memory on one thread and give it back on another: that, and room for
/// many new locks, costs less here than with the C library.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    runtime::process::main::<lock_server::app::App>()
}
