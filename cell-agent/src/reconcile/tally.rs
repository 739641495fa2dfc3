//! Counts packets: allowed, rejected, and those that no rule of a group decided, with the
//! containers concerned.
//!
//! Pure except for [`super::Reconciler::observe`]. The kernel's counters restart with
//! the table, so only increments count.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use model::ids::ContainerHandle;
use tokio::time::Instant;

use super::{Packets, Reconciler};
use crate::{
    metrics,
    plane::{CONNECTIONS, DENIED, RECORDABLE, UNATTRIBUTED, full},
};

/// Minimum interval of each log line; a limit counts as full for as long.
const QUIET: Duration = Duration::from_secs(60);

/// Increments of the kernel's counters.
#[derive(Debug, Default)]
pub(super) struct Tally {
    before: BTreeMap<String, u64>,
    /// Rejected packets whose connection is not counted yet.
    ahead: u64,
    /// Packets not logged yet.
    unattributed: u64,
    told_at: Option<Instant>,
    /// Containers whose connections found the set full: when last seen, and when last
    /// logged.
    full: BTreeMap<ContainerHandle, (Instant, Instant)>,
}

impl Tally {
    /// Counts from these values of the kernel's counters.
    pub(super) fn from(counted: BTreeMap<String, u64>) -> Self {
        Self { before: counted, ..Self::default() }
    }

    /// The increments since the last call, without zeros.
    fn grown(&mut self, counted: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let before = std::mem::replace(&mut self.before, counted);
        let grown = self.before.iter().map(|(name, now)| {
            let before = before.get(name).copied().unwrap_or_default();
            // A counter that decreased was reset.
            (name.clone(), now.checked_sub(before).unwrap_or(*now))
        });
        grown.filter(|(_, by)| *by > 0).collect()
    }

    /// More packets of known containers. The kernel's counters are not read at one moment:
    /// an earlier read may have counted the reject of a packet, and this one its connection.
    fn packets(&mut self, connections: u64, denied: u64, strange: u64) -> Packets {
        let rejected = denied + strange + self.ahead;
        self.ahead = rejected.saturating_sub(connections);
        Packets { allowed: connections.saturating_sub(rejected), denied }
    }

    /// Number of packets to log now, if any.
    fn unattributed(&mut self, packets: u64, now: Instant) -> Option<u64> {
        self.unattributed += packets;
        let due = self.told_at.is_none_or(|at| now - at >= QUIET);
        if self.unattributed == 0 || !due {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.unattributed))
    }

    /// Records a container with a full connection set. Returns whether to log.
    fn is_full(&mut self, handle: &ContainerHandle, now: Instant) -> bool {
        let reported = self.full.get(handle).map(|(_, reported)| *reported);
        let due = reported.is_none_or(|reported| now - reported >= QUIET);
        let reported = reported.filter(|_| !due).unwrap_or(now);
        self.full.insert(handle.clone(), (now, reported));
        due
    }

    /// Containers whose limit was full recently.
    fn all_full(&mut self, now: Instant) -> BTreeSet<ContainerHandle> {
        self.full.retain(|_, (seen, _)| now - *seen < QUIET);
        self.full.keys().cloned().collect()
    }
}

impl Reconciler {
    /// Reads the kernel's counters, and updates log and metrics.
    pub(super) async fn observe(&mut self) {
        let Some(counted) = self.plane.counters().await else { return };
        let counts_packets = counted.contains_key(DENIED);
        let mut grown = self.tally.grown(counted);
        let now = Instant::now();
        let [strange, denied, connections] =
            [UNATTRIBUTED, DENIED, CONNECTIONS].map(|name| grown.remove(name).unwrap_or_default());
        let more = counts_packets.then(|| self.tally.packets(connections, denied, strange));
        if let Some(Packets { allowed, denied }) = more {
            metrics::ALLOWED.counter().increment(allowed);
            metrics::DENIED.counter().increment(denied);
        }
        metrics::UNATTRIBUTED.counter().increment(strange);
        let recordable = grown.extract_if(.., |name, _| name.starts_with(RECORDABLE));
        let recordable = denied + recordable.map(|(_, packets)| packets).sum::<u64>();
        if let Some(packets) = self.tally.unattributed(strange, now) {
            let sources = self.plane.unattributed_sources().await;
            tracing::error!(packets, sources, "unattributed-packets-rejected");
        }
        let ruleset = self.published.borrow().ruleset.clone();
        if ruleset.settings.connection_limit.is_some() && !grown.is_empty() {
            for handle in ruleset.containers.keys() {
                let Some(packets) = grown.get(&full(handle)) else { continue };
                metrics::LIMIT_FULL.counter().increment(*packets);
                if self.tally.is_full(handle, now) {
                    tracing::error!(container = %handle, packets, "connection-limit-full");
                }
            }
        }
        let full = self.tally.all_full(now);
        metrics::number(metrics::LIMIT_FULL_CONTAINERS, full.len() as u64);
        let enforced = self.published.borrow();
        let packets = more.map(|more| enforced.packets.unwrap_or_default() + more);
        let packets = packets.or(enforced.packets);
        let news =
            strange + recordable > 0 || enforced.limit_full != full || enforced.packets != packets;
        drop(enforced);
        if news {
            self.published.send_modify(|published| {
                let enforced = std::sync::Arc::make_mut(published);
                enforced.unattributed += strange;
                enforced.recordable += recordable;
                enforced.packets = packets;
                enforced.limit_full = full;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(value: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([("a".to_owned(), value)])
    }

    #[test]
    fn only_growth_counts_also_after_a_new_beginning() {
        let mut tally = Tally::default();
        let mut grown = |value| tally.grown(counted(value)).get("a").copied();
        assert_eq!(
            [grown(0), grown(3), grown(3), grown(5), grown(1)],
            [None, Some(3), None, Some(2), Some(1)]
        );
    }

    #[test]
    fn what_is_not_rejected_is_allowed_and_no_packet_counts_twice() {
        let mut tally = Tally::default();
        let mut packets = |connections, denied, strange| {
            let Packets { allowed, denied } = tally.packets(connections, denied, strange);
            (allowed, denied)
        };
        assert_eq!(packets(10, 3, 2), (5, 3));
        assert_eq!(packets(0, 2, 0), (0, 2), "the connections are in the next read");
        assert_eq!(packets(3, 0, 0), (1, 0));
        assert_eq!(packets(0, 0, 0), (0, 0));
    }

    #[test]
    fn a_flood_is_a_line_a_minute() {
        let (mut tally, start) = (Tally::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(tally.unattributed(0, at(0)), None);
        assert_eq!(tally.unattributed(7, at(1)), Some(7));
        assert_eq!(tally.unattributed(5, at(2)), None);
        assert_eq!(tally.unattributed(5, at(61)), Some(10));
        assert_eq!(tally.unattributed(0, at(122)), None);
        let handle = ContainerHandle::parse("c1").unwrap();
        let due = [0, 1, 59, 60, 61].map(|seconds| tally.is_full(&handle, at(seconds)));
        assert_eq!(due, [true, false, false, true, false]);
        assert_eq!(tally.all_full(at(120)).len(), 1);
        assert!(tally.all_full(at(121)).is_empty());
    }
}
