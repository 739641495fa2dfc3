//! The program `policy-store`.

/// Gives memory back after a large Replace, which leaves a million small holes in
/// that of the C library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    runtime::process::main::<policy_store::app::App>()
}
