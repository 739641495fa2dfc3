//! The changes of the security groups, and which packets they allow when.
//!
//! Version `v` of a changing group allows the ports number `v` to `v + width - 1`: it opens
//! one port and closes another. So at any time some ports must be open and some closed,
//! however long a change may take.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

/// The port number 0.
const FIRST_PORT: u16 = 20_000;

/// When a version was sent to the Cloud Controller, and when it was confirmed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) sent: Instant,
    pub(crate) confirmed: Option<Instant>,
}

/// All versions of one group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Versions {
    pub(crate) changes: Vec<Change>,
}

/// What must become of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Allowed,
    Denied,
    /// A change is on its way.
    Either,
}

/// The port with that number.
pub fn port(number: usize) -> u16 {
    FIRST_PORT + u16::try_from(number).expect("a run has few versions")
}

/// The rules of a version.
pub fn rules(version: usize, width: usize, destination: &str) -> Value {
    let (from, to) = (port(version), port(version + width - 1));
    json!([{ "protocol": "udp", "destination": destination, "ports": format!("{from}-{to}") }])
}

impl Versions {
    /// The newest version that was sent.
    pub(crate) fn newest(&self) -> Option<usize> {
        self.changes.len().checked_sub(1)
    }

    /// The versions that the Cloud Controller may have had at any time from `from` to `to`.
    fn in_force(&self, from: Instant, to: Instant) -> RangeInclusive<usize> {
        // The last version that was certainly there at `from`.
        let before = |change: &Change| change.confirmed.is_some_and(|at| at <= from);
        let first = self.changes.iter().rposition(before).unwrap_or(0);
        let last = self.changes.iter().rposition(|change| change.sent <= to).unwrap_or(0);
        first..=last.max(first)
    }

    /// What must become of a packet to the port of that number, sent at `from` and answered at
    /// `to`, if a change takes at most `window`.
    pub(crate) fn expected(
        &self,
        number: usize,
        width: usize,
        from: Instant,
        to: Instant,
        window: Duration,
    ) -> Expected {
        let from = from.checked_sub(window).unwrap_or(from);
        let in_force = self.in_force(from, to);
        let allows = |version: usize| (version..version + width).contains(&number);
        let count = in_force.clone().filter(|v| allows(*v)).count();
        match count {
            0 => Expected::Denied,
            count if count == in_force.count() => Expected::Allowed,
            _ => Expected::Either,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions sent at 0, 10, 20 ... s, each confirmed after 1 s.
    fn versions(count: u64, began: Instant) -> Versions {
        let at = |seconds| began + Duration::from_secs(seconds);
        let change = |n| Change { sent: at(n * 10), confirmed: Some(at(n * 10 + 1)) };
        Versions { changes: (0..count).map(change).collect() }
    }

    #[test]
    fn a_packet_is_judged_only_if_every_version_in_the_window_agrees() {
        let began = Instant::now();
        let versions = versions(4, began);
        let expected = |port: usize, at: u64| {
            let at = began + Duration::from_secs(at);
            versions.expected(port, 2, at, at, Duration::from_secs(5))
        };
        // Version 1 opens port 2 and closes port 0.
        assert_eq!(
            [expected(0, 9), expected(1, 9), expected(2, 9)],
            [Expected::Allowed, Expected::Allowed, Expected::Denied]
        );
        assert_eq!(
            [expected(0, 12), expected(1, 12), expected(2, 12)],
            [Expected::Either, Expected::Allowed, Expected::Either]
        );
        assert_eq!(
            [expected(0, 17), expected(1, 17), expected(2, 17)],
            [Expected::Denied, Expected::Allowed, Expected::Allowed]
        );
    }
}
