//! Helpers for unit tests.

use std::sync::Arc;

use model::lock::{FencingToken, Lock, LockKey, LockKind, LockValue, Owner, Ttl};

use crate::lock_version::LockVersion;

/// A version of a lock.
pub(crate) fn held(key: &str, token: u64, index: i64, ttl: i64) -> Arc<LockVersion> {
    Arc::new(LockVersion {
        lock: Lock {
            key: LockKey::parse(key).unwrap(),
            owner: Owner::parse("o").unwrap(),
            value: LockValue::parse("v").unwrap(),
            kind: LockKind::Lock,
            ttl: Ttl::try_from_seconds(ttl).unwrap(),
            token: FencingToken(token),
        },
        id: format!("id-{token}").into(),
        index,
        request: None,
        foreign_type: None,
    })
}
