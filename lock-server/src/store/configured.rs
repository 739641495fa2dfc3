//! The configured store and its background task.

use std::{path::Path, sync::Arc};

use model::lock::{Claim, LockKey, Owner, Selector};
use runtime::server::Component;
use tokio_util::sync::CancellationToken;

use super::{
    Claimed, Error, Expired, Released, Store,
    embedded::{Embedded, Flusher},
    shared::{Follower, Shared},
};
use crate::{
    feed::{Feed, Subscription},
    lock_version::{LockList, LockVersion, Request},
};

/// An embedded or a shared store.
#[derive(Debug, Clone)]
pub enum AnyStore {
    /// In a SQLite file of this process.
    Embedded(Embedded),
    /// On a database server.
    Shared(Shared),
}

/// Background task of the store.
#[derive(Debug)]
pub enum StoreTask {
    /// Commits the queued changes.
    Embedded(Flusher),
    /// Follows changes in the table.
    Shared(Box<Follower>),
}

impl AnyStore {
    /// Opens a store in a SQLite file.
    ///
    /// # Errors
    /// The file cannot be used.
    pub async fn embedded(path: &Path, feed: Feed) -> Result<(Self, StoreTask), storage::Error> {
        let options = storage::sqlite::Options::default();
        let (store, flusher) = Embedded::open(path, &options, feed).await?;
        Ok((Self::Embedded(store), StoreTask::Embedded(flusher)))
    }

    /// Opens a store on a database server.
    ///
    /// # Errors
    /// The server cannot be reached or used.
    pub async fn shared(
        options: &storage::server::Options,
        feed: Feed,
    ) -> Result<(Self, StoreTask), storage::Error> {
        let (store, follower) = Shared::open(options, feed).await?;
        Ok((Self::Shared(store), StoreTask::Shared(Box::new(follower))))
    }
}

impl StoreTask {
    /// Runs until `stop`, then commits the queue and closes the store.
    ///
    /// # Errors
    /// The store cannot continue.
    pub async fn run(
        self,
        stop: CancellationToken,
        health: Component,
    ) -> Result<(), storage::Error> {
        match self {
            Self::Embedded(flusher) => flusher.run(stop, health).await,
            Self::Shared(follower) => Box::pin(follower.run(stop, health)).await,
        }
    }
}

// The future of a call on a server is large. It is boxed, so that the callers' futures,
// which are moved several times, stay small with an embedded store.
impl Store for AnyStore {
    fn refresh(&self, claim: &Claim, request: &Request) -> Option<Arc<LockVersion>> {
        match self {
            Self::Embedded(store) => store.refresh(claim, request),
            Self::Shared(store) => store.refresh(claim, request),
        }
    }

    fn known(&self, key: &LockKey) -> Option<Arc<LockVersion>> {
        match self {
            Self::Embedded(store) => store.known(key),
            Self::Shared(store) => store.known(key),
        }
    }

    async fn claim(&self, claim: Claim, request: Request) -> Result<Claimed, Error> {
        match self {
            Self::Embedded(store) => store.claim(claim, request).await,
            Self::Shared(store) => Box::pin(store.claim(claim, request)).await,
        }
    }

    async fn release(&self, key: &LockKey, owner: &Owner) -> Result<Released, Error> {
        match self {
            Self::Embedded(store) => store.release(key, owner).await,
            Self::Shared(store) => Box::pin(store.release(key, owner)).await,
        }
    }

    async fn expire(&self, seen: &LockVersion) -> Result<Expired, Error> {
        match self {
            Self::Embedded(store) => store.expire(seen).await,
            Self::Shared(store) => Box::pin(store.expire(seen)).await,
        }
    }

    async fn select(&self, selector: &Selector) -> Result<LockList, Error> {
        match self {
            Self::Embedded(store) => store.select(selector).await,
            Self::Shared(store) => Box::pin(store.select(selector)).await,
        }
    }

    async fn watch(&self, selector: &Selector) -> Result<(LockList, Subscription), Error> {
        match self {
            Self::Embedded(store) => store.watch(selector).await,
            Self::Shared(store) => Box::pin(store.watch(selector)).await,
        }
    }
}
