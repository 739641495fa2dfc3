//! Finds groups, rules and ports that were not used. Pure.
//!
//! Truth: a permit is listed only if no known use of the period counts for it, and whether all uses
//! of the period are known is part of the answer. A rule without permits, which no cell can enforce,
//! is not listed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{
    effective::{ReadGroup, Service},
    group::{SecurityGroup, StoredGroup},
    ids::CellId,
    uses::{Observed, PermitKey},
};

use super::snapshot::Entry;
use crate::uses::{DAY, Recorded};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Period {
    /// Begin, in seconds since 1970.
    pub start: i64,
    /// End: the present time.
    pub now: i64,
    /// Seconds that each cell may have missed.
    pub tolerated: i64,
    /// Cells to leave out of the coverage.
    pub ignored: BTreeSet<CellId>,
}

/// A group with unused parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedGroup {
    /// The group.
    pub group: Arc<SecurityGroup>,
    /// Whether no rule was used.
    pub whole: bool,
    /// Day of the last known use.
    pub last: Option<i64>,
    /// Rules with unused parts.
    pub rules: Vec<UnusedRule>,
}

/// A rule with unused parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedRule {
    /// Position in the group.
    pub index: usize,
    /// Whether no part was used.
    pub whole: bool,
    /// Day of the last known use.
    pub last: Option<i64>,
    /// Without `whole`: unused ports and port ranges.
    pub ports: Vec<String>,
}

/// How far the uses of the period are known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    /// Number of cells.
    pub cells: usize,
    /// Cells with a reason why not all of their uses are known.
    pub problems: Vec<(CellId, String)>,
    /// Since when uses are recorded, in seconds since 1970.
    pub since: Option<i64>,
    /// Whether all uses are known.
    pub complete: bool,
}

/// The unused parts of a group; `None` if there are none.
#[must_use]
pub fn unused(entry: &Entry, recorded: &Recorded, period: &Period) -> Option<UnusedGroup> {
    let group = Arc::new(entry.group());
    let read = ReadGroup::new(StoredGroup { id: entry.id, group: Arc::clone(&group) });
    let first_day = period.start.div_euclid(DAY);
    let mut rules: BTreeMap<usize, Vec<(Service, Option<i64>)>> = BTreeMap::new();
    for (index, permit) in read.permits() {
        let used = recorded.uses.get(&(group.guid.clone(), PermitKey::of(permit)));
        let last = used.map(|used| used.last);
        rules.entry(index).or_default().push((permit.service, last));
    }
    let is_used = |last: Option<i64>| last.is_some_and(|last| last >= first_day);
    let newest =
        |parts: &[(Service, Option<i64>)]| parts.iter().filter_map(|(_, last)| *last).max();
    let last = rules.values().filter_map(|parts| newest(parts)).max();
    let of_rule = |(index, parts): (&usize, &Vec<(Service, Option<i64>)>)| {
        let last = newest(parts);
        let whole = !is_used(last);
        let mut by_ports: BTreeMap<Service, bool> = BTreeMap::new();
        for (service, last) in parts {
            *by_ports.entry(*service).or_default() |= is_used(*last);
        }
        let unused = by_ports.into_iter().filter(|(_, used)| !used && !whole);
        let ports: Vec<String> = unused.filter_map(|(service, _)| ports(service)).collect();
        let listed = whole || !ports.is_empty();
        listed.then_some(UnusedRule { index: *index, whole, last, ports })
    };
    let listed: Vec<UnusedRule> = rules.iter().filter_map(of_rule).collect();
    let whole = !is_used(last);
    (!listed.is_empty()).then_some(UnusedGroup { group, whole, last, rules: listed })
}

fn ports(service: Service) -> Option<String> {
    match service {
        Service::Tcp(ports) | Service::Udp(ports) => Some(ports.to_string()),
        Service::All | Service::Icmp(_) | Service::Icmpv6(_) => None,
    }
}

/// How far the uses of the period are known; `connected`: the cells that are connected now.
#[must_use]
pub fn coverage(recorded: &Recorded, connected: Vec<CellId>, period: &Period) -> Coverage {
    let Period { start, now, tolerated, ignored } = period;
    let mut cells: BTreeMap<CellId, Observed> = recorded.cells.clone();
    cells.retain(|_, observed| observed.last_seen >= *start);
    for cell in connected {
        cells.entry(cell).or_insert_with(|| Observed { first_seen: *start, ..Observed::default() });
    }
    cells.retain(|cell, _| !ignored.contains(cell));
    let problem = |(cell, observed): (&CellId, &Observed)| {
        Some((cell.clone(), observed.problem(*start, *now, *tolerated)?))
    };
    let problems: Vec<_> = cells.iter().filter_map(problem).collect();
    let since = recorded.cells.values().filter_map(|observed| observed.since).min();
    let begun = since.is_some_and(|since| since <= *start);
    let complete = begun && problems.is_empty() && !cells.is_empty();
    Coverage { cells: cells.len(), problems, since, complete }
}
