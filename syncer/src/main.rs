//! The process `syncer`, which replaces policy-server-asg-syncer.

fn main() -> std::process::ExitCode {
    runtime::process::main::<syncer::app::App>()
}
