//! Which permits new connections used, from the counters of rules and set elements.
//!
//! Pure. Counters are read periodically, and those of a chain before the chain is deleted. A
//! counter that rose says that a policy in force since the read before accepted a packet there.
//! Such a use counts for each permit, of any group of the policy, that overlaps with what the
//! counter stands for, unless the policy has that permit earlier: a packet that it allows does not
//! come as far. So equal and merged permits, and permits behind a wider one, count as used: more
//! than were used, never less.
//!
//! Uses may be lost when other processes change the table: [`Counting::lose`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use model::{connections::Connections, effective::Permit, ids::GroupGuid, uses::PermitKey};

use super::{
    netlink::Counters,
    segment::{self, Counted},
};
use crate::plan::{Policy, Segment};

/// Policies between two reads above which the counters are to be read.
const POLICIES_MOST: usize = 2_000;

/// The uses since the last call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uses {
    /// Permits with their groups.
    pub used: BTreeSet<(GroupGuid, PermitKey)>,
    /// Whether these are all uses since the last call.
    pub complete: bool,
}

/// State of the counters; see the module.
#[derive(Debug)]
pub(super) struct Counting {
    chains: BTreeMap<String, Chain>,
    /// Policies in force since the last read, by address.
    policies: HashMap<usize, Arc<Policy>>,
    /// Those in force now.
    current: Vec<Arc<Policy>>,
    used: BTreeSet<(GroupGuid, PermitKey)>,
    lost: bool,
}

#[derive(Debug)]
struct Chain {
    segment: Arc<Segment>,
    rules: Vec<Counted>,
    /// Values of the last read, by rule and key.
    before: BTreeMap<(usize, Vec<u8>), u64>,
}

impl Counting {
    /// Nothing is known about the time before.
    pub(super) fn new() -> Self {
        Self {
            chains: BTreeMap::new(),
            policies: HashMap::new(),
            current: Vec::new(),
            used: BTreeSet::new(),
            lost: true,
        }
    }

    /// The next ruleset has these segments, with the names of their entry chains, and policies.
    pub(super) fn expect<'a>(
        &mut self,
        segments: impl Iterator<Item = (&'a str, &'a Arc<Segment>)>,
        policies: impl Iterator<Item = &'a Arc<Policy>>,
        salt: &str,
    ) {
        for (name, segment) in segments {
            if self.chains.contains_key(name) {
                continue;
            }
            for (name, rules) in segment::counted(segment, salt) {
                let segment = Arc::clone(segment);
                self.chains.insert(name, Chain { segment, rules, before: BTreeMap::new() });
            }
        }
        self.current = policies.cloned().collect();
        let current = self.current.iter();
        self.policies
            .extend(current.map(|policy| (Arc::as_ptr(policy).addr(), Arc::clone(policy))));
    }

    /// Whether so many policies were in force since the last read that another is due.
    pub(super) fn is_due(&self) -> bool {
        self.policies.len() > self.current.len() + POLICIES_MOST
    }

    /// Uses may have been lost.
    pub(super) fn lose(&mut self) {
        self.lost = true;
    }

    /// Names of the counted chains among these.
    pub(super) fn of<'a>(&self, chains: impl Iterator<Item = &'a String>) -> Vec<String> {
        chains.filter(|name| self.chains.contains_key(*name)).cloned().collect()
    }

    /// Adds the counters of chains.
    pub(super) fn read(&mut self, counters: Vec<(String, Vec<Counters>)>) {
        for (name, counters) in counters {
            let Some(chain) = self.chains.get_mut(&name) else { continue };
            let Some(values) = values(&chain.rules, counters) else {
                // Another process changed the chain.
                self.lost = true;
                continue;
            };
            let segment = Arc::clone(&chain.segment);
            let mut areas = Vec::new();
            for ((rule, key), packets) in &values {
                let before = chain.before.get(&(*rule, key.clone())).copied().unwrap_or(0);
                // A counter that another process reset may have counted before.
                self.lost |= *packets < before;
                if *packets != before && *packets > 0 {
                    areas.extend_from_slice(chain.rules[*rule].area(key));
                }
            }
            chain.before = values;
            if !areas.is_empty() {
                let areas = Connections::of(&areas);
                for policy in self.policies.values() {
                    credit(policy, &segment, &areas, &mut self.used);
                }
            }
        }
    }

    /// These chains are deleted.
    pub(super) fn forget(&mut self, chains: &[String]) {
        chains.iter().for_each(|chain| _ = self.chains.remove(chain));
    }

    /// All chains were read: policies that are no longer in force are done with.
    pub(super) fn narrow(&mut self) {
        let current = self.current.iter();
        self.policies =
            current.map(|policy| (Arc::as_ptr(policy).addr(), Arc::clone(policy))).collect();
    }

    /// The uses since the last call; called after all chains of the table were read.
    pub(super) fn take(&mut self, exists: impl Fn(&String) -> bool) -> Uses {
        self.narrow();
        self.chains.retain(|name, _| exists(name));
        let complete = !std::mem::replace(&mut self.lost, false);
        Uses { used: std::mem::take(&mut self.used), complete }
    }
}

impl Counted {
    /// What the counter with this key stands for.
    fn area(&self, key: &[u8]) -> &[Permit] {
        match self {
            Self::Nothing => &[],
            Self::Rule(permits) => permits,
            Self::Elements(elements) => elements.get(key).map_or(&[], Vec::as_slice),
        }
    }
}

/// The values of all counters of a chain, by rule and key; `None` unless the kernel has exactly
/// these. A rule with a long list may be several rules there.
fn values(rules: &[Counted], found: Vec<Counters>) -> Option<BTreeMap<(usize, Vec<u8>), u64>> {
    let mut values = BTreeMap::new();
    let mut found = found.into_iter();
    for (index, rule) in rules.iter().enumerate() {
        match rule {
            Counted::Nothing => drop(found.next()?),
            Counted::Rule(_) => {
                let Counters::Rule(packets) = found.next()? else { return None };
                values.insert((index, Vec::new()), packets);
            }
            Counted::Elements(wanted) => {
                let mut missing = wanted.len();
                while missing > 0 {
                    let Counters::Elements(elements) = found.next()? else { return None };
                    let known = elements.keys().all(|key| wanted.contains_key(key));
                    if !known || elements.is_empty() || elements.len() > missing {
                        return None;
                    }
                    missing -= elements.len();
                    let elements = elements.into_iter();
                    values.extend(elements.map(|(key, packets)| ((index, key), packets)));
                }
            }
        }
    }
    found.next().is_none().then_some(values)
}

/// Adds the permits of a policy that a packet may have used which a counter of this segment
/// counted for these connections.
fn credit(
    policy: &Policy,
    segment: &Arc<Segment>,
    areas: &Connections,
    used: &mut BTreeSet<(GroupGuid, PermitKey)>,
) {
    let Some(place) = policy.segments.iter().position(|other| other == segment) else { return };
    let earlier = &policy.segments[..place];
    let is_earlier =
        |permit: &Permit| earlier.iter().any(|segment| segment.permits.contains(permit));
    let permits = policy.rules.permits.iter().chain(&policy.rules.repeated);
    for (permit, source) in permits {
        if areas.intersects(permit) && !is_earlier(permit) {
            used.insert((source.group.clone(), PermitKey::of(permit)));
        }
    }
}

#[cfg(test)]
#[path = "counting_tests.rs"]
mod tests;
