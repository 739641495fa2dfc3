//! Runs nft.
//!
//! One call is one process and one transaction: afterwards the whole script is applied,
//! or nothing (law 8). nft reads the whole script before it looks at the kernel, so the
//! process for the next script is started ahead and waits for input: starting it would
//! take as long as a small change. Changes that need no nft rule compiler use netlink
//! directly ([`super::netlink`]).

use std::{path::Path, process::Output};

use tokio::process::Child;

use super::table::NAME;
use crate::plane::program::{Error, Program};

/// nft 1.0.6 reads the sets of all tables before it adds a rule, and crashes on a type
/// (`typeof`) that only newer versions know.
const NEWER_TABLE: &str = "; if another program has a table of a newer nft (compare nft --version): \
     install that version, or set nft_path to it";

/// Arguments to read a script from standard input.
const APPLY: &[&str] = &["-f", "-"];

/// The nft program.
#[derive(Debug)]
pub struct Nft {
    program: Program,
    /// A process that waits for a script.
    waiting: Option<Child>,
}

impl Nft {
    /// The nft program at this path, or with this name in `PATH`.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        let program = Program {
            path: program.to_owned(),
            package: "nftables",
            key: "nft_path, or data_plane to iptables",
            crash: NEWER_TABLE,
        };
        Self { program, waiting: None }
    }

    /// Whether the program is not found.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.program.start(&["--version"]), Err(Error::Missing { .. }))
    }

    /// Starts the process for the next script ahead, if none is waiting.
    fn get_ready(&mut self) {
        if self.waiting.is_none() {
            // A failure to start is reported when the process is needed.
            self.waiting = self.program.start(APPLY).ok();
        }
    }

    /// Applies a script, all or nothing.
    ///
    /// # Errors
    /// The kernel is unchanged, except after [`Error::Hangs`] and [`Error::Run`], where
    /// its state is unknown.
    pub async fn apply(&mut self, script: &str) -> Result<(), Error> {
        let mut waiting = self.waiting.take();
        let alive = waiting.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        let child = match waiting.filter(|_| alive) {
            Some(child) => child,
            None => self.program.start(APPLY)?,
        };
        self.get_ready();
        read(&self.program.finish(child, script).await?).map(drop)
    }

    /// Checks whether nft and the kernel accept a script.
    ///
    /// # Errors
    /// They refuse it.
    pub async fn check(&self, script: &str) -> Result<(), Error> {
        self.run(&["-c", "-f", "-"], script).await.map(drop)
    }

    /// Our table as nft lists it, without counters; `None` if the table does not exist.
    ///
    /// # Errors
    /// nft fails.
    pub async fn list(&self) -> Result<Option<String>, Error> {
        match self.run(&["-s", "list", "table", "inet", NAME], "").await {
            Ok(listing) if is_whole(&listing) => Ok(Some(listing)),
            Ok(other) => Err(Error::Unreadable {
                program: self.program.name(),
                reason: format!("{:?} is no listing", other.chars().take(300).collect::<String>()),
            }),
            // A missing program or library has a longer message.
            Err(Error::Refused(text)) if text == "No such file or directory" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The program's name in errors.
    #[must_use]
    pub fn name(&self) -> String {
        self.program.name()
    }

    /// The elements of one of our sets, without their expiry.
    ///
    /// # Errors
    /// nft fails.
    pub async fn elements(&self, set: &str) -> Result<Vec<String>, Error> {
        let listing = self.run(&["list", "set", "inet", NAME, set], "").await?;
        let elements = listing.split_once("elements = {").map_or("", |(_, rest)| rest);
        let elements = elements.split('}').next().unwrap_or_default().split(',');
        let key = |element: &str| element.split(" expires ").next().unwrap_or_default().to_owned();
        let keys = elements.map(str::trim).filter(|element| !element.is_empty()).map(key);
        Ok(keys.map(|key| key.replace('"', "")).collect())
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<String, Error> {
        read(&self.program.finish(self.program.start(arguments)?, input).await?)
    }
}

fn read(output: &Output) -> Result<String, Error> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("Operation not permitted") {
        return Err(Error::Permission);
    }
    if stderr.contains("Message too long") {
        return Err(Error::TooLong);
    }
    Err(Error::Refused(first_error(&stderr, output)))
}

/// Whether this is a complete listing of our table.
fn is_whole(listing: &str) -> bool {
    let head = format!("table inet {NAME} {{");
    listing.lines().any(|line| line == head) && listing.lines().next_back() == Some("}")
}

/// The first error message, without the quoted line, which may be very long.
fn first_error(stderr: &str, output: &Output) -> String {
    let message = stderr.lines().find_map(|line| line.split_once("Error: "));
    match message {
        Some((_place, message)) => message.trim().chars().take(300).collect(),
        None if stderr.trim().is_empty() => format!("ended with {}", output.status),
        None => stderr.trim().chars().take(300).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, path::PathBuf};

    use super::*;

    fn output(code: i32, stderr: &str) -> Output {
        let status = std::process::ExitStatus::from_raw(code << 8);
        Output { status, stdout: b"out".to_vec(), stderr: stderr.into() }
    }

    #[test]
    fn the_message_is_kept_and_the_quoted_line_is_not() {
        let stderr =
            "/dev/stdin:3:5-10: Error: Could not process rule: File exists\nadd element\n  ^^^\n";
        let error = read(&output(1, stderr)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the packet filter refuses: Could not process rule: File exists"
        );
        assert_eq!(read(&output(0, "")).unwrap(), "out");
        let silent = read(&output(1, "")).unwrap_err().to_string();
        assert!(silent.contains("exit status: 1"), "{silent}");
    }

    #[test]
    fn a_missing_permission_has_its_own_error() {
        let stderr = "Error: Could not process rule: Operation not permitted\n";
        assert!(matches!(read(&output(1, stderr)), Err(Error::Permission)));
    }

    /// A shell script that runs this command.
    fn script(directory: &tempfile::TempDir, command: &str) -> PathBuf {
        let path = directory.path().join("nft");
        std::fs::write(&path, format!("#!/bin/sh\n{command}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    }

    /// More than the capacity of a pipe, so that the write blocks.
    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_read_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(&directory, "exec sleep 600");
        let script = "#".repeat(1 << 20);
        let error = Nft::new(&path).apply(&script).await.unwrap_err();
        assert!(matches!(error, Error::Hangs), "{error}");
    }

    /// After a kill the kernel's state is unknown.
    #[tokio::test]
    async fn a_program_that_is_killed_refuses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(&directory, "kill -9 $$");
        let error = Nft::new(&path).apply("").await.unwrap_err();
        let Error::Run { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains("signal: 9"), "{source}");
    }

    #[tokio::test]
    async fn a_missing_program_has_its_own_error() {
        let error = Nft::new(Path::new("/nonexistent/nft")).list().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no /nonexistent/nft: install nftables, or set nft_path, or data_plane to iptables"
        );
    }
}
