//! Opens a database: process lock, settings, schema.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, OpenFlags};

use super::Options;
use crate::{Error, Migration, Table, migration};

/// Size limit of the log after a checkpoint: 4 MiB.
const JOURNAL_SIZE_LIMIT: i64 = 4 << 20;
/// Size of a connection's prepared statement cache.
const PREPARED: usize = 64;

pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) readers: Vec<Connection>,
    /// Holds the process lock until it is dropped.
    pub(super) guard: Guard,
}

/// The process lock. It is unlocked explicitly, not only closed: a child process being started has
/// a copy of every open file until it runs exec.
pub(super) struct Guard(File);

impl Drop for Guard {
    fn drop(&mut self) {
        // If unlocking fails, the lock ends with the last copy of the file.
        let _best_effort = self.0.unlock();
    }
}

pub(super) fn open(
    path: &Path,
    options: &Options,
    migrations: &'static [Migration],
    tables: &'static [Table],
) -> Result<Opened, Error> {
    let guard = lock(path)?;
    // SQLite creates its log with the mode of the existing file.
    private(path)?;
    let mut writer = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, options)
        .and_then(|writer| set_up_writer(writer, options))
        .map_err(Error::open(path.to_owned()))?;
    migration::migrate(&mut writer, migrations, tables)?;
    let readers = (0..options.readers.max(1))
        .map(|_| {
            let reader = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY, options)?;
            reader.pragma_update(None, "query_only", true)?;
            Ok(reader)
        })
        .collect::<Result<_, rusqlite::Error>>()
        .map_err(Error::open(path.to_owned()))?;
    Ok(Opened { writer, readers, guard })
}

/// Only the owner may read: values may be confidential.
fn private(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::Create { path: path.to_owned(), source: Arc::new(source) })
}

fn lock(path: &Path) -> Result<Guard, Error> {
    let lock_path = lock_path(path);
    let file = private(&lock_path)?;
    match file.try_lock() {
        Ok(()) => Ok(Guard(file)),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => {
            Err(Error::Create { path: lock_path, source: Arc::new(source) })
        }
    }
}

pub(super) fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn connect(
    path: &Path,
    access: OpenFlags,
    options: &Options,
) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(options.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

fn set_up_writer(writer: Connection, options: &Options) -> Result<Connection, rusqlite::Error> {
    // Must precede the first page write, which the next setting causes.
    writer.pragma_update(None, "page_size", options.page_size)?;
    // Negative: KiB instead of pages.
    writer.pragma_update(None, "cache_size", -i64::from(options.cache_kib))?;
    writer.pragma_update(None, "journal_mode", "wal")?;
    // A commit is on disk before the response.
    writer.pragma_update(None, "synchronous", "full")?;
    writer.pragma_update_and_check(None, "journal_size_limit", JOURNAL_SIZE_LIMIT, |_| Ok(()))?;
    // The writer thread checkpoints after the responses.
    writer.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    if let Some(pages) = options.max_pages {
        writer.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
    }
    Ok(writer)
}
