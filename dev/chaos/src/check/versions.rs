//! Which versions of a group can be in force on a cell at a time.
//!
//! The newest is the last one that was sent to the Cloud Controller before. The oldest is the
//! newer of two: the version in the generation that the cell reported as enforced, and the
//! version that was confirmed so long ago, without faults, that the bounds are over.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::history::{Bounds, Entry, Event, Group, Moment, Outcome, Version};

#[derive(Debug)]
struct Change {
    sent: Moment,
    /// When the Cloud Controller confirmed it; unknown if it did not answer.
    confirmed: Option<Moment>,
    ports: (u32, u32),
}

/// A time without faults.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet {
    pub(super) from: Moment,
    pub(super) to: Moment,
}

/// Why an older version cannot be in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// The first version.
    First,
    /// The cell reported a newer one.
    Reported,
    /// The bounds are over.
    Bounds,
}

/// The changes of all groups, and what is known about the cells.
#[derive(Debug)]
pub(super) struct Versions<'a> {
    bounds: Bounds,
    groups: BTreeMap<Group, Vec<Change>>,
    quiet: Vec<Quiet>,
    generations: BTreeMap<u64, &'a [(Group, Version)]>,
    /// Rising with the time: when a cell was known to enforce a generation.
    enforced: BTreeMap<&'a str, Vec<(Moment, u64)>>,
}

impl<'a> Versions<'a> {
    pub(super) fn read(history: &'a [Entry], bounds: Bounds) -> Self {
        let mut versions = Self {
            bounds,
            groups: BTreeMap::new(),
            quiet: quiet(history),
            generations: BTreeMap::new(),
            enforced: BTreeMap::new(),
        };
        for entry in history {
            match &entry.event {
                // The number of a refused version is used again.
                Event::Change { group, version: _, ports, sent, outcome }
                    if *outcome != Outcome::Refused =>
                {
                    let confirmed = (*outcome == Outcome::Confirmed).then_some(entry.at);
                    let change = Change { sent: *sent, confirmed, ports: *ports };
                    versions.groups.entry(*group).or_default().push(change);
                }
                Event::Content { generation, versions: content, .. } => {
                    versions.generations.entry(*generation).or_insert(content);
                }
                Event::Cell { cell, generation, .. } => {
                    let reports = versions.enforced.entry(cell).or_default();
                    if reports.last().is_none_or(|(_, last)| last < generation) {
                        reports.push((entry.at, *generation));
                    }
                }
                _ => {}
            }
        }
        versions
    }

    /// The times without faults.
    pub(super) fn quiet(&self) -> &[Quiet] {
        &self.quiet
    }

    /// The newest version of every group.
    pub(super) fn newest(&self) -> impl Iterator<Item = (Group, Version)> {
        self.groups.iter().map(|(group, changes)| (*group, number(changes.len()) - 1))
    }

    /// The version of a group in the newest known generation up to this one.
    pub(super) fn in_generation(&self, generation: u64, group: Group) -> Option<Version> {
        let (_, content) = self.generations.range(..=generation).next_back()?;
        content.iter().find(|(known, _)| *known == group).map(|(_, version)| *version)
    }

    /// The versions that can be in force on the cell for a packet.
    pub(super) fn in_force(
        &self,
        cell: &str,
        group: Group,
        sent: Moment,
        done: Moment,
    ) -> Option<(RangeInclusive<Version>, Reason)> {
        let changes = self.groups.get(&group)?;
        let newest = changes.partition_point(|change| change.sent <= done).checked_sub(1)?;
        let reported = self.reported(cell, group, sent).map(|version| (version, Reason::Reported));
        let bound = self.bound(changes, sent).map(|version| (version, Reason::Bounds));
        let (oldest, reason) = reported.max(bound).unwrap_or((0, Reason::First));
        Some((oldest..=number(newest).max(oldest), reason))
    }

    /// Whether a version allows the port.
    pub(super) fn allows(&self, group: Group, version: Version, port: u32) -> bool {
        let changes = self.groups.get(&group);
        let change = changes.and_then(|changes| changes.get(version as usize));
        change.is_some_and(|change| (change.ports.0..=change.ports.1).contains(&port))
    }

    fn reported(&self, cell: &str, group: Group, sent: Moment) -> Option<Version> {
        let reports = self.enforced.get(cell)?;
        let known = reports.partition_point(|(at, _)| *at <= sent);
        let (_, generation) = reports[..known].last()?;
        self.in_generation(*generation, group)
    }

    /// The newest version for which the bounds were over in a time without faults.
    fn bound(&self, changes: &[Change], sent: Moment) -> Option<Version> {
        let known = self.quiet.partition_point(|quiet| quiet.from <= sent);
        self.quiet[..known].iter().rev().find_map(|quiet| {
            let until = quiet.to.min(sent);
            let settled = quiet.from.after(self.bounds.recovery()).after(self.bounds.change());
            if settled > until {
                return None;
            }
            let latest = until.before(self.bounds.change());
            self.confirmed_by(changes, latest)
        })
    }

    /// The newest version that was confirmed by then, and that no earlier one with an unknown
    /// result can replace any more.
    fn confirmed_by(&self, changes: &[Change], latest: Moment) -> Option<Version> {
        let is_confirmed = |change: &Change| change.confirmed.is_some_and(|at| at <= latest);
        let place = changes.iter().rposition(is_confirmed)?;
        let confirmed = changes[place].confirmed?;
        let is_certain = latest.before(self.bounds.late()) >= confirmed;
        let unknown = changes[..place].iter().rev().take_while(|change| change.confirmed.is_none());
        let place = if is_certain { place } else { place - unknown.count() };
        Some(number(place))
    }
}

fn number(place: usize) -> Version {
    Version::try_from(place).expect("a run has fewer versions")
}

/// The times during which no fault is active.
fn quiet(history: &[Entry]) -> Vec<Quiet> {
    let mut times = Vec::new();
    let mut active = 0_u32;
    let mut from = Moment::default();
    for entry in history {
        let Event::Fault { begins, .. } = entry.event else { continue };
        if begins {
            if active == 0 {
                times.push(Quiet { from, to: entry.at });
            }
            active += 1;
        } else {
            active = active.saturating_sub(1);
            if active == 0 {
                from = entry.at;
            }
        }
    }
    if active == 0 {
        times.push(Quiet { from, to: Moment(u64::MAX) });
    }
    times
}
