//! What changed in the last generations, so that a watcher that has seen one of
//! them can be told the difference.
//!
//! Bounded: a change weighs as much as the spaces it has to remember, and when
//! all together weigh too much the oldest generations are forgotten. A watcher
//! that is further behind starts from a complete state. So a slow watcher costs
//! nothing here, and is never owed a backlog.

use std::{collections::VecDeque, sync::Arc};

use model::{generation::Generation, group::GroupId, ids::GroupGuid};

use super::snapshot::Reach;

/// How many generations are remembered.
const MAX_STEPS: usize = 256;
/// How many changes are remembered, each counted with its spaces.
const MAX_WEIGHT: usize = 200_000;

/// One group that was added, changed or removed.
#[derive(Debug)]
pub struct Change {
    /// Its place.
    pub id: GroupId,
    /// Who it is.
    pub guid: GroupGuid,
    /// Whom it concerned before; absent when it was not there.
    pub before: Option<Arc<Reach>>,
}

#[derive(Debug)]
struct Step {
    /// The generation that these changes made.
    generation: Generation,
    changes: Vec<Change>,
    weight: usize,
}

/// The changes of the last generations, oldest first.
#[derive(Debug, Clone)]
pub struct History {
    /// The oldest generation from which every later one can be told.
    from: Generation,
    steps: VecDeque<Arc<Step>>,
    weight: usize,
}

impl History {
    /// Nothing is known of what was before `generation`.
    #[must_use]
    pub fn starting(generation: Generation) -> Self {
        Self { from: generation, steps: VecDeque::new(), weight: 0 }
    }

    /// The same with the changes that made `generation`, the next one.
    #[must_use]
    pub fn followed_by(&self, generation: Generation, changes: Vec<Change>) -> Self {
        let weight = changes.iter().map(weight).sum();
        let mut next = self.clone();
        next.steps.push_back(Arc::new(Step { generation, changes, weight }));
        next.weight += weight;
        while next.steps.len() > MAX_STEPS || next.weight > MAX_WEIGHT {
            let Some(oldest) = next.steps.pop_front() else { break };
            next.weight -= oldest.weight;
            next.from = oldest.generation;
        }
        next
    }

    /// Every change after `seen`, oldest first. `None`: that is not known, or
    /// `seen` is a generation that never was.
    #[must_use]
    pub fn since(&self, seen: Generation) -> Option<impl Iterator<Item = &Change>> {
        let newest = self.steps.back().map_or(self.from, |step| step.generation);
        if seen < self.from || seen > newest {
            return None;
        }
        let first = self.steps.partition_point(|step| step.generation <= seen);
        Some(self.steps.range(first..).flat_map(|step| &step.changes))
    }
}

fn weight(change: &Change) -> usize {
    1 + change.before.as_ref().map_or(0, |reach| reach.spaces().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(id: u64) -> Change {
        Change { id: GroupId(id), guid: GroupGuid::parse(&id.to_string()).unwrap(), before: None }
    }

    fn ids(history: &History, seen: u64) -> Option<Vec<u64>> {
        Some(history.since(Generation(seen))?.map(|change| change.id.0).collect())
    }

    #[test]
    fn changes_after_a_generation_are_told_in_order() {
        let history = History::starting(Generation(5))
            .followed_by(Generation(6), vec![change(1), change(2)])
            .followed_by(Generation(7), vec![change(1)]);
        assert_eq!(ids(&history, 4), None);
        assert_eq!(ids(&history, 5), Some(vec![1, 2, 1]));
        assert_eq!(ids(&history, 6), Some(vec![1]));
        assert_eq!(ids(&history, 7), Some(vec![]));
        assert_eq!(ids(&history, 8), None, "a generation that never was");
    }

    #[test]
    fn the_oldest_generations_are_forgotten() {
        let mut history = History::starting(Generation(0));
        for generation in 1..=MAX_STEPS as u64 + 10 {
            history = history.followed_by(Generation(generation), vec![change(generation)]);
        }
        assert_eq!(ids(&history, 9), None);
        assert_eq!(ids(&history, 10).unwrap().len(), MAX_STEPS);
    }

    #[test]
    fn a_change_that_is_too_large_to_remember_is_not_remembered() {
        let first = History::starting(Generation(0)).followed_by(Generation(1), vec![change(1)]);
        let large = (0..=MAX_WEIGHT as u64).map(change).collect();
        let history = first.followed_by(Generation(2), large);
        assert_eq!(ids(&history, 1), None);
        assert_eq!(ids(&history, 2), Some(vec![]));
        let history = history.followed_by(Generation(3), vec![change(1)]);
        assert_eq!(ids(&history, 2), Some(vec![1]));
    }
}
