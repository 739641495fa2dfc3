//! Locks in a database server that several instances share, the original's too.
//!
//! The database is the truth: every claim, release and expiry is one transaction
//! there, and every answer is its answer (docs/compatibility/locket.md#lock, #schema). What
//! follows:
//! - A refresh always reaches the table, with a higher `modified_index`: whoever
//!   measures the time to live of a version, ours or the original, sees that it is
//!   alive.
//! - Each instance measures by its own monotonic clock since it last saw a version,
//!   and deletes only the version whose time it measured.
//! - A call whose outcome is not known answers [`Error::Unavailable`]; what it did
//!   is found by the next pass over the table.
//!
//! The view in memory is what deadlines and watchers are told from. Others' changes
//! get there by PostgreSQL's notifications, within milliseconds, and by a pass over
//! the table every [`PASS`]; MySQL has no notifications: there the pass comes every
//! [`WATCHED_PASS`] while somebody watches. The original's changes are told by nobody:
//! they are found by the pass.
//!
//! Tables and columns that are lost are made again at the start and every [`PASS`], with
//! the locks that this instance knows. A table of tokens that is made again begins with
//! the time in milliseconds: no token goes back, also of keys that nobody knows.

mod changes;
mod claim_batcher;
mod follow;
mod gather;
mod health;
mod notification;
mod reads;
mod restore;
mod rows;
mod statements;
mod view;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use model::lock::{Claim, Lock, LockKey, Owner, Selector};
use runtime::error::chain;
use storage::{
    Kind, Mending,
    server::{Options, Server},
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
pub use self::{follow::Follower, health::Check};
use super::{Claimed, Error, Expired, Released, Store};
use crate::{
    feed::{Event, Feed, Subscription},
    lock_version::{LockList, LockVersion, Request},
};

/// How often the table is read: the original's interval.
pub const PASS: Duration = Duration::from_secs(5);
/// The same on MySQL while there are watchers.
pub const WATCHED_PASS: Duration = Duration::from_millis(500);

/// Notices that may wait to be told; what finds no room is found by the pass.
const NOTICES: usize = 4096;

/// Claims, and reads of either kind, that may wait; who finds no room waits for it.
const ASKS: usize = 1024;

/// How often a call looks again when the row changes between its two looks.
const LOOKS: usize = 8;

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
    /// The change counters are there.
    counts: Arc<AtomicBool>,
}

/// The row was another one at each look.
#[derive(Debug, thiserror::Error)]
#[error("the lock changed at each of {LOOKS} looks")]
struct ContentionError;

fn failed(error: storage::Error) -> Error {
    match error.kind() {
        Kind::Data => Error::Unstorable(Arc::new(error)),
        Kind::Closed => Error::Closed,
        _ => Error::Unavailable(Arc::new(error)),
    }
}

/// Of a read.
fn unread(error: storage::Error) -> Error {
    match failed(error) {
        Error::Unavailable(cause) => Error::Unreadable(cause),
        other => other,
    }
}

impl Shared {
    /// Connects, makes the tables that are missing, and reads the locks. The
    /// follower has to run for claims to be made, and for others' changes and the
    /// ends of locks to be seen.
    ///
    /// # Errors
    /// The server cannot be reached or used; tables cannot be made.
    pub async fn open(options: &Options, feed: Feed) -> Result<(Self, Follower), storage::Error> {
        let schema = statements::schema(options.dialect);
        let server = Server::connect(options, &schema).await?;
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

    /// What the connections did, for the metrics.
    pub fn stats(&self) -> storage::server::Stats {
        self.server.stats()
    }

    fn tell(&self, notice: Notification) {
        // Full: the pass over the table tells them.
        let _told = self.notices.try_send(notice);
    }

    /// Takes or keeps a key, on PostgreSQL together with others that wait. A claim that was
    /// handed over is made also if its caller gives up.
    async fn take(&self, claim: &Claim, id: &str) -> claim_batcher::Answer {
        let (reply, answer) = oneshot::channel();
        let ask = PendingClaim { claim: claim.clone(), id: id.to_owned(), reply };
        self.asks.send(ask).await.map_err(|_| storage::Error::Closed)?;
        answer.await.unwrap_or(Err(storage::Error::Closed))
    }

    /// A version that this instance wrote.
    fn wrote(&self, held: LockVersion) -> Arc<LockVersion> {
        let (held, event) = self.view().observe(held, Instant::now());
        if let Some(Event::Acquired(_) | Event::Updated { .. }) = event {
            let Lock { key, token, .. } = &held.lock;
            self.tell(Notification { key: key.clone(), token: *token, end: None });
        }
        held
    }

    /// An end that this instance wrote.
    fn ended(&self, held: &LockVersion, end: End) {
        let Lock { key, token, .. } = &held.lock;
        self.view().end(key, *token, end, Instant::now());
        self.tell(Notification { key: key.clone(), token: *token, end: Some(end) });
    }

    /// The row of a key, whoever has it.
    async fn look(&self, key: &LockKey) -> Result<Option<Arc<LockVersion>>, Error> {
        let found = self.read(&Selector::Key(key.clone())).await?;
        Ok(found.into_iter().next())
    }

    /// Makes the database count changes, and says whether it does.
    async fn count_changes(&self, at_start: bool) -> Result<bool, storage::Error> {
        let counts = changes::ensure(&self.server, at_start).await?;
        self.counts.store(counts, Ordering::Release);
        if counts && changes::mark(&self.server).await?.is_some_and(changes::Mark::is_long) {
            self.compact_changes().await;
        }
        Ok(counts)
    }

    /// Keeps the table of changes short.
    async fn compact_changes(&self) {
        if let Err(error) = changes::compact(&self.server).await {
            // The next look or pass tries it again.
            tracing::debug!(error = chain(&error), "failed-compacting-lock-changes");
        }
    }

    async fn read(&self, selector: &Selector) -> Result<Vec<Arc<LockVersion>>, Error> {
        let rows = rows::read(&self.server, Some(selector)).await.map_err(unread)?;
        Ok(self.found(&rows))
    }

    /// The locks of these rows; what is new of them is told.
    fn found(&self, rows: &[storage::server::Row]) -> Vec<Arc<LockVersion>> {
        let mut view = self.view();
        let now = Instant::now();
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            match rows::parse(row) {
                Ok(Found::LockVersion(held)) => all.push(view.observe(held, now).0),
                // The pass gives it a token, or deletes it.
                Ok(Found::Untold(held) | Found::Dead(held)) => all.push(Arc::new(held)),
                Err(error) => {
                    let key = rows::key(row);
                    tracing::error!(key, error = %error, "failed-to-scan-lock");
                }
            }
        }
        all
    }

    /// Makes tables and columns again that were lost, with the locks that are known here.
    async fn mend(&self) -> Result<(), storage::Error> {
        let dialect = self.server.dialect();
        let restore = |mending: &Mending<'_>| {
            let alive = self.view().alive(Instant::now());
            tracing::info!(locks = alive.len(), "restoring-locks");
            restore::statements(dialect, mending, &alive)
        };
        if !self.server.mend(&restore).await?.is_empty() {
            // Triggers are lost with their table.
            self.count_changes(false).await?;
        }
        Ok(())
    }

    /// Reads the whole table: what is new is told, what is missing has ended.
    async fn pass(&self) -> Result<(), storage::Error> {
        let mark = self.view().mark();
        let rows = rows::read(&self.server, None).await?;
        let mut found = std::collections::HashSet::with_capacity(rows.len());
        for row in &rows {
            match rows::parse(row) {
                Ok(Found::LockVersion(held)) => {
                    found.insert(held.lock.key.clone());
                    self.view().observe(held, Instant::now());
                }
                Ok(Found::Untold(mut held)) => {
                    if let Some(token) = statements::fence(&self.server, &held).await? {
                        held.lock.token = token;
                        found.insert(held.lock.key.clone());
                        self.view().observe(held, Instant::now());
                    }
                }
                Ok(Found::Dead(held)) => {
                    statements::delete_version(&self.server, &held).await?;
                }
                Err(error) => {
                    let key = rows::key(row);
                    tracing::error!(key, error = %error, "failed-to-scan-lock");
                }
            }
        }
        self.view().end_missing(mark, |_| true, |key| found.contains(key), Instant::now());
        Ok(())
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
        // Who waits for a key of somebody else shares a look with others that do, and locks
        // no row: however many they are, its owner does not wait for them.
        let is_others = |held: &LockVersion| held.lock.owner != claim.owner;
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
        let known = self.view().get(key).cloned();
        let mut known = known.filter(|held| held.lock.owner == *owner);
        for _ in 0..LOOKS {
            let held = match known.take() {
                Some(held) => held,
                None => match self.look(key).await? {
                    None => return Ok(Released::Absent),
                    Some(held) if held.lock.owner != *owner => {
                        return Ok(Released::Collision(held));
                    }
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
            // What cannot be stored is not there.
            Err(Error::Unstorable(_)) => None,
            found => found?,
        };
        // Where the table's collation takes two keys for one, the answer has the
        // one that was asked for, as the original's.
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
        let named = |held: &LockVersion| match selector {
            Selector::Key(key) => held.lock.key == *key,
            Selector::Kind(kind) => held.lock.kind == *kind,
        };
        let is_found = |key: &LockKey| found.iter().any(|held| held.lock.key == *key);
        view.end_missing(mark, named, is_found, Instant::now());
        let subscription = self.feed.subscribe(selector).ok_or(Error::TooManyWatchers)?;
        Ok((view.select(selector), subscription))
    }
}
