//! Locket's rules: the effect of a request on the current lock
//! (docs/compatibility/locket.md#lock, #release, #expiry).
//!
//! The embedded store and the store in memory decide by these functions. The shared store has
//! the rules as conditions of its SQL statements (`store::shared::conditions`); property tests
//! compare both (`store::shared::rules_tests`).
//!
//! Only owners are compared. The owner may change everything else, including the
//! kind. Pure functions: no I/O, no clock.

use std::sync::Arc;

use model::lock::{Claim, Lock, Owner};

use crate::lock_version::{LockVersion, Version};

/// Effect of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// The key is free: the claimant becomes the owner, with a higher fencing token.
    Acquire,
    /// The owner keeps the lock; only the deadline changes.
    Refresh,
    /// The owner keeps the lock with another time to live.
    ChangeTtl,
    /// The owner keeps the lock with another value or kind.
    Update,
    /// Another owner holds the key.
    Collide,
}

/// Decides the effect of a claim on `current`.
pub fn claim(current: Option<&Lock>, claim: &Claim) -> Claimed {
    let Some(lock) = current else {
        return Claimed::Acquire;
    };
    if lock.owner != claim.owner {
        Claimed::Collide
    } else if lock.value != claim.value || lock.kind != claim.kind {
        Claimed::Update
    } else if lock.ttl != claim.ttl {
        Claimed::ChangeTtl
    } else {
        Claimed::Refresh
    }
}

/// Effect of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// The owner releases the lock: the key becomes free.
    Deleted(Arc<LockVersion>),
    /// The key is free already: no change and no error.
    Absent,
    /// Another owner holds the key.
    Collision(Arc<LockVersion>),
}

/// Decides the effect of a release by `owner` on `current`.
pub fn release(current: Option<&Arc<LockVersion>>, owner: &Owner) -> Released {
    match current {
        None => Released::Absent,
        Some(held) if held.lock.owner == *owner => Released::Deleted(Arc::clone(held)),
        Some(held) => Released::Collision(Arc::clone(held)),
    }
}

/// Effect of a passed deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expired {
    /// The current version is the one that expired: the key becomes free.
    Deleted(Arc<LockVersion>),
    /// The lock no longer exists.
    Absent,
    /// The lock was claimed since; the newest version.
    Newer(Arc<LockVersion>),
}

/// Decides the effect on `current` when the deadline of `seen` has passed.
pub fn expire(current: Option<&Arc<LockVersion>>, seen: Version) -> Expired {
    match current {
        None => Expired::Absent,
        Some(held) if held.version() == seen => Expired::Deleted(Arc::clone(held)),
        Some(held) => Expired::Newer(Arc::clone(held)),
    }
}

#[cfg(test)]
mod tests {
    use model::lock::{FencingToken, LockKey, LockKind, LockValue, Ttl};

    use super::*;
    use crate::tests::held;

    fn owner(text: &str) -> Owner {
        Owner::parse(text).unwrap()
    }

    fn lock() -> Lock {
        Lock {
            key: LockKey::parse("k").unwrap(),
            owner: owner("o"),
            value: LockValue::parse("v").unwrap(),
            kind: LockKind::Lock,
            ttl: Ttl::try_from_seconds(15).unwrap(),
            token: FencingToken(3),
        }
    }

    fn same() -> Claim {
        let Lock { key, owner, value, kind, ttl, token: _ } = lock();
        Claim { key, owner, value, kind, ttl }
    }

    #[test]
    fn claims() {
        let value = LockValue::parse("w").unwrap();
        let ttl = Ttl::try_from_seconds(16).unwrap();
        let held = Some(lock());
        let table = [
            (None, same(), Claimed::Acquire),
            (held.clone(), same(), Claimed::Refresh),
            (held.clone(), Claim { ttl, ..same() }, Claimed::ChangeTtl),
            (held.clone(), Claim { value: value.clone(), ttl, ..same() }, Claimed::Update),
            (held.clone(), Claim { kind: LockKind::Presence, ..same() }, Claimed::Update),
            (held.clone(), Claim { owner: owner("p"), ..same() }, Claimed::Collide),
            (held.clone(), Claim { owner: owner("O"), ..same() }, Claimed::Collide),
            (held, Claim { owner: owner("p"), value, ttl, ..same() }, Claimed::Collide),
        ];
        for (current, request, expected) in table {
            assert_eq!(claim(current.as_ref(), &request), expected, "{current:?} {request:?}");
        }
    }

    #[test]
    fn releases() {
        let held = held("k", 3, 7, 15);
        let table = [
            (None, "o", Released::Absent),
            (Some(&held), "o", Released::Deleted(Arc::clone(&held))),
            (Some(&held), "p", Released::Collision(Arc::clone(&held))),
            (Some(&held), "o ", Released::Collision(Arc::clone(&held))),
        ];
        for (current, by, expected) in table {
            assert_eq!(release(current, &owner(by)), expected, "{current:?} {by}");
        }
    }

    #[test]
    fn expiries() {
        let version = |token, index| held("k", token, index, 15);
        let seen = version(3, 7);
        assert_eq!(expire(None, seen.version()), Expired::Absent);
        assert_eq!(expire(Some(&seen), seen.version()), Expired::Deleted(Arc::clone(&seen)));
        for newer in [version(3, 8), version(4, 7), version(4, 1)] {
            assert_eq!(expire(Some(&newer), seen.version()), Expired::Newer(Arc::clone(&newer)));
        }
    }
}
