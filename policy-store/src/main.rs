//! The program `policy-store`.

/// Returns memory to the system after a large Replace, which leaves a million small holes
/// in the heap of the C library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator requests huge pages. They cost a third more memory, and clearing them a
    // quarter of the time of a large Replace. If prctl is not permitted, they stay enabled.
    let _stay = nix::sys::prctl::set_thp_disable(true);
    runtime::process::main::<policy_store::app::App>()
}
