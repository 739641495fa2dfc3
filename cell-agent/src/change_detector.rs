//! Tells without a process whether others may have changed iptables.
//!
//! Where iptables writes through nftables, the kernel counts each change. The
//! older interface has no number: it tells the size of a table, which an edit
//! need not change, or all of it. But each of its programs has a lock file open
//! while it works, and the programs of a cell have another one around it. A file
//! is closed after the change that was made under it, and inotify tells that
//! (adr/0009).
//!
//! What always holds: a change that was made after [`ChangeDetector::mark`] by somebody
//! who kept to a lock is told by [`ChangeDetector::maybe_changed`] once the lock is let go of.
//! Where nothing can be told, it says that there may be something.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchMask};
use nix::libc::O_CREAT;

use crate::{drift::KernelGeneration, netlink::NetlinkConnection};

/// The lock of the programs of iptables, if the environment names no other.
const PROGRAMS_LOCK: &str = "/run/xtables.lock";
/// What names another.
const PROGRAMS_LOCK_KEY: &str = "XTABLES_LOCKFILE";

/// What says whether somebody was at work.
#[derive(Debug)]
pub(crate) enum ChangeDetector {
    /// The kernel's number.
    Kernel {
        /// Where it is asked for.
        line: NetlinkConnection,
        /// At the mark.
        mark: Option<KernelGeneration>,
    },
    /// The lock files.
    Locks(Locks),
}

impl ChangeDetector {
    /// By the kernel's number.
    pub(crate) fn by_kernel() -> Self {
        Self::Kernel { line: NetlinkConnection::default(), mark: None }
    }

    /// By the lock of the programs, and the lock that others on the cell take.
    pub(crate) fn by_locks(around: &Path) -> Self {
        let own = std::env::var_os(PROGRAMS_LOCK_KEY).unwrap_or_else(|| PROGRAMS_LOCK.into());
        // The agent takes the lock around too, but opens it for reading only.
        let files =
            [(PathBuf::from(own), WatchMask::CLOSE), (around.to_owned(), WatchMask::CLOSE_WRITE)];
        Self::Locks(Locks { files, watch: None, maybe_changed: true })
    }

    /// Forgets what was before; call it before looking.
    pub(crate) fn mark(&mut self) {
        match self {
            Self::Kernel { line, mark } => *mark = line.generation(),
            Self::Locks(locks) => locks.mark(),
        }
    }

    /// Whether anybody may have changed anything since the mark.
    pub(crate) fn maybe_changed(&mut self) -> bool {
        match self {
            Self::Kernel { line, mark } => mark.is_none() || *mark != line.generation(),
            Self::Locks(locks) => locks.maybe_changed(),
        }
    }
}

/// Lock files that are watched.
#[derive(Debug)]
pub(crate) struct Locks {
    files: [(PathBuf, WatchMask); 2],
    /// Gone when a file was replaced, until the next mark.
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

    /// Takes what inotify has to tell.
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

/// Makes files that are not there yet, as their users do.
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
    fn a_lock_that_was_let_go_of_is_told_until_the_mark() {
        let directory = tempfile::tempdir().unwrap();
        let mut notice = locks(directory.path());
        assert!(notice.maybe_changed(), "nobody looked yet");
        notice.mark();
        assert!(!notice.maybe_changed());
        let held = File::open(directory.path().join("programs")).unwrap();
        assert!(!notice.maybe_changed(), "it may not have changed anything yet");
        // Whoever looks while the lock is held sees what is before the change.
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
    fn what_cannot_be_watched_may_always_have_changed() {
        let directory = tempfile::tempdir().unwrap();
        let mut notice = locks(&directory.path().join("absent"));
        notice.mark();
        assert!(notice.maybe_changed());
    }
}
