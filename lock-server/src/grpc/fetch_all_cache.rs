//! Response cache of FetchAll.
//!
//! A response is cached together with the locks that it contains. It is reused only if
//! the current locks are identical or compare equal, so the cache needs no
//! invalidation. A refresh shares its strings with the version before: the comparison
//! compares addresses. A response of more than [`KEPT`] bytes is not cached, which
//! bounds the memory.

use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::lock::{Lock, LockKind};

use super::pre_encoded::{Encoded, TooLarge};
use crate::lock_version::{ByKind, LockList, LockVersion};

/// Size limit of a cached response: that of about 20,000 cells.
const KEPT: usize = 16 << 20;

/// One cached response per kind.
#[derive(Debug, Default)]
pub(super) struct Answers(ByKind<Mutex<Option<Answer>>>);

#[derive(Debug)]
struct Answer {
    held: LockList,
    encoded: Encoded,
}

impl Answers {
    fn of(&self, kind: LockKind) -> MutexGuard<'_, Option<Answer>> {
        self.0[kind].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The response with `held`, which are all locks of a kind.
    pub(super) fn encode(&self, kind: LockKind, held: LockList) -> Result<Encoded, TooLarge> {
        if let Some(kept) = &mut *self.of(kind)
            && show_the_same(&kept.held, &held)
        {
            // Frees the previous versions.
            kept.held = held;
            return Ok(kept.encoded.clone());
        }
        let locks = || held.iter().map(|held| &held.lock);
        let encoded = Encoded::message(proto::fetch_all_len(locks()), |buffer| {
            proto::put_fetch_all(locks(), buffer);
        })?;
        let keep = encoded.len() <= KEPT;
        *self.of(kind) = keep.then(|| Answer { held, encoded: encoded.clone() });
        Ok(encoded)
    }
}

fn show_the_same(these: &[Arc<LockVersion>], those: &[Arc<LockVersion>]) -> bool {
    if ptr::eq(these, those) {
        return true;
    }
    let same = |(this, that): (&Arc<LockVersion>, &Arc<LockVersion>)| {
        Arc::ptr_eq(this, that) || shown(&this.lock) == shown(&that.lock)
    };
    these.len() == those.len() && these.iter().zip(those).all(same)
}

/// The fields of a lock that FetchAll returns.
fn shown(lock: &Lock) -> impl PartialEq {
    let Lock { key, owner, value, kind, ttl: _, token: _ } = lock;
    (key, owner, value, kind)
}

#[cfg(test)]
mod tests {
    use model::lock::{Claim, LockValue, Ttl};
    use proptest::prelude::*;
    use prost::Message as _;
    use proto::models::{FetchAllResponse, Resource};

    use super::*;
    use crate::tests::held;

    fn again(held: &LockVersion, value: &str, kind: LockKind, ttl: i64) -> Arc<LockVersion> {
        let Lock { key, owner, .. } = held.lock.clone();
        let value = LockValue::parse(value).unwrap();
        let ttl = Ttl::try_from_seconds(ttl).unwrap();
        Arc::new(held.again(&Claim { key, owner, value, kind, ttl }, None))
    }

    fn message(held: &[Arc<LockVersion>]) -> Vec<u8> {
        let resources = held.iter().map(|held| Resource::from(&held.lock)).collect();
        FetchAllResponse { resources }.encode_to_vec()
    }

    proptest! {
        /// Whatever changes between two calls, a response contains the current locks.
        #[test]
        fn an_answer_is_never_out_of_date(
            changes in prop::collection::vec((0..4usize, "[vw]{0,2}", any::<bool>(), 0..4u8), 1..40),
        ) {
            let answers = Answers::default();
            let mut all: Vec<_> = (0..4).map(|n| held(&n.to_string(), 1, 1, 9)).collect();
            for (at, value, is_lock, what) in changes {
                let kind = if is_lock { LockKind::Lock } else { LockKind::Presence };
                let before = Arc::clone(&all[at]);
                let kept = before.lock.value.as_str();
                all[at] = match what {
                    0 => again(&before, kept, before.lock.kind, 9),
                    1 => again(&before, kept, before.lock.kind, 10),
                    2 => again(&before, &value, kind, 9),
                    _ => held(before.lock.key.as_str(), before.lock.token.0 + 1, 1, 9),
                };
                for kind in [LockKind::Lock, LockKind::Presence] {
                    let of_kind = all.iter().filter(|held| held.lock.kind == kind);
                    let of_kind: LockList = of_kind.cloned().collect();
                    let expected = message(&of_kind);
                    let encoded = answers.encode(kind, of_kind).unwrap();
                    prop_assert_eq!(encoded.message_bytes(), &expected[..]);
                }
            }
        }
    }

    #[test]
    fn a_refresh_leaves_the_answer_as_it_is_and_a_large_one_is_not_kept() {
        let (answers, kind) = (Answers::default(), LockKind::Lock);
        let first = held("k", 1, 1, 9);
        let refreshed = again(&first, "v", kind, 9);
        let one = answers.encode(kind, [first].into()).unwrap();
        let other = answers.encode(kind, [Arc::clone(&refreshed)].into()).unwrap();
        assert_eq!(one.message_bytes().as_ptr(), other.message_bytes().as_ptr());
        let kept = answers.of(kind).as_ref().map(|answer| Arc::clone(&answer.held[0]));
        assert!(Arc::ptr_eq(&kept.unwrap(), &refreshed));

        let large = again(&refreshed, &"v".repeat(4_096), kind, 9);
        answers.encode(kind, vec![large; 5_000].into()).unwrap();
        assert!(answers.of(kind).is_none());
    }
}
