//! What the rest of the agent may know of the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use model::{generation::Generation, ids::ContainerHandle};

use crate::{
    containers::Snapshot,
    metrics::{self, number},
    plan::{Assignment, Known, Ruleset, Segment},
};

/// The outcome of the last attempt, and what is in force.
#[derive(Debug, Clone)]
pub struct Enforced {
    /// The newest reading of the container store that an attempt was made with.
    pub attempted: u64,
    /// The newest reading that is in force.
    pub reading: u64,
    /// What is in force.
    pub ruleset: Arc<Ruleset>,
    /// The containers it was made from.
    pub snapshot: Arc<Snapshot>,
    /// The groups it was made from.
    pub known: Arc<Known>,
    /// When that was confirmed for the last time; `None` before the first time.
    pub at: Option<SystemTime>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// Containers whose rules cannot be in the kernel yet, with the reason; their
    /// egress is denied by others until then.
    pub waiting: BTreeMap<ContainerHandle, String>,
    /// Containers whose groups are unknown and that keep the rules that they had
    /// when the agent started.
    pub kept: BTreeSet<ContainerHandle>,
    /// How often somebody else's change was undone.
    pub drift_healed: u64,
    /// Packets rejected because they are no known container's.
    pub unattributed: u64,
    /// Containers whose connection limit had no place for a connection.
    pub limit_full: BTreeSet<ContainerHandle>,
}

impl Enforced {
    /// Before the first attempt.
    #[must_use]
    pub fn nothing(ruleset: Arc<Ruleset>) -> Self {
        Self {
            attempted: 0,
            reading: 0,
            ruleset,
            snapshot: Arc::default(),
            known: Arc::default(),
            at: None,
            error: None,
            waiting: BTreeMap::new(),
            kept: BTreeSet::new(),
            drift_healed: 0,
            unattributed: 0,
            limit_full: BTreeSet::new(),
        }
    }

    /// Whether it was made from these groups or groups learned later.
    #[must_use]
    pub fn has_seen(&self, known: &Known) -> bool {
        self.known.revision >= known.revision
    }

    /// Sets the metrics that tell what is in force.
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

    /// The newest generation of the policy store that is in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.known.generation
    }
}

/// How many rules the containers have, each for itself, and how many there are
/// when containers share what is the same for them.
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

/// How many rules came and went; rules that several containers share count once.
pub(super) fn difference(before: &Ruleset, after: &Ruleset) -> (usize, usize) {
    fn segments(ruleset: &Ruleset) -> HashMap<*const Segment, &Segment> {
        let segments = ruleset.policies.values().flat_map(|policy| &policy.segments);
        segments.map(|segment| (Arc::as_ptr(segment), &**segment)).collect()
    }
    let (mut old, mut new) = (segments(before), segments(after));
    // Most are the same in memory.
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
