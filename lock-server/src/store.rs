//! Storage of locks.
//!
//! [`Store`] is the trait; [`embedded`], [`shared`] and, for tests, `testing::Memory` implement
//! its contract, which one conformance suite tests for all of them.

pub mod embedded;
mod journal;
pub mod shared;
#[cfg(feature = "testing")]
pub mod testing;

use std::{error, sync::Arc};

use model::lock::{Claim, LockKey, Owner, Selector};

pub use crate::decide::{Expired, Released};
use crate::{
    feed::Subscription,
    lock_version::{LockList, LockVersion, Request},
};

/// Stores locks.
///
/// Contract:
/// - Calls on one key are serialized and follow [`decide`](crate::decide). Each takes effect once or,
///   with an error, normally not at all (when a disk fails in the middle of a commit,
///   the change may reappear at the next start; the caller got an error that says that
///   the outcome is unknown).
/// - Every acknowledged change is durable across a crash, except the deadline of a
///   refresh.
/// - A change is visible only after it is stored. A response never depends on a change
///   that can still fail.
/// - A call that its caller cancels takes full effect or none.
/// - Fencing tokens of a key rise with each new owner, across deletion and restart.
/// - Every version, and every end of a lock, is published to the feed in commit order.
pub trait Store: Clone + Send + Sync + 'static {
    /// Refreshes a lock if that needs neither storage nor waiting, as with nearly all calls
    /// on SQLite. Otherwise [`Store::claim`] serves the claim.
    fn refresh(&self, _claim: &Claim, _request: &Request) -> Option<Arc<LockVersion>> {
        None
    }

    /// The lock with this key, if it exists and is known without waiting. Otherwise use
    /// [`Store::select`].
    fn known(&self, _key: &LockKey) -> Option<Arc<LockVersion>> {
        None
    }

    /// Acquires or refreshes a key.
    fn claim(
        &self,
        claim: Claim,
        request: Request,
    ) -> impl Future<Output = Result<Claimed, Error>> + Send;

    /// Releases a key.
    fn release(
        &self,
        key: &LockKey,
        owner: &Owner,
    ) -> impl Future<Output = Result<Released, Error>> + Send;

    /// Frees the key if this version is still the current one.
    fn expire(&self, seen: &LockVersion) -> impl Future<Output = Result<Expired, Error>> + Send;

    /// The current locks, in the order of the keys.
    fn select(&self, selector: &Selector) -> impl Future<Output = Result<LockList, Error>> + Send;

    /// The current locks, and every change from now on.
    fn watch(
        &self,
        selector: &Selector,
    ) -> impl Future<Output = Result<(LockList, Subscription), Error>> + Send;
}

/// Result of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The claimant owns the key.
    LockVersion(Arc<LockVersion>),
    /// Another owner holds the key.
    Collision(Arc<LockVersion>),
}

/// Reason why a store call fails.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store cannot write at the moment, or not any more. A retry may succeed.
    #[error("the store does not take the change")]
    Unavailable(#[source] Arc<dyn error::Error + Send + Sync>),
    /// The store cannot be read at the moment. A retry may succeed.
    #[error("the store cannot be read")]
    Unreadable(#[source] Arc<dyn error::Error + Send + Sync>),
    /// This database cannot store the text; other databases can.
    #[error("the database cannot keep this text")]
    Unstorable(#[source] Arc<dyn error::Error + Send + Sync>),
    /// The store was shut down.
    #[error("the store is shut down")]
    Closed,
    /// The watcher limit is reached.
    #[error("too many watchers")]
    TooManyWatchers,
}
