//! The lock server's process.

use std::process::ExitCode;

/// Calls allocate memory on one thread and free it on another: jemalloc serves this
/// pattern, and many new locks, at lower cost than the C library.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    runtime::process::main::<lock_server::app::App>()
}
