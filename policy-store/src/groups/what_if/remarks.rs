//! Remarks on the rules of the changed group.

use std::{collections::BTreeSet, sync::Arc};

use model::{
    connections::{Connections, addresses},
    effective::{Permit, ReadGroup},
};

use super::{
    Places,
    others::{Other, Others},
};
use crate::groups::{explain::SourcedRule, snapshot::Snapshot};

/// Limit of rules that a remark names.
const NAMED: usize = 10;

/// From which size on a rule is wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Width {
    /// Prefix length of IPv4, from 0 to 32: a rule is wide when it allows more addresses. For IPv6,
    /// the prefix is four times as long.
    pub prefix: u8,
}

impl Default for Width {
    fn default() -> Self {
        Self { prefix: 8 }
    }
}

impl Width {
    /// The largest numbers of IPv4 and of IPv6 addresses that are not wide.
    fn limits(self) -> [u128; 2] {
        let prefix = u32::from(self.prefix.min(32));
        [1 << (32 - prefix), 1_u128.checked_shl(128 - 4 * prefix).unwrap_or(u128::MAX)]
    }
}

/// What is remarkable about a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Other rules allow all of it: without all covered rules, the same connections are allowed.
    Covered,
    /// Other rules of the group allow a part of it.
    Overlaps,
    /// It allows more addresses than [`Width`].
    Wide,
    /// It, or a part of it, cannot be enforced.
    NotEnforceable,
}

/// A remark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// What is remarkable.
    pub finding: Finding,
    /// The rule.
    pub rule: SourcedRule,
    /// The first rules that cover it, or overlap with it.
    pub others: Vec<SourcedRule>,
    /// A sentence for people.
    pub reason: String,
}

/// A rule with something to enforce.
struct Rule {
    index: usize,
    permits: Vec<Permit>,
    allows: Connections,
}

impl Rule {
    fn touches(&self, set: &Connections) -> bool {
        self.permits.iter().any(|permit| set.intersects(permit))
    }
}

fn rules(read: &ReadGroup) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for (index, permit) in read.permits() {
        match rules.last_mut() {
            Some(rule) if rule.index == index => rule.permits.push(*permit),
            _ => rules.push(Rule { index, permits: vec![*permit], allows: Connections::default() }),
        }
    }
    for rule in &mut rules {
        rule.allows = Connections::of(&rule.permits);
    }
    rules
}

/// The remarks on `read`, ascending by rule.
pub(super) fn remarks(
    snapshot: &Snapshot,
    read: &ReadGroup,
    others: &Others,
    places: &[Places<'_>],
    width: Width,
) -> Vec<Remark> {
    let own = |index: usize| SourcedRule {
        group: Arc::clone(&read.stored.group),
        index,
        spec: read.rule(index).cloned().unwrap_or_default(),
    };
    let problems = read.problems().map(|(index, problem)| Remark {
        finding: Finding::NotEnforceable,
        rule: own(index),
        others: Vec::new(),
        reason: format!("{problem}: cells do not enforce this"),
    });
    let mut remarks: Vec<Remark> = problems.collect();
    let rules = rules(read);
    let wide = rules.iter().filter_map(|rule| Some((rule.index, wide(rule, width)?)));
    remarks.extend(wide.map(|(index, reason)| Remark {
        finding: Finding::Wide,
        rule: own(index),
        others: Vec::new(),
        reason,
    }));
    // Rules that stay when all covered rules are removed.
    let mut needed: BTreeSet<usize> = (0..rules.len()).collect();
    for place in (0..rules.len()).rev() {
        let rule = &rules[place];
        needed.remove(&place);
        let touching = needed.iter().map(|place| &rules[*place]);
        let touching: Vec<&Rule> = touching.filter(|other| other.touches(&rule.allows)).collect();
        let rest =
            touching.iter().fold(rule.allows.clone(), |rest, other| rest.minus(&other.allows));
        let named: Vec<_> = touching.iter().take(NAMED).map(|other| own(other.index)).collect();
        let covering = match rest.is_empty() {
            true => Some((named, "other rules of the group allow all of it".to_owned())),
            false => by_others(snapshot, &rest, others, places).map(|foreign| {
                let some = if touching.is_empty() { "" } else { "with other rules of the group, " };
                let named: Vec<_> = named.into_iter().chain(foreign).take(NAMED).collect();
                let which = "the other groups of every space of the group allow all of it";
                (named, format!("{some}{which}"))
            }),
        };
        match covering {
            Some((others, reason)) => {
                remarks.push(Remark {
                    finding: Finding::Covered,
                    rule: own(rule.index),
                    others,
                    reason,
                });
            }
            None => _ = needed.insert(place),
        }
    }
    remarks.extend(overlaps(&rules, &needed).map(|(rule, overlapping)| Remark {
        finding: Finding::Overlaps,
        rule: own(rule),
        others: overlapping.into_iter().map(own).collect(),
        reason: "other rules of the group allow a part of it".to_owned(),
    }));
    remarks.sort_by_key(|remark| (remark.rule.index, remark.finding));
    remarks
}

/// The first rules of other groups that cover `rest` in every space to which the group applies.
/// `None`: they do not, or the group applies to no space.
fn by_others(
    snapshot: &Snapshot,
    rest: &Connections,
    others: &Others,
    places: &[Places<'_>],
) -> Option<Vec<SourcedRule>> {
    let mut covering = BTreeSet::new();
    let mut applies = false;
    for place in places {
        let cases = place.cases.keys().filter(|case| case.after);
        let beside_global = rest.minus(&place.global);
        for case in cases {
            applies = true;
            if !others.minus(beside_global.clone(), &case.bound).is_empty() {
                return None;
            }
            if covering.len() < NAMED {
                covering.extend(place.neighbours.everywhere.iter().chain(&case.bound));
            }
        }
    }
    applies.then(|| {
        let groups = covering.into_iter().map(|place| others.get(place));
        groups.flat_map(|other| sourced(snapshot, other, rest)).take(NAMED).collect()
    })
}

/// The rules of another group that allow a part of the set.
fn sourced(snapshot: &Snapshot, other: &Other, set: &Connections) -> Vec<SourcedRule> {
    let permits = other.permits.iter().filter(|(_, permit)| set.intersects(permit));
    let rules: BTreeSet<usize> = permits.map(|(index, _)| *index).collect();
    let group = match snapshot.get(other.id) {
        Some(entry) if !rules.is_empty() => Arc::new(entry.group()),
        Some(_) | None => return Vec::new(),
    };
    let rule = |index: usize| SourcedRule {
        spec: group.rules.get(index).cloned().unwrap_or_default(),
        group: Arc::clone(&group),
        index,
    };
    rules.into_iter().map(rule).collect()
}

/// Needed rules that overlap with earlier ones, with the first of these.
fn overlaps(rules: &[Rule], needed: &BTreeSet<usize>) -> impl Iterator<Item = (usize, Vec<usize>)> {
    needed.iter().filter_map(|place| {
        let rule = &rules[*place];
        let earlier = needed.range(..*place).map(|place| &rules[*place]);
        let overlapping = earlier.filter(|other| other.touches(&rule.allows)).take(NAMED);
        let overlapping: Vec<usize> = overlapping.map(|other| other.index).collect();
        (!overlapping.is_empty()).then_some((rule.index, overlapping))
    })
}

fn wide(rule: &Rule, width: Width) -> Option<String> {
    let counts = addresses(rule.permits.iter().map(|permit| permit.destination));
    let limits = width.limits();
    let families = [("IPv4", u32::from(width.prefix)), ("IPv6", 4 * u32::from(width.prefix))];
    let found = (0..2).find(|family| counts[*family] > limits[*family])?;
    let (family, prefix) = families[found];
    Some(format!(
        "it allows {} {family} addresses, more than a /{prefix} has",
        about(counts[found])
    ))
}

/// A number of addresses; a large one as a power of two.
fn about(count: u128) -> String {
    match count {
        0..=0x1_0000_0000 => count.to_string(),
        _ => format!("about 2^{}", count.ilog2() + u32::from(!count.is_power_of_two())),
    }
}
