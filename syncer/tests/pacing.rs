//! Cost of reading the list for the Cloud Controller, and the reads without a change.

use std::time::{Duration, Instant};

use model::generation::Watermark;
use proptest::prelude::*;
use serde_json::{Value, json};
use syncer::{
    poll::{
        Settings,
        schedule::{Confirmed, DOUBT, Intervals, Schedule},
    },
    stamp::Stamp,
};
use tokio::time::sleep;

use crate::support::{
    cloud::{Cloud, EARLY, LATE, STAMP, counted, group, groups, page, stamp},
    leader::{Leader, SETTINGS},
    store::PolicyStoreTwin,
    until, until_within,
};

const POLL: Duration = Duration::from_secs(1);
const INTERVALS: Intervals = Intervals {
    poll: POLL,
    poll_share: 0,
    full: Duration::from_secs(300),
    unstamped: Duration::from_secs(60),
    repair: Duration::from_secs(15),
};

fn at(second: i64) -> Stamp {
    Stamp::At(Watermark::try_new(second, 1_000).unwrap())
}

/// When and why the list is read, if a read takes `took` and only `stamps` (by the second)
/// and `malformed` (by the read) change.
fn readings(
    length: Duration,
    took: Duration,
    spin: f64,
    stamps: impl Fn(u64) -> Stamp,
    malformed: impl Fn(usize) -> usize,
) -> Vec<(u64, &'static str)> {
    let start = tokio::time::Instant::now().into_std();
    let mut schedule = Schedule::new(INTERVALS);
    let (mut now, mut readings) = (start, Vec::new());
    while now < start + length {
        let second = now.duration_since(start).as_secs();
        let stamp = stamps(second);
        if let Some(reason) = schedule.decide(stamp, now) {
            readings.push((second, reason.as_str()));
            let malformed = malformed(readings.len());
            schedule.synced(Confirmed { stamp, began: now, took, malformed }, spin);
            now += took;
        }
        now = Instant::max(now, schedule.next(now));
    }
    readings
}

/// 13,500 groups on three pages of a second each.
const LARGE: Duration = Duration::from_secs(3);

#[test]
fn without_changes_reading_takes_one_percent_of_the_time() {
    for (took, spin) in [(LARGE, 0.0), (LARGE, 1.0), (Duration::from_secs(30), 0.5)] {
        let day = Duration::from_secs(24 * 3600);
        // From the second read on: the first one is that of the start.
        let count = readings(day, took, spin, |_| at(10), |_| 0).len() - 1;
        let share = took.as_secs_f64() * count as f64 / day.as_secs_f64();
        assert!(share <= 0.01, "{took:?}: {count} readings take {share}");
        assert!(share >= 0.005, "{took:?}: {count} readings take {share}");
    }
    // A small foundation is read at the configured interval.
    let hour = Duration::from_secs(3600);
    let count = readings(hour, Duration::from_millis(50), 1.0, |_| at(10), |_| 0).len();
    assert_eq!(count, 12);
}

/// The shortest of the last eight polls counts.
#[test]
fn polls_take_one_percent_of_the_time() {
    let poll = Duration::from_millis(250);
    let mut schedule = Schedule::new(Intervals { poll, poll_share: 100, ..INTERVALS });
    let now = tokio::time::Instant::now().into_std();
    let mut interval = |took: u64| {
        schedule.polled(Duration::from_millis(took));
        schedule.next(now) - now
    };
    for took in [50, 2, 10, 10, 10, 10, 10, 10, 10] {
        assert_eq!(interval(took), poll, "{took} ms: too few polls, or one of 2 ms");
    }
    assert_eq!(interval(12), Duration::from_secs(1), "the poll of 2 ms is the ninth last");
    let slowest = (0..8).map(|_| interval(5_000)).last();
    assert_eq!(slowest, Some(Duration::from_secs(60)), "the longest interval");
    let mut fixed = Schedule::new(INTERVALS);
    fixed.polled(Duration::from_secs(5));
    assert_eq!(fixed.next(now) - now, POLL);
}

#[test]
fn without_a_stamp_reading_takes_a_tenth_of_the_time() {
    let hour = Duration::from_secs(3600);
    let count = |took| readings(hour, took, 0.5, |_| Stamp::Unknown, |_| 0).len();
    assert!((57..=60).contains(&count(LARGE)), "{}", count(LARGE));
    let slow = Duration::from_secs(20);
    assert!((15..=18).contains(&count(slow)), "{}", count(slow));
}

#[test]
fn changes_without_end_take_half_of_the_time() {
    let slow = Duration::from_secs(10);
    let changing = |second| at(i64::try_from(second).unwrap());
    let count = readings(Duration::from_secs(1_000), slow, 0.5, changing, |_| 0).len();
    assert!((48..=51).contains(&count), "{count}");
}

#[test]
fn a_stamp_that_looks_wrong_causes_one_more_reading() {
    let gone = |second| if second < 100 { at(10) } else { Stamp::Unknown };
    let back = |second| if second < 100 { at(10) } else { at(9) };
    let forth = |second| if second < 100 { at(10) } else { at(11) };
    let until_200 = |stamps: &dyn Fn(u64) -> Stamp| {
        let all = readings(Duration::from_secs(150), Duration::ZERO, 0.5, stamps, |_| 0);
        all[1..].to_vec()
    };
    let again = (100 + DOUBT.as_secs(), "doubtful-stamp");
    assert_eq!(until_200(&gone), [(100, "changed"), again]);
    assert_eq!(until_200(&back), [(100, "changed"), again]);
    assert_eq!(until_200(&forth), [(100, "changed")]);
}

#[test]
fn malformed_groups_are_read_again_with_growing_pauses() {
    let hour = Duration::from_secs(3600);
    let always = readings(hour, Duration::ZERO, 1.0, |_| at(10), |_| 1);
    let moments: Vec<_> = always.iter().map(|(second, _)| *second).collect();
    assert_eq!(moments[..7], [0, 15, 45, 105, 225, 465, 765], "and then as any list");
    assert_eq!((always[1].1, always[6].1), ("malformed-groups", "periodic"));
    let once =
        readings(Duration::from_secs(200), LARGE, 1.0, |_| at(10), |nth| usize::from(nth == 1));
    assert_eq!(once, [(0, "first"), (18, "malformed-groups")]);
    // A permanently malformed group does not hide the next one.
    let two = readings(
        Duration::from_secs(500),
        Duration::ZERO,
        1.0,
        |_| at(10),
        |nth| {
            if nth < 5 { 1 } else { 2 }
        },
    );
    assert_eq!(two[4..7].iter().map(|(at, _)| *at).collect::<Vec<_>>(), [225, 240, 270]);
}

proptest! {
    /// The bound of docs/architecture.md for a change that the stamp does not show.
    #[test]
    fn a_silent_change_waits_no_longer_than_the_formula(
        took in 0_u64..60_000, spin in 0.0..1.0,
    ) {
        let took = Duration::from_millis(took);
        let all = readings(Duration::from_secs(40_000), took, spin, |_| at(10), |_| 0);
        let bound = INTERVALS.full.max(took * 110) + POLL.max(took) + Duration::from_secs(2);
        for pair in all.windows(2) {
            let gap = Duration::from_secs(pair[1].0 - pair[0].0);
            prop_assert!(gap <= bound, "{gap:?} > {bound:?}");
            prop_assert!(gap + Duration::from_secs(1) >= took * 100, "{gap:?}");
        }
    }
}

fn settings(full: Duration, repair: Duration) -> Settings {
    Settings { intervals: Intervals { full, repair, ..SETTINGS.intervals }, ..SETTINGS }
}

/// 13,500 groups over HTTP, a second per page, and a leader that is configured to read
/// the list each 100 ms.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_list_is_not_read_again_for_minutes() {
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    let list: Vec<Value> =
        (0..13_500).map(|number| group(&format!("g{number:05}"), "10.0.0.1")).collect();
    cloud.on(STAMP, [stamp(EARLY)]);
    for (number, part) in (1..).zip(list.chunks(5_000)) {
        let reply = counted(part, number < 3, list.len(), 3);
        cloud.on(&page(number), [reply.after(Duration::from_secs(1))]);
    }
    let settings = settings(Duration::from_millis(100), Duration::from_secs(15));
    let cloud_client = cloud.client_with_timeout(Duration::from_secs(60));
    let _leader = Leader::with(settings, cloud_client, store.client("me"), 1);
    // A debug build on a busy machine needs time for 13,500 groups.
    let patience = Duration::from_secs(60);
    until_within(patience, "the first write", || store.writes().len() == 1).await;
    let polls = cloud.count(STAMP);
    sleep(Duration::from_secs(8)).await;
    assert_eq!(cloud.count(&page(1)), 1, "readings");
    assert!(cloud.count(STAMP) > polls + 20, "it looks at the stamp all the time");
    // A change is still read at the next poll.
    cloud.on(STAMP, [stamp(LATE)]);
    until("the change is read", || cloud.count(&page(1)) == 2).await;
}

#[tokio::test]
async fn a_group_that_was_malformed_once_arrives_without_another_change() {
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    let bad = json!({"guid": "b", "rules": [{"ports": 80}]});
    let [a, b] = ["a", "b"].map(|guid| group(guid, "10.0.0.1"));
    cloud.on(STAMP, [stamp(EARLY)]);
    cloud.on(&page(1), [groups(&[bad, a.clone()], false), groups(&[b, a], false)]);
    let settings = settings(Duration::from_secs(300), Duration::from_millis(200));
    let _leader = Leader::with(settings, cloud.client(), store.client("me"), 1);
    until("a and b", || store.with(|state| state.names() == ["a", "b"])).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(cloud.count(&page(1)), 2, "and no more readings");
}
