//! In-memory view of the locks in the shared database.
//!
//! The database is authoritative: no decision depends on the view. Events and deadlines
//! derive from it. Invariants:
//! - versions of a key only advance, in whatever order responses, notifications and
//!   passes over the table arrive: a version older than the known one, or one that is
//!   known to have ended, changes nothing;
//! - each change is published once, while the view is locked;
//! - a pass over the table ends only versions observed before the pass began.

use std::{collections::HashMap, sync::Arc, time::Duration};

use model::lock::{FencingToken, LockKey, Selector};
use tokio::time::Instant;

use crate::{
    feed::{Event, Feed},
    lock_version::{LockList, LockVersion, Version},
};

/// How long the end of a version is remembered: longer than a response with that version
/// can be in flight.
const REMEMBERED: Duration = Duration::from_secs(120);

/// How a version ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Its owner gave it back.
    Released,
    /// Its time to live ended.
    Expired,
}

#[derive(Debug)]
struct Seen {
    held: Arc<LockVersion>,
    /// Sequence number of the insertion into the view.
    at: u64,
    /// End of the time to live, as far as this instance knows.
    deadline: Instant,
}

#[derive(Debug)]
struct Ended {
    version: Version,
    at: Instant,
}

#[derive(Debug)]
pub(super) struct View {
    feed: Feed,
    seen: HashMap<LockKey, Seen>,
    ended: HashMap<LockKey, Ended>,
    clock: u64,
}

impl View {
    pub(super) fn new(feed: Feed) -> Self {
        Self { feed, seen: HashMap::new(), ended: HashMap::new(), clock: 0 }
    }

    /// Records a version that was read or written. Returns the shared copy, and the
    /// change if it is new.
    pub(super) fn observe(
        &mut self,
        held: LockVersion,
        now: Instant,
    ) -> (Arc<LockVersion>, Option<Event>) {
        let version = held.version();
        let key = held.lock.key.clone();
        if self.ended.get(&key).is_some_and(|ended| ended.version >= version) {
            return (Arc::new(held), None);
        }
        let before = match self.seen.get(&key) {
            Some(seen) if seen.held.version() == version && seen.held.id == held.id => {
                return (Arc::clone(&seen.held), None);
            }
            Some(seen) if seen.held.version() > version => return (Arc::new(held), None),
            Some(seen) => Some(Arc::clone(&seen.held)),
            None => None,
        };
        let held = Arc::new(held);
        self.put(Arc::clone(&held), now);
        let event = match before {
            // How the previous owner lost the lock is unknown.
            Some(before) if before.lock.token != held.lock.token => {
                self.feed.publish(&Event::Released(before));
                Event::Acquired(Arc::clone(&held))
            }
            before => Event::claimed(before, Arc::clone(&held)),
        };
        self.feed.publish(&event);
        (held, Some(event))
    }

    fn put(&mut self, held: Arc<LockVersion>, now: Instant) {
        self.clock += 1;
        let deadline = now + held.lock.ttl.duration();
        let key = held.lock.key.clone();
        self.seen.insert(key, Seen { held, at: self.clock, deadline });
    }

    /// The owner with this token lost the key: all of its versions have ended.
    pub(super) fn end(&mut self, key: &LockKey, token: FencingToken, end: End, now: Instant) {
        let version = Version { token, index: i64::MAX };
        if self.ended.get(key).is_some_and(|ended| ended.version >= version) {
            return;
        }
        self.ended.insert(key.clone(), Ended { version, at: now });
        if self.seen.get(key).is_some_and(|seen| seen.held.version() <= version)
            && let Some(Seen { held, .. }) = self.seen.remove(key)
        {
            self.feed.publish(&match end {
                End::Released => Event::Released(held),
                End::Expired => Event::Expired(held),
            });
        }
    }

    /// Sequence number to save when a pass over the table begins.
    pub(super) fn mark(&self) -> u64 {
        self.clock
    }

    /// The pass that began at `mark` found exactly the `found` keys of those that match
    /// `selector`: versions observed before and not found have ended.
    pub(super) fn end_missing(
        &mut self,
        mark: u64,
        among: impl Fn(&LockVersion) -> bool,
        found: impl Fn(&LockKey) -> bool,
        now: Instant,
    ) {
        let missing: Vec<_> = self
            .seen
            .values()
            .filter(|seen| seen.at <= mark && among(&seen.held) && !found(&seen.held.lock.key))
            .map(|seen| {
                // The cause is unknown: after the deadline, expiry is more likely.
                let end = if seen.deadline <= now { End::Expired } else { End::Released };
                (seen.held.lock.key.clone(), seen.held.lock.token, end)
            })
            .collect();
        for (key, token, end) in missing {
            self.end(&key, token, end, now);
        }
        self.ended.retain(|_, ended| now.duration_since(ended.at) < REMEMBERED);
    }

    /// The known locks, in the order of the keys.
    pub(super) fn select(&self, selector: &Selector) -> LockList {
        let mut all: Vec<_> = match selector {
            Selector::Key(key) => self.seen.get(key).into_iter().collect(),
            Selector::Kind(kind) => {
                self.seen.values().filter(|seen| seen.held.lock.kind == *kind).collect()
            }
        };
        all.sort_unstable_by(|a, b| a.held.lock.key.cmp(&b.held.lock.key));
        all.into_iter().map(|seen| Arc::clone(&seen.held)).collect()
    }

    /// All locks whose time to live has not ended.
    pub(super) fn alive(&self, now: Instant) -> Vec<Arc<LockVersion>> {
        let alive = self.seen.values().filter(|seen| seen.deadline > now);
        alive.map(|seen| Arc::clone(&seen.held)).collect()
    }

    /// The known version of a key.
    pub(super) fn get(&self, key: &LockKey) -> Option<&Arc<LockVersion>> {
        self.seen.get(key).map(|seen| &seen.held)
    }
}
