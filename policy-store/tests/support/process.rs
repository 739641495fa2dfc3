//! A policy store as a separate process.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{PATIENCE, site::Site};

/// Log output of the process.
#[derive(Default)]
struct Log {
    lines: Vec<Value>,
    /// The output is complete: the process has exited.
    is_whole: bool,
}

type Shared = Arc<(Mutex<Log>, Condvar)>;

/// A running store. Killed when it is dropped.
pub(crate) struct Program {
    child: Child,
    log: Shared,
    pub(crate) address: String,
}

/// A process with a configuration that is not started yet.
pub(crate) fn command(site: &Site, config: &Value) -> Command {
    let path = site.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_policy-store"));
    command.arg("-config-file").arg(path);
    command
}

impl Program {
    pub(crate) fn start(site: &Site) -> Self {
        Self::start_with(site, &site.config())
    }

    /// With a modified configuration of this site.
    pub(crate) fn start_with(site: &Site, config: &Value) -> Self {
        Self::run(command(site, config))
    }

    /// On a separate file system of this size in bytes, at `disk`.
    pub(crate) fn start_on_disk(site: &Site, config: &Value, disk: &Path, bytes: u32) -> Self {
        let program = command(site, config);
        let script = r#"mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]);
        command.arg(bytes.to_string()).arg(disk);
        command.arg(program.get_program()).args(program.get_args());
        Self::run(command)
    }

    /// A path as seen by the process.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(path.strip_prefix("/").unwrap())
    }

    fn run(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let log = Shared::default();
        let shared = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("a line is JSON");
                shared.0.lock().unwrap().lines.push(line);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap().is_whole = true;
            shared.1.notify_all();
        });
        let mut this = Self { child, log, address: String::new() };
        let started = this.line("started", 0);
        started["data"]["address"].as_str().unwrap().clone_into(&mut this.address);
        this
    }

    /// Waits until the log satisfies the condition.
    fn log(&self, what: &str, wanted: impl Fn(&Log) -> bool) -> MutexGuard<'_, Log> {
        let (log, changed) = &*self.log;
        let guard = log.lock().unwrap();
        let (guard, timeout) =
            changed.wait_timeout_while(guard, PATIENCE, |log| !wanted(log)).unwrap();
        assert!(!timeout.timed_out(), "{what} does not come: {:#?}", guard.lines);
        guard
    }

    /// Number of lines of a program that has ended.
    pub(crate) fn count(&self, action: &str) -> usize {
        let end = format!(".{action}");
        let log = self.log("the end", |log| log.is_whole);
        log.lines.iter().filter(|line| line["message"].as_str().unwrap().ends_with(&end)).count()
    }

    /// The `nth` line whose message has this suffix, from 0 on; waits for it.
    pub(crate) fn line(&self, action: &str, nth: usize) -> Value {
        let end = format!(".{action}");
        let fits = |line: &&Value| line["message"].as_str().unwrap().ends_with(&end);
        let find = |log: &Log| log.lines.iter().filter(fits).nth(nth).cloned();
        let log = self.log(action, |log| log.is_whole || find(log).is_some());
        find(&log).unwrap_or_else(|| panic!("ended without {action}: {:#?}", log.lines))
    }

    /// Listen address, as logged at the start.
    fn served_at(&self, key: &str) -> String {
        let line = self.line("started", 0);
        line["data"][key].as_str().unwrap_or_else(|| panic!("{key} in {line}")).to_owned()
    }

    /// The address of the original's API.
    pub(crate) fn internal(&self) -> String {
        self.served_at("internal-address")
    }

    /// The address for health checks.
    pub(crate) fn health_checks(&self) -> String {
        self.served_at("health-check-address")
    }

    /// The address of the admin server.
    pub(crate) fn admin(&self) -> String {
        self.served_at("admin-address")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the exit, and for the last line.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        drop(self.log("its end", |log| log.is_whole));
        self.child.wait().unwrap()
    }

    /// Resident memory in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail when `wait` was called before.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
