//! Locks in a database server that several instances share, including the original.
//!
//! The database is authoritative: every claim, release and expiry is one transaction,
//! and every response is the result of that transaction
//! (docs/compatibility/locket.md#lock, #schema). Statements state the rules of
//! [`crate::decide`] as `conditions`. Consequences:
//! - A refresh always writes the row, with a higher `modified_index`: every instance
//!   that measures the time to live of a version, Portcullis or the original, observes
//!   the refresh.
//! - Each instance measures by its own monotonic clock since it last observed a
//!   version, and deletes only the version whose time it measured.
//! - A call with an unknown outcome returns [`Error::Unavailable`]; the next pass over
//!   the table finds its effect.
//!
//! The view in memory drives deadlines and watchers. Changes by other instances
//! arrive through PostgreSQL notifications, within milliseconds, and through a pass
//! over the table every [`PASS`]. MySQL has no notifications: there the pass runs every
//! [`WATCHED_PASS`] while there are watchers. Changes by the original send no
//! notification: the pass finds them.
//!
//! Lost tables and columns are recreated at the start and every [`PASS`], with the locks
//! that this instance knows. A recreated table of tokens starts at the time in
//! milliseconds, so that no token goes back, not even for unknown keys.

mod changes;
mod claim_batcher;
mod conditions;
mod follow;
mod gather;
mod health;
mod notification;
mod reads;
mod restore;
mod rows;
#[cfg(test)]
mod rules_tests;
mod statements;
mod timeline;
mod view;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use model::lock::{Claim, Lock, LockKey, Owner, Selector};
use runtime::error::chain;
use storage::{
    Kind, Mending,
    server::{Dialect, Options, Server},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use uuid::Uuid;

use self::{
    claim_batcher::PendingClaim,
    follow::Queues,
    notification::Notification,
    reads::{AllOf, Images, OneOf},
    rows::Found,
    statements::Taken,
    view::{End, View},
};
pub use self::{follow::Follower, health::HealthCheck};
use super::{Claimed, Error, Expired, Released, Store};
use crate::{
    decide,
    feed::{Event, Feed, Subscription},
    lock_version::{LockList, LockVersion, Request},
};

/// Interval of the pass over the table: the original's interval.
pub const PASS: Duration = Duration::from_secs(5);
/// Interval of the pass on MySQL while there are watchers.
pub const WATCHED_PASS: Duration = Duration::from_millis(500);

/// Queue size for notifications; the pass over the table replaces dropped ones.
const NOTICES: usize = 4096;

/// Queue size for claims, and for reads of either kind; callers wait while it is full.
const ASKS: usize = 1024;

/// Retry limit when the row changes between the two statements of a call.
const LOOKS: usize = 8;

/// Number of transactions that issue tokens concurrently to locks of the original: the first pass
/// over a table of the original does so for all of them.
const FENCED_AT_ONCE: usize = 16;

/// A handle; clones share the connections and the view.
#[derive(Debug, Clone)]
pub struct Shared {
    server: Server,
    view: Arc<Mutex<View>>,
    feed: Feed,
    notices: mpsc::Sender<Notification>,
    asks: mpsc::Sender<PendingClaim>,
    fetches: mpsc::Sender<OneOf>,
    fetch_alls: mpsc::Sender<AllOf>,
    images: Arc<Images>,
    /// The change counters exist.
    counts: Arc<AtomicBool>,
}

/// Optimistic retry limit exceeded.
#[derive(Debug, thiserror::Error)]
#[error("the lock changed during each of {LOOKS} attempts")]
struct ContentionError;

fn failed(error: storage::Error) -> Error {
    match error.kind() {
        Kind::Data => Error::Unstorable(Arc::new(error)),
        Kind::Closed => Error::Closed,
        _ => Error::Unavailable(Arc::new(error)),
    }
}

/// Maps an error of a read.
fn unread(error: storage::Error) -> Error {
    match failed(error) {
        Error::Unavailable(cause) => Error::Unreadable(cause),
        other => other,
    }
}

impl Shared {
    /// Connects, creates missing tables, and reads the locks. The follower has to run:
    /// it serves claims and observes changes by other instances and passed deadlines.
    ///
    /// # Errors
    /// The server cannot be reached or used; tables cannot be created.
    pub async fn open(options: &Options, feed: Feed) -> Result<(Self, Follower), storage::Error> {
        let schema = statements::schema(options.dialect);
        let options = Options { on_connect: timeline::RAISE_TOKENS, ..options.clone() };
        let server = Server::connect(&options, &schema).await?;
        if options.dialect == Dialect::Postgres {
            // The first connection may be older than the tables.
            server.execute(timeline::RAISE_TOKENS, &[]).await?;
        }
        let view = Arc::new(Mutex::new(View::new(feed.clone())));
        let (notices, to_tell) = mpsc::channel(NOTICES);
        let (asks, to_claim) = mpsc::channel(ASKS);
        let (fetches, to_fetch) = mpsc::channel(ASKS);
        let (fetch_alls, to_fetch_all) = mpsc::channel(ASKS);
        let (images, counts) = (Arc::default(), Arc::default());
        let shared =
            Self { server, view, feed, notices, asks, fetches, fetch_alls, images, counts };
        shared.count_changes(true).await?;
        shared.pass().await?;
        let queues = Queues { to_tell, to_claim, to_fetch, to_fetch_all };
        let follower = Follower::new(shared.clone(), queues);
        Ok((shared, follower))
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connection pool statistics, for the metrics.
    pub fn stats(&self) -> storage::server::Stats {
        self.server.stats()
    }

    fn notify(&self, notice: Notification) {
        // When the queue is full, the pass over the table replaces the notification.
        let _told = self.notices.try_send(notice);
    }

    /// Acquires or refreshes a key, on PostgreSQL in a batch with other pending claims. A
    /// queued claim takes effect even if its caller cancels.
    async fn take(&self, claim: &Claim, id: &str) -> claim_batcher::Answer {
        let (reply, answer) = oneshot::channel();
        let ask = PendingClaim { claim: claim.clone(), id: id.to_owned(), reply };
        self.asks.send(ask).await.map_err(|_| storage::Error::Closed)?;
        answer.await.unwrap_or(Err(storage::Error::Closed))
    }

    /// Records a version that this instance wrote.
    fn wrote(&self, held: LockVersion) -> Arc<LockVersion> {
        let (held, event) = self.view().observe(held, Instant::now());
        if let Some(Event::Acquired(_) | Event::Updated { .. }) = event {
            let Lock { key, token, .. } = &held.lock;
            self.notify(Notification { key: key.clone(), token: *token, end: None });
        }
        held
    }

    /// Records the end of a lock that this instance wrote.
    fn ended(&self, held: &LockVersion, end: End) {
        let Lock { key, token, .. } = &held.lock;
        self.view().end(key, *token, end, Instant::now());
        self.notify(Notification { key: key.clone(), token: *token, end: Some(end) });
    }

    /// Reads the row of a key, whoever owns it.
    async fn look(&self, key: &LockKey) -> Result<Option<Arc<LockVersion>>, Error> {
        let found = self.read(&Selector::Key(key.clone())).await?;
        Ok(found.into_iter().next())
    }

    /// Installs the change counters; returns whether they work.
    async fn count_changes(&self, at_start: bool) -> Result<bool, storage::Error> {
        let counts = changes::ensure(&self.server, at_start).await?;
        self.counts.store(counts, Ordering::Release);
        if counts && changes::mark(&self.server).await?.is_some_and(changes::Mark::is_long) {
            self.compact_changes().await;
        }
        Ok(counts)
    }

    /// Compacts the table of change counters.
    async fn compact_changes(&self) {
        if let Err(error) = changes::compact(&self.server).await {
            // The next read or pass retries.
            tracing::debug!(error = chain(&error), "failed-compacting-lock-changes");
        }
    }

    async fn read(&self, selector: &Selector) -> Result<Vec<Arc<LockVersion>>, Error> {
        let rows = rows::read(&self.server, Some(selector)).await.map_err(unread)?;
        Ok(self.found(&rows))
    }

    /// Converts the rows to locks and publishes new versions.
    fn found(&self, rows: &[storage::server::Row]) -> Vec<Arc<LockVersion>> {
        let mut view = self.view();
        let now = Instant::now();
        let mut all = Vec::with_capacity(rows.len());
        all.extend(rows.iter().filter_map(rows::readable).map(|found| match found {
            Found::LockVersion(held) => view.observe(held, now).0,
            // The pass gives the lock a token, or deletes it.
            Found::Untold(held) | Found::Dead(held) => Arc::new(held),
        }));
        all
    }

    /// Recreates lost tables and columns, with the locks known to this instance.
    async fn mend(&self) -> Result<(), storage::Error> {
        let dialect = self.server.dialect();
        let restore = |mending: &Mending<'_>| {
            let alive = self.view().alive(Instant::now());
            tracing::info!(locks = alive.len(), "restoring-locks");
            restore::statements(dialect, mending, &alive)
        };
        if !self.server.mend(&restore).await?.is_empty() {
            // Dropping a table drops its triggers.
            self.count_changes(false).await?;
        }
        Ok(())
    }

    /// Reads the whole table: publishes new versions and the end of missing ones.
    async fn pass(&self) -> Result<(), storage::Error> {
        let mark = self.view().mark();
        let rows = rows::read(&self.server, None).await?;
        let mut found = std::collections::HashSet::with_capacity(rows.len());
        let mut untold = Vec::new();
        for row in rows.iter().filter_map(rows::readable) {
            match row {
                Found::LockVersion(held) => {
                    found.insert(held.lock.key.clone());
                    self.view().observe(held, Instant::now());
                }
                Found::Untold(held) => untold.push(held),
                Found::Dead(held) => {
                    statements::delete_version(&self.server, &held).await?;
                }
            }
        }
        let fenced = stream::iter(untold).map(|held| self.fence(held));
        let mut fenced = fenced.buffer_unordered(FENCED_AT_ONCE);
        while let Some(held) = fenced.try_next().await? {
            let Some(held) = held else { continue };
            found.insert(held.lock.key.clone());
            self.view().observe(held, Instant::now());
        }
        self.view().end_missing(mark, |_| true, |key| found.contains(key), Instant::now());
        Ok(())
    }

    /// Issues a token for a lock that the original wrote, if the lock still exists.
    async fn fence(&self, mut held: LockVersion) -> Result<Option<LockVersion>, storage::Error> {
        let token = statements::fence(&self.server, &held).await?;
        Ok(token.map(|token| {
            held.lock.token = token;
            held
        }))
    }
}

fn held(claim: Claim, taken: Taken, request: Request) -> Result<LockVersion, Error> {
    let Taken { path, index, id, token } = taken;
    let Claim { mut key, owner, value, kind, ttl } = claim;
    if path != key.as_str() {
        key = LockKey::parse(&path).map_err(|error| Error::Unavailable(Arc::new(error)))?;
    }
    let lock = Lock { key, owner, value, kind, ttl, token };
    Ok(LockVersion { lock, id: id.into(), index, request, foreign_type: None })
}

impl Store for Shared {
    async fn claim(&self, claim: Claim, request: Request) -> Result<Claimed, Error> {
        // Claims of keys with another owner share a read and lock no row: the owner's refresh
        // never waits for them, however many they are.
        let is_others = |held: &LockVersion| {
            decide::claim(Some(&held.lock), &claim) == decide::Claimed::Collide
        };
        if self.view().get(&claim.key).is_some_and(|held| is_others(held))
            && let Some(other) = self.fetch(&claim.key).await?
            && is_others(&other)
        {
            return Ok(Claimed::Collision(other));
        }
        let id = Uuid::new_v4().to_string();
        for _ in 0..LOOKS {
            let taken = self.take(&claim, &id).await.map_err(failed)?;
            if let Some(taken) = taken {
                if taken.id == id && taken.index == 1 {
                    tracing::info!("acquired-lock");
                }
                return Ok(Claimed::LockVersion(self.wrote(held(claim, taken, request)?)));
            }
            match self.fetch(&claim.key).await? {
                Some(other) if is_others(&other) => {
                    return Ok(Claimed::Collision(other));
                }
                Some(_) | None => {}
            }
        }
        Err(Error::Unavailable(Arc::new(ContentionError)))
    }

    async fn release(&self, key: &LockKey, owner: &Owner) -> Result<Released, Error> {
        let may = |held: &Arc<LockVersion>| {
            matches!(decide::release(Some(held), owner), Released::Deleted(_))
        };
        let mut known = self.view().get(key).cloned().filter(may);
        for _ in 0..LOOKS {
            let held = match known.take() {
                Some(held) => held,
                None => match self.look(key).await? {
                    None => return Ok(Released::Absent),
                    Some(held) if !may(&held) => return Ok(Released::Collision(held)),
                    Some(held) => held,
                },
            };
            if statements::release(&self.server, key, owner).await.map_err(failed)? {
                self.ended(&held, End::Released);
                Event::Released(Arc::clone(&held)).log();
                return Ok(Released::Deleted(held));
            }
        }
        Err(Error::Unavailable(Arc::new(ContentionError)))
    }

    async fn expire(&self, seen: &LockVersion) -> Result<Expired, Error> {
        for _ in 0..LOOKS {
            if statements::delete_version(&self.server, seen).await.map_err(failed)? {
                self.ended(seen, End::Expired);
                let held = Arc::new(seen.clone());
                Event::Expired(Arc::clone(&held)).log();
                return Ok(Expired::Deleted(held));
            }
            match self.look(&seen.lock.key).await? {
                None => return Ok(Expired::Absent),
                Some(held) if (&held.id, held.index) != (&seen.id, seen.index) => {
                    return Ok(Expired::Newer(held));
                }
                Some(_) => {}
            }
        }
        Err(Error::Unavailable(Arc::new(ContentionError)))
    }

    async fn select(&self, selector: &Selector) -> Result<LockList, Error> {
        let key = match selector {
            Selector::Kind(kind) => return self.fetch_all(*kind).await,
            Selector::Key(key) => key,
        };
        let mut found = match self.fetch(key).await {
            // A key that cannot be stored does not exist.
            Err(Error::Unstorable(_)) => None,
            found => found?,
        };
        // Where the table's collation treats two keys as equal, the response contains the
        // requested key, as the original's does.
        if let Some(held) = found.as_mut().filter(|held| held.lock.key != *key) {
            Arc::make_mut(held).lock.key = key.clone();
        }
        Ok(found.into_iter().collect())
    }

    async fn watch(&self, selector: &Selector) -> Result<(LockList, Subscription), Error> {
        let mark = self.view().mark();
        let found = match self.read(selector).await {
            Err(Error::Unstorable(_)) => Vec::new(),
            found => found?,
        };
        let mut view = self.view();
        let named = |held: &LockVersion| selector.matches(&held.lock);
        let is_found = |key: &LockKey| found.iter().any(|held| held.lock.key == *key);
        view.end_missing(mark, named, is_found, Instant::now());
        let subscription = self.feed.subscribe(selector).ok_or(Error::TooManyWatchers)?;
        Ok((view.select(selector), subscription))
    }
}
