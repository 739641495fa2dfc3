//! The writer thread: takes queued jobs, runs them in one transaction, and responds after the
//! commit.

use std::{
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use rusqlite::{Connection, Row, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::open::Guard;
use crate::Error;

/// Number of pages at which the log is checkpointed: 4 MiB, or more with larger pages than usual.
const LONG_LOG: i64 = 1000;

pub(super) enum Message {
    Job(Box<dyn Job>),
    Close(oneshot::Sender<Result<(), Error>>),
}

/// A queued write with its response channel.
pub(super) trait Job: Send {
    /// Runs the work and keeps its outcome; false when its effects must be rolled back.
    fn run(&mut self, transaction: &Transaction<'_>) -> bool;
    /// Responds with the kept outcome.
    fn finish(self: Box<Self>);
    /// Responds that nothing is stored: with the job's own error if it has one.
    fn fail(self: Box<Self>, error: Error);
}

pub(super) struct Write<T, E, F> {
    work: Option<F>,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F> Write<T, E, F> {
    pub(super) fn new(work: F, reply: oneshot::Sender<Result<T, E>>) -> Self {
        Self { work: Some(work), outcome: None, reply }
    }
}

impl<T, E, F> Job for Write<T, E, F>
where
    F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run(&mut self, transaction: &Transaction<'_>) -> bool {
        let Some(work) = self.work.take() else {
            return false;
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| work(transaction)))
            .unwrap_or_else(|_| Err(Error::Panicked.into()));
        let keep = outcome.is_ok();
        self.outcome = Some(outcome);
        keep
    }

    // A cancelled caller has dropped its receiver, so the response is ignored.
    fn finish(self: Box<Self>) {
        let outcome = self.outcome.unwrap_or_else(|| Err(Error::Closed.into()));
        let _gave_up = self.reply.send(outcome);
    }

    fn fail(self: Box<Self>, error: Error) {
        let outcome = match self.outcome {
            Some(Err(own)) => Err(own),
            Some(Ok(_)) | None => Err(error.into()),
        };
        let _gave_up = self.reply.send(outcome);
    }
}

pub(super) fn start(
    connection: Connection,
    guard: Guard,
    queue: mpsc::Receiver<Message>,
    batch: usize,
) -> io::Result<()> {
    thread::Builder::new()
        .name("sqlite-writer".to_owned())
        .spawn(move || {
            let closing = serve(&connection, queue, batch);
            let closed = close(connection);
            drop(guard);
            if let Some(closing) = closing {
                let _gave_up = closing.send(closed);
            }
        })
        .map(drop)
}

/// Returns on a close request (whose response is still due) or when the last handle is dropped.
fn serve(
    connection: &Connection,
    mut queue: mpsc::Receiver<Message>,
    batch: usize,
) -> Option<oneshot::Sender<Result<(), Error>>> {
    let mut messages = Vec::with_capacity(batch);
    let mut jobs = Vec::with_capacity(batch);
    while queue.blocking_recv_many(&mut messages, batch) > 0 {
        let mut closing = None;
        for message in messages.drain(..) {
            match message {
                Message::Job(job) if closing.is_none() => jobs.push(job),
                Message::Job(job) => job.fail(Error::Closed),
                Message::Close(reply) => closing = Some(reply),
            }
        }
        store(connection, &mut jobs);
        if let Err(error) = shorten_log(connection) {
            // No data is lost, and the next write retries.
            tracing::error!(error = %error, "sqlite-checkpoint-failed");
        }
        if closing.is_some() {
            queue.close();
            while let Ok(message) = queue.try_recv() {
                if let Message::Job(job) = message {
                    job.fail(Error::Closed);
                }
            }
            return closing;
        }
    }
    None
}

/// Runs `jobs` in as few transactions as possible, usually one.
fn store(connection: &Connection, jobs: &mut Vec<Box<dyn Job>>) {
    let mut waiting = mem::take(jobs).into_iter();
    while waiting.len() > 0 {
        let mut done = Vec::with_capacity(waiting.len());
        match transact(connection, &mut waiting, &mut done) {
            Ok(()) => done.into_iter().for_each(Job::finish),
            Err(error) => {
                tracing::error!(error = %error, jobs = done.len(), "sqlite-transaction-failed");
                // No job ran, so all of them get the same error.
                if done.is_empty() {
                    done.extend(waiting.by_ref());
                }
                for job in done {
                    job.fail(error.clone());
                }
            }
        }
    }
}

/// Runs one transaction; jobs that ran are moved to `done`. Stops early when SQLite itself rolls
/// the transaction back, as it does when the disk is full; the rest then gets a transaction of its
/// own.
fn transact(
    connection: &Connection,
    waiting: &mut impl Iterator<Item = Box<dyn Job>>,
    done: &mut Vec<Box<dyn Job>>,
) -> Result<(), Error> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
        .map_err(Error::transaction)?;
    for mut job in waiting {
        let ran = in_savepoint(connection, || job.run(&transaction));
        done.push(job);
        ran?;
    }
    transaction.commit().map_err(Error::transaction)
}

fn in_savepoint(connection: &Connection, run: impl FnOnce() -> bool) -> Result<(), Error> {
    execute(connection, "SAVEPOINT job")?;
    let keep = run();
    if connection.is_autocommit() {
        return Err(Error::Abandoned);
    }
    if !keep {
        execute(connection, "ROLLBACK TO job")?;
    }
    execute(connection, "RELEASE job")
}

fn execute(connection: &Connection, sql: &str) -> Result<(), Error> {
    connection
        .prepare_cached(sql)
        .and_then(|mut statement| statement.execute([]))
        .map(drop)
        .map_err(Error::transaction)
}

/// Checkpoints a long log after the responses, so that no caller waits for it. SQLite's automatic
/// checkpoint would run within the commit that makes the log too long.
fn shorten_log(connection: &Connection) -> Result<(), Error> {
    let checkpoint = |mode| {
        // Log pages that are not in the file yet.
        let left = |row: &Row<'_>| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?);
        connection
            .prepare_cached(mode)
            .and_then(|mut statement| statement.query_row([], left))
            .map_err(Error::transaction)
    };
    if checkpoint("PRAGMA wal_checkpoint(NOOP)")? >= LONG_LOG {
        checkpoint("PRAGMA wal_checkpoint(PASSIVE)")?;
    }
    Ok(())
}

fn close(connection: Connection) -> Result<(), Error> {
    let checkpoint = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .map_err(Error::transaction);
    let closed = connection.close().map_err(|(_, source)| Error::transaction(source));
    checkpoint.and(closed)
}
