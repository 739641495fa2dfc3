//! SQLite: one writer thread and several read connections per database.
//!
//! Invariants:
//! - One process owns the database: `<path>.lock` is locked while the database is open (the kernel
//!   releases the lock when the process dies for any reason). Other programs may read the file.
//! - A write that returned `Ok` is in the write-ahead log, and on disk (`synchronous=FULL`).
//!   A write that returned an error is not stored, with one exception: if the disk fails during a
//!   commit, the outcome is known only after the next start.
//! - Writes run in the order in which they were queued. Queued writes share one transaction and one
//!   disk sync. Each runs in its own savepoint: if one fails or panics, the others are stored all
//!   the same.
//! - The log is checkpointed after the responses, not within a commit.
//! - The queue is bounded: a caller that writes faster than the disk waits.
//! - A queued write runs even if its caller is cancelled.
//! - Reads run concurrently with the writer, each on one snapshot, and see every write that
//!   returned before they began.
//! - [`Database::close`] does not depend on dropped handles: it is a job of its own, after which
//!   the queue rejects further work with [`Error::Closed`].

mod backup;
mod open;
mod read;
mod write;

use std::{path::Path, sync::Arc, time::Duration};

use rusqlite::{Connection, Transaction};
use tokio::sync::{mpsc, oneshot};

pub use self::backup::backup;
use self::{
    read::Readers,
    write::{Message, Write},
};
use crate::{Error, Lost, Migration, Table, migration};

/// Options for opening a database.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a statement waits for another program's lock on the file.
    pub busy_timeout: Duration,
    /// Capacity of the write queue.
    pub queue: usize,
    /// Maximum number of writes per transaction.
    pub batch: usize,
    /// Maximum number of concurrent reads.
    pub readers: usize,
    /// Page size in bytes for a new file; an existing file keeps its own. Large pages make large
    /// writes cheaper and small writes more expensive, since a commit writes whole pages.
    pub page_size: u32,
    /// Page cache of the writer in KiB. Changes of a transaction beyond the cache go to the log
    /// before the commit, page by page.
    pub cache_kib: u32,
    /// Maximum number of pages; beyond it, writes fail with [`crate::Kind::Full`].
    pub max_pages: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            busy_timeout: Duration::from_secs(5),
            queue: 1024,
            batch: 256,
            readers: 2,
            page_size: 4 << 10,
            cache_kib: 2 << 10,
            max_pages: None,
        }
    }
}

/// Handle to an open database; clones share it.
#[derive(Debug, Clone)]
pub struct Database {
    jobs: mpsc::Sender<Message>,
    readers: Arc<Readers>,
    migrations: &'static [Migration],
    tables: &'static [Table],
}

impl Database {
    /// Opens or creates the database at `path` and applies pending `migrations`. Blocks on the
    /// disk; call at process start.
    pub fn open(
        path: impl AsRef<Path>,
        options: &Options,
        migrations: &'static [Migration],
    ) -> Result<Self, Error> {
        Self::open_whole(path, options, migrations, &[])
    }

    /// Like [`Self::open`], and recreates those of `tables` (the state after the last migration)
    /// that are missing, and missing columns.
    pub fn open_whole(
        path: impl AsRef<Path>,
        options: &Options,
        migrations: &'static [Migration],
        tables: &'static [Table],
    ) -> Result<Self, Error> {
        let opened = open::open(path.as_ref(), options, migrations, tables)?;
        let (jobs, queue) = mpsc::channel(options.queue.max(1));
        write::start(opened.writer, opened.guard, queue, options.batch.max(1)).map_err(
            |source| Error::Create { path: path.as_ref().to_owned(), source: Arc::new(source) },
        )?;
        let readers = Arc::new(Readers::new(opened.readers));
        Ok(Self { jobs, readers, migrations, tables })
    }

    /// Recreates tables and columns that were lost while the database is open, and returns them.
    /// `restore` restores rows in the same transaction; it runs only if something was lost.
    ///
    /// # Errors
    /// The database does not respond; nothing is recreated.
    pub async fn mend<F>(&self, restore: F) -> Result<Vec<Lost>, Error>
    where
        F: FnOnce(&Transaction<'_>, &[Lost]) -> Result<(), Error> + Send + 'static,
    {
        let (migrations, tables) = (self.migrations, self.tables);
        let look = move |connection: &Connection| migration::is_damaged(connection, tables);
        if !self.read(look).await? {
            return Ok(Vec::new());
        }
        let mend = move |transaction: &Transaction<'_>| {
            let lost = migration::migrate_in(transaction, migrations, tables, true)?;
            if !lost.is_empty() {
                restore(transaction, &lost)?;
            }
            Ok::<_, Error>(lost)
        };
        let lost = self.write(mend).await?;
        lost.iter().for_each(Lost::log);
        Ok(lost)
    }

    /// Runs `work` in the next transaction and returns after its commit. An error of `work` rolls
    /// back `work` only. `work` must return the errors of its statements: when the disk is full
    /// SQLite rolls back the transaction, and later statements would be stored on their own.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Message::Job(Box::new(Write::new(work, reply)));
        self.jobs.send(job).await.map_err(|_| Error::Closed)?;
        // The writer responds to every job that it received, unless the thread died.
        answer.await.unwrap_or_else(|_| Err(Error::Closed.into()))
    }

    /// Runs `work` on a read-only connection, in one snapshot.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.readers.read(work).await
    }

    /// Returns when no further write is possible: after [`Self::close`], or when the writer thread
    /// has died.
    pub async fn closed(&self) {
        self.jobs.closed().await;
    }

    /// Stores the queued writes, checkpoints the log, and releases the database. Other handles then
    /// return [`Error::Closed`].
    pub async fn close(&self) -> Result<(), Error> {
        self.readers.close().await;
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Message::Close(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }
}
