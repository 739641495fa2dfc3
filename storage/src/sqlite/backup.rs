//! A copy of a database that others use meanwhile.
//!
//! What holds:
//! - The copy is of one moment. It is made within one read transaction, so that
//!   writers, of this process or of another, go on beside it; their log grows
//!   until it is done.
//! - It is looked over, is on the disk, and only then gets its name: under that
//!   name is at any time what was there before, or the whole copy. A copy that
//!   failed leaves nothing.
//! - It is a database like the one it was made from.

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

/// How long somebody who has the file for himself is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// All pages at once: between two steps others could write, and it would begin
/// again.
const ALL: i32 = -1;

/// Copies the database `from`, which may be in use, to the file `to`; answers how
/// many bytes that has. Blocks.
///
/// # Errors
/// There is no such database, or it is damaged; `to` belongs to it; the copy
/// cannot be written.
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
    // Its owner's alone, as the database is.
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

/// The database's own files, by name and by content: a copy on top of one of them
/// would be its end.
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
    // The file has no name yet: what is half written is thrown away, and what is
    // whole is synced as a whole.
    copy.pragma_update(None, "journal_mode", "off").map_err(open())?;
    copy.pragma_update(None, "synchronous", "off").map_err(open())?;
    step(&Backup::new(source, &mut copy)?)?;
    let verdict: String = copy.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(Error::Damaged { problem: verdict });
    }
    copy.close().map_err(|(_, source)| source.into())
}

/// SQLite itself waits for whoever is in the way.
fn step(backup: &Backup<'_, '_>) -> Result<(), Error> {
    match backup.step(ALL)? {
        StepResult::Done => Ok(()),
        _ => Err(Error::Timeout { after: PATIENCE, source: None }),
    }
}
