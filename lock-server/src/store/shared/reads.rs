//! Fetch and FetchAll: one database query for all pending calls.
//!
//! Fetch: one statement reads the rows of all requested keys. FetchAll: one statement
//! reads the change counters ([`changes`]); while they equal those of the cached image
//! of the kind, the image is the response, and the table is not read. Otherwise the rows
//! of the kind are read. Invariants:
//! - The counters are read before the rows: an image is never older than its mark.
//! - An image is used for [`PASS`] at most, whatever the counters are: this bounds the
//!   effect of changes that fire no trigger (MySQL: TRUNCATE, a dropped trigger).
//! - All fields of a lock in an image that clients see are current; its index and time
//!   to live may be those of an earlier refresh.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use futures_util::future::join_all;
use model::lock::{LockKey, LockKind, Selector};
use storage::{Kind, server::Dialect};
use tokio::{sync::oneshot, time::Instant};

use super::{PASS, Shared, changes, rows, unread};
use crate::{
    lock_version::{ByKind, LockList, LockVersion},
    store::Error,
};

/// Result of a read.
pub(super) type Answer<T> = Result<T, Error>;

/// A queued Fetch.
#[derive(Debug)]
pub(super) struct OneOf {
    pub(super) key: LockKey,
    pub(super) reply: oneshot::Sender<Answer<Option<Arc<LockVersion>>>>,
}

/// A queued FetchAll.
#[derive(Debug)]
pub(super) struct AllOf {
    pub(super) kind: LockKind,
    pub(super) reply: oneshot::Sender<Answer<LockList>>,
}

/// The cached image of each kind.
#[derive(Debug, Default)]
pub(super) struct Images(ByKind<Mutex<Option<Image>>>);

#[derive(Debug)]
struct Image {
    /// The counters before the rows were read.
    mark: (i64, i64),
    read: Instant,
    all: LockList,
}

impl Images {
    fn of(&self, kind: LockKind) -> MutexGuard<'_, Option<Image>> {
        self.0[kind].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image of a kind if it was read at this mark.
    fn at(&self, kind: LockKind, mark: (i64, i64), now: Instant) -> Option<LockList> {
        let image = self.of(kind);
        let current = image.as_ref().filter(|image| image.mark == mark)?;
        (now.duration_since(current.read) < PASS).then(|| Arc::clone(&current.all))
    }
}

impl Shared {
    /// The lock of a key, by a query shared with other calls.
    pub(super) async fn fetch(&self, key: &LockKey) -> Answer<Option<Arc<LockVersion>>> {
        let (reply, answer) = oneshot::channel();
        let ask = OneOf { key: key.clone(), reply };
        self.fetches.send(ask).await.map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// All locks of a kind, by a query shared with other calls.
    pub(super) async fn fetch_all(&self, kind: LockKind) -> Answer<LockList> {
        let (reply, answer) = oneshot::channel();
        self.fetch_alls.send(AllOf { kind, reply }).await.map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Answers all Fetch calls with one statement.
    pub(super) async fn look_at_keys(self, asks: Vec<OneOf>) {
        let (found, is_alone) = {
            let keys: HashSet<&str> = asks.iter().map(|ask| ask.key.as_str()).collect();
            // PostgreSQL text has no NUL character: such a key does not exist.
            let can_be = |key: &&str| !self.is_on_postgres() || !key.contains('\0');
            let keys: Vec<_> = keys.into_iter().filter(can_be).collect();
            (rows::read_keys(&self.server, &keys).await, keys.len() < 2)
        };
        let found = match found {
            Ok(found) => self.found(&found),
            // One key is an invalid text; the other calls must not fail.
            Err(error) if matches!(error.kind(), Kind::Data | Kind::Other) && asks.len() > 1 => {
                return self.look_at_each(asks).await;
            }
            Err(error) => {
                let error = unread(error);
                asks.into_iter().for_each(|ask| drop(ask.reply.send(Err(error.clone()))));
                return;
            }
        };
        let found: HashMap<_, _> =
            found.iter().map(|held| (held.lock.key.as_str(), held)).collect();
        let mut others = Vec::new();
        for ask in asks {
            match found.get(ask.key.as_str()) {
                Some(held) => drop(ask.reply.send(Ok(Some(Arc::clone(held))))),
                // The table's collation may treat the key as equal to one that was found.
                None if !self.is_on_postgres() && !is_alone => {
                    others.push(ask);
                }
                None => drop(ask.reply.send(Ok(None))),
            }
        }
        self.look_at_each(others).await;
    }

    fn is_on_postgres(&self) -> bool {
        self.server.dialect() == Dialect::Postgres
    }

    async fn look_at_each(&self, asks: Vec<OneOf>) {
        join_all(asks.into_iter().map(|ask| async {
            let OneOf { key, reply } = ask;
            let _gave_up = reply.send(self.look(&key).await);
        }))
        .await;
    }

    /// Answers all FetchAll calls with one query.
    pub(super) async fn look_at_kinds(self, asks: Vec<AllOf>) {
        let mut mark = None;
        if self.counts.load(Ordering::Acquire) {
            mark = match changes::mark(&self.server).await {
                Ok(mark) => mark,
                // The counters are gone; the next pass recreates them.
                Err(error) if error.kind() == Kind::Schema => None,
                Err(error) => {
                    let error = unread(error);
                    asks.into_iter().for_each(|ask| drop(ask.reply.send(Err(error.clone()))));
                    return;
                }
            };
        }
        let (presences, locks): (Vec<_>, Vec<_>) =
            asks.into_iter().partition(|ask| ask.kind == LockKind::Presence);
        for (kind, asks) in [(LockKind::Presence, presences), (LockKind::Lock, locks)] {
            if asks.is_empty() {
                continue;
            }
            let answer = self.image(kind, mark.map(|mark| mark.of(kind))).await;
            asks.into_iter().for_each(|ask| drop(ask.reply.send(answer.clone())));
        }
        if mark.is_some_and(changes::Mark::is_long) {
            self.compact_changes().await;
        }
    }

    /// The locks of a kind, at this mark or later.
    async fn image(&self, kind: LockKind, mark: Option<(i64, i64)>) -> Answer<LockList> {
        let now = Instant::now();
        if let Some(all) = mark.and_then(|mark| self.images.at(kind, mark, now)) {
            return Ok(all);
        }
        let mut all = self.read(&Selector::Kind(kind)).await?;
        all.sort_unstable_by(|a, b| a.lock.key.cmp(&b.lock.key));
        let all: LockList = all.into();
        *self.images.of(kind) = mark.map(|mark| Image { mark, read: now, all: Arc::clone(&all) });
        Ok(all)
    }
}
