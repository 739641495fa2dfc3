//! The task that stores what is queued.
//!
//! It takes all that waits, stores it in one transaction, makes it visible, and
//! answers. The lines about it are written while the disk has the next commit, or
//! at once if there is none. Between its commits the others queue.

use std::{
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use model::lock::FencingToken;
use runtime::{error::chain, lager, server::Component};
use rusqlite::Connection;
use storage::{Lost, sqlite::Database};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{Change, Error, Pending, State, journal, lock};
use crate::{
    feed::{Event, Feed},
    lock_version::LockVersion,
};

/// Changes that share a commit at most.
const BATCH: usize = 256;
/// How often a commit lets others queue their changes first, as long as there are any.
const TURNS: usize = 4;

/// After a commit that failed, and while nobody has a change: how often it is
/// tried whether the disk takes one again.
const PROBE: Duration = Duration::from_secs(1);

/// Period of the search for tables that were lost.
const MEND: Duration = Duration::from_secs(5);

/// Stores what is queued: the task behind [`Embedded`](super::Embedded).
#[derive(Debug)]
pub struct Flusher {
    state: Arc<Mutex<State>>,
    queue: mpsc::Receiver<Pending>,
    feed: Feed,
    database: Database,
    /// The row of the next lock. All rows below are known; those from here on, if
    /// there are any, are of a commit that failed.
    next_row: i64,
    /// The token of a key that was never held.
    floor: FencingToken,
    /// The last commit failed: it may have left rows.
    is_unsure: bool,
    /// What was answered and has no line in the log yet.
    unlogged: Vec<(Event, Span)>,
}

impl Flusher {
    /// The number for the next lock, and the token of a key that was never held.
    pub(super) fn new(
        state: Arc<Mutex<State>>,
        queue: mpsc::Receiver<Pending>,
        feed: Feed,
        database: Database,
        (next_row, floor): (i64, FencingToken),
    ) -> Self {
        let (is_unsure, unlogged) = (false, Vec::new());
        Self { state, queue, feed, database, next_row, floor, is_unsure, unlogged }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        log(mem::take(&mut self.unlogged));
        let mut state = lock(&self.state);
        state.closed = true;
        // Whoever waits for a key wakes up and sees that it is over.
        state.busy.clear();
    }
}

impl Flusher {
    /// Stores until `stop`, then what is still queued, and closes the database.
    /// Ends early only when the database can store nothing any more.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        health: Component,
    ) -> Result<(), storage::Error> {
        let mut stopping = false;
        // Refreshes write nothing: who has only those would never learn that the
        // disk is well again.
        let mut is_failing = false;
        let mut batch = Vec::with_capacity(BATCH);
        let mut mends = interval_at(Instant::now() + MEND, MEND);
        mends.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.queue.close();
                }
                () = self.database.closed() => return Err(storage::Error::Closed),
                _ = mends.tick(), if !stopping => self.mend().await,
                count = self.queue.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return self.database.close().await;
                    }
                    self.gather(&mut batch).await;
                    is_failing = !self.flush(batch.drain(..), &health).await;
                    if self.queue.is_empty() {
                        log(mem::take(&mut self.unlogged));
                    }
                }
                () = tokio::time::sleep(PROBE), if is_failing => {
                    is_failing = !self.probe(&health).await;
                }
            }
        }
    }

    /// Makes tables and columns again that were lost, with all locks.
    async fn mend(&mut self) {
        let state = Arc::clone(&self.state);
        let mended = self.database.mend(move |transaction, _| {
            let held = lock(&state).table.all();
            held.iter().try_for_each(|held| journal::put(transaction, held))?;
            Ok(())
        });
        let floor = async |mended: Result<Vec<Lost>, storage::Error>| match mended?.is_empty() {
            true => Ok(None),
            false => self.database.read(|file| Ok(Some(journal::floor(file)?))).await,
        };
        let floor: Result<Option<FencingToken>, storage::Error> = floor(mended.await).await;
        match floor {
            Ok(floor) => self.floor = floor.unwrap_or(self.floor),
            Err(error) => tracing::error!(error = chain(&error), "failed-making-tables"),
        }
    }

    /// Takes along what others queue when they have their turn: a commit costs much
    /// the same for one change and for many.
    async fn gather(&mut self, batch: &mut Vec<Pending>) {
        for _turn in 0..TURNS {
            let before = batch.len();
            tokio::task::yield_now().await;
            let more = std::iter::from_fn(|| self.queue.try_recv().ok());
            batch.extend(more.take(BATCH.saturating_sub(before)));
            if batch.len() == before {
                return;
            }
        }
    }

    /// Whether the disk takes a change; tells the health.
    async fn probe(&self, health: &Component) -> bool {
        let probed = self
            .database
            .write(|transaction| journal::probe(transaction).map_err(storage::Error::from))
            .await;
        match probed {
            Ok(()) => {
                health.ready();
                true
            }
            Err(error) => {
                health.not_ready(chain(&error));
                false
            }
        }
    }

    /// Whether the changes are stored.
    async fn flush(&mut self, batch: impl Iterator<Item = Pending>, health: &Component) -> bool {
        let (changes, callers): (Vec<_>, Vec<_>) =
            batch.map(|pending| (pending.change, (pending.reply, pending.span))).unzip();
        let changes = Arc::new(changes);
        match self.store(Arc::clone(&changes)).await {
            Ok(acquired) => {
                health.ready();
                let events = self.make_visible(&changes, acquired);
                let told = events.into_iter().zip(callers).map(|(event, (reply, span))| {
                    let _gave_up = reply.send(Ok(Arc::clone(event.held())));
                    (event, span)
                });
                self.unlogged.extend(told);
                true
            }
            Err(error) => {
                let (text, changes_count) = (chain(&error), changes.len());
                tracing::error!(
                    error = text,
                    changes = changes_count,
                    "failed-committing-transaction"
                );
                health.not_ready(text);
                self.rollback(&changes);
                let error = Error::Unavailable(Arc::new(error));
                for (reply, _) in callers {
                    let _gave_up = reply.send(Err(error.clone()));
                }
                false
            }
        }
    }

    /// The first version for each change that acquires.
    async fn store(
        &mut self,
        changes: Arc<Vec<Change>>,
    ) -> Result<Vec<Arc<LockVersion>>, storage::Error> {
        let (first, floor, is_unsure) = (self.next_row, self.floor, self.is_unsure);
        let unlogged = mem::take(&mut self.unlogged);
        let store = self.database.write(move |transaction| {
            if is_unsure {
                journal::forget_from(transaction, first)?;
            }
            write(transaction, &changes, first, floor).map_err(storage::Error::from)
        });
        // The first has its turn first: the disk works while the log is written.
        let (stored, ()) = tokio::join!(biased; store, async { log(unlogged) });
        self.is_unsure = stored.is_err();
        let acquired = stored?;
        self.next_row += i64::try_from(acquired.len()).expect("a batch is small");
        Ok(acquired)
    }

    /// The changes are on the disk: puts them into the table, in their order.
    fn make_visible(&self, changes: &[Change], acquired: Vec<Arc<LockVersion>>) -> Vec<Event> {
        let mut acquired = acquired.into_iter();
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            // One by one: calls are not to wait for all of them.
            let mut state = lock(&self.state);
            let event = match change {
                Change::Acquire { .. } => {
                    let held = acquired.next().expect("one for each change that acquires");
                    Event::claimed(state.table.put(Arc::clone(&held)), held)
                }
                Change::Replace(held) => {
                    Event::claimed(state.table.put(Arc::clone(held)), Arc::clone(held))
                }
                Change::Release(held) => {
                    state.table.remove(&held.lock.key);
                    Event::Released(Arc::clone(held))
                }
                Change::Expire(held) => {
                    state.table.remove(&held.lock.key);
                    Event::Expired(Arc::clone(held))
                }
            };
            self.feed.publish(&event);
            state.unconfirmed.remove(change.key());
            state.busy.remove(change.key());
            events.push(event);
        }
        events
    }

    /// The changes are not stored, as far as is known: the table never had them.
    fn rollback(&self, changes: &[Change]) {
        let mut state = lock(&self.state);
        for change in changes {
            // A key that nobody has is written by its next claim anyhow.
            if state.table.get(change.key()).is_some() {
                state.unconfirmed.insert(change.key().clone());
            }
            state.busy.remove(change.key());
        }
    }
}

/// Writes the lines about what was answered.
fn log(told: Vec<(Event, Span)>) {
    lager::batch_writes(|| {
        told.into_iter().for_each(|(event, span)| span.in_scope(|| event.log()));
    });
}

/// Writes the changes; new locks get rows from `first` on.
fn write(
    connection: &Connection,
    changes: &[Change],
    first: i64,
    floor: FencingToken,
) -> Result<Vec<Arc<LockVersion>>, rusqlite::Error> {
    let mut acquired = Vec::new();
    let mut rows = first..;
    for change in changes {
        match change {
            Change::Acquire { claim, request } => {
                let token = journal::next_token(connection, &claim.key, floor)?;
                let id = journal::row_id(rows.next().expect("no end of numbers"));
                let held = LockVersion::first(claim.clone(), id, token, request.clone());
                journal::put(connection, &held)?;
                acquired.push(Arc::new(held));
            }
            Change::Replace(held) => journal::put(connection, held)?,
            Change::Release(held) | Change::Expire(held) => journal::delete(connection, held)?,
        }
    }
    Ok(acquired)
}
