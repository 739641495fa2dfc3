//! Background task that commits queued changes.
//!
//! It stores all queued changes in one transaction, makes them visible, and answers
//! the callers. Their log lines are written during the next commit, or at once if there
//! is none. Callers queue changes between commits.

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

/// Limit of changes per commit.
const BATCH: usize = 256;
/// How often the flusher yields before a commit, as long as more changes arrive.
const TURNS: usize = 4;

/// Probe interval after a failed commit while the queue is empty.
const PROBE: Duration = Duration::from_secs(1);

/// Interval of the check for lost tables.
const MEND: Duration = Duration::from_secs(5);

/// Background task of [`Embedded`](super::Embedded); commits queued changes.
#[derive(Debug)]
pub struct Flusher {
    state: Arc<Mutex<State>>,
    queue: mpsc::Receiver<Pending>,
    feed: Feed,
    database: Database,
    /// Row number of the next lock. All rows below are known; rows from this number on are
    /// leftovers of a failed commit.
    next_row: i64,
    /// Token for a key that was never held.
    floor: FencingToken,
    /// The last commit failed and may have left rows.
    is_unsure: bool,
    /// Acknowledged changes that are not logged yet.
    unlogged: Vec<(Event, Span)>,
}

impl Flusher {
    /// `next_row` and `floor` come from `journal::load`.
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
        // Wakes all waiting calls; they see that the store is closed.
        state.busy.clear();
    }
}

impl Flusher {
    /// Commits until `stop`, then commits the rest of the queue and closes the database.
    /// Ends early only when the database can no longer store anything.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        health: Component,
    ) -> Result<(), storage::Error> {
        let mut stopping = false;
        // Refreshes write nothing: clients that only refresh would never observe that the
        // disk works again.
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

    /// Recreates lost tables and columns, with all locks.
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

    /// Collects changes that other tasks queue after a yield: a commit costs about the same
    /// for one change and for many.
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

    /// Probes whether the disk accepts a change and updates the health.
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

    /// Commits a batch; returns whether it is stored.
    async fn flush(&mut self, batch: impl Iterator<Item = Pending>, health: &Component) -> bool {
        let (changes, callers): (Vec<_>, Vec<_>) =
            batch.map(|pending| (pending.change, (pending.reply, pending.span))).unzip();
        let changes = Arc::new(changes);
        match self.store(Arc::clone(&changes)).await {
            Ok(acquired) => {
                health.ready();
                let events = self.make_visible(&changes, acquired);
                let logged = events.into_iter().zip(callers).map(|(event, (reply, span))| {
                    let _gave_up = reply.send(Ok(Arc::clone(event.held())));
                    (event, span)
                });
                self.unlogged.extend(logged);
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

    /// Writes the changes; returns the first version of each acquired lock.
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
        // `store` is polled first: the disk works while the log is written.
        let (stored, ()) = tokio::join!(biased; store, async { log(unlogged) });
        self.is_unsure = stored.is_err();
        let acquired = stored?;
        self.next_row += i64::try_from(acquired.len()).expect("a batch is small");
        Ok(acquired)
    }

    /// Puts the committed changes into the table, in their order.
    fn make_visible(&self, changes: &[Change], acquired: Vec<Arc<LockVersion>>) -> Vec<Event> {
        let mut acquired = acquired.into_iter();
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            // Lock per change, so that calls need not wait for the whole batch.
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

    /// Handles a failed commit: the table is unchanged, its keys become unconfirmed.
    fn rollback(&self, changes: &[Change]) {
        let mut state = lock(&self.state);
        for change in changes {
            // A free key is written by its next claim in any case.
            if state.table.get(change.key()).is_some() {
                state.unconfirmed.insert(change.key().clone());
            }
            state.busy.remove(change.key());
        }
    }
}

/// Writes the log lines of acknowledged changes.
fn log(logged: Vec<(Event, Span)>) {
    lager::batch_writes(|| {
        logged.into_iter().for_each(|(event, span)| span.in_scope(|| event.log()));
    });
}

/// Writes the changes; new locks get row numbers from `first` on.
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
