//! The state file: the cluster's namespaces and processes on this machine, so that the
//! next launcher can clean up after one that was killed.
//!
//! Invariants:
//! - A namespace is recorded before it is created, a process right after it was started
//!   (and the kernel ends it with the launcher anyway).
//! - A process is identified by PID, start time and boot ID: a process that reuses the
//!   PID is never touched.
//! - Only one launcher at a time holds the directory; its lock is released when it
//!   exits, for whatever reason.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Why the state cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another launcher holds the directory.
    #[error("this cluster is already running{}; end that one, or take another --name", by(.0))]
    Running(Option<u32>),
    /// A file operation failed.
    #[error("cannot {verb} {}", .path.display())]
    File {
        /// The operation.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn by(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// Unique identification of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The process name in the cluster.
    pub name: String,
    /// Its process ID.
    pub pid: u32,
    /// Its start time, in the kernel's ticks since boot.
    pub started: u64,
}

impl Mark {
    /// The mark of a running process; `None` when it has exited.
    pub fn of(name: &str, pid: u32) -> Option<Self> {
        Some(Self { name: name.to_owned(), pid, started: started(pid)? })
    }

    /// Whether that process still runs.
    pub fn runs(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Whether that process is frozen by SIGSTOP.
    pub fn is_frozen(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        start_time(&stat) == Some(self.started)
            && stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }
}

/// Namespaces and processes of a launcher.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The boot ID of the machine.
    pub boot: String,
    /// The launcher's PID.
    pub launcher: u32,
    /// Its processes.
    pub processes: Vec<Mark>,
    /// Its network namespaces.
    pub namespaces: Vec<String>,
}

impl Made {
    /// The processes that still run. None after a reboot: marks of another boot are
    /// invalid.
    pub fn still_running(&self, boot: &str) -> Vec<&Mark> {
        if self.boot != boot {
            return Vec::new();
        }
        self.processes.iter().filter(|mark| mark.runs()).collect()
    }
}

/// The state directory, held by this launcher alone.
#[derive(Debug)]
pub struct State {
    directory: PathBuf,
    made: Made,
    lock: File,
}

impl Drop for State {
    /// A child process between fork and exec still has the file open, and with it the lock.
    fn drop(&mut self) {
        let _best_effort = self.lock.unlock();
    }
}

impl State {
    /// Takes the lock, and returns the records of an earlier launcher.
    pub fn take(directory: &Path) -> Result<(Self, Made), Error> {
        let failed = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { verb, path, source }
        };
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(failed("make", directory))?;
        let path = directory.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(failed("open", &path))?;
        let before = read(directory);
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Running(before.map(|m| m.launcher)));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
        let made = Made { boot: boot(), launcher: std::process::id(), ..Made::default() };
        let state = Self { directory: directory.to_owned(), made, lock };
        Ok((state, before.unwrap_or_default()))
    }

    /// Whether that directory holds the state of a cluster.
    pub fn exists(directory: &Path) -> bool {
        file(directory).exists()
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Records a namespace before its creation.
    pub fn note_namespace(&mut self, name: &str) -> Result<(), Error> {
        self.made.namespaces.push(name.to_owned());
        self.save()
    }

    /// Removes the record of a deleted namespace.
    pub fn forget_namespace(&mut self, name: &str) -> Result<(), Error> {
        self.made.namespaces.retain(|known| known != name);
        self.save()
    }

    /// Records a started process.
    pub fn note_process(&mut self, mark: Mark) -> Result<(), Error> {
        self.made.processes.push(mark);
        self.save()
    }

    /// Removes the record of an exited process.
    pub fn forget_process(&mut self, pid: u32) -> Result<(), Error> {
        self.made.processes.retain(|known| known.pid != pid);
        self.save()
    }

    /// Replaces the file atomically by a rename: a crash leaves the old or the new one.
    pub fn save(&self) -> Result<(), Error> {
        let path = file(&self.directory);
        let fresh = path.with_extension("new");
        let failed = |source| Error::File { verb: "write", path: path.clone(), source };
        let text = serde_json::to_string_pretty(&self.made).map_err(|e| failed(e.into()))?;
        std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)).map_err(failed)
    }
}

/// The boot ID.
pub fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn file(directory: &Path) -> PathBuf {
    directory.join("state.json")
}

/// `None` if the file is missing or invalid.
fn read(directory: &Path) -> Option<Made> {
    runtime::json::from_str(&std::fs::read_to_string(file(directory)).ok()?).ok()
}

fn started(pid: u32) -> Option<u64> {
    start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The 22nd field of `/proc/PID/stat`; `None` for a zombie, which has exited. The
/// second field is the program's name in parentheses and may hold any character.
fn start_time(stat: &str) -> Option<u64> {
    let (_pid_and_name, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let alive = fields.next()? != "Z";
    let started = fields.nth(18)?.parse().ok()?;
    alive.then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let rest = "S 1 7 7 0 -1 4194560 99 0 0 0 1 2 3 4 20 0 1 0 4242 1000 2";
        assert_eq!(start_time(&format!("7 (sleep) {rest}")), Some(4242));
        assert_eq!(start_time(&format!("7 (a) b (c) ) {rest}")), Some(4242));
        assert_eq!(start_time(&format!("7 (sleep) {}", rest.replacen('S', "Z", 1))), None);
        assert_eq!(start_time("7 (sleep"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn a_mark_fits_one_process_only() {
        let own = Mark::of("test", std::process::id()).unwrap();
        assert!(own.runs());
        assert!(!Mark { started: own.started + 1, ..own.clone() }.runs());
        let made = Made { boot: "this".to_owned(), processes: vec![own], ..Made::default() };
        assert_eq!(made.still_running("this").len(), 1);
        assert_eq!(made.still_running("another").len(), 0);
    }

    #[test]
    fn the_next_launcher_finds_the_records() {
        let directory = tempfile::tempdir().unwrap();
        let (mut state, before) = State::take(directory.path()).unwrap();
        assert_eq!(before, Made::default());
        state.note_namespace("p-router").unwrap();
        state.note_namespace("p-cell-1").unwrap();
        state.forget_namespace("p-router").unwrap();
        state.note_process(Mark { name: "a".to_owned(), pid: 7, started: 9 }).unwrap();
        state.note_process(Mark { name: "b".to_owned(), pid: 8, started: 9 }).unwrap();
        state.forget_process(8).unwrap();
        drop(state);
        let (_state, before) = State::take(directory.path()).unwrap();
        assert_eq!(before.launcher, std::process::id());
        assert_eq!(before.boot, boot());
        assert_eq!(before.namespaces, ["p-cell-1"]);
        assert_eq!(before.processes, [Mark { name: "a".to_owned(), pid: 7, started: 9 }]);
    }

    #[test]
    fn the_directory_has_one_launcher() {
        let directory = tempfile::tempdir().unwrap();
        let (state, _before) = State::take(directory.path()).unwrap();
        state.save().unwrap();
        let error = State::take(directory.path()).unwrap_err();
        let expected = format!(
            "this cluster is already running (process {}); end that one, or take another --name",
            std::process::id()
        );
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_torn_state_file_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(file(directory.path()), r#"{"boot":"x","#).unwrap();
        let (_state, before) = State::take(directory.path()).unwrap();
        assert_eq!(before, Made::default());
    }
}
