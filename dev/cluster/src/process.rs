//! The cluster's processes: starts each with a log file, watches and stops them.
//!
//! Invariants:
//! - Each process has a watcher; an unexpected exit is reported.
//! - Each process dies with the launcher: the kernel kills it when the thread that
//!   started it ends (`setpriv --pdeathsig`), for whatever reason.
//! - Each process is in a process group of its own, so Ctrl-C reaches only the
//!   launcher, and the launcher decides about the order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use cni::namespace::Resident;
use cni::tools;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::state::{Mark, State};

/// Shutdown timeout after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// How long a start waits for the exit of a process that was just signalled.
const AFTER_SIGNAL: Duration = Duration::from_secs(2);

/// Number of log lines shown for a dead process.
const LAST_LINES: usize = 12;

/// Maximum length of such a line in characters: at debug level, some hold whole
/// documents.
const LONGEST_LINE: usize = 1000;

/// A program to start.
#[derive(Debug, Clone)]
pub struct Program {
    /// The process name in the cluster; unique.
    pub name: String,
    /// The executable.
    pub executable: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Log file that standard output and error are appended to.
    pub log: PathBuf,
}

/// An unexpected exit of a process.
#[derive(Debug)]
pub struct Death {
    /// The process name in the cluster.
    pub name: String,
    /// Its process ID.
    pub pid: u32,
    /// Its exit status.
    pub status: Option<ExitStatus>,
    /// Its log file.
    pub log: PathBuf,
}

impl Death {
    /// The exit status as text.
    pub fn status(&self) -> String {
        self.status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string())
    }

    /// A report with the process, its exit status, and the last lines of its log.
    pub fn report(&self) -> String {
        let status = self.status();
        let log = self.log.display();
        let mut report = format!("{} ended unexpectedly: {status}\n  {log} ends with", self.name);
        for line in last_lines(&self.log) {
            let _ = write!(report, "\n    {line}");
        }
        report
    }
}

#[derive(Debug)]
struct Running {
    mark: Mark,
    asked_to_end: Arc<AtomicBool>,
    ended: watch::Receiver<bool>,
}

/// All processes of a cluster.
#[derive(Debug)]
pub struct Processes {
    running: BTreeMap<String, Running>,
    ended: BTreeMap<String, String>,
    peaks: BTreeMap<String, u64>,
    watchers: JoinSet<()>,
    deaths: mpsc::Sender<Death>,
}

impl Processes {
    /// Without processes; unexpected exits are sent to `deaths`.
    pub fn new(deaths: mpsc::Sender<Death>) -> Self {
        let (running, ended, peaks) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { running, ended, peaks, watchers: JoinSet::new(), deaths }
    }

    /// Starts a program in the namespace of `resident`.
    pub async fn start(
        &mut self,
        program: &Program,
        resident: &Resident,
        state: &mut State,
    ) -> anyhow::Result<u32> {
        let Program { name, executable, arguments: _, log } = program;
        if let Some(running) = self.running.get_mut(name) {
            if timeout(AFTER_SIGNAL, running.ended.wait_for(|ended| *ended)).await.is_err() {
                bail!("{name} is already running");
            }
            let pid = running.mark.pid;
            self.forget(name, "ended", state, pid)?;
        }
        let command = command(program)?;
        let child = resident.spawn(command).await;
        let child = child.with_context(|| format!("cannot start {}", executable.display()))?;
        let pid = child.id().ok_or_else(|| anyhow!("{name} has no process id"))?;
        let mark = Mark::of(name, pid);
        let (end_sender, ended) = watch::channel(false);
        let asked_to_end = Arc::new(AtomicBool::new(false));
        let death = Death { name: name.clone(), pid, status: None, log: log.clone() };
        let watcher =
            look_after(child, end_sender, asked_to_end.clone(), death, self.deaths.clone());
        self.watchers.spawn(watcher);
        // Without a mark the process has exited already; its watcher reports that.
        if let Some(mark) = mark {
            state.note_process(mark.clone())?;
            self.ended.remove(name);
            self.running.insert(name.clone(), Running { mark, asked_to_end, ended });
        }
        Ok(pid)
    }

    /// Ends a process with SIGTERM, and with SIGKILL after a timeout.
    ///
    /// Returns whether SIGTERM was enough.
    pub async fn stop(&mut self, name: &str, state: &mut State) -> anyhow::Result<bool> {
        self.end(name, Signal::SIGTERM, state).await
    }

    /// Kills a process as `kill -9` does.
    pub async fn kill(&mut self, name: &str, state: &mut State) -> anyhow::Result<()> {
        self.end(name, Signal::SIGKILL, state).await.map(drop)
    }

    async fn end(&mut self, name: &str, signal: Signal, state: &mut State) -> anyhow::Result<bool> {
        self.note_peak(name);
        let running = self.running.remove(name).with_context(|| format!("no process {name}"))?;
        let Running { mark, asked_to_end, mut ended } = running;
        asked_to_end.store(true, Ordering::SeqCst);
        send(&mark, signal);
        // A frozen process handles SIGTERM only after SIGCONT.
        send(&mark, Signal::SIGCONT);
        let graceful = timeout(GRACE, ended.wait_for(|ended| *ended)).await.is_ok();
        if !graceful {
            send(&mark, Signal::SIGKILL);
            // The kernel ends the process: none survives SIGKILL for long.
            let _ = timeout(GRACE, ended.wait_for(|ended| *ended)).await;
        }
        state.forget_process(mark.pid)?;
        Ok(graceful)
    }

    /// Sends a signal to a running process. If the signal ends the process, the exit is
    /// reported as unexpected.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let running = self.running.get(name).with_context(|| format!("no process {name} runs"))?;
        send(&running.mark, signal);
        Ok(())
    }

    /// Removes an exited process from the running ones.
    pub fn note_death(&mut self, death: &Death, state: &mut State) -> anyhow::Result<()> {
        let Death { name, pid, status: _, log: _ } = death;
        match self.running.get(name) {
            Some(running) if running.mark.pid == *pid => {
                self.forget(name, &death.status(), state, *pid)
            }
            // The name belongs to a later process, or this one exited before it had a
            // mark.
            _other => Ok(()),
        }
    }

    fn forget(&mut self, name: &str, how: &str, state: &mut State, pid: u32) -> anyhow::Result<()> {
        self.running.remove(name);
        self.ended.insert(name.to_owned(), how.to_owned());
        Ok(state.forget_process(pid)?)
    }

    /// Every started process, with its PID if it is running, and its state as text.
    pub fn states(&self) -> BTreeMap<&str, (Option<u32>, String)> {
        let running = self.running.iter().map(|(name, Running { mark, .. })| {
            let state = match (mark.runs(), mark.is_frozen()) {
                (true, true) => "frozen",
                (true, false) => "running",
                (false, _) => "ended",
            };
            (name.as_str(), (Some(mark.pid), state.to_owned()))
        });
        let ended = self.ended.iter().map(|(name, how)| (name.as_str(), (None, how.clone())));
        ended.chain(running).collect()
    }

    /// The names of all running processes.
    pub fn names(&self) -> Vec<String> {
        self.running.keys().cloned().collect()
    }

    /// The mark of a running process.
    pub fn mark(&self, name: &str) -> Option<&Mark> {
        self.running.get(name).map(|running| &running.mark)
    }

    /// Peak memory of each process, in KiB, including stopped ones.
    pub fn peaks(&mut self) -> &BTreeMap<String, u64> {
        for name in self.names() {
            self.note_peak(&name);
        }
        &self.peaks
    }

    fn note_peak(&mut self, name: &str) {
        let Some(running) = self.running.get(name) else { return };
        if let Some(peak) = peak(running.mark.pid) {
            let known = self.peaks.entry(name.to_owned()).or_default();
            *known = peak.max(*known);
        }
    }
}

fn command(program: &Program) -> anyhow::Result<Command> {
    let Program { name: _, executable, arguments, log } = program;
    let opened = File::options().create(true).append(true).open(log);
    let output = opened.with_context(|| format!("cannot open {}", log.display()))?;
    let errors = output.try_clone()?;
    let mut command = Command::new(tools::find("setpriv")?);
    command.args(["--pdeathsig", "KILL", "--"]).arg(executable).args(arguments);
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    command.process_group(0).kill_on_drop(true);
    Ok(command)
}

async fn look_after(
    mut child: Child,
    end_sender: watch::Sender<bool>,
    asked_to_end: Arc<AtomicBool>,
    death: Death,
    deaths: mpsc::Sender<Death>,
) {
    let status = child.wait().await.ok();
    end_sender.send_replace(true);
    if !asked_to_end.load(Ordering::SeqCst) {
        // There is no receiver while the cluster is being stopped.
        let _ = deaths.send(Death { status, ..death }).await;
    }
}

fn send(mark: &Mark, signal: Signal) {
    // The watcher may have reaped the process, and then the PID may be reused.
    if mark.runs() {
        let pid = i32::try_from(mark.pid).expect("the kernel's process ids fit");
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Kills the processes of an earlier launcher, and waits for their exit.
pub async fn end_leftovers(leftovers: &[&Mark]) {
    for mark in leftovers {
        send(mark, Signal::SIGKILL);
    }
    let gone = async {
        while leftovers.iter().any(|mark| mark.runs()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(GRACE, gone).await;
}

/// Peak memory of a running process, in KiB.
pub(crate) fn peak(pid: u32) -> Option<u64> {
    peak_memory(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// `VmHWM` of `/proc/PID/status`, in KiB.
fn peak_memory(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn last_lines(log: &Path) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    last.iter().map(|line| line.chars().take(LONGEST_LINE).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        state: State,
        processes: Processes,
        deaths: mpsc::Receiver<Death>,
        here: Resident,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let (state, _before) = State::take(directory.path()).unwrap();
        let (sender, deaths) = mpsc::channel(4);
        let here = Resident::here().unwrap();
        Fixture { directory, state, processes: Processes::new(sender), deaths, here }
    }

    impl Fixture {
        async fn shell(&mut self, script: &str) -> u32 {
            let program = Program {
                name: "shell".to_owned(),
                executable: "/bin/sh".into(),
                arguments: vec!["-c".into(), script.into()],
                log: self.directory.path().join("shell.log"),
            };
            self.processes.start(&program, &self.here, &mut self.state).await.unwrap()
        }

        /// Waits until the script itself runs instead of the wrapper.
        async fn wait_for_output(&self) {
            let log = self.directory.path().join("shell.log");
            let written = async {
                while last_lines(&log).is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(GRACE, written).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_process_that_ends_by_itself_is_reported_with_its_last_lines() {
        let mut fixture = fixture();
        fixture.shell("echo first; echo no such file >&2; exit 3").await;
        let death = fixture.deaths.recv().await.unwrap();
        let report = death.report();
        assert!(report.starts_with("shell ended unexpectedly: exit status: 3\n"), "{report}");
        assert!(report.ends_with("shell.log ends with\n    first\n    no such file"), "{report}");
    }

    #[tokio::test]
    async fn a_process_that_was_stopped_is_not_reported() {
        let mut fixture = fixture();
        let pid = fixture.shell("echo up; exec sleep 1000").await;
        fixture.wait_for_output().await;
        let mark = fixture.processes.mark("shell").unwrap().clone();
        assert_eq!(mark.pid, pid);
        // Just after its exec the process has hardly any memory.
        let used = async {
            while fixture.processes.peaks().get("shell").is_none_or(|peak| *peak <= 100) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(GRACE, used).await.unwrap();
        assert!(fixture.processes.stop("shell", &mut fixture.state).await.unwrap());
        assert!(!mark.runs());
        assert!(fixture.processes.peaks()["shell"] > 100, "the peak outlives the process");
        drop(fixture.processes);
        assert!(fixture.deaths.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_process_dies_with_the_thread_that_started_it() {
        let mut fixture = fixture();
        fixture.shell("echo up; exec sleep 1000").await;
        fixture.wait_for_output().await;
        let Fixture { mut deaths, here, .. } = fixture;
        drop(here);
        let death = deaths.recv().await.unwrap();
        assert_eq!(death.status.unwrap().to_string(), "signal: 9 (SIGKILL)");
    }

    #[tokio::test]
    async fn a_process_that_ended_can_be_started_again() {
        let mut fixture = fixture();
        fixture.shell("echo up; exec sleep 1000").await;
        fixture.wait_for_output().await;
        fixture.processes.signal("shell", Signal::SIGSTOP).unwrap();
        let frozen = async {
            while fixture.processes.states()["shell"].1 != "frozen" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(GRACE, frozen).await.unwrap();
        fixture.processes.signal("shell", Signal::SIGKILL).unwrap();
        let death = fixture.deaths.recv().await.unwrap();
        fixture.processes.note_death(&death, &mut fixture.state).unwrap();
        assert_eq!(fixture.processes.states()["shell"], (None, "signal: 9 (SIGKILL)".to_owned()));
        let pid = fixture.shell("exec sleep 1000").await;
        assert_eq!(fixture.processes.states()["shell"], (Some(pid), "running".to_owned()));
        // The report of the first process does not concern the second.
        fixture.processes.note_death(&death, &mut fixture.state).unwrap();
        assert_eq!(fixture.processes.states()["shell"].0, Some(pid));
        assert!(fixture.processes.stop("shell", &mut fixture.state).await.unwrap());
    }

    #[test]
    fn peak_memory_is_read_from_the_status() {
        assert_eq!(peak_memory("Name:\tx\nVmHWM:\t    5123 kB\nVmRSS:\t 1 kB\n"), Some(5123));
        assert_eq!(peak_memory("Name:\tx\n"), None);
    }
}
