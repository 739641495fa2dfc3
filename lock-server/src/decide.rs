//! Locket's rules: the effect of a request on the current lock
//! (docs/compatibility/locket.md#lock, #release, #expiry).
//!
//! The embedded store and the store in memory decide by these functions. The shared store has
//! the rules as conditions of its SQL statements (`store::shared::conditions`); property tests
//! compare both (`store::shared::rules_tests`).
//!
//! Only owners are compared. The owner may change everything else, including the
//! kind. Pure functions: no I/O, no clock.

use model::lock::{Claim, Lock, Owner};

use crate::lock_version::Version;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The owner releases the lock.
    Delete,
    /// The key is free: no change and no error.
    Absent,
    /// Another owner holds the key.
    Collide,
}

/// Decides the effect of a release by `owner` on `current`.
pub fn release(current: Option<&Lock>, owner: &Owner) -> Released {
    match current {
        None => Released::Absent,
        Some(lock) if lock.owner == *owner => Released::Delete,
        Some(_) => Released::Collide,
    }
}

/// Effect of a passed deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// The current version is the one that expired.
    Delete,
    /// The lock no longer exists.
    Absent,
    /// The lock was claimed since.
    Newer,
}

/// Decides the effect on `current` when the deadline of `seen` has passed.
pub fn expire(current: Option<Version>, seen: Version) -> Expired {
    match current {
        None => Expired::Absent,
        Some(current) if current == seen => Expired::Delete,
        Some(_) => Expired::Newer,
    }
}

#[cfg(test)]
mod tests {
    use model::lock::{FencingToken, LockKey, LockKind, LockValue, Ttl};

    use super::*;

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
        let table = [
            (None, "o", Released::Absent),
            (Some(lock()), "o", Released::Delete),
            (Some(lock()), "p", Released::Collide),
            (Some(lock()), "o ", Released::Collide),
        ];
        for (current, by, expected) in table {
            assert_eq!(release(current.as_ref(), &owner(by)), expected, "{current:?} {by}");
        }
    }

    #[test]
    fn expiries() {
        let version = |token, index| Version { token: FencingToken(token), index };
        let table = [
            (None, Expired::Absent),
            (Some(version(3, 7)), Expired::Delete),
            (Some(version(3, 8)), Expired::Newer),
            (Some(version(4, 7)), Expired::Newer),
            (Some(version(4, 1)), Expired::Newer),
        ];
        for (current, expected) in table {
            assert_eq!(expire(current, version(3, 7)), expected, "{current:?}");
        }
    }
}
