//! The program `policy-store`.

/// Gives memory back after a large Replace, which leaves a million small holes in
/// that of the C library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator asks for huge pages. They cost a third more memory, and to clear
    // them a quarter of the time of a large Replace. Where it may not be said, they stay.
    let _stay = nix::sys::prctl::set_thp_disable(true);
    runtime::process::main::<policy_store::app::App>()
}
