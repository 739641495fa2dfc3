//! The published state of the reconcile loop.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Add,
    sync::Arc,
    time::{Duration, SystemTime},
};

use model::{generation::Generation, ids::ContainerHandle};

use crate::{
    containers::Snapshot,
    metrics::{self, number},
    plan::{Assignment, Known, Ruleset, Segment},
};

/// The result of the last attempt, and the state in force.
#[derive(Debug, Clone)]
pub struct Enforced {
    /// The latest reading of the metadata store that an attempt used.
    pub attempted: u64,
    /// The latest reading that is in force.
    pub reading: u64,
    /// The ruleset in force.
    pub ruleset: Arc<Ruleset>,
    /// The containers that the ruleset was made from.
    pub snapshot: Arc<Snapshot>,
    /// The groups that the ruleset was made from.
    pub known: Arc<Known>,
    /// When the state was last confirmed; `None` before the first time.
    pub at: Option<SystemTime>,
    /// From the arrival of the groups until they were in force; `None` if they are those
    /// that the agent started with.
    pub apply_time: Option<Duration>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// Containers whose rules cannot be in the kernel yet, with the reason; other rules
    /// deny their egress until then.
    pub waiting: BTreeMap<ContainerHandle, String>,
    /// Containers whose groups are unknown and that keep their rules from before the
    /// agent's start.
    pub kept: BTreeSet<ContainerHandle>,
    /// Number of foreign changes that were undone.
    pub drift_healed: u64,
    /// Rejected packets that belong to no known container.
    pub unattributed: u64,
    /// Denied packets since the agent's start that may be in the record of denied packets.
    pub recordable: u64,
    /// Packets of known containers; `None` if the data plane does not count them.
    pub packets: Option<Packets>,
    /// Containers with a connection that found the connection limit's set full.
    pub limit_full: BTreeSet<ContainerHandle>,
}

/// Packets of known containers since the agent's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packets {
    /// Packets of new connections that groups allowed.
    pub allowed: u64,
    /// Rejected packets.
    pub denied: u64,
}

impl Add for Packets {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { allowed: self.allowed + more.allowed, denied: self.denied + more.denied }
    }
}

impl Enforced {
    /// State before the first attempt.
    #[must_use]
    pub fn nothing(ruleset: Arc<Ruleset>) -> Self {
        Self {
            attempted: 0,
            reading: 0,
            ruleset,
            snapshot: Arc::default(),
            known: Arc::default(),
            at: None,
            apply_time: None,
            error: None,
            waiting: BTreeMap::new(),
            kept: BTreeSet::new(),
            drift_healed: 0,
            unattributed: 0,
            recordable: 0,
            packets: None,
            limit_full: BTreeSet::new(),
        }
    }

    /// Whether the state was made from these groups or later ones.
    #[must_use]
    pub fn has_seen(&self, known: &Known) -> bool {
        self.known.revision >= known.revision
    }

    /// Sets the metrics of the state in force.
    pub(super) fn measure(&self) {
        let (before, after) = rules(&self.ruleset);
        number(metrics::GENERATION, self.generation().0);
        number(metrics::CONTAINERS, self.ruleset.containers.len() as u64);
        number(metrics::POLICIES, self.ruleset.policies.len() as u64);
        number(metrics::RULES_BEFORE, before);
        number(metrics::RULES_AFTER, after);
        number(metrics::ISOLATED_RULES, self.ruleset.isolated_rules() as u64);
        let is_isolated = |assignment: &_| matches!(assignment, Assignment::Isolated(_));
        let containers = self.ruleset.containers.values();
        let isolated = containers.filter(|planned| is_isolated(&planned.assignment)).count();
        number(metrics::ISOLATED_CONTAINERS, isolated as u64);
        number(metrics::WAITING_CONTAINERS, self.waiting.len() as u64);
    }

    /// The latest generation of the policy store that is in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.known.generation
    }
}

/// Number of rules, counted per container, and counted once where containers share
/// them.
fn rules(ruleset: &Ruleset) -> (u64, u64) {
    let own = |assignment: &_| match assignment {
        Assignment::Bound(belongs) => {
            ruleset.policies.get(belongs).map_or(0, |policy| policy.rules.permits.len())
        }
        Assignment::Unknown(_) | Assignment::Ungrouped(_) | Assignment::Isolated(_) => 0,
    };
    let before: usize = ruleset.containers.values().map(|planned| own(&planned.assignment)).sum();
    let segments = ruleset.policies.values().flat_map(|policy| &policy.segments);
    let shared: BTreeMap<_, usize> =
        segments.map(|segment| (Arc::as_ptr(segment), segment.permits.len())).collect();
    (before as u64, shared.values().sum::<usize>() as u64)
}

/// Number of added and removed rules; rules that several containers share count once.
pub(super) fn difference(before: &Ruleset, after: &Ruleset) -> (usize, usize) {
    fn segments(ruleset: &Ruleset) -> HashMap<*const Segment, &Segment> {
        let segments = ruleset.policies.values().flat_map(|policy| &policy.segments);
        segments.map(|segment| (Arc::as_ptr(segment), &**segment)).collect()
    }
    let (mut old, mut new) = (segments(before), segments(after));
    // Most segments are shared pointers.
    old.retain(|place, _| new.remove(place).is_none());
    let (old, new): (HashSet<_>, HashSet<_>) =
        (old.into_values().collect(), new.into_values().collect());
    let permits = |these: &HashSet<_>, others: &HashSet<_>| {
        let only: Vec<&Segment> = these.difference(others).copied().collect();
        let permits = only.iter().flat_map(|segment| {
            segment.permits.iter().map(|permit| (segment.group.clone(), *permit))
        });
        permits.collect::<HashSet<_>>()
    };
    let (gone, come) = (permits(&old, &new), permits(&new, &old));
    (come.difference(&gone).count(), gone.difference(&come).count())
}
