//! One version of a held lock.

use std::{
    ops::{Index, IndexMut},
    sync::Arc,
};

use model::lock::{Claim, FencingToken, Lock, LockKind};

/// A lock as stored, with fields that are never sent to clients.
///
/// Versions of one key are ordered by (`token`, `index`): the token rises when
/// the key changes its owner, the index with every claim of the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockVersion {
    /// The fields that clients see.
    pub lock: Lock,
    /// `modified_id` of the original's table: one per life of the row. In SQLite, the
    /// number of the row.
    pub id: Arc<str>,
    /// `modified_index` of the original's table: 1 for the first claim.
    pub index: i64,
    /// `uuid` of the request that created this version, for log lines; not stored.
    pub request: Option<Arc<str>>,
    /// `type` of a row in a shared table that neither this server nor the original
    /// wrote, such as `sandwich`: returned to clients unchanged. It counts as a lock.
    pub foreign_type: Option<Arc<str>>,
}

/// Orders the versions of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Rises with each change of owner.
    pub token: FencingToken,
    /// Rises with each claim of an owner.
    pub index: i64,
}

impl LockVersion {
    /// Creates the first version for a new owner.
    pub fn first(claim: Claim, id: Arc<str>, token: FencingToken, request: Request) -> Self {
        let Claim { key, owner, value, kind, ttl } = claim;
        let lock = Lock { key, owner, value, kind, ttl, token };
        Self { lock, id, index: 1, request, foreign_type: None }
    }

    /// Creates the next version for the same owner.
    #[must_use]
    pub fn again(&self, claim: &Claim, request: Request) -> Self {
        let Self { lock, id, index, request: _, foreign_type: _ } = self;
        // Share an equal value with the version before: a refresh must not keep a second
        // copy alive.
        let value = if lock.value == claim.value { &lock.value } else { &claim.value };
        Self {
            lock: Lock {
                key: lock.key.clone(),
                owner: lock.owner.clone(),
                value: value.clone(),
                kind: claim.kind,
                ttl: claim.ttl,
                token: lock.token,
            },
            id: Arc::clone(id),
            index: index.saturating_add(1),
            request,
            foreign_type: None,
        }
    }

    /// Position among the versions of the key.
    pub fn version(&self) -> Version {
        Version { token: self.lock.token, index: self.index }
    }
}

/// The locks that match a selector at one moment, in the order of the keys.
pub type LockList = Arc<[Arc<LockVersion>]>;

/// `uuid` of a request's metadata, if present: any text.
pub type Request = Option<Arc<str>>;

/// One value for each kind of lock.
#[derive(Debug, Default)]
pub struct ByKind<T> {
    /// The value for locks.
    pub locks: T,
    /// The value for presences.
    pub presences: T,
}

impl<T> Index<LockKind> for ByKind<T> {
    type Output = T;

    fn index(&self, kind: LockKind) -> &T {
        match kind {
            LockKind::Lock => &self.locks,
            LockKind::Presence => &self.presences,
        }
    }
}

impl<T> IndexMut<LockKind> for ByKind<T> {
    fn index_mut(&mut self, kind: LockKind) -> &mut T {
        match kind {
            LockKind::Lock => &mut self.locks,
            LockKind::Presence => &mut self.presences,
        }
    }
}
