//! Reduces a schedule to the faults that a violation needs.

use std::time::Duration;

use crate::fault::Fault;
use crate::history::{Bounds, Moment};

/// The first fault of a reduced schedule begins after this time.
const LEAD: Duration = Duration::from_secs(2);

/// The faults that were active within the bounds before the violation. `started` is the moment
/// from which the times of the faults count.
pub(crate) fn near(faults: &[Fault], started: Moment, at: Moment, bounds: Bounds) -> Vec<Fault> {
    let at = Duration::from_micros(at.0.saturating_sub(started.0));
    let from = at.saturating_sub(bounds.recovery() + bounds.change());
    let is_near = |fault: &&Fault| fault.from <= at && fault.to >= from;
    moved(faults.iter().filter(is_near).copied().collect())
}

/// Removes faults as long as `fails` says that the rest still fails, in at most `runs` tries
/// (delta debugging).
///
/// # Errors
/// Those of `fails`.
pub(crate) fn reduce(
    faults: Vec<Fault>,
    runs: usize,
    mut fails: impl FnMut(&[Fault]) -> anyhow::Result<bool>,
) -> anyhow::Result<Vec<Fault>> {
    let mut faults = faults;
    let mut size = faults.len().div_ceil(2);
    let mut left = runs;
    while size > 0 && faults.len() > 1 {
        let mut place = 0;
        let mut was_reduced = false;
        while place < faults.len() && left > 0 {
            let mut rest = faults.clone();
            rest.drain(place..(place + size).min(faults.len()));
            let rest = moved(rest);
            left -= 1;
            if !rest.is_empty() && fails(&rest)? {
                faults = rest;
                was_reduced = true;
            } else {
                place += size;
            }
        }
        if left == 0 {
            break;
        }
        if !was_reduced || size >= faults.len() {
            size /= 2;
        }
    }
    Ok(faults)
}

/// The same faults, of which the first begins soon.
fn moved(faults: Vec<Fault>) -> Vec<Fault> {
    let first = faults.iter().map(|fault| fault.from).min().unwrap_or_default();
    let moved = |at: Duration| at - first + LEAD;
    let fault = |fault: Fault| Fault { from: moved(fault.from), to: moved(fault.to), ..fault };
    faults.into_iter().map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;
    use crate::part::Part;

    fn faults(count: u32) -> Vec<Fault> {
        let second = Duration::from_secs(1);
        let fault = |number| Fault {
            number,
            from: second * (number * 10),
            to: second * (number * 10 + 5),
            kind: Kind::Kill(Part::Syncer(1)),
        };
        (1..=count).map(fault).collect()
    }

    fn numbers(faults: &[Fault]) -> Vec<u32> {
        faults.iter().map(|fault| fault.number).collect()
    }

    #[test]
    fn the_faults_that_are_needed_remain() {
        let mut runs = 0;
        let reduced = reduce(faults(16), 100, |rest| {
            runs += 1;
            Ok([3, 11].iter().all(|needed| numbers(rest).contains(needed)))
        });
        let reduced = reduced.unwrap();
        assert_eq!(numbers(&reduced), [3, 11]);
        assert!(runs < 40, "{runs}");
        assert_eq!(reduced[0].from, LEAD);
        assert_eq!(reduced[1].from, LEAD + Duration::from_secs(80));
    }

    #[test]
    fn the_number_of_runs_is_limited() {
        let mut runs = 0;
        let reduced = reduce(faults(16), 3, |rest| {
            runs += 1;
            Ok(numbers(rest).contains(&3))
        });
        assert!(numbers(&reduced.unwrap()).contains(&3));
        assert_eq!(runs, 3);
    }

    #[test]
    fn near_faults_are_those_within_the_bounds() {
        let bounds = Bounds { recovery: 15_000_000, change: 5_000_000, heal: 0, late: 0 };
        // The trouble began at 100 s; the violation happened at 61 s of the schedule.
        let near = near(&faults(16), Moment(100_000_000), Moment(161_000_000), bounds);
        assert_eq!(numbers(&near), [4, 5, 6]);
    }
}
