//! The reaper with a paused clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lock_server::{
    feed::{Feed, Subscription},
    lock_version::{LockList, LockVersion, Request},
    reaper,
    store::{Claimed, Error, Expired, Released, Store, testing::Memory},
};
use model::lock::{Claim, LockKey, LockKind, Owner, Selector, Ttl};
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::support::{claim, find, key, owner, take};

/// In-memory store that can be set to fail expiries.
#[derive(Clone)]
struct Failing {
    memory: Memory,
    fails: Arc<AtomicBool>,
    tries: Arc<AtomicUsize>,
}

impl Store for Failing {
    async fn claim(&self, claim: Claim, request: Request) -> Result<Claimed, Error> {
        self.memory.claim(claim, request).await
    }

    async fn release(&self, key: &LockKey, owner: &Owner) -> Result<Released, Error> {
        self.memory.release(key, owner).await
    }

    async fn expire(&self, seen: &LockVersion) -> Result<Expired, Error> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return Err(Error::Unavailable(Arc::new(storage::Error::Closed)));
        }
        self.memory.expire(seen).await
    }

    async fn select(&self, selector: &Selector) -> Result<LockList, Error> {
        self.memory.select(selector).await
    }

    async fn watch(&self, selector: &Selector) -> Result<(LockList, Subscription), Error> {
        self.memory.watch(selector).await
    }
}

struct Reaping {
    store: Failing,
    feed: Feed,
    shutdown: CancellationToken,
    task: JoinSet<anyhow::Result<()>>,
}

impl Reaping {
    fn start() -> Self {
        let feed = Feed::default();
        let store = Failing {
            memory: Memory::new(feed.clone()),
            fails: Arc::default(),
            tries: Arc::default(),
        };
        let shutdown = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(reaper::run(store.clone(), feed.clone(), shutdown.clone()));
        Self { store, feed, shutdown, task }
    }

    /// Advances the clock and lets the reaper do due work.
    async fn pass(&self, time: Duration) {
        time::sleep(time).await;
        // The reaper's timer fires at the same instant as this one.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    async fn is_held(&self, on: &str) -> bool {
        find(&self.store, on).await.is_some()
    }
}

fn lasting(on: &str, by: &str, seconds: i64) -> Claim {
    Claim { ttl: Ttl::try_from_seconds(seconds).unwrap(), ..claim(on, by) }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test(start_paused = true)]
async fn a_lock_lives_as_long_as_it_was_promised_and_not_longer() {
    let reaping = Reaping::start();
    take(&reaping.store, lasting("k", "o", 3)).await;
    reaping.pass(Duration::from_millis(2_990)).await;
    assert!(reaping.is_held("k").await);
    reaping.pass(Duration::from_millis(20)).await;
    assert!(!reaping.is_held("k").await);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_starts_the_time_again() {
    let reaping = Reaping::start();
    take(&reaping.store, lasting("k", "o", 3)).await;
    for _ in 0..5 {
        reaping.pass(seconds(2)).await;
        take(&reaping.store, lasting("k", "o", 3)).await;
    }
    reaping.pass(Duration::from_millis(2_990)).await;
    assert!(reaping.is_held("k").await);
    reaping.pass(Duration::from_millis(20)).await;
    assert!(!reaping.is_held("k").await);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_time_counts_at_once() {
    let reaping = Reaping::start();
    take(&reaping.store, lasting("k", "o", 60)).await;
    reaping.pass(seconds(1)).await;
    take(&reaping.store, lasting("k", "o", 1)).await;
    reaping.pass(Duration::from_millis(1_010)).await;
    assert!(!reaping.is_held("k").await);
}

#[tokio::test(start_paused = true)]
async fn a_new_lock_may_be_due_before_all_others() {
    let reaping = Reaping::start();
    take(&reaping.store, lasting("late", "o", 600)).await;
    reaping.pass(seconds(1)).await;
    take(&reaping.store, lasting("soon", "o", 1)).await;
    reaping.pass(Duration::from_millis(1_010)).await;
    assert!(!reaping.is_held("soon").await);
    assert!(reaping.is_held("late").await);
}

#[tokio::test(start_paused = true)]
async fn what_was_released_and_taken_again_is_another_lock() {
    let reaping = Reaping::start();
    take(&reaping.store, lasting("k", "a", 3)).await;
    reaping.pass(seconds(2)).await;
    reaping.store.release(&key("k"), &owner("a")).await.unwrap();
    take(&reaping.store, lasting("k", "b", 3)).await;
    reaping.pass(seconds(2)).await;
    assert!(reaping.is_held("k").await, "the deadline of the owner before has passed");
    reaping.pass(seconds(2)).await;
    assert!(!reaping.is_held("k").await);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_that_fails_is_tried_again() {
    let reaping = Reaping::start();
    take(&reaping.store, lasting("k", "o", 1)).await;
    reaping.store.fails.store(true, Ordering::SeqCst);
    reaping.pass(seconds(5) + Duration::from_millis(500)).await;
    assert!(reaping.is_held("k").await);
    assert_eq!(reaping.store.tries.load(Ordering::SeqCst), 5, "after 1 s, then once a second");
    reaping.store.fails.store(false, Ordering::SeqCst);
    reaping.pass(reaper::RETRY).await;
    assert!(!reaping.is_held("k").await);
}

#[tokio::test(start_paused = true)]
async fn a_claim_ends_the_tries() {
    let reaping = Reaping::start();
    take(&reaping.store, lasting("k", "o", 1)).await;
    reaping.store.fails.store(true, Ordering::SeqCst);
    reaping.pass(Duration::from_millis(1_500)).await;
    take(&reaping.store, lasting("k", "o", 60)).await;
    reaping.store.fails.store(false, Ordering::SeqCst);
    reaping.pass(seconds(30)).await;
    assert!(reaping.is_held("k").await);
    assert_eq!(reaping.feed.deadline_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_expire_together() {
    let reaping = Reaping::start();
    let many = 2_000;
    for number in 0..many {
        let claim = lasting(&number.to_string(), "o", 5);
        take(&reaping.store, Claim { kind: LockKind::Presence, ..claim }).await;
    }
    assert_eq!(reaping.feed.deadline_count(), many);
    let begun = Instant::now();
    time::sleep(seconds(6)).await;
    let held = reaping.store.select(&Selector::Kind(LockKind::Presence)).await.unwrap();
    assert!(held.is_empty());
    assert_eq!(reaping.feed.deadline_count(), 0);
    assert_eq!(begun.elapsed(), seconds(6));
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_asked_to() {
    let mut reaping = Reaping::start();
    take(&reaping.store, lasting("k", "o", 600)).await;
    reaping.shutdown.cancel();
    let ended = time::timeout(seconds(1), reaping.task.join_next()).await.unwrap();
    ended.unwrap().unwrap().unwrap();
}
