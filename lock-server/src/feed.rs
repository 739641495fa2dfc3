//! Fans out committed changes to deadlines, watchers, metrics and the log.
//!
//! A store publishes each change under the same mutex under which it makes the change
//! visible. Therefore:
//! - watchers receive changes in commit order, and no change is lost between the
//!   initial list and the events that follow;
//! - every visible version has a deadline, whatever happens to the request that
//!   created it.
//!
//! A watcher buffers up to [`WATCHER_ROOM`] events. A watcher whose buffer is full is
//! disconnected with an error; it neither costs more memory nor delays the others.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use model::lock::{LockKey, Selector};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tracing::info_span;

use crate::{
    expiry::Deadlines,
    lock_version::{ByKind, LockVersion},
    metrics::{self, Kind},
};

/// Event buffer size of a watcher.
pub const WATCHER_ROOM: usize = 1024;
/// Limit of concurrent watchers.
pub const MAX_WATCHERS: usize = 10_000;

/// A committed change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A free key was acquired by an owner.
    Acquired(Arc<LockVersion>),
    /// The owner stored another value or kind.
    Updated {
        /// The previous version.
        before: Arc<LockVersion>,
        /// The new version.
        held: Arc<LockVersion>,
    },
    /// The owner refreshed the lock; nothing that clients can see changed.
    Refreshed(Arc<LockVersion>),
    /// The owner released the lock.
    Released(Arc<LockVersion>),
    /// The time to live ended.
    Expired(Arc<LockVersion>),
}

impl Event {
    /// Event for a successful claim that replaced `before` with `held`.
    pub fn claimed(before: Option<Arc<LockVersion>>, held: Arc<LockVersion>) -> Self {
        match before {
            None => Self::Acquired(held),
            Some(before)
                if before.lock.value != held.lock.value || before.lock.kind != held.lock.kind =>
            {
                Self::Updated { before, held }
            }
            Some(_) => Self::Refreshed(held),
        }
    }

    /// Writes the original's log line for the event, if there is one
    /// (docs/compatibility/locket.md#logs); further fields come from the current span.
    pub fn log(&self) {
        match self {
            Self::Acquired(_) => tracing::info!("acquired-lock"),
            Self::Released(_) => tracing::info!("released-lock"),
            Self::Expired(held) => {
                let (owner, code) = (held.lock.owner.as_str(), held.lock.kind.type_code());
                let span = info_span!("fetch-and-release-lock", owner, "type-code" = code);
                span.in_scope(|| {
                    tracing::info!("fetched-lock");
                    tracing::info!("released-lock");
                });
                tracing::info!("lock-expired");
            }
            Self::Updated { .. } | Self::Refreshed(_) => {}
        }
    }

    /// The version that the event is about.
    pub fn held(&self) -> &Arc<LockVersion> {
        match self {
            Self::Acquired(held)
            | Self::Updated { held, .. }
            | Self::Refreshed(held)
            | Self::Released(held)
            | Self::Expired(held) => held,
        }
    }
}

/// The event distributor; clones share it.
#[derive(Debug, Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    deadlines: Mutex<Deadlines>,
    /// Notified when a new deadline is the earliest of all.
    sooner: Notify,
    watchers: Mutex<Watchers>,
    next_watcher: AtomicU64,
    population: ByKind<Kind>,
    watcher_room: usize,
}

impl Default for Feed {
    fn default() -> Self {
        Self::with_watcher_room(WATCHER_ROOM)
    }
}

impl Feed {
    /// Creates a feed with another buffer size for watchers.
    pub fn with_watcher_room(watcher_room: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                deadlines: Mutex::default(),
                sooner: Notify::new(),
                watchers: Mutex::default(),
                next_watcher: AtomicU64::new(0),
                population: metrics::population(),
                watcher_room,
            }),
        }
    }

    /// Counts of held and of expired locks.
    pub fn population(&self) -> &ByKind<Kind> {
        &self.shared.population
    }

    fn deadlines(&self) -> MutexGuard<'_, Deadlines> {
        self.shared.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.shared.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a lock that the store loaded at the start of the process.
    pub fn found(&self, held: &Arc<LockVersion>) {
        self.shared.population[held.lock.kind].active.add(1);
        self.seen(held);
    }

    /// Publishes a committed change. Must be called in commit order.
    pub fn publish(&self, event: &Event) {
        let population = &self.shared.population;
        match event {
            Event::Acquired(held) => {
                population[held.lock.kind].active.add(1);
                self.seen(held);
            }
            Event::Updated { before, held } => {
                population[before.lock.kind].active.add(-1);
                population[held.lock.kind].active.add(1);
                self.seen(held);
            }
            Event::Refreshed(held) => self.seen(held),
            Event::Released(held) => {
                population[held.lock.kind].active.add(-1);
                self.deadlines().forget(&held.lock.key, held.version());
            }
            Event::Expired(held) => {
                population[held.lock.kind].active.add(-1);
                population[held.lock.kind].expired.increment();
                self.deadlines().forget(&held.lock.key, held.version());
            }
        }
        // Watchers do not receive refreshes, which are nearly all events.
        if !matches!(event, Event::Refreshed(_)) {
            self.watchers().publish(event);
        }
    }

    /// Registers an observed version: its time to live begins.
    pub fn seen(&self, held: &Arc<LockVersion>) {
        let now = Instant::now().into_std();
        if self.deadlines().seen(held, now) {
            self.shared.sooner.notify_one();
        }
    }

    /// Schedules the retry of a failed expiry after `delay`, unless the lock is claimed
    /// before.
    pub fn retry(&self, held: &Arc<LockVersion>, delay: Duration) {
        let at = (Instant::now() + delay).into_std();
        if self.deadlines().schedule(held, at) {
            self.shared.sooner.notify_one();
        }
    }

    /// Waits until at least one deadline has passed and takes at most `limit` entries.
    pub async fn due(&self, limit: usize) -> Vec<Arc<LockVersion>> {
        loop {
            let next = {
                let mut deadlines = self.deadlines();
                let due = deadlines.take_due(Instant::now().into_std(), limit);
                if !due.is_empty() {
                    return due;
                }
                deadlines.next()
            };
            // `Notify` keeps a notification that arrives between the check and the wait.
            let sooner = self.shared.sooner.notified();
            match next {
                None => sooner.await,
                Some(at) => {
                    let _either = tokio::time::timeout_at(Instant::from_std(at), sooner).await;
                }
            }
        }
    }

    /// Whether there are watchers.
    pub fn has_watchers(&self) -> bool {
        self.watchers().count > 0
    }

    /// Number of locks with a deadline.
    pub fn deadline_count(&self) -> usize {
        self.deadlines().len()
    }

    /// Subscribes to events for `selector`; `None` when the watcher limit is reached.
    pub fn subscribe(&self, selector: &Selector) -> Option<Subscription> {
        let mut watchers = self.watchers();
        if watchers.count >= MAX_WATCHERS {
            return None;
        }
        let id = self.shared.next_watcher.fetch_add(1, Ordering::Relaxed);
        let (events, receiver) = mpsc::channel(self.shared.watcher_room);
        watchers.count += 1;
        watchers.list(selector).push(Watcher { id, events });
        Some(Subscription { id, selector: selector.clone(), receiver, feed: self.clone() })
    }
}

#[derive(Debug, Default)]
struct Watchers {
    keys: HashMap<LockKey, Vec<Watcher>>,
    kinds: ByKind<Vec<Watcher>>,
    /// Existing subscriptions, including disconnected ones.
    count: usize,
}

#[derive(Debug)]
struct Watcher {
    id: u64,
    events: mpsc::Sender<Event>,
}

impl Watcher {
    /// Returns false when the buffer is full; the caller then drops the sender.
    fn publish(&self, event: &Event) -> bool {
        self.events.try_send(event.clone()).is_ok()
    }
}

impl Watchers {
    fn list(&mut self, selector: &Selector) -> &mut Vec<Watcher> {
        match selector {
            Selector::Key(key) => self.keys.entry(key.clone()).or_default(),
            Selector::Kind(kind) => &mut self.kinds[*kind],
        }
    }

    fn publish(&mut self, event: &Event) {
        if self.count == 0 {
            return;
        }
        let lock = &event.held().lock;
        if let Some(watchers) = self.keys.get_mut(&lock.key) {
            watchers.retain(|watcher| watcher.publish(event));
        }
        self.kinds[lock.kind].retain(|watcher| watcher.publish(event));
        // A watcher of the previous kind must learn that the lock left that kind.
        if let Event::Updated { before, .. } = event
            && before.lock.kind != lock.kind
        {
            self.kinds[before.lock.kind].retain(|watcher| watcher.publish(event));
        }
    }

    fn leave(&mut self, selector: &Selector, id: u64) {
        self.count -= 1;
        let list = self.list(selector);
        list.retain(|watcher| watcher.id != id);
        if let Selector::Key(key) = selector
            && self.keys.get(key).is_some_and(Vec::is_empty)
        {
            self.keys.remove(key);
        }
    }
}

/// The watcher was too slow and missed events; it has to start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the watcher reads too slowly: begin again")]
pub struct Lagged;

/// Receiving end of a watch.
#[derive(Debug)]
pub struct Subscription {
    id: u64,
    selector: Selector,
    receiver: mpsc::Receiver<Event>,
    feed: Feed,
}

impl Subscription {
    /// The next event.
    pub async fn next(&mut self) -> Result<Event, Lagged> {
        // The feed owns the sender and this subscription keeps the feed alive: a closed
        // channel means that the watcher was disconnected.
        self.receiver.recv().await.ok_or(Lagged)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.watchers().leave(&self.selector, self.id);
    }
}

#[cfg(test)]
mod tests {
    use model::lock::LockKind;

    use super::*;
    use crate::tests::held;

    #[tokio::test]
    async fn watchers_are_bounded_and_leave_nothing_behind() {
        let feed = Feed::default();
        let subscribe = |number: usize| {
            let key = LockKey::parse(&number.to_string()).unwrap();
            feed.subscribe(&Selector::Key(key))
        };
        let mut all: Vec<_> = (0..MAX_WATCHERS).map(|n| subscribe(n).unwrap()).collect();
        assert!(subscribe(0).is_none());
        all.pop();
        all.push(subscribe(0).unwrap());
        assert!(subscribe(0).is_none());
        drop(all);
        let watchers = feed.watchers();
        assert_eq!((watchers.count, watchers.keys.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_watcher_that_was_cut_off_frees_its_place_when_it_goes() {
        let feed = Feed::with_watcher_room(1);
        let mut slow = feed.subscribe(&Selector::Kind(LockKind::Lock)).unwrap();
        for index in 1..4 {
            feed.publish(&Event::Acquired(held("k", 1, index, 9)));
        }
        assert_eq!(feed.watchers().kinds.locks.len(), 0);
        assert!(slow.next().await.is_ok());
        assert_eq!(slow.next().await, Err(Lagged));
        drop(slow);
        assert_eq!(feed.watchers().count, 0);
    }
}
