//! The program `policy-store`.

fn main() -> std::process::ExitCode {
    runtime::process::main::<policy_store::app::App>()
}
