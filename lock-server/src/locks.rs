//! The use cases, whatever the store.

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
    patience: Duration,
}

/// Why a request is refused. The texts are the original's where it has one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Somebody else has the key.
    #[error("lock-collision")]
    Collision,
    /// Nobody has the key.
    #[error("resource-not-found")]
    NotFound,
    /// The store took too long. What was asked may still happen.
    #[error("context deadline exceeded")]
    Deadline,
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl<S: Store> Locks<S> {
    /// `patience` is the longest that one request waits for the store.
    pub fn new(store: S, patience: Duration) -> Self {
        Self { store, patience }
    }

    /// Keeps a key for its owner if that takes no waiting and leaves no line in the
    /// log; otherwise [`Locks::lock`] decides.
    pub fn refresh(&self, claim: &Claim, request: &Request) -> Option<FencingToken> {
        Some(self.store.refresh(claim, request)?.lock.token)
    }

    /// Who has a key, if it takes no waiting to know; otherwise [`Locks::fetch`] asks.
    pub fn known(&self, key: &str) -> Option<Arc<LockVersion>> {
        self.store.known(&LockKey::parse(key).ok()?)
    }

    /// Takes or keeps a key for an owner.
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

    /// Gives a key back. That nobody has it is no error. The kind that the request
    /// names, by its `type_code`, is for the log alone.
    pub async fn release(&self, release: Release, type_code: i32) -> Result<(), Error> {
        let Release { key, owner } = release;
        let span = info_span!("release-lock", key, owner, "type-code" = type_code);
        // A key that is too long to be stored is nobody's.
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

    /// An owner that cannot be is not the owner of what is there.
    async fn release_by_nobody(&self, key: LockKey) -> Result<(), Error> {
        match self.fetch_key(key).await {
            Ok(_) => Err(Error::Collision),
            Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Who has a key.
    pub async fn fetch(&self, key: &str) -> Result<Arc<LockVersion>, Error> {
        let key = LockKey::parse(key).map_err(|_| Error::NotFound)?;
        self.fetch_key(key).await
    }

    async fn fetch_key(&self, key: LockKey) -> Result<Arc<LockVersion>, Error> {
        let found = self.within(self.store.select(&Selector::Key(key))).await?;
        found.first().cloned().ok_or(Error::NotFound)
    }

    /// All of a kind.
    pub async fn fetch_all(&self, kind: LockKind) -> Result<LockList, Error> {
        self.within(self.store.select(&Selector::Kind(kind))).await
    }

    /// What is held, and every change from then on.
    pub async fn watch(&self, selector: &Selector) -> Result<(LockList, Subscription), Error> {
        self.within(self.store.watch(selector)).await
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, store::Error>>,
    ) -> Result<T, Error> {
        match timeout(self.patience, work).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Error::Deadline),
        }
    }
}
