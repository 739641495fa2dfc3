//! A running process and its log.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{binaries, wait};

/// Client secret of the syncers; must not be in any log.
pub const CLIENT_SECRET: &str = "network-policy-secret";

/// Processes whose log is searched for secrets.
const SERVICES: [&str; 4] = ["lock-server", "policy-store", "syncer", "cell-agent"];

/// Parts of secrets: the client secret, private keys, and tokens of UAA (JSON web tokens).
const SECRETS: [&str; 3] = [CLIENT_SECRET, "PRIVATE KEY", "eyJ"];

/// A process; dropping the handle kills it.
///
/// # Panics
/// When a handle is dropped and the log of the service contains a secret.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a binary of the workspace.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binaries::path(name));
        command.args(args);
        Self::spawn(name, command)
    }

    /// Starts a binary of the workspace in a new network namespace, where it may change
    /// the packet filter.
    ///
    /// # Panics
    /// `unshare` is missing, or lacks the permission to create a namespace.
    pub fn start_apart(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        let script = r#"ip link set lo up && exec "$0" "$@""#;
        command.args(["--map-root-user", "--net", "sh", "-c", script]);
        command.arg(binaries::path(name)).args(args);
        Self::spawn(name, command)
    }

    /// Starts a binary of the workspace through a program that executes its last arguments.
    ///
    /// # Panics
    /// The program is missing.
    pub fn start_through(launcher: &[String], name: &str, args: &[&str]) -> Self {
        let (program, more) = launcher.split_first().expect("a program");
        let mut command = Command::new(program);
        command.args(more).arg(binaries::path(name)).args(args);
        Self::spawn(name, command)
    }

    fn spawn(name: &str, mut command: Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let mut process = Self {
            name: name.to_owned(),
            child,
            lines: Arc::new(Mutex::new(Vec::new())),
            readers: Vec::new(),
        };
        process.follow();
        process
    }

    /// Starts a service with its configuration file.
    pub fn serve(name: &str, flag: &str, config: &Path) -> Self {
        Self::start(name, &[flag, &config.display().to_string()])
    }

    fn follow(&mut self) {
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            self.child.stdout.take().map(|stream| Box::new(stream) as _),
            self.child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let lines = self.lines.clone();
            self.readers.push(thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    lines.lock().expect("no panic while the lock is held").push(line);
                }
            }));
        }
    }

    /// The output until now.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic while the lock is held").clone()
    }

    /// The log lines that are JSON.
    pub fn log(&self) -> Vec<Value> {
        self.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the first log line whose message ends with this text.
    ///
    /// # Panics
    /// No such line within the timeout.
    pub fn wait_for(&self, message: &str) -> Value {
        self.wait_for_line(message, |_| true)
    }

    /// Waits for the first log line whose message ends with this text and whose data fit.
    ///
    /// # Panics
    /// No such line within the timeout.
    pub fn wait_for_line(&self, message: &str, fits: impl Fn(&Value) -> bool) -> Value {
        wait::until(&format!("{message} in the log of {}", self.name), || {
            self.log()
                .into_iter()
                .find(|line| {
                    let text = line["message"].as_str().unwrap_or_default();
                    text.ends_with(message) && fits(&line["data"])
                })
                .ok_or_else(|| self.lines().join("\n"))
        })
    }

    /// Waits until the output has this text.
    ///
    /// # Panics
    /// The text does not appear within the timeout.
    pub fn wait_for_text(&self, text: &str) {
        wait::until(&format!("{text:?} in the output of {}", self.name), || {
            let output = self.lines().join("\n");
            if output.contains(text) { Ok(()) } else { Err(output) }
        });
    }

    /// Number of log lines whose message ends with this text.
    pub fn count(&self, message: &str) -> usize {
        let ends =
            |line: &Value| line["message"].as_str().is_some_and(|text| text.ends_with(message));
        self.log().iter().filter(|line| ends(line)).count()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// The process has exited.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("process ids are small");
        kill(Pid::from_raw(id), signal)
            .unwrap_or_else(|error| panic!("{} cannot get {signal}: {error}", self.name));
    }

    /// Kills the process (SIGKILL) and waits for its exit.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        self.wait()
    }

    /// Sends SIGTERM and waits for the exit.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits for the exit and the complete output.
    ///
    /// # Panics
    /// The process does not exit within the timeout.
    pub fn wait(&mut self) -> ExitStatus {
        let (name, lines) = (self.name.clone(), self.lines.clone());
        let status = wait::until(&format!("the end of {name}"), || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(lines.lock().expect("no panic while the lock is held").join("\n")),
            Err(error) => Err(error.to_string()),
        });
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader ends with its stream");
        }
        status
    }

    /// Process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    ///
    /// # Panics
    /// The process has exited.
    pub fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(path).expect("a process has a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let line = line.expect("a running process has memory");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib << 10
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // Not after `try_wait` has reaped the process: its ID may be reused.
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if thread::panicking() || !SERVICES.contains(&&*self.name) {
            return;
        }
        for line in self.lines() {
            let secret = SECRETS.iter().find(|secret| line.contains(**secret));
            assert!(secret.is_none(), "{}: a secret in the log: {line}", self.name);
        }
    }
}
