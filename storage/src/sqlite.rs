//! SQLite: one writer thread and some read connections for each database.
//!
//! What holds:
//! - One process has the database: `<path>.lock` is locked as long as it is
//!   open (the kernel lets go of it when the process dies, however it dies).
//!   Other programs may read the file meanwhile.
//! - A write that answered `Ok` is in the write-ahead log, and with
//!   [`Synchronous::Full`] on the disk. A write that answered with an error is
//!   not stored; the one exception is a disk that failed in the middle of a
//!   commit, where the truth is known after the next start.
//! - Writes happen in the order in which they were queued. Those that wait
//!   together share one transaction and one sync of the disk. Each runs in a
//!   savepoint of its own: when one fails or panics, the others are stored all
//!   the same.
//! - The log moves into the database file after the answers, not within a commit.
//! - The queue is bounded: who writes faster than the disk waits.
//! - A write that was queued is carried out even if its caller gives up.
//! - Reads run beside the writer, each on one snapshot, and see all that was
//!   answered before they began.
//! - [`Database::close`] needs nobody to drop a handle: it is a job of its own,
//!   after which the queue refuses further work with [`Error::Closed`].

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

/// How hard a commit insists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// On the disk before the answer.
    #[default]
    Full,
    /// In the write-ahead log before the answer: survives the death of the
    /// process, may lose the last commits when the machine loses power.
    Normal,
}

/// How a database is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// How hard a commit insists.
    pub synchronous: Synchronous,
    /// How long a statement waits for a lock of another program on the file.
    pub busy_timeout: Duration,
    /// How many writes may wait.
    pub queue: usize,
    /// How many writes share a transaction at most.
    pub batch: usize,
    /// How many reads may run at the same time.
    pub readers: usize,
    /// Bytes of a page of a new file; one that is there keeps its own. Large ones make
    /// large writes cheaper and small ones dearer: a commit writes whole pages.
    pub page_size: u32,
    /// How many KiB of pages the writer keeps; what a transaction changes beyond that
    /// goes to the log before the commit, page by page.
    pub cache_kib: u32,
    /// Refuses to grow beyond so many pages; [`crate::Kind::Full`].
    pub max_pages: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Full,
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

/// A handle to an open database; clones share it.
#[derive(Debug, Clone)]
pub struct Database {
    jobs: mpsc::Sender<Message>,
    readers: Arc<Readers>,
    migrations: &'static [Migration],
    tables: &'static [Table],
}

impl Database {
    /// Opens or creates the database at `path` and brings its schema to the
    /// last of `migrations`. Blocks on the disk: for the start of a process.
    pub fn open(
        path: impl AsRef<Path>,
        options: &Options,
        migrations: &'static [Migration],
    ) -> Result<Self, Error> {
        Self::open_whole(path, options, migrations, &[])
    }

    /// The same, and makes those of `tables` (what the last migration leaves) again that
    /// are lost, with their columns.
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

    /// Makes tables and columns again that were lost while the database is open, and
    /// returns what that was. `restore` puts rows back in the same transaction; it runs
    /// only if something was lost.
    ///
    /// # Errors
    /// The database does not answer; nothing is made then.
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

    /// Runs `work` in the next transaction and answers after its commit. An
    /// error of `work` undoes what `work` did and nothing else. `work` is to
    /// return the errors of its statements: after a full disk SQLite has given
    /// up the transaction, and what follows would be stored by itself.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Message::Job(Box::new(Write::new(work, reply)));
        self.jobs.send(job).await.map_err(|_| Error::Closed)?;
        // The writer answers every job that it took, unless it died itself.
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

    /// Resolves when no further write is possible: after [`Self::close`], or
    /// when the writer died.
    pub async fn closed(&self) {
        self.jobs.closed().await;
    }

    /// Stores what is queued, moves the log into the database file, and gives
    /// the database up. Other handles answer [`Error::Closed`] from then on.
    pub async fn close(&self) -> Result<(), Error> {
        self.readers.close().await;
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Message::Close(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }
}
