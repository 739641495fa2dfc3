//! The process `syncer`, in place of policy-server-asg-syncer.

fn main() -> std::process::ExitCode {
    runtime::process::main::<syncer::app::App>()
}
