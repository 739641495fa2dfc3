//! The faults of a run, chosen from a seed: alone and two at a time, with calm times between.
//! Pure.

use std::time::Duration;

use fastrand::Rng;

use crate::fault::{CloudError, Fault, Kind};
use crate::part::{Part, Shape};

/// The longest pause of a process. One in [`LONG`] is longer than [`SHORT_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const SHORT_PAUSE: Duration = Duration::from_secs(8);
const LONG: u8 = 6;
/// The longest step of a clock, in seconds.
const LONGEST_STEP: i32 = 3600;
/// How many choices are tried for a fault that fits beside the other one.
const TRIES: usize = 20;
/// Faults and calm times alternate: during a calm time, all parts recover, and changes are in force
/// within the stated bound.
const TROUBLE: Duration = Duration::from_secs(240);
/// Longer than the bounds for recovery and a change.
const CALM: Duration = Duration::from_secs(60);

/// The faults of that time, in the order of their begin. `heal` is how long an agent needs to
/// restore flushed rules.
pub(crate) fn schedule(seed: u64, shape: Shape, time: Duration, heal: Duration) -> Vec<Fault> {
    let mut random = Rng::with_seed(seed);
    let mut faults: Vec<Fault> = Vec::new();
    let mut from = Duration::ZERO;
    while from < time {
        let to = (from + TROUBLE).min(time);
        for lane in 0..2 {
            fill(&mut faults, &mut random, shape, (from, to), lane, heal);
        }
        from = to + CALM;
    }
    faults.sort_by_key(|fault| fault.from);
    for (number, fault) in (1..).zip(&mut faults) {
        fault.number = number;
    }
    faults
}

/// Adds faults one after another, none beside one that shares a part.
fn fill(
    faults: &mut Vec<Fault>,
    random: &mut Rng,
    shape: Shape,
    (from, to): (Duration, Duration),
    lane: u8,
    heal: Duration,
) {
    // The second lane is idle half of the time, so that there are also single faults.
    let longest_rest = Duration::from_secs(if lane == 0 { 3 } else { 8 });
    let mut at = from + rest(random, longest_rest);
    while at < to {
        let mut end = at;
        for _try in 0..TRIES {
            let kind = kind(random, shape);
            let until = at + length(random, kind, heal);
            let overlaps = |other: &&Fault| other.from < until && at < other.to;
            let parts = kind.parts();
            let collides =
                |other: &Fault| other.kind.parts().iter().any(|part| parts.contains(part));
            if until <= to && !faults.iter().filter(overlaps).any(collides) {
                faults.push(Fault { number: 0, from: at, to: until, kind });
                end = until;
                break;
            }
        }
        at = end + rest(random, longest_rest);
    }
}

fn rest(random: &mut Rng, longest: Duration) -> Duration {
    Duration::from_millis(500) + longest.mul_f64(random.f64())
}

fn length(random: &mut Rng, kind: Kind, heal: Duration) -> Duration {
    let second = Duration::from_secs(1);
    let is_long = random.u8(..LONG) == 0;
    let mut between =
        |least: Duration, most: Duration| least + (most - least).mul_f64(random.f64());
    match kind {
        Kind::Flush(_) => heal,
        Kind::Renew(_) => second / 10,
        Kind::Pause(_) if is_long => between(SHORT_PAUSE, LONGEST_PAUSE),
        Kind::Pause(_) => between(second / 2, SHORT_PAUSE),
        Kind::Kill(_) | Kind::TornFile(_) => between(second / 10, second * 5),
        // The killed primary is copied from the new one meanwhile.
        Kind::Failover => between(second * 5, second * 12),
        Kind::Step { .. } | Kind::Earlier(_) => between(second * 5, second * 20),
        Kind::Cut { .. }
        | Kind::Delay { .. }
        | Kind::Tear(_)
        | Kind::Expire(_)
        | Kind::Fill(_)
        | Kind::Slow(_)
        | Kind::Err(_) => between(second, second * 9),
    }
}

/// A kind of fault and its weight.
type Choice = (u8, fn(&mut Rng, Shape) -> Option<Kind>);

const CHOICES: [Choice; 14] = [
    (8, |random, shape| Some(Kind::Kill(any(random, &shape.parts())?))),
    (4, |random, shape| Some(Kind::Pause(any(random, &shape.parts())?))),
    (6, cut),
    (3, delay),
    (2, |random, shape| Some(Kind::Flush(random.u8(1..=shape.cells)))),
    (2, |random, shape| Some(Kind::Renew(any(random, &shape.services())?))),
    (2, |random, shape| Some(Kind::Tear(any(random, &shape.services())?))),
    (2, |random, shape| Some(Kind::Expire(any(random, &shape.services())?))),
    (3, step),
    (2, |random, _| Some(Kind::Err(any(random, &CloudError::ALL)?))),
    (3, file),
    (2, |random, shape| {
        let kind: fn(Part) -> Kind = if random.bool() { Kind::Kill } else { Kind::Pause };
        shape.has_database.then(|| kind(Part::Database))
    }),
    (1, |_, shape| shape.has_replica.then_some(Kind::Failover)),
    (2, |random, shape| {
        let part = any(random, &shape.services())?;
        shape.has_earlier.then_some(Kind::Earlier(part))
    }),
];

fn kind(random: &mut Rng, shape: Shape) -> Kind {
    let total: u8 = CHOICES.iter().map(|(weight, _)| weight).sum();
    loop {
        let mut place = random.u8(..total);
        for (weight, choose) in CHOICES {
            if place < weight {
                match choose(random, shape) {
                    Some(kind) => return kind,
                    None => break,
                }
            }
            place -= weight;
        }
    }
}

fn any<T: Copy>(random: &mut Rng, all: &[T]) -> Option<T> {
    (!all.is_empty()).then(|| all[random.usize(..all.len())])
}

fn cut(random: &mut Rng, shape: Shape) -> Option<Kind> {
    let (client, server) = any(random, &shape.links())?;
    let (from, to) = if random.bool() { (client, server) } else { (server, client) };
    let percent = if random.u8(..3) == 0 { 40 } else { 100 };
    Some(Kind::Cut { from, to, both: random.bool(), percent })
}

/// The router delays what it forwards, and not what it sends itself: it stands for the database.
fn delay(random: &mut Rng, shape: Shape) -> Option<Kind> {
    let (from, to) = any(random, &shape.links())?;
    let milliseconds = random.u16(20..1_500);
    (to != Part::Database).then_some(Kind::Delay { from, to, milliseconds })
}

fn step(random: &mut Rng, shape: Shape) -> Option<Kind> {
    let part = any(random, &shape.services())?;
    let seconds = random.i32(1..=LONGEST_STEP) * if random.bool() { 1 } else { -1 };
    Some(Kind::Step { part, seconds })
}

fn file(random: &mut Rng, shape: Shape) -> Option<Kind> {
    let kinds = [Kind::Fill, Kind::Slow, Kind::TornFile];
    Some(any(random, &kinds)?(any(random, &shape.with_files())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Shape = Shape {
        lock_servers: 3,
        policy_stores: 3,
        syncers: 3,
        cells: 5,
        has_database: true,
        has_replica: true,
        has_earlier: true,
    };
    const EMBEDDED: Shape = Shape {
        lock_servers: 1,
        policy_stores: 1,
        has_database: false,
        has_replica: false,
        ..SHARED
    };
    const HEAL: Duration = Duration::from_secs(10);
    const TIME: Duration = Duration::from_secs(3600);

    #[test]
    fn a_seed_names_one_schedule() {
        assert_eq!(schedule(1, SHARED, TIME, HEAL), schedule(1, SHARED, TIME, HEAL));
        assert_ne!(schedule(1, SHARED, TIME, HEAL), schedule(2, SHARED, TIME, HEAL));
    }

    #[test]
    fn two_faults_at_a_time_concern_different_parts_and_end_in_time() {
        for seed in 0..20 {
            let faults = schedule(seed, SHARED, TIME, HEAL);
            let mut pairs = 0;
            for (place, one) in faults.iter().enumerate() {
                assert!(one.from < one.to && one.to <= TIME, "{one:?}");
                let beside = faults[place + 1..].iter().filter(|other| other.from < one.to);
                for other in beside {
                    pairs += 1;
                    let shared =
                        one.kind.parts().iter().any(|part| other.kind.parts().contains(part));
                    assert!(!shared, "{one:?} and {other:?}");
                }
            }
            assert!(pairs > 20, "seed {seed} has {pairs} pairs");
        }
    }

    #[test]
    fn an_hour_has_every_kind_of_fault_on_every_part() {
        let faults = schedule(3, SHARED, TIME, HEAL);
        for part in SHARED.parts().into_iter().chain([Part::Database]) {
            assert!(faults.iter().any(|fault| fault.kind.parts().contains(&part)), "{part}");
        }
        let files = schedule(3, EMBEDDED, TIME, HEAL);
        let all: Vec<String> =
            faults.iter().chain(&files).map(|fault| fault.kind.to_string()).collect();
        let names = [
            "kill",
            "SIGSTOP",
            "drop 100%",
            "drop 40%",
            "delay",
            "flush",
            "new",
            "half",
            "expired",
            "clock",
            "failover",
            "earlier",
            "errors",
            "full",
            "slow",
            "torn",
        ];
        for name in names {
            assert!(all.iter().any(|fault| fault.starts_with(name)), "{name}");
        }
    }

    #[test]
    fn calm_times_last_until_all_changes_are_in_force() {
        for shape in [SHARED, EMBEDDED] {
            let faults = schedule(4, shape, TIME, HEAL);
            let calm = |at: Duration| {
                let (from, to) = (at, at + CALM);
                !faults.iter().any(|fault| fault.from < to && from < fault.to)
            };
            for round in 1..12 {
                assert!(calm((TROUBLE + CALM) * round - CALM), "round {round}");
            }
        }
    }

    #[test]
    fn a_schedule_can_be_stored() {
        let faults = schedule(5, SHARED, TIME, HEAL);
        let text = serde_json::to_string(&faults).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Fault>>(&text).unwrap(), faults);
    }
}
