//! The last mass removal that was refused, and whether an operator lets it pass.
//!
//! An operator accepts a removal by its number of groups. The acceptance holds for exactly the
//! groups of the refused removal, for [`ACCEPTED_FOR`], for one Replace, and for this instance: any
//! committed Replace, by this instance or another, ends it. It is not stored: after a restart the
//! next Replace of the syncer is refused again.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use model::{ids::GroupGuid, lock::Owner};

use crate::{
    groups::{decide::Replacement, snapshot::Snapshot},
    metrics::REFUSED_REMOVAL,
};

/// Time in which an accepted removal may be committed.
pub const ACCEPTED_FOR: SignedDuration = SignedDuration::from_mins(10);
/// Limit of groups that are named.
const NAMED: usize = 20;

/// A refused removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRemoval {
    /// When it was refused last.
    pub at: Timestamp,
    /// The writer.
    pub owner: Owner,
    /// All groups that would be removed.
    pub groups: Arc<BTreeSet<GroupGuid>>,
    /// Number of groups that were stored.
    pub stored: usize,
    /// The first groups with their names, ascending by id.
    pub named: Vec<(GroupGuid, String)>,
    /// Until when an operator lets it pass.
    pub accepted_until: Option<Timestamp>,
}

impl RefusedRemoval {
    /// The removal of the groups of `stored` that the Replace does not name.
    #[must_use]
    pub fn of(stored: &Snapshot, write: &Replacement) -> Self {
        let manifest = &write.supplied.manifest;
        let removed = || stored.entries().iter().filter(|entry| !manifest.names(&entry.guid));
        let named = removed().take(NAMED);
        let named =
            named.map(|entry| (entry.guid.clone(), proto::group_name(entry.encoded.clone())));
        Self {
            at: write.at,
            owner: write.owner.clone(),
            groups: Arc::new(removed().map(|entry| entry.guid.clone()).collect()),
            stored: stored.entries().len(),
            named: named.collect(),
            accepted_until: None,
        }
    }
}

/// Why a removal is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// There is nothing to accept.
    #[error("this instance refused no removal since the last committed Replace")]
    NoneRefused,
    /// The number differs.
    #[error("removed: {given} groups, but the refused Replace would remove {refused}")]
    OtherNumber {
        /// Number of the request.
        given: u64,
        /// Number of the refused removal.
        refused: usize,
    },
}

/// The last refused removal, shared; see the module.
#[derive(Debug, Clone, Default)]
pub struct Removals(Arc<Mutex<Option<RefusedRemoval>>>);

impl Removals {
    fn lock(&self) -> MutexGuard<'_, Option<RefusedRemoval>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last refused removal, unless a Replace was committed since.
    #[must_use]
    pub fn last(&self) -> Option<RefusedRemoval> {
        self.lock().clone()
    }

    /// Remembers a refused removal. An acceptance of the same groups stays.
    #[expect(clippy::cast_precision_loss, reason = "no store comes to 2^52 groups")]
    pub(crate) fn refused(&self, mut refused: RefusedRemoval) {
        let mut last = self.lock();
        let same = last.as_ref().filter(|last| last.groups == refused.groups);
        refused.accepted_until = same.and_then(|last| last.accepted_until);
        REFUSED_REMOVAL.gauge().set(refused.groups.len() as f64);
        *last = Some(refused);
    }

    /// A Replace was committed: there is nothing to accept any more.
    pub(crate) fn committed(&self) {
        REFUSED_REMOVAL.gauge().set(0.0);
        *self.lock() = None;
    }

    /// The groups that a Replace may remove at this time.
    #[must_use]
    pub fn accepted(&self, now: Timestamp) -> Option<Arc<BTreeSet<GroupGuid>>> {
        let last = self.lock();
        let last = last.as_ref()?;
        let is_accepted = last.accepted_until.is_some_and(|until| now < until);
        is_accepted.then(|| Arc::clone(&last.groups))
    }

    /// Lets the refused removal pass, if it has this number of groups.
    ///
    /// # Errors
    /// No removal was refused, or it has another number of groups.
    pub fn accept(&self, removed: u64, now: Timestamp) -> Result<RefusedRemoval, NotAccepted> {
        let mut last = self.lock();
        let last = last.as_mut().ok_or(NotAccepted::NoneRefused)?;
        let refused = last.groups.len();
        if refused as u64 != removed {
            return Err(NotAccepted::OtherNumber { given: removed, refused });
        }
        last.accepted_until = Some(now.saturating_add(ACCEPTED_FOR).unwrap_or(Timestamp::MAX));
        Ok(last.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(groups: &[&str]) -> RefusedRemoval {
        let guid = |text: &&str| GroupGuid::parse(text).unwrap();
        RefusedRemoval {
            at: Timestamp::UNIX_EPOCH,
            owner: Owner::parse("syncer").unwrap(),
            groups: Arc::new(groups.iter().map(guid).collect()),
            stored: 60,
            named: Vec::new(),
            accepted_until: None,
        }
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    #[test]
    fn an_acceptance_is_for_the_number_the_groups_and_ten_minutes() {
        let removals = Removals::default();
        assert_eq!(removals.accept(2, at(0)), Err(NotAccepted::NoneRefused));
        removals.refused(refused(&["a", "b"]));
        assert_eq!(removals.accepted(at(0)), None);
        let other = NotAccepted::OtherNumber { given: 3, refused: 2 };
        assert_eq!(removals.accept(3, at(0)), Err(other));
        assert_eq!(removals.accept(2, at(1)).unwrap().accepted_until, Some(at(11)));
        assert!(removals.accepted(at(10)).is_some());
        assert_eq!(removals.accepted(at(11)), None);
        removals.refused(refused(&["a", "b"]));
        assert!(removals.accepted(at(10)).is_some(), "the same groups");
        removals.refused(refused(&["a", "c"]));
        assert_eq!(removals.accepted(at(10)), None, "as many, but others");
    }

    #[test]
    fn a_committed_replace_ends_an_acceptance() {
        let removals = Removals::default();
        removals.refused(refused(&["a"]));
        removals.accept(1, at(0)).unwrap();
        removals.committed();
        assert_eq!((removals.last(), removals.accepted(at(0))), (None, None));
    }
}
