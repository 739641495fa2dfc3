//! Uses of rules that the policy store does not have yet.
//!
//! The reconcile loop adds what the kernel counted, and the client of the store sends it. Each
//! message says for which time all uses are known. Nothing is saved on disk: an agent that starts
//! says that it knows the uses from its start on. Pure, except for the lock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use model::{ids::GroupGuid, uses::PermitKey};
use proto::policy_v1::watch_request::{RuleUses, rule_uses::Group};
use tokio::sync::watch;

use crate::plane::Uses;

/// The store has written what it received this long ago on a watch that still lives.
const SETTLED: Duration = Duration::from_secs(180);
/// Maximum number of permits of a message.
const PERMITS_MOST: usize = 1_000;
/// Maximum number of permits that wait for the store.
const WAITING_MOST: usize = 200_000;

/// The uses, shared by the reconcile loop and the client of the store.
#[derive(Debug, Clone)]
pub struct RuleUse {
    record: Arc<Mutex<Record>>,
    /// Changes when there is something to send.
    changed: watch::Sender<()>,
}

impl RuleUse {
    /// An empty record.
    #[must_use]
    pub fn new() -> Self {
        Self { record: Arc::default(), changed: watch::Sender::new(()) }
    }

    /// Adds the uses until `now`, in seconds since 1970.
    pub fn add(&self, uses: Uses, now: i64) {
        self.lock().add(uses, now);
        self.changed.send_replace(());
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The messages to send now on a watch.
    pub(crate) fn messages(&self, session: &mut Session, now: Instant) -> Vec<RuleUses> {
        self.lock().messages(session, now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for RuleUse {
    fn default() -> Self {
        Self::new()
    }
}

/// What was sent on one watch.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// When, and until which time the uses were known.
    sent: VecDeque<(Instant, i64)>,
    until: Option<i64>,
}

#[derive(Debug, Default)]
struct Record {
    /// Permits with the time of the read that found them used last.
    waiting: BTreeMap<(GroupGuid, PermitKey), i64>,
    /// Begin of the time whose uses are all in `waiting`.
    from: Option<i64>,
    until: i64,
}

impl Record {
    fn add(&mut self, Uses { used, complete }: Uses, now: i64) {
        // Later than the read before, also when the clock went back: what is found now was not sent.
        let now = now.max(self.until + 1);
        let mut complete = complete;
        for permit in used {
            if self.waiting.len() < WAITING_MOST || self.waiting.contains_key(&permit) {
                self.waiting.insert(permit, now);
            } else {
                complete = false;
            }
        }
        if !complete || self.from.is_none() {
            self.from = Some(now);
        }
        self.until = now;
    }

    fn messages(&mut self, session: &mut Session, now: Instant) -> Vec<RuleUses> {
        while let Some((at, until)) = session.sent.front().copied()
            && now.saturating_duration_since(at) >= SETTLED
        {
            session.sent.pop_front();
            self.from = self.from.map(|from| from.max(until));
            self.waiting.retain(|_, last| *last > until);
        }
        let Some(begin) = self.from else { return Vec::new() };
        if session.until == Some(self.until) {
            return Vec::new();
        }
        let before = session.until;
        let is_new = |last: i64| before.is_none_or(|before| last > before);
        let news: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, last)| is_new(**last))
            .map(|(permit, _)| permit)
            .collect();
        let mut messages: Vec<RuleUses> = news.chunks(PERMITS_MOST).map(message).collect();
        if messages.is_empty() {
            messages.push(RuleUses::default());
        }
        if let Some(last) = messages.last_mut() {
            last.from = Some(before.map_or(begin, |before| before.max(begin)));
            last.until = Some(self.until);
        }
        session.until = Some(self.until);
        session.sent.push_back((now, self.until));
        messages
    }
}

fn message(permits: &[&(GroupGuid, PermitKey)]) -> RuleUses {
    let groups = permits.chunk_by(|(one, _), (next, _)| one == next).map(|of| Group {
        guid: of[0].0.as_str().to_owned(),
        permits: of.iter().map(|(_, permit)| permit.as_bytes().to_vec()).collect(),
    });
    RuleUses { groups: groups.collect(), from: None, until: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::uses::{Observed, Window};
    use proptest::prelude::*;

    use super::*;

    fn permit(number: u8) -> (GroupGuid, PermitKey) {
        let group = GroupGuid::parse(&format!("g{}", number % 3)).unwrap();
        (group, PermitKey::from_bytes(&[number; 16]).unwrap())
    }

    proptest! {
        /// Watches that end at any time, reads that lose uses, a clock that jumps: the store has
        /// each use within the time that it believes to know, if the store writes within
        /// [`SETTLED`].
        #[test]
        fn the_store_never_believes_too_much(
            steps in proptest::collection::vec((0_u8..8, 0_u8..6, -20_i64..100), 1..60),
        ) {
            let (mut record, mut session) = (Record::default(), Session::default());
            let start = tokio::time::Instant::now().into_std();
            let (mut clock, mut passed) = (1_000_i64, 0_u64);
            // What happened at which read, what is under way, and what the store has.
            let mut happened: Vec<(u8, i64)> = Vec::new();
            let mut under_way: Vec<RuleUses> = Vec::new();
            let (mut stored, mut observed) = (BTreeSet::new(), Observed::default());
            for (event, number, time) in steps {
                passed += time.unsigned_abs();
                clock += time;
                let now = start + Duration::from_secs(passed);
                match event {
                    // The watch breaks: messages are lost, unless they are settled.
                    0 => {
                        under_way.clear();
                        session = Session::default();
                    }
                    1 => record.add(Uses { used: BTreeSet::new(), complete: false }, clock),
                    2 => {
                        under_way.extend(record.messages(&mut session, now));
                    }
                    _ => {
                        let used = BTreeSet::from([permit(number)]);
                        record.add(Uses { used, complete: true }, clock);
                        happened.push((number, record.until));
                    }
                }
                if event == 2 || event > 5 {
                    for RuleUses { groups, from, until } in under_way.drain(..) {
                        for group in groups {
                            let guid = GroupGuid::parse(&group.guid).unwrap();
                            let keys = group.permits.iter().map(|key| PermitKey::from_bytes(key).unwrap());
                            stored.extend(keys.map(|key| (guid.clone(), key)));
                        }
                        if let (Some(from), Some(until)) = (from, until) {
                            observed.add(Window { from, until }, i64::MAX);
                        }
                    }
                }
                if observed.missed == 0 && let Some(since) = observed.since {
                    for (number, at) in &happened {
                        if *at > since && *at <= observed.until {
                            prop_assert!(stored.contains(&permit(*number)), "{number} at {at}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn only_what_is_new_is_sent_and_everything_on_a_new_watch() {
        let (mut record, mut session) = (Record::default(), Session::default());
        let start = tokio::time::Instant::now().into_std();
        assert!(record.messages(&mut session, start).is_empty());
        let uses = |number| Uses { used: BTreeSet::from([permit(number)]), complete: true };
        record.add(uses(1), 100);
        let sent = record.messages(&mut session, start);
        assert_eq!((sent[0].from, sent[0].until, sent[0].groups.len()), (Some(100), Some(100), 1));
        assert!(record.messages(&mut session, start).is_empty(), "nothing new");
        record.add(uses(2), 160);
        let sent = record.messages(&mut session, start);
        assert_eq!((sent[0].from, sent[0].until, sent[0].groups.len()), (Some(100), Some(160), 1));
        let again = record.messages(&mut Session::default(), start);
        assert_eq!(
            (again[0].from, again[0].until, again[0].groups.len()),
            (Some(100), Some(160), 2)
        );
        record.add(uses(4), 400);
        let later = start + SETTLED;
        let sent = record.messages(&mut session, later);
        assert_eq!((sent[0].from, sent[0].until, sent[0].groups.len()), (Some(160), Some(400), 1));
        let again = record.messages(&mut Session::default(), later);
        assert_eq!((again[0].from, again[0].until), (Some(160), Some(400)));
        assert_eq!(again[0].groups.len(), 1, "the store has the others");
    }

    #[test]
    fn messages_and_the_record_are_bounded() {
        let used: BTreeSet<_> = (0..=WAITING_MOST as u128)
            .map(|number| {
                let key = PermitKey::from_bytes(&number.to_be_bytes()).unwrap();
                (GroupGuid::parse("g").unwrap(), key)
            })
            .collect();
        let mut record = Record::default();
        record.add(Uses { used: BTreeSet::new(), complete: true }, 50);
        record.add(Uses { used, complete: true }, 100);
        assert_eq!(record.from, Some(100), "one did not fit");
        let now = tokio::time::Instant::now().into_std();
        let messages = record.messages(&mut Session::default(), now);
        assert_eq!(messages.len(), WAITING_MOST / PERMITS_MOST);
        assert!(messages.iter().all(|message| message.groups[0].permits.len() == PERMITS_MOST));
        assert_eq!(messages.iter().filter(|message| message.until.is_some()).count(), 1);
    }
}
