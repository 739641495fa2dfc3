//! Locks in memory with SQLite as their journal.
//!
//! Invariant: the table contains committed versions only. A change is decided against
//! the table and queued; all queued changes share a commit; after the commit they enter
//! the table and their callers are answered. Consequences:
//! - Reads use the table alone: no disk access, no wait for writes, no uncommitted
//!   change.
//! - A key with a pending change is busy: the next call on the key waits for the commit
//!   and decides then. So no response, not even a collision, depends on a change that
//!   can still fail, and a failed commit needs no rollback of the table: the callers
//!   get an error.
//! - A refresh that changes only the deadline is not stored: a restart grants the full
//!   time to live in any case. Its index is in memory only; the next stored version
//!   includes it. Exception: when the last commit of a key failed, the disk may contain
//!   that change (an expiry, for example), so the next claim always writes the lock.
//! - A queued change is carried out even if its caller cancels.
//! - The queue is bounded; callers wait while it is full.
//!
//! - Without the flusher all calls fail: it may have ended in the middle of a commit,
//!   and then the table may differ from the disk.
//!
//! Lost tables and columns of the file are recreated at the start and every few seconds,
//! with the locks of the table.
//!
//! After a crash the table is loaded from the disk: it contains every acknowledged
//! change, and possibly changes that were committed but not acknowledged.

mod flush;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::lock::{Claim, LockKey, Owner, Selector};
use storage::sqlite::{Database, Options};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

pub use self::flush::Flusher;
use super::{
    Claimed, Error, Expired, Released, Store,
    journal::{self, Loaded},
};
use crate::{
    decide,
    feed::{Event, Feed, Subscription},
    lock_version::{LockList, LockVersion, Request},
    table::Table,
};

/// Queue size for pending changes.
const QUEUE: usize = 1024;

/// A handle; clones share the locks.
#[derive(Debug, Clone)]
pub struct Embedded {
    state: Arc<Mutex<State>>,
    queue: mpsc::Sender<Pending>,
    feed: Feed,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    /// Keys with a queued or uncommitted change, and the calls that wait for the commit.
    busy: HashMap<LockKey, Vec<oneshot::Sender<()>>>,
    /// Keys whose table entry may differ from the disk, since a commit that changes them
    /// failed.
    unconfirmed: HashSet<LockKey>,
    /// The flusher ended, possibly in the middle of a commit: the table may differ from
    /// the disk.
    closed: bool,
}

/// A change that is decided but not yet stored.
#[derive(Debug)]
enum Change {
    /// Acquires a free key; the token comes from the disk, the row number from the
    /// flusher.
    Acquire { claim: Claim, request: Request },
    /// The owner's next version.
    Replace(Arc<LockVersion>),
    /// The owner releases the lock.
    Release(Arc<LockVersion>),
    /// The deadline passed.
    Expire(Arc<LockVersion>),
}

impl Change {
    fn key(&self) -> &LockKey {
        match self {
            Self::Acquire { claim, .. } => &claim.key,
            Self::Replace(held) | Self::Release(held) | Self::Expire(held) => &held.lock.key,
        }
    }
}

#[derive(Debug)]
struct Pending {
    change: Change,
    reply: oneshot::Sender<Result<Arc<LockVersion>, Error>>,
    /// Span of the request, for the log line of the change.
    span: Span,
}

/// Decision about a call.
enum Verdict<T> {
    Answer(T),
    /// Update the table only.
    Remember(LockVersion),
    Store(Change),
}

/// Progress of a call while the state is locked.
enum Step<T> {
    Answered(T),
    Queued(oneshot::Receiver<Result<Arc<LockVersion>, Error>>),
    Busy(oneshot::Receiver<()>),
    Full,
}

impl Embedded {
    /// Opens the database and loads the locks. The flusher has to run for changes to be
    /// stored.
    pub async fn open(
        path: &Path,
        options: &Options,
        feed: Feed,
    ) -> Result<(Self, Flusher), storage::Error> {
        let database = Database::open_whole(path, options, journal::MIGRATIONS, journal::TABLES)?;
        let Loaded { locks, next, floor } = database
            .write(|transaction| journal::load(transaction).map_err(storage::Error::from))
            .await?;
        let mut state = State::default();
        for held in locks.into_iter().map(Arc::new) {
            feed.found(&held);
            state.table.put(held);
        }
        let state = Arc::new(Mutex::new(state));
        let (sender, queue) = mpsc::channel(QUEUE);
        let flusher =
            Flusher::new(Arc::clone(&state), queue, feed.clone(), database, (next, floor));
        Ok((Self { state, queue: sender, feed }, flusher))
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = lock(&self.state);
        if state.closed { Err(Error::Closed) } else { Ok(state) }
    }

    /// Waits until `key` has no pending change, decides, and waits until the change is
    /// stored.
    async fn change<T>(
        &self,
        key: &LockKey,
        decide: impl Fn(Option<&Arc<LockVersion>>) -> Verdict<T> + Send + Sync,
        changed: impl Fn(Arc<LockVersion>) -> T + Send + Sync,
    ) -> Result<T, Error> {
        let mut permit = None;
        loop {
            match self.step(key, &decide, &changed, &mut permit)? {
                Step::Answered(answer) => return Ok(answer),
                Step::Queued(answer) => {
                    return answer.await.unwrap_or(Err(Error::Closed)).map(changed);
                }
                // The key is no longer busy, whether the sender sent or was dropped.
                Step::Busy(free) => drop(free.await),
                Step::Full => {
                    permit = Some(self.queue.reserve().await.map_err(|_| Error::Closed)?);
                }
            }
        }
    }

    fn step<'a, T>(
        &'a self,
        key: &LockKey,
        decide: impl Fn(Option<&Arc<LockVersion>>) -> Verdict<T>,
        changed: impl Fn(Arc<LockVersion>) -> T,
        permit: &mut Option<mpsc::Permit<'a, Pending>>,
    ) -> Result<Step<T>, Error> {
        let mut state = self.open_state()?;
        if let Some(waiters) = state.busy.get_mut(key) {
            let (done, free) = oneshot::channel();
            waiters.push(done);
            return Ok(Step::Busy(free));
        }
        let change = match decide(state.table.get(key)) {
            Verdict::Answer(answer) => return Ok(Step::Answered(answer)),
            Verdict::Remember(held) if state.unconfirmed.contains(key) => {
                Change::Replace(Arc::new(held))
            }
            Verdict::Remember(held) => {
                return Ok(Step::Answered(changed(self.remember(&mut state, held))));
            }
            Verdict::Store(change) => change,
        };
        let permit = match permit.take() {
            Some(permit) => permit,
            None => match self.queue.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Full(())) => return Ok(Step::Full),
                Err(mpsc::error::TrySendError::Closed(())) => return Err(Error::Closed),
            },
        };
        let (reply, answer) = oneshot::channel();
        state.busy.insert(key.clone(), Vec::new());
        permit.send(Pending { change, reply, span: Span::current() });
        Ok(Step::Queued(answer))
    }

    /// Puts a version into the table that need not be stored.
    fn remember(&self, state: &mut State, held: LockVersion) -> Arc<LockVersion> {
        let held = Arc::new(held);
        state.table.put(Arc::clone(&held));
        self.feed.publish(&Event::Refreshed(Arc::clone(&held)));
        held
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for Embedded {
    fn refresh(&self, claim: &Claim, request: &Request) -> Option<Arc<LockVersion>> {
        let mut state = self.open_state().ok()?;
        let held = state.table.get(&claim.key)?;
        let may = decide::claim(Some(&held.lock), claim) == decide::Claimed::Refresh
            && !state.busy.contains_key(&claim.key)
            && !state.unconfirmed.contains(&claim.key);
        let held = may.then(|| held.again(claim, request.clone()))?;
        Some(self.remember(&mut state, held))
    }

    fn known(&self, key: &LockKey) -> Option<Arc<LockVersion>> {
        self.open_state().ok()?.table.get(key).cloned()
    }

    async fn claim(&self, claim: Claim, request: Request) -> Result<Claimed, Error> {
        let decide = |current: Option<&Arc<LockVersion>>| {
            let request = request.clone();
            match (current, decide::claim(current.map(|held| &held.lock), &claim)) {
                (Some(held), decide::Claimed::Collide) => {
                    Verdict::Answer(Claimed::Collision(Arc::clone(held)))
                }
                (Some(held), decide::Claimed::Refresh) => {
                    Verdict::Remember(held.again(&claim, request))
                }
                (Some(held), _) => {
                    Verdict::Store(Change::Replace(Arc::new(held.again(&claim, request))))
                }
                (None, _) => Verdict::Store(Change::Acquire { claim: claim.clone(), request }),
            }
        };
        self.change(&claim.key, decide, Claimed::LockVersion).await
    }

    async fn release(&self, key: &LockKey, owner: &Owner) -> Result<Released, Error> {
        let decide = |current: Option<&Arc<LockVersion>>| match decide::release(current, owner) {
            Released::Deleted(held) => Verdict::Store(Change::Release(held)),
            answer => Verdict::Answer(answer),
        };
        self.change(key, decide, Released::Deleted).await
    }

    async fn expire(&self, seen: &LockVersion) -> Result<Expired, Error> {
        let decide =
            |current: Option<&Arc<LockVersion>>| match decide::expire(current, seen.version()) {
                Expired::Deleted(held) => Verdict::Store(Change::Expire(held)),
                answer => Verdict::Answer(answer),
            };
        self.change(&seen.lock.key, decide, Expired::Deleted).await
    }

    async fn select(&self, selector: &Selector) -> Result<LockList, Error> {
        Ok(self.open_state()?.table.select(selector))
    }

    async fn watch(&self, selector: &Selector) -> Result<(LockList, Subscription), Error> {
        let mut state = self.open_state()?;
        let subscription = self.feed.subscribe(selector).ok_or(Error::TooManyWatchers)?;
        Ok((state.table.select(selector), subscription))
    }
}
