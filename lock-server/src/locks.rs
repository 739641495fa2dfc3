//! The use cases, independent of the store.

use std::{sync::Arc, time::Duration};

use model::lock::{Claim, FencingToken, LockKey, LockKind, Owner, Release, Selector};
use tokio::time::timeout;
use tracing::{Instrument as _, info_span};

use crate::{
    feed::Subscription,
    lock_version::{LockList, LockVersion, Request},
    store::{self, Claimed, Released, Store},
};

/// Locks over a store; clones share it.
#[derive(Debug, Clone)]
pub struct Locks<S> {
    store: S,
    store_timeout: Duration,
}

/// Reason why a request fails. The texts are the original's where it has one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another owner holds the key.
    #[error("lock-collision")]
    Collision,
    /// The key is free.
    #[error("resource-not-found")]
    NotFound,
    /// The store timed out. The requested change may still take effect.
    #[error("context deadline exceeded")]
    Deadline,
    /// The store returned an error.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl<S: Store> Locks<S> {
    /// `store_timeout` is the store timeout of a request.
    pub fn new(store: S, store_timeout: Duration) -> Self {
        Self { store, store_timeout }
    }

    /// Refreshes the lock if that needs neither waiting nor a log line; otherwise
    /// [`Locks::lock`] serves the claim.
    pub fn refresh(&self, claim: &Claim, request: &Request) -> Option<FencingToken> {
        Some(self.store.refresh(claim, request)?.lock.token)
    }

    /// The lock with this key if it is known without waiting; otherwise use [`Locks::fetch`].
    pub fn known(&self, key: &str) -> Option<Arc<LockVersion>> {
        self.store.known(&LockKey::parse(key).ok()?)
    }

    /// Acquires or refreshes a key for an owner.
    pub async fn lock(&self, claim: Claim, request: Request) -> Result<FencingToken, Error> {
        let span = info_span!(
            "lock",
            key = claim.key.as_str(),
            owner = claim.owner.as_str(),
            "type-code" = claim.kind.type_code(),
            "request-uuid" = request.as_deref(),
        );
        let claimed = self.within(self.store.claim(claim, request)).instrument(span.clone());
        match claimed.await? {
            Claimed::LockVersion(held) => Ok(held.lock.token),
            Claimed::Collision(_) => {
                span.in_scope(|| tracing::debug!("lock-already-exists"));
                Err(Error::Collision)
            }
        }
    }

    /// Releases a key. A free key is no error. The kind in the request, `type_code`, is
    /// only logged.
    pub async fn release(&self, release: Release, type_code: i32) -> Result<(), Error> {
        let Release { key, owner } = release;
        let span = info_span!("release-lock", key, owner, "type-code" = type_code);
        // A key that is too long to be stored has no owner.
        let Ok(key) = LockKey::parse(&key) else { return Ok(()) };
        let Ok(owner) = Owner::parse(&owner) else {
            return self.release_by_nobody(key).instrument(span).await;
        };
        let released = self.within(self.store.release(&key, &owner)).instrument(span.clone()).await;
        span.in_scope(|| match released? {
            Released::Deleted(_) => Ok(()),
            Released::Absent => {
                tracing::debug!("lock-does-not-exist");
                Ok(())
            }
            Released::Collision(_) => {
                tracing::info!("cannot-release-lock");
                Err(Error::Collision)
            }
        })
    }

    /// Release by an invalid owner, which cannot be the owner of an existing lock.
    async fn release_by_nobody(&self, key: LockKey) -> Result<(), Error> {
        match self.fetch_key(key).await {
            Ok(_) => Err(Error::Collision),
            Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The lock with this key.
    pub async fn fetch(&self, key: &str) -> Result<Arc<LockVersion>, Error> {
        let key = LockKey::parse(key).map_err(|_| Error::NotFound)?;
        self.fetch_key(key).await
    }

    async fn fetch_key(&self, key: LockKey) -> Result<Arc<LockVersion>, Error> {
        let found = self.within(self.store.select(&Selector::Key(key))).await?;
        found.first().cloned().ok_or(Error::NotFound)
    }

    /// All locks of a kind.
    pub async fn fetch_all(&self, kind: LockKind) -> Result<LockList, Error> {
        self.within(self.store.select(&Selector::Kind(kind))).await
    }

    /// The current locks, and every change from then on.
    pub async fn watch(&self, selector: &Selector) -> Result<(LockList, Subscription), Error> {
        self.within(self.store.watch(selector)).await
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, store::Error>>,
    ) -> Result<T, Error> {
        match timeout(self.store_timeout, work).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Error::Deadline),
        }
    }
}
