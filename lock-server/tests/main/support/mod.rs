//! Test helpers.

pub(crate) mod certificates;
pub(crate) mod raw;
pub(crate) mod server;

use std::{path::Path, sync::Arc, time::Duration};

use lock_server::{
    feed::Feed,
    lock_version::{LockList, LockVersion},
    store::{Claimed, Error, Store, embedded::Embedded, shared::Shared},
};
use model::lock::{Claim, FencingToken, LockKey, LockKind, LockValue, Owner, Selector, Ttl};
use runtime::server::Health;
use storage::sqlite::Options;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Far longer than any expected event takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn key(text: &str) -> LockKey {
    LockKey::parse(text).unwrap()
}

pub(crate) fn owner(text: &str) -> Owner {
    Owner::parse(text).unwrap()
}

pub(crate) fn claim(on: &str, by: &str) -> Claim {
    Claim {
        key: key(on),
        owner: owner(by),
        value: LockValue::parse("v").unwrap(),
        kind: LockKind::Lock,
        ttl: Ttl::try_from_seconds(15).unwrap(),
    }
}

/// The first version of a lock, as a store creates it.
pub(crate) fn held(on: &str) -> Arc<LockVersion> {
    Arc::new(LockVersion::first(claim(on, "o"), "id".into(), FencingToken(1), None))
}

pub(crate) fn by_key(on: &str) -> Selector {
    Selector::Key(key(on))
}

/// Claims as a server does: on the fast path if possible.
pub(crate) async fn ask<S: Store>(store: &S, claim: Claim) -> Result<Claimed, Error> {
    match store.refresh(&claim, &None) {
        Some(held) => Ok(Claimed::LockVersion(held)),
        None => store.claim(claim, None).await,
    }
}

/// Reads as a server does: on the fast path if possible.
pub(crate) async fn look<S: Store>(store: &S, on: &str) -> Result<LockList, Error> {
    match store.known(&key(on)) {
        Some(held) => Ok([held].into()),
        None => store.select(&by_key(on)).await,
    }
}

/// Claims, and expects success.
pub(crate) async fn take<S: Store>(store: &S, claim: Claim) -> Arc<LockVersion> {
    match store.claim(claim, None).await.unwrap() {
        Claimed::LockVersion(held) => held,
        Claimed::Collision(held) => panic!("{held:?} has it"),
    }
}

pub(crate) async fn find<S: Store>(store: &S, on: &str) -> Option<Arc<LockVersion>> {
    store.select(&by_key(on)).await.unwrap().first().cloned()
}

/// An embedded store and its background task.
pub(crate) struct Running {
    pub(crate) store: Embedded,
    pub(crate) feed: Feed,
    pub(crate) health: Health,
    stop: CancellationToken,
    flusher: JoinHandle<Result<(), storage::Error>>,
}

impl Running {
    pub(crate) async fn open(path: &Path) -> Self {
        Self::open_with(path, &Options::default(), Feed::default()).await
    }

    #[expect(clippy::disallowed_methods, reason = "`close` and `crash` wait for the task")]
    pub(crate) async fn open_with(path: &Path, options: &Options, feed: Feed) -> Self {
        let (store, flusher) = open_when_free(path, options, &feed).await;
        let stop = CancellationToken::new();
        let health = Health::new();
        let component = health.component("store");
        component.ready();
        let flusher = tokio::spawn(flusher.run(stop.clone(), component));
        Self { store, feed, health, stop, flusher }
    }

    /// Stops it in order.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        let ended = timeout(PATIENCE, self.flusher).await.expect("in time");
        ended.expect("no panic").expect("no error");
    }

    /// Crashes it: queued changes that have not reached the database are lost.
    pub(crate) async fn crash(self) {
        self.flusher.abort();
        assert!(self.flusher.await.is_err() || self.stop.is_cancelled());
    }
}

/// After a crash, the database thread may need a moment to release the file.
async fn open_when_free(
    path: &Path,
    options: &Options,
    feed: &Feed,
) -> (Embedded, lock_server::store::embedded::Flusher) {
    let opening = async {
        loop {
            match Embedded::open(path, options, feed.clone()).await {
                Ok(opened) => return opened,
                Err(storage::Error::InUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    timeout(PATIENCE, opening).await.expect("in time")
}

/// An instance on a database server and its background task.
pub(crate) struct Instance {
    pub(crate) store: Shared,
    pub(crate) feed: Feed,
    stop: CancellationToken,
    follower: JoinHandle<Result<(), storage::Error>>,
}

impl Instance {
    #[expect(clippy::disallowed_methods, reason = "`close` and `crash` wait for the task")]
    pub(crate) async fn open(options: &storage::server::Options) -> Self {
        let feed = Feed::default();
        let (store, follower) = Shared::open(options, feed.clone()).await.unwrap();
        let stop = CancellationToken::new();
        let component = Health::new().component("store");
        let follower = tokio::spawn(follower.run(stop.clone(), component));
        Self { store, feed, stop, follower }
    }

    /// Stops it in order.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        let ended = timeout(PATIENCE, self.follower).await.expect("in time");
        ended.expect("no panic").expect("no error");
    }

    /// Crashes it.
    pub(crate) async fn crash(self) {
        self.follower.abort();
        assert!(self.follower.await.is_err() || self.stop.is_cancelled());
    }
}
