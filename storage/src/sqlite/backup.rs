//! Backup of a database that is in use.
//!
//! Invariants:
//! - The backup is one snapshot. It is taken within one read transaction, so that writers of this
//!   or another process continue; their log grows until the backup is complete.
//! - The backup is checked and synced to disk before it gets its name: the name always refers to
//!   the previous file or to the complete backup. A failed backup leaves no file.
//! - The backup can be opened like its source.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};
use tempfile::NamedTempFile;

use super::open::lock_path;
use crate::Error;

/// Busy timeout while another program has the file locked.
const PATIENCE: Duration = Duration::from_secs(10);
/// All pages in one step: a write between two steps would restart the backup.
const ALL: i32 = -1;

/// Backs up the database `from`, which may be in use, to the file `to`; returns the size of the
/// backup in bytes. Blocks.
///
/// # Errors
/// There is no such database, or it is damaged; `to` is one of its files; the backup cannot be
/// written.
pub fn backup(from: &Path, to: &Path) -> Result<u64, Error> {
    refuse_own_files(from, to)?;
    let source = Connection::open_with_flags(
        from,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    );
    let source = source.map_err(Error::open(from.to_owned()))?;
    source.busy_timeout(PATIENCE)?;
    let unwritable = |source| Error::Create { path: to.to_owned(), source: Arc::new(source) };
    let directory = match to.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    };
    // Readable by its owner only, like the database.
    let copy = NamedTempFile::new_in(directory).map_err(unwritable)?;
    fill(&source, copy.path())?;
    let keep = || -> io::Result<u64> {
        copy.as_file().sync_all()?;
        let bytes = copy.as_file().metadata()?.len();
        copy.persist(to).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()?;
        Ok(bytes)
    };
    keep().map_err(unwritable)
}

/// Rejects the database's own files, by name and by content: a backup over one of them would
/// destroy the database.
fn refuse_own_files(from: &Path, to: &Path) -> Result<(), Error> {
    let with = |end: &str| {
        let mut name = from.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let own = [from.to_owned(), with("-wal"), with("-shm"), with("-journal"), lock_path(from)];
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let taken = identity(to);
    let is_own = |path: &PathBuf| path == to || (taken.is_some() && identity(path) == taken);
    match own.iter().any(is_own) {
        true => Err(Error::OwnFile { path: to.to_owned() }),
        false => Ok(()),
    }
}

fn fill(source: &Connection, path: &Path) -> Result<(), Error> {
    let open = || Error::open(path.to_owned());
    let mut copy = Connection::open(path).map_err(open())?;
    // The file has no name yet: an incomplete backup is discarded, a complete one is synced as a
    // whole.
    copy.pragma_update(None, "journal_mode", "off").map_err(open())?;
    copy.pragma_update(None, "synchronous", "off").map_err(open())?;
    step(&Backup::new(source, &mut copy)?)?;
    let verdict: String = copy.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(Error::Damaged { problem: verdict });
    }
    copy.close().map_err(|(_, source)| source.into())
}

/// SQLite itself waits for locks.
fn step(backup: &Backup<'_, '_>) -> Result<(), Error> {
    match backup.step(ALL)? {
        StepResult::Done => Ok(()),
        _ => Err(Error::Timeout { after: PATIENCE, source: None }),
    }
}
