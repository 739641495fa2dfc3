//! A single queue of deadlines for all locks.
//!
//! A deadline is the time to live after the moment at which this process last
//! observed a new version of the lock, by the monotonic clock. No time is stored:
//! clocks may differ and step, and a restart grants every lock its full time to
//! live. Invariants:
//! - there is at most one deadline per key, that of the newest observed version,
//!   in whatever order versions are reported;
//! - memory is one entry per held key, whatever the number of refreshes;
//! - a postponed deadline, as after each refresh, only updates the entry: the key
//!   keeps its position in the queue and is requeued when that position is due.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use model::lock::LockKey;

use crate::lock_version::{LockVersion, Version};

/// Deadlines, soonest first.
#[derive(Debug, Default)]
pub struct Deadlines {
    /// Queue position of each key: at its deadline or before.
    queue: BTreeSet<(Instant, LockKey)>,
    entries: HashMap<LockKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// The deadline.
    at: Instant,
    /// Position in the queue.
    turn: Instant,
    held: Arc<LockVersion>,
}

impl Deadlines {
    /// Records a version observed at `now`. Returns true when its deadline is the
    /// earliest of all, so that a waiting task has to wake up earlier.
    pub fn seen(&mut self, held: &Arc<LockVersion>, now: Instant) -> bool {
        self.schedule(held, now + held.lock.ttl.duration())
    }

    /// Sets an explicit deadline for a version, such as the retry of a failed expiry.
    /// A version older than the known one is ignored.
    pub fn schedule(&mut self, held: &Arc<LockVersion>, at: Instant) -> bool {
        let key = &held.lock.key;
        match self.entries.get_mut(key) {
            Some(entry) if held.version() <= entry.held.version() => return false,
            Some(entry) => {
                (entry.at, entry.held) = (at, Arc::clone(held));
                if entry.turn <= at {
                    return false;
                }
                self.queue.remove(&(entry.turn, key.clone()));
                entry.turn = at;
            }
            None => {
                let entry = Entry { at, turn: at, held: Arc::clone(held) };
                self.entries.insert(key.clone(), entry);
            }
        }
        self.queue.insert((at, key.clone()));
        self.next() == Some(at)
    }

    /// The key was freed at `version`: removes it unless a newer owner was observed.
    pub fn forget(&mut self, key: &LockKey, version: Version) {
        if self.entries.get(key).is_some_and(|entry| entry.held.version().token <= version.token)
            && let Some(entry) = self.entries.remove(key)
        {
            self.queue.remove(&(entry.turn, key.clone()));
        }
    }

    /// Time of the next check: at the earliest deadline or before.
    pub fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Checks at most `limit` entries and removes those whose deadline is not after
    /// `now`.
    pub fn take_due(&mut self, now: Instant, limit: usize) -> Vec<Arc<LockVersion>> {
        let mut due = Vec::new();
        for _looked_at in 0..limit {
            if self.next().is_none_or(|turn| turn > now) {
                break;
            }
            let Some((_, key)) = self.queue.pop_first() else { break };
            match self.entries.get_mut(&key) {
                Some(entry) if entry.at > now => {
                    entry.turn = entry.at;
                    self.queue.insert((entry.turn, key));
                }
                _ => due.extend(self.entries.remove(&key).map(|entry| entry.held)),
            }
        }
        due
    }

    /// Number of keys with a deadline.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no key has a deadline.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::tests::held;

    #[expect(clippy::disallowed_methods, reason = "any instant will do as an origin")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_soonest_comes_first_and_only_when_due() {
        let (mut deadlines, start) = (Deadlines::default(), origin());
        assert!(deadlines.seen(&held("a", 1, 1, 9), start));
        assert!(deadlines.seen(&held("b", 1, 1, 3), start));
        assert!(!deadlines.seen(&held("c", 1, 1, 5), start));
        assert_eq!(deadlines.next(), Some(start + seconds(3)));
        assert!(deadlines.take_due(start + Duration::from_millis(2_999), 9).is_empty());
        let due = deadlines.take_due(start + seconds(5), 9);
        assert_eq!(due, [held("b", 1, 1, 3), held("c", 1, 1, 5)]);
        assert_eq!(deadlines.len(), 1);
    }

    #[test]
    fn a_refresh_moves_the_deadline_both_ways() {
        let (mut deadlines, start) = (Deadlines::default(), origin());
        deadlines.seen(&held("a", 1, 1, 60), start);
        deadlines.seen(&held("a", 1, 2, 1), start + seconds(1));
        assert_eq!(deadlines.next(), Some(start + seconds(2)));
        deadlines.seen(&held("a", 1, 3, 60), start + seconds(1));
        assert!(deadlines.take_due(start + seconds(2), 9).is_empty(), "it was put off");
        assert_eq!(deadlines.next(), Some(start + seconds(61)));
        assert_eq!(deadlines.len(), 1);
    }

    #[test]
    fn an_older_version_changes_nothing() {
        let (mut deadlines, start) = (Deadlines::default(), origin());
        deadlines.seen(&held("a", 2, 1, 5), start);
        for older in [held("a", 2, 1, 1), held("a", 1, 99, 1)] {
            assert!(!deadlines.seen(&older, start));
            assert_eq!(deadlines.next(), Some(start + seconds(5)));
        }
    }

    #[test]
    fn a_release_forgets_its_owner_only() {
        let (mut deadlines, start) = (Deadlines::default(), origin());
        deadlines.seen(&held("a", 2, 4, 5), start);
        deadlines.forget(&held("a", 1, 9, 5).lock.key, held("a", 1, 9, 5).version());
        assert_eq!(deadlines.len(), 1, "a late word of the owner before");
        deadlines.forget(&held("a", 2, 4, 5).lock.key, held("a", 2, 3, 5).version());
        assert!(deadlines.is_empty());
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn the_longest_time_to_live_does_not_overflow() {
        let (mut deadlines, start) = (Deadlines::default(), origin());
        deadlines.seen(&held("a", 1, 1, i64::MAX), start);
        assert!(deadlines.take_due(start + seconds(3_000_000_000), 9).is_empty());
    }

    proptest! {
        /// For any order of observed and forgotten versions, each key yields its newest
        /// version, at its deadline, once.
        #[test]
        fn the_newest_version_is_due_once(
            versions in prop::collection::vec((0..4u8, 1..4u64, 1..6i64, 1..20i64, 0..30u64), 0..60),
        ) {
            let (mut deadlines, start) = (Deadlines::default(), origin());
            let mut newest: HashMap<u8, (Arc<LockVersion>, Instant)> = HashMap::new();
            for (key, token, index, ttl, at) in versions {
                let held = held(&key.to_string(), token, index, ttl);
                let now = start + seconds(at);
                deadlines.seen(&held, now);
                let known = newest.get(&key).map(|(known, _)| known.version());
                if known.is_none_or(|known| held.version() > known) {
                    newest.insert(key, (Arc::clone(&held), now + held.lock.ttl.duration()));
                }
            }
            prop_assert_eq!(deadlines.len(), newest.len());
            let soonest = newest.values().map(|(_, at)| *at).min();
            prop_assert!(deadlines.next() <= soonest && deadlines.next().is_some() == soonest.is_some());
            let mut taken = Vec::new();
            for second in 0..60 {
                let now = start + seconds(second);
                for held in deadlines.take_due(now, 1_000) {
                    let key: u8 = held.lock.key.as_str().parse().unwrap();
                    let (expected, at) = newest.remove(&key).expect("once");
                    prop_assert_eq!(&held, &expected);
                    prop_assert!(at <= now && now < at + seconds(1));
                    taken.push(held);
                }
            }
            prop_assert!(newest.is_empty());
        }
    }
}
