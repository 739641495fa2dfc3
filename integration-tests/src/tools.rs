//! Third-party programs that `scripts/need` installs.

use std::{
    env,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

/// The path of a program in `PATH` or in the directory of `scripts/need`.
///
/// # Panics
/// The program is not installed.
pub fn path(name: &str) -> PathBuf {
    let mut places: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    let test = env::current_exe().expect("a process knows its own file");
    places.extend(test.ancestors().map(|directory| directory.join("tools/bin")));
    places
        .into_iter()
        .map(|place| place.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: scripts/need {name}"))
}

/// The errors of `promtool check metrics` about Prometheus text.
///
/// # Panics
/// promtool cannot be run.
pub fn promtool(text: &str) -> Result<(), String> {
    let mut child = Command::new(path("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool can be run");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(text.as_bytes()).expect("promtool reads all of the text");
    drop(stdin);
    let output = child.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    match output.status.success() && said.is_empty() {
        true => Ok(()),
        false => Err(said),
    }
}
