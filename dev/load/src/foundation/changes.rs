//! One change after another, each until its packets pass on all real cells and all cells have
//! reported it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use proto::policy_v1::foundation_client::FoundationClient;
use proto::policy_v1::{Change, ChangesRequest};
use tokio::time::{Instant, sleep, sleep_until};

use super::probes::Probes;
use super::progress;
use super::report::{Changed, Figures};
use super::simulated::Simulated;
use super::system::{Made, System};
use crate::connect::Target;
use crate::locket::failure;

/// Packets are sent for this time before each change, to see that none passes yet.
const BEFORE: Duration = Duration::from_millis(40);
/// Timeout of the last change on all cells.
const LAST: Duration = Duration::from_secs(60);
/// Changes of a store that can be asked for.
const REMEMBERED: u32 = 1_000;
/// Number of changes after which progress is reported.
const NOTED: u32 = 50;

/// Everything that changes need.
pub(super) struct Changes<'a> {
    pub(super) system: &'a mut System,
    pub(super) simulated: &'a mut Simulated,
    pub(super) probes: &'a Probes,
}

/// Figures of changes, and the delays of their packets.
pub(super) struct Measured {
    pub(super) changed: Changed,
    pub(super) packets: Vec<Duration>,
    pub(super) reported: Vec<Duration>,
}

impl Changes<'_> {
    /// Makes the changes with these numbers.
    pub(super) async fn make(
        &mut self,
        numbers: std::ops::RangeInclusive<u32>,
        interval: Duration,
    ) -> anyhow::Result<Measured> {
        let count = numbers.clone().count();
        let last = *numbers.end();
        let before = self.system.snapshot()?;
        let _earlier = self.simulated.take_reconnected();
        let (mut made, begin) = (Vec::with_capacity(count), Instant::now());
        for (index, number) in numbers.enumerate() {
            sleep_until(begin + interval * u32::try_from(index)?).await;
            self.probes.aim(number);
            sleep(BEFORE).await;
            let change = self.system.change(number).await;
            made.push(change.with_context(|| format!("change {number}"))?);
            if number.is_multiple_of(NOTED) {
                progress(&format!("{number} changes"));
            }
        }
        let elapsed = begin.elapsed();
        let missing = self.probes.everywhere(last, LAST).await;
        if missing > 0 {
            progress(&format!("the packets of the last change do not pass on {missing} cells"));
        }
        sleep(interval).await;
        let costs = self.system.snapshot()?.since(&before);
        let generations = generations(self.system.operators()).await?;
        let all = made.iter().map(|made| (made, reported(made, &generations)));
        let reports: Vec<(&Made, &Merged)> =
            all.filter_map(|(made, merged)| Some((made, merged?))).collect();
        let everywhere: Vec<Duration> =
            reports.iter().filter_map(|(made, merged)| merged.everywhere_after(made)).collect();
        let packets = self.packets(&made);
        let received = self.received(&reports);
        let changed = Changed {
            count,
            interval_ms: super::report::millis(interval),
            elapsed_s: elapsed.as_secs_f64(),
            response_ms: Figures::of(made.iter().map(|made| made.confirmed - made.sent)),
            packet_ms: Figures::of(packets.passed.iter().copied()),
            packet_everywhere_ms: Figures::of(packets.everywhere),
            early_packets: packets.early,
            missing_packets: packets.missing,
            received_ms: Figures::of(received),
            committed_ms: Figures::of(reports.iter().map(|(made, merged)| merged.after(made))),
            reported_median_ms: Figures::of(reports.iter().map(|(_, merged)| merged.median)),
            reported_ms: Figures::of(everywhere.iter().copied()),
            unreported: count - everywhere.len(),
            generations: generations.len(),
            lost_watches: self.simulated.take_reconnected(),
            costs,
        };
        Ok(Measured { changed, packets: packets.passed, reported: everywhere })
    }

    /// Delays of the packets of all changes and cells.
    fn packets(&self, made: &[Made]) -> Packets {
        let mut packets = Packets::default();
        for change in made {
            let arrivals = self.probes.arrivals(change.number);
            packets.early += arrivals.iter().flatten().filter(|at| **at < change.sent).count();
            packets.missing += arrivals.iter().filter(|at| at.is_none()).count();
            let delays = arrivals.iter().flatten();
            let delays = delays.map(|at| at.saturating_duration_since(change.confirmed));
            if arrivals.iter().all(Option::is_some) {
                packets.everywhere.extend(delays.clone().max());
            }
            packets.passed.extend(delays);
        }
        packets
    }

    /// Delays until simulated cells received a change.
    fn received(&self, reports: &[(&Made, &Merged)]) -> Vec<Duration> {
        let arrivals = reports.iter().flat_map(|(made, merged)| {
            let arrivals = self.simulated.arrivals(merged.generation);
            arrivals.into_iter().map(|at| at.saturating_duration_since(made.confirmed))
        });
        arrivals.collect()
    }
}

#[derive(Default)]
struct Packets {
    passed: Vec<Duration>,
    everywhere: Vec<Duration>,
    early: usize,
    missing: usize,
}

/// A generation, from all stores.
struct Merged {
    generation: u64,
    /// When the syncer had read the groups.
    read: Option<Timestamp>,
    committed: Timestamp,
    cells: u32,
    cells_enforced: u32,
    /// The longest of the stores.
    median: Duration,
    slowest: Duration,
}

impl Merged {
    /// From the response to a change until the commit.
    fn after(&self, made: &Made) -> Duration {
        self.committed.duration_since(made.at).try_into().unwrap_or_default()
    }

    /// From the response to a change until the last report, if all cells reported.
    fn everywhere_after(&self, made: &Made) -> Option<Duration> {
        (self.cells == self.cells_enforced).then_some(self.after(made) + self.slowest)
    }
}

/// The first generation with the change: that of the response, or else the first one whose
/// groups were read after the response.
fn reported<'a>(made: &Made, generations: &'a BTreeMap<u64, Merged>) -> Option<&'a Merged> {
    match made.generation {
        Some(generation) => generations.get(&generation),
        None => generations.values().find(|merged| merged.read >= Some(made.at)),
    }
}

/// The generations that the stores remember.
async fn generations(stores: &[Target]) -> anyhow::Result<BTreeMap<u64, Merged>> {
    let mut all: BTreeMap<u64, Merged> = BTreeMap::new();
    for store in stores {
        let channel = store.channels(1)?.remove(0);
        let request = ChangesRequest { last: REMEMBERED, ..ChangesRequest::default() };
        let answers = FoundationClient::new(channel).changes(request).await;
        let mut answers = answers.map_err(|status| failure(&status))?.into_inner();
        while let Some(answer) = answers.message().await.map_err(|status| failure(&status))? {
            let change = answer.change.context("an answer without a change")?;
            let merged = merged(&change).context("a change without its times")?;
            match all.entry(merged.generation) {
                std::collections::btree_map::Entry::Vacant(vacant) => _ = vacant.insert(merged),
                std::collections::btree_map::Entry::Occupied(mut found) => {
                    found.get_mut().merge(&merged);
                }
            }
        }
    }
    Ok(all)
}

impl Merged {
    fn merge(&mut self, other: &Self) {
        self.read = self.read.or(other.read);
        self.committed = self.committed.min(other.committed);
        self.cells += other.cells;
        self.cells_enforced += other.cells_enforced;
        self.median = self.median.max(other.median);
        self.slowest = self.slowest.max(other.slowest);
    }
}

fn merged(change: &Change) -> Option<Merged> {
    let time = |time: prost_types::Timestamp| Timestamp::new(time.seconds, time.nanos).ok();
    let length = |length: Option<prost_types::Duration>| {
        length.and_then(|length| length.try_into().ok()).unwrap_or_default()
    };
    Some(Merged {
        generation: change.generation,
        read: change.read_at.and_then(time),
        committed: time(change.committed_at?)?,
        cells: change.cells,
        cells_enforced: change.cells_enforced,
        median: length(change.median),
        slowest: length(change.slowest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::new(seconds, 0).unwrap()
    }

    fn generation(generation: u64, read: Option<i64>, committed: i64, enforced: u32) -> Merged {
        Merged {
            generation,
            read: read.map(at),
            committed: at(committed),
            cells: 2,
            cells_enforced: enforced,
            median: Duration::from_secs(1),
            slowest: Duration::from_secs(3),
        }
    }

    #[test]
    fn a_change_is_in_the_first_generation_that_was_read_after_it() {
        let now = Instant::now();
        let made = Made { number: 1, sent: now, confirmed: now, at: at(10), generation: None };
        let all = [(5, Some(9)), (6, None), (7, Some(12)), (8, Some(14))];
        let all = all.map(|(number, read)| (number, generation(number, read, 13, 2)));
        let all = BTreeMap::from(all);
        let found = reported(&made, &all).unwrap();
        assert_eq!(found.generation, 7);
        assert_eq!(found.everywhere_after(&made), Some(Duration::from_secs(6)));
        let named = Made { generation: Some(5), ..made };
        assert_eq!(reported(&named, &all).unwrap().generation, 5);
        assert!(reported(&Made { generation: Some(9), ..made }, &all).is_none());
    }

    #[test]
    fn stores_are_merged_and_every_cell_must_report() {
        let mut one = generation(5, None, 12, 2);
        one.merge(&generation(5, Some(9), 11, 1));
        assert_eq!((one.cells, one.cells_enforced), (4, 3));
        assert_eq!((one.read, one.committed), (Some(at(9)), at(11)));
        let now = Instant::now();
        let made = Made { number: 1, sent: now, confirmed: now, at: at(10), generation: None };
        assert_eq!(one.everywhere_after(&made), None);
    }
}
