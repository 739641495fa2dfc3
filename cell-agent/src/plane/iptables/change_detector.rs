//! Detects, without starting a process, whether others may have changed iptables.
//!
//! If iptables writes through nftables, the kernel counts each change. The legacy
//! interface has no such number: it only returns the size of a table, which an edit
//! need not change, or the whole table. But each legacy program keeps a lock file open
//! while it works, and the programs of a cell hold another lock around that. A file is
//! closed after the change that was made under its lock, and inotify reports the close
//! (adr/0009).
//!
//! Invariant: a change made after [`ChangeDetector::mark`] under one of the locks is
//! reported by [`ChangeDetector::maybe_changed`] after the lock is released. If changes
//! cannot be detected, the result is always true.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchMask};
use nix::libc::O_CREAT;

use crate::plane::nftables::netlink::{KernelGeneration, NetlinkConnection};

/// Default lock file of the iptables programs.
const PROGRAMS_LOCK: &str = "/run/xtables.lock";
/// Environment variable that names another lock file.
const PROGRAMS_LOCK_KEY: &str = "XTABLES_LOCKFILE";

/// Detects changes by other processes.
#[derive(Debug)]
pub(crate) enum ChangeDetector {
    /// By the nf_tables generation.
    Kernel {
        /// The connection that reads the generation.
        line: NetlinkConnection,
        /// The generation at the mark.
        mark: Option<KernelGeneration>,
    },
    /// By the lock files.
    Locks(Locks),
}

impl ChangeDetector {
    /// A detector by the nf_tables generation.
    pub(crate) fn by_kernel() -> Self {
        Self::Kernel { line: NetlinkConnection::default(), mark: None }
    }

    /// A detector by the lock of the programs, and the lock that others on the cell
    /// take.
    pub(crate) fn by_locks(around: &Path) -> Self {
        let own = std::env::var_os(PROGRAMS_LOCK_KEY).unwrap_or_else(|| PROGRAMS_LOCK.into());
        // The agent takes the outer lock too, but opens the file read-only.
        let files =
            [(PathBuf::from(own), WatchMask::CLOSE), (around.to_owned(), WatchMask::CLOSE_WRITE)];
        Self::Locks(Locks { files, watch: None, maybe_changed: true })
    }

    /// Forgets earlier changes; call this before reading the tables.
    pub(crate) fn mark(&mut self) {
        match self {
            Self::Kernel { line, mark } => *mark = line.generation(),
            Self::Locks(locks) => locks.mark(),
        }
    }

    /// Whether there may have been changes since the mark.
    pub(crate) fn maybe_changed(&mut self) -> bool {
        match self {
            Self::Kernel { line, mark } => mark.is_none() || *mark != line.generation(),
            Self::Locks(locks) => locks.maybe_changed(),
        }
    }
}

/// Watched lock files.
#[derive(Debug)]
pub(crate) struct Locks {
    files: [(PathBuf, WatchMask); 2],
    /// `None` after a file was replaced, until the next mark.
    watch: Option<Inotify>,
    maybe_changed: bool,
}

impl Locks {
    fn mark(&mut self) {
        if self.watch.is_none() {
            match watch(&self.files) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => tracing::warn!(error = %error, "iptables-locks-not-watched"),
            }
        }
        self.drain();
        self.maybe_changed = self.watch.is_none();
    }

    fn maybe_changed(&mut self) -> bool {
        self.drain();
        self.maybe_changed
    }

    /// Reads all pending inotify events.
    fn drain(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let mut buffer = [0; 4096];
        let mut lost = false;
        loop {
            match watch.read_events(&mut buffer) {
                Ok(events) => {
                    for event in events {
                        self.maybe_changed = true;
                        let closed = EventMask::CLOSE_WRITE | EventMask::CLOSE_NOWRITE;
                        lost |= !closed.contains(event.mask);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    lost = true;
                    break;
                }
            }
        }
        if lost {
            (self.watch, self.maybe_changed) = (None, true);
        }
    }
}

/// Creates missing files like their users do.
fn watch(files: &[(PathBuf, WatchMask)]) -> io::Result<Inotify> {
    let inotify = Inotify::init()?;
    let replaced = WatchMask::ATTRIB | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
    for (path, closed) in files {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(O_CREAT).mode(0o600).open(path)?;
        inotify.watches().add(path, *closed | replaced)?;
    }
    Ok(inotify)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn locks(directory: &Path) -> ChangeDetector {
        let files = [
            (directory.join("programs"), WatchMask::CLOSE),
            (directory.join("around"), WatchMask::CLOSE_WRITE),
        ];
        ChangeDetector::Locks(Locks { files, watch: None, maybe_changed: true })
    }

    #[test]
    fn a_released_lock_is_reported_until_the_mark() {
        let directory = tempfile::tempdir().unwrap();
        let mut notice = locks(directory.path());
        assert!(notice.maybe_changed(), "nobody looked yet");
        notice.mark();
        assert!(!notice.maybe_changed());
        let held = File::open(directory.path().join("programs")).unwrap();
        assert!(!notice.maybe_changed(), "it may not have changed anything yet");
        // A read while the lock is held sees the state before the change.
        notice.mark();
        drop(held);
        assert!(notice.maybe_changed() && notice.maybe_changed());
        notice.mark();
        assert!(!notice.maybe_changed());
        let around = directory.path().join("around");
        drop(File::open(&around).unwrap());
        assert!(!notice.maybe_changed(), "that is how the agent itself takes it");
        drop(OpenOptions::new().write(true).open(&around).unwrap());
        assert!(notice.maybe_changed());
    }

    #[test]
    fn a_lock_file_that_is_replaced_is_watched_again() {
        let directory = tempfile::tempdir().unwrap();
        let programs = directory.path().join("programs");
        let mut notice = locks(directory.path());
        notice.mark();
        fs::remove_file(&programs).unwrap();
        assert!(notice.maybe_changed());
        notice.mark();
        assert!(!notice.maybe_changed());
        fs::rename(directory.path().join("around"), &programs).unwrap();
        assert!(notice.maybe_changed());
        notice.mark();
        drop(File::open(&programs).unwrap());
        assert!(notice.maybe_changed());
    }

    #[test]
    fn an_unwatched_file_always_counts_as_changed() {
        let directory = tempfile::tempdir().unwrap();
        let mut notice = locks(&directory.path().join("absent"));
        notice.mark();
        assert!(notice.maybe_changed());
    }
}
