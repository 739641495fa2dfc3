//! Law 9: whatever the stamps are, the store equals the Cloud Controller within the
//! bounds that `poll::schedule` states.

use std::time::{Duration, Instant};

use model::generation::Watermark;
use proptest::prelude::*;
use syncer::{
    poll::schedule::{Confirmed, Intervals, Reason, SLACK, Schedule, TICK},
    stamp::Stamp,
};

const POLL: u64 = 1_000;
const FULL: u64 = 300_000;
const UNSTAMPED: u64 = 60_000;
const INTERVALS: Intervals = Intervals {
    poll: Duration::from_millis(POLL),
    poll_share: 0,
    full: Duration::from_millis(FULL),
    unstamped: Duration::from_millis(UNSTAMPED),
    repair: Duration::from_secs(15),
};

fn start() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn confirmed(stamp: Stamp, began: Instant, took: Duration) -> Confirmed {
    Confirmed { stamp, began, took, malformed: 0 }
}

fn at(second: i64, nanosecond: i64) -> Stamp {
    Stamp::At(Watermark::try_new(second, nanosecond).unwrap())
}

/// Effect of a change on the stamp.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Touch {
    /// The second of the change, as in Cloud Controllers before 2023.
    Second,
    /// The microsecond of the change.
    Micro,
    /// Unchanged: v2 API, deleted space, seeding.
    Not,
    /// This number of seconds before the last one.
    Back(u8),
    /// The stamp is absent (404), until the next change.
    Gone,
}

/// A simulated Cloud Controller: the time of its n-th change, and the stamp after it.
struct Cloud {
    /// Its clock minus the local clock, in ms.
    skew: i64,
    changes: Vec<(u64, Stamp)>,
}

impl Cloud {
    fn change(&mut self, now: u64, touch: Touch) {
        let clock = i64::try_from(now).unwrap() + self.skew + 1_700_000_000_000;
        let last = self.stamp(now);
        let stamp = match touch {
            Touch::Second => at(clock.div_euclid(1_000), 0),
            Touch::Micro => {
                at(clock.div_euclid(1_000), clock.rem_euclid(1_000) * 1_000_000 + 1_000)
            }
            Touch::Not => last,
            Touch::Gone => Stamp::Unknown,
            Touch::Back(seconds) => {
                let last = last.watermark();
                at(last.seconds() - i64::from(seconds), i64::from(last.nanoseconds()))
            }
        };
        self.changes.push((now, stamp));
    }

    fn until(&self, now: u64) -> &[(u64, Stamp)] {
        &self.changes[..self.changes.partition_point(|(moment, _)| *moment <= now)]
    }

    fn stamp(&self, now: u64) -> Stamp {
        self.until(now).last().map_or(at(0, 0), |(_, stamp)| *stamp)
    }

    /// The content is the number of changes.
    fn content(&self, now: u64) -> usize {
        self.until(now).len()
    }
}

/// Polls from 0 to `end`; each read takes `reading` ms and sees the list as of half of
/// that time. Returns the contents of the store, with their times.
fn run(cloud: &Cloud, end: u64, reading: u64, spin: f64) -> Vec<(u64, usize)> {
    let t = start();
    let mut schedule = Schedule::new(INTERVALS);
    let mut stored = Vec::new();
    let mut now = 0;
    while now < end {
        let began = now;
        let stamp = cloud.stamp(began);
        if schedule.decide(stamp, t + ms(began)).is_some() {
            now += reading;
            if cloud.stamp(now) == stamp {
                stored.push((now, cloud.content(began + reading / 2)));
                schedule.synced(confirmed(stamp, t + ms(began), ms(reading)), spin);
            } else {
                // Unstable: a pause of a second, then another poll.
                now += 1_000;
                continue;
            }
        }
        let next = schedule.next(t + ms(now)).saturating_duration_since(t);
        now = u64::try_from(next.as_millis()).unwrap();
    }
    stored
}

/// When the store reached the final content.
fn settled(stored: &[(u64, usize)], content: usize) -> Option<u64> {
    let first = stored.iter().rposition(|(_, held)| *held != content).map_or(0, |last| last + 1);
    stored.get(first).map(|(moment, _)| *moment)
}

fn changes(touches: impl Strategy<Value = Touch>) -> impl Strategy<Value = Vec<(u64, Touch)>> {
    // Many changes in few seconds, so that several share a tick.
    prop::collection::vec((0_u64..20_000, touches), 1..30).prop_map(|mut changes| {
        changes.sort_by_key(|(moment, _)| *moment);
        changes
    })
}

fn settles_after(changes: &[(u64, Touch)], skew: i64, reading: u64, spin: f64) -> u64 {
    let mut cloud = Cloud { skew, changes: Vec::new() };
    for (moment, touch) in changes {
        cloud.change(*moment, *touch);
    }
    let (last, content) = (changes.last().unwrap().0, changes.len());
    let stored = run(&cloud, last + 2 * FULL, reading, spin);
    settled(&stored, content).expect("the last change never arrived").saturating_sub(last)
}

proptest! {
    /// Whole-second stamps from a wrong clock: within a tick, its slack, a poll, and the
    /// duration of reads and of one unstable attempt.
    #[test]
    fn changes_that_share_a_second_arrive(
        changes in changes(Just(Touch::Second)),
        skew in -10_000_000_i64..10_000_000, reading in 0_u64..400, spin in 0.0..1.0,
    ) {
        let bound = u64::try_from((TICK + SLACK).as_millis()).unwrap() + 2 * POLL + 3 * reading;
        let took = settles_after(&changes, skew, reading, spin);
        prop_assert!(took <= bound, "{took} ms > {bound} ms");
    }

    #[test]
    fn changes_with_fine_stamps_arrive_at_the_next_poll(
        changes in changes(Just(Touch::Micro)), reading in 0_u64..400, spin in 0.0..1.0,
    ) {
        let bound = 2 * POLL + 3 * reading;
        let took = settles_after(&changes, 0, reading, spin);
        prop_assert!(took <= bound, "{took} ms > {bound} ms");
    }

    /// Any stamps: within the full interval.
    #[test]
    fn everything_arrives(
        changes in changes(prop_oneof![
            Just(Touch::Second), Just(Touch::Micro), Just(Touch::Not), Just(Touch::Gone),
            (0_u8..5).prop_map(Touch::Back),
        ]),
        skew in -10_000_000_i64..10_000_000, reading in 0_u64..400, spin in 0.0..1.0,
    ) {
        let bound = FULL + 2 * POLL + 3 * reading;
        let took = settles_after(&changes, skew, reading, spin);
        prop_assert!(took <= bound, "{took} ms > {bound} ms");
    }
}

#[test]
fn a_stamp_that_stands_still_is_skipped() {
    let t = start();
    let mut schedule = Schedule::new(INTERVALS);
    let fine = at(10, 1_000);
    assert_eq!(schedule.decide(fine, t), Some(Reason::First));
    assert_eq!(schedule.watermark(), None, "nothing is remembered before it is confirmed");
    assert_eq!(schedule.decide(fine, t), Some(Reason::First), "it failed: again");
    schedule.synced(confirmed(fine, t, ms(0)), 1.0);
    assert_eq!(schedule.decide(fine, t + ms(299_999)), None);
    assert_eq!(schedule.decide(fine, t + ms(300_000)), Some(Reason::Periodic));
}

#[test]
fn any_other_stamp_is_a_change() {
    let t = start();
    let mut schedule = Schedule::new(INTERVALS);
    schedule.synced(confirmed(at(10, 1_000), t, ms(0)), 1.0);
    assert_eq!(schedule.decide(at(11, 0), t), Some(Reason::Changed));
    assert_eq!(schedule.decide(at(9, 0), t), Some(Reason::Changed), "backwards");
    assert_eq!(schedule.decide(Stamp::Unknown, t), Some(Reason::Changed));
}

#[test]
fn a_whole_second_is_read_again_when_it_has_passed() {
    let t = start();
    let mut schedule = Schedule::new(INTERVALS);
    let coarse = at(10, 0);
    schedule.decide(coarse, t);
    schedule.synced(confirmed(coarse, t + ms(20), ms(0)), 1.0);
    assert_eq!(schedule.decide(coarse, t + ms(1_499)), None);
    assert_eq!(schedule.next(t + ms(1_000)), t + ms(1_500), "not a whole poll later");
    assert_eq!(schedule.decide(coarse, t + ms(1_500)), Some(Reason::TickPassed));
    schedule.synced(confirmed(coarse, t + ms(1_500), ms(0)), 1.0);
    assert_eq!(schedule.decide(coarse, t + ms(9_000)), None, "once");
}

#[test]
fn without_a_stamp_it_is_read_now_and_then() {
    let t = start();
    let mut schedule = Schedule::new(INTERVALS);
    schedule.decide(Stamp::Unknown, t);
    schedule.synced(confirmed(Stamp::Unknown, t, ms(0)), 1.0);
    assert_eq!(schedule.decide(Stamp::Unknown, t + ms(59_999)), None);
    assert_eq!(schedule.decide(Stamp::Unknown, t + ms(60_000)), Some(Reason::Unstamped));
}

#[test]
fn a_request_is_kept_until_it_is_done() {
    let t = start();
    let mut schedule = Schedule::new(INTERVALS);
    let fine = at(10, 1_000);
    schedule.synced(confirmed(fine, t, ms(0)), 1.0);
    schedule.request();
    assert_eq!(schedule.decide(fine, t), Some(Reason::Requested));
    assert_eq!(schedule.decide(fine, t), Some(Reason::Requested), "it failed: again");
    schedule.synced(confirmed(fine, t, ms(0)), 1.0);
    assert_eq!(schedule.decide(fine, t), None);
}
