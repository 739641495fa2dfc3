//! Starts a program under the system call filters of a unit: `sandbox UNIT PROGRAM ARGUMENTS`.

use std::{env, fs, os::unix::process::CommandExt as _, process::Command};

fn main() {
    let mut arguments = env::args_os().skip(1);
    let unit = arguments.next().expect("the file of a unit");
    let program = arguments.next().expect("a program");
    let unit = fs::read_to_string(unit).expect("the unit is readable");
    for filter in integration_tests::sandbox::filters(&unit) {
        seccompiler::apply_filter(&filter).expect("the kernel has seccomp");
    }
    let error = Command::new(program).args(arguments).exec();
    panic!("the program cannot be started: {error}");
}
