//! Where locks are kept.
//!
//! [`Store`] is the seam; [`memory`], [`embedded`] and [`shared`] keep its promise,
//! and one conformance suite proves it for all. [`any`] is the one that the
//! configuration names.

pub mod configured;
pub mod embedded;
mod journal;
pub mod memory;
pub mod shared;

use std::{error, sync::Arc};

use model::lock::{Claim, LockKey, Owner, Selector};

use crate::{
    feed::Subscription,
    lock_version::{LockList, LockVersion, Request},
};

/// Keeps locks.
///
/// Promise:
/// - Calls on one key take effect one after the other, as `decide` says; each
///   takes effect once or, with an error, as a rule not at all (a disk that fails
///   in the middle of a commit may bring the effect back at the next start; the
///   caller was told that it is not known).
/// - What was answered is stored: it is there after a crash. Only the deadline
///   of a refresh is not stored.
/// - Nobody sees a change before it is stored. An answer never rests on a change
///   that may still fail.
/// - A call whose caller gives up takes effect all the same, or not at all.
/// - Fencing tokens of a key rise with each new owner, across deletion and
///   restart.
/// - Every version, and every end of a lock, goes to the feed in the order of
///   the commits.
pub trait Store: Clone + Send + Sync + 'static {
    /// Keeps a key for its owner if nothing has to be stored for it and nobody to be
    /// waited for, as with nearly all calls on a file. Otherwise [`Store::claim`]
    /// decides.
    fn refresh(&self, _claim: &Claim, _request: &Request) -> Option<Arc<LockVersion>> {
        None
    }

    /// The lock with this key, if there is one and nobody has to be asked for it.
    /// Otherwise [`Store::select`] answers.
    fn known(&self, _key: &LockKey) -> Option<Arc<LockVersion>> {
        None
    }

    /// Takes or keeps a key.
    fn claim(
        &self,
        claim: Claim,
        request: Request,
    ) -> impl Future<Output = Result<Claimed, Error>> + Send;

    /// Gives a key back.
    fn release(
        &self,
        key: &LockKey,
        owner: &Owner,
    ) -> impl Future<Output = Result<Released, Error>> + Send;

    /// Frees the key if this version is still the current one.
    fn expire(&self, seen: &LockVersion) -> impl Future<Output = Result<Expired, Error>> + Send;

    /// What is held now, in the order of the keys.
    fn select(&self, selector: &Selector) -> impl Future<Output = Result<LockList, Error>> + Send;

    /// What is held now, and every change from now on.
    fn watch(
        &self,
        selector: &Selector,
    ) -> impl Future<Output = Result<(LockList, Subscription), Error>> + Send;
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The key is the claimant's.
    LockVersion(Arc<LockVersion>),
    /// It is somebody else's.
    Collision(Arc<LockVersion>),
}

/// What became of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// The key is free now.
    Deleted(Arc<LockVersion>),
    /// It was free.
    Absent,
    /// It is somebody else's.
    Collision(Arc<LockVersion>),
}

/// What became of a passed deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expired {
    /// The key is free now.
    Deleted(Arc<LockVersion>),
    /// It was free.
    Absent,
    /// It was claimed since: here is its newest version.
    Newer(Arc<LockVersion>),
}

/// Why a store does not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It cannot store at the moment, or not any more. Trying again may help.
    #[error("the store does not take the change")]
    Unavailable(#[source] Arc<dyn error::Error + Send + Sync>),
    /// It cannot be read at the moment. Trying again may help.
    #[error("the store cannot be read")]
    Unreadable(#[source] Arc<dyn error::Error + Send + Sync>),
    /// The text can be stored by other databases, not by this one.
    #[error("the database cannot keep this text")]
    Unstorable(#[source] Arc<dyn error::Error + Send + Sync>),
    /// It was shut down.
    #[error("the store is shut down")]
    Closed,
    /// There are too many watchers.
    #[error("there are too many watchers")]
    TooManyWatchers,
}
