//! Identity of what rules allow, and the record of which of that was used.
//!
//! The unit is the permit of a group: one destination range with one port range. A rule, and each
//! of its ports, was used if one of their permits was. The identity does not depend on the rule's
//! position, description and log flag: a changed rule keeps the record of its unchanged parts.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::{
    effective::{Permit, Service},
    rule::IcmpMatch,
};

/// Length of a key in bytes.
const LENGTH: usize = 16;

/// Identity of a permit within its group: the beginning of the SHA-256 of its canonical text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PermitKey([u8; LENGTH]);

impl PermitKey {
    /// The key of a permit.
    #[must_use]
    pub fn of(permit: &Permit) -> Self {
        let Permit { destination, service, log: _ } = permit;
        let protocol = service.protocol();
        let detail = match service {
            Service::All => String::new(),
            Service::Tcp(ports) | Service::Udp(ports) => ports.to_string(),
            Service::Icmp(IcmpMatch { icmp_type, code })
            | Service::Icmpv6(IcmpMatch { icmp_type, code }) => format!("{icmp_type}/{code}"),
        };
        let (first, last) = (destination.first(), destination.last());
        let hash = Sha256::digest(format!("{protocol} {first} {last} {detail}"));
        Self(std::array::from_fn(|at| hash[at]))
    }

    /// The bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key with these bytes; `None` unless there are 16 of them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for PermitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How long all uses on a cell are known, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Begin.
    pub from: i64,
    /// End.
    pub until: i64,
}

/// The known uses on a cell, over all of its reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Observed {
    /// When the cell was first connected.
    pub first_seen: i64,
    /// When the cell was last connected.
    pub last_seen: i64,
    /// Begin of the first window; `None` before that.
    pub since: Option<i64>,
    /// End of the last window.
    pub until: i64,
    /// Seconds between windows, in all.
    pub missed: i64,
    /// End of the last gap between windows.
    pub missed_until: i64,
}

/// Time from the connection of a new cell until its containers are observed, and between two
/// reports of a cell; a cell that is connected reports within this time.
pub const GRACE: i64 = 300;

impl Observed {
    /// The cell was connected.
    pub fn seen(&mut self, at: i64) {
        if self.first_seen == 0 {
            self.first_seen = at;
        }
        self.last_seen = self.last_seen.max(at);
    }

    /// The cell reported a window. A cell's clock may be ahead by [`GRACE`]; with later times the
    /// windows have gaps.
    pub fn add(&mut self, window: Window, now: i64) {
        let most = now.saturating_add(GRACE);
        let (from, until) = (window.from.min(most), window.until.min(most));
        self.seen(until);
        let Some(_) = self.since else {
            (self.since, self.until) = (Some(from), until);
            return;
        };
        if from > self.until {
            self.missed += from - self.until;
            self.missed_until = self.missed_until.max(from);
        }
        self.until = self.until.max(until);
    }

    /// Why not all uses since `start` are known, if so; `tolerated`: seconds that may be missing.
    #[must_use]
    pub fn problem(&self, start: i64, now: i64, tolerated: i64) -> Option<String> {
        let Some(since) = self.since else {
            return Some("does not report uses of rules".to_owned());
        };
        let begin = start.max(self.first_seen + GRACE);
        let before = (since - begin).max(0);
        let between = if self.missed_until > start { self.missed } else { 0 };
        let after = (now - GRACE - self.until).max(0);
        let missing = before + between + after;
        if missing <= tolerated {
            return None;
        }
        let part = match (before, after) {
            (1.., _) => "before its first report",
            (_, 1..) => "since its last report",
            _ => "between its reports",
        };
        Some(format!("uses in {missing} seconds are unknown, {part}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rule::{AddressRange, PortRange};

    fn permit(ports: (u16, u16), log: bool) -> Permit {
        let address = |last| [10, 0, 0, last].into();
        Permit {
            destination: AddressRange::try_new(address(1), address(9)).unwrap(),
            service: Service::Tcp(PortRange::new(ports.0, ports.1).unwrap()),
            log,
        }
    }

    #[test]
    fn a_key_is_what_the_permit_allows() {
        let key = |ports, log| PermitKey::of(&permit(ports, log));
        assert_eq!(key((1, 2), true), key((1, 2), false));
        assert_ne!(key((1, 2), true), key((1, 3), true));
        // Stored keys stay valid in later releases.
        assert_eq!(key((80, 443), false).to_string(), "513dc60fe8d49248980aeb2c5ba6e823");
        let bytes = key((1, 1), false);
        assert_eq!(PermitKey::from_bytes(bytes.as_bytes()), Some(bytes));
        assert_eq!(PermitKey::from_bytes(&[0; 15]), None);
    }

    proptest! {
        /// Against the seconds themselves: a cell without a problem has a window, or the time of
        /// grace, for each second of the period.
        #[test]
        fn what_is_complete_was_observed(
            windows in proptest::collection::vec((1_i64..3000, 0_i64..400), 1..12),
            first_seen in 1_i64..3000,
            (start, now) in (0_i64..3000, 3000_i64..5000),
        ) {
            let mut observed = Observed::default();
            observed.seen(first_seen);
            let mut known = std::collections::BTreeSet::new();
            let mut sorted = windows;
            sorted.sort_unstable();
            for (from, length) in sorted {
                known.extend(from..=from + length);
                observed.add(Window { from, until: from + length }, now);
            }
            if observed.problem(start, now, 0).is_none() {
                for second in start.max(first_seen + GRACE)..now - GRACE {
                    prop_assert!(known.contains(&second), "{} of {:?}", second, observed);
                }
            }
        }
    }

    #[test]
    fn a_gap_is_a_problem_until_it_is_older_than_the_period() {
        let mut observed = Observed::default();
        observed.seen(1000);
        assert!(observed.problem(0, 2000, 1 << 40).is_some(), "no report");
        observed.add(Window { from: 1100, until: 2000 }, 2000);
        observed.add(Window { from: 2000, until: 3000 }, 3000);
        assert_eq!(observed.problem(0, 3000, 0), None);
        observed.add(Window { from: 3060, until: 4000 }, 4000);
        assert!(observed.problem(0, 4000, 59).is_some());
        assert_eq!(observed.problem(0, 4000, 60), None);
        assert_eq!(observed.problem(3100, 4000, 0), None);
        assert!(observed.problem(3100, 4000 + GRACE + 1, 0).is_some(), "it stopped");
    }

    #[test]
    fn a_clock_that_is_ahead_covers_nothing_in_advance() {
        let mut observed = Observed::default();
        observed.add(Window { from: 100, until: 1 << 40 }, 500);
        assert_eq!(observed.until, 500 + GRACE);
        observed.add(Window { from: 1 << 40, until: 1 << 41 }, 600);
        assert_eq!((observed.until, observed.missed), (600 + GRACE, 100));
    }
}
