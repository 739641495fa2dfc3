//! Changes of the last generations, from which a watcher gets the difference since the
//! generation it has.
//!
//! Bounded: the weight of a change is the number of its spaces, and when the total
//! weight is too high the oldest generations are dropped. A watcher that is further
//! behind gets a complete state. So a slow watcher costs nothing here and causes no
//! backlog.
//!
//! Stores keep the same data ([`Past`]), within the same bounds: after a restart, and on
//! every other instance, the same differences are available.

use std::{collections::VecDeque, sync::Arc};

use model::{
    generation::{Generation, Point, Stamp},
    group::GroupId,
    ids::GroupGuid,
};

use super::reach::Reach;

/// Limit of remembered generations.
const MAX_STEPS: usize = 256;
/// Limit of remembered changes, each counted with its spaces.
const MAX_WEIGHT: usize = 200_000;

/// One group that was added, changed or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Id of the group.
    pub id: GroupId,
    /// Guid of the group.
    pub guid: GroupGuid,
    /// Reach before the change; absent for a new group.
    pub before: Option<Arc<Reach>>,
}

/// Changes of one Replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Generation that the Replace made.
    pub point: Point,
    /// Ascending by id, each group once.
    pub changes: Vec<Change>,
}

impl Step {
    /// Weight of the step.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.changes.iter().map(weight).sum()
    }
}

fn weight(change: &Change) -> usize {
    1 + change.before.as_ref().map_or(0, |reach| reach.spaces().len())
}

/// Number of steps to keep, given the generations and their weights, newest first.
#[must_use]
pub fn kept(newest_first: &[(Generation, usize)]) -> usize {
    let mut total = 0;
    let fits = |(_, weight): &&(Generation, usize)| {
        total += weight;
        total <= MAX_WEIGHT
    };
    newest_first.iter().take(MAX_STEPS).take_while(fits).count()
}

/// Consecutive steps without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    /// Generation before the first step.
    pub from: Point,
    /// Oldest first.
    pub steps: Vec<Step>,
}

/// The changes of the last generations, oldest first.
#[derive(Debug, Clone)]
pub struct History {
    /// Oldest generation from which every later one can be reached.
    from: Point,
    steps: VecDeque<Arc<(Step, usize)>>,
    weight: usize,
}

impl History {
    /// Empty history that starts at `from`.
    #[must_use]
    pub fn starting(from: Point) -> Self {
        Self { from, steps: VecDeque::new(), weight: 0 }
    }

    /// History with further steps.
    #[must_use]
    pub fn followed_by(&self, steps: impl IntoIterator<Item = Step>) -> Self {
        let mut next = self.clone();
        for step in steps {
            let weight = step.weight();
            next.steps.push_back(Arc::new((step, weight)));
            next.weight += weight;
            while next.steps.len() > MAX_STEPS || next.weight > MAX_WEIGHT {
                let Some(oldest) = next.steps.pop_front() else { break };
                next.weight -= oldest.1;
                next.from = oldest.0.point;
            }
        }
        next
    }

    /// Every change after `seen`, oldest first. `None`: the history does not reach back that
    /// far, or `seen` is a generation that never existed.
    #[must_use]
    pub fn since(&self, seen: Point) -> Option<impl Iterator<Item = &Change>> {
        Some(self.steps_since(seen)?.flat_map(|step| &step.changes))
    }

    /// As [`Self::since`], by generation.
    #[must_use]
    pub fn steps_since(&self, seen: Point) -> Option<impl Iterator<Item = &Step>> {
        let first = match seen == self.from {
            true => 0,
            false => self.steps.iter().position(|step| step.0.point == seen)? + 1,
        };
        Some(self.steps.range(first..).map(|step| &step.0))
    }
}

impl History {
    /// History of an older generation.
    #[must_use]
    pub fn until(&self, point: Point) -> Self {
        let mut older = Self::starting(self.from);
        if point == self.from {
            return older;
        }
        for step in &self.steps {
            older.steps.push_back(Arc::clone(step));
            older.weight += step.1;
            if step.0.point == point {
                return older;
            }
        }
        Self::starting(point)
    }

    /// Time of the first generation after `seen`, or of the oldest remembered later one.
    /// `None`: there is no later generation.
    #[must_use]
    pub fn first_after(&self, seen: Generation) -> Option<Stamp> {
        if seen < self.from.generation {
            return Some(self.from.stamp);
        }
        let later = self.steps.iter().find(|step| step.0.point.generation > seen);
        later.map(|step| step.0.point.stamp)
    }
}

impl From<Past> for History {
    fn from(Past { from, steps }: Past) -> Self {
        Self::starting(from).followed_by(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(id: u64) -> Change {
        Change { id: GroupId(id), guid: GroupGuid::parse(&id.to_string()).unwrap(), before: None }
    }

    fn point(generation: u64) -> Point {
        let stamp = Stamp(i64::try_from(generation).unwrap() * 10);
        Point { generation: Generation(generation), stamp }
    }

    fn step(generation: u64, changes: Vec<Change>) -> [Step; 1] {
        [Step { point: point(generation), changes }]
    }

    fn ids(history: &History, seen: Point) -> Option<Vec<u64>> {
        Some(history.since(seen)?.map(|change| change.id.0).collect())
    }

    #[test]
    fn changes_after_a_generation_are_told_in_order() {
        let history = History::starting(point(5))
            .followed_by(step(6, vec![change(1), change(2)]))
            .followed_by(step(7, vec![change(1)]));
        assert_eq!(ids(&history, point(4)), None);
        assert_eq!(ids(&history, point(5)), Some(vec![1, 2, 1]));
        assert_eq!(ids(&history, point(6)), Some(vec![1]));
        assert_eq!(ids(&history, point(7)), Some(vec![]));
        assert_eq!(ids(&history, point(8)), None, "a generation that never was");
    }

    #[test]
    fn who_is_behind_is_behind_since_the_first_that_it_lacks() {
        let history = History::starting(point(5))
            .followed_by(step(6, vec![change(1)]))
            .followed_by(step(7, vec![change(1)]));
        let since = |seen| history.first_after(Generation(seen)).map(|stamp| stamp.0);
        assert_eq!(since(0), Some(50), "at least so long");
        assert_eq!([since(4), since(5), since(6)], [Some(50), Some(60), Some(70)]);
        assert_eq!([since(7), since(8)], [None, None]);
    }

    #[test]
    fn an_older_generation_has_the_changes_until_it() {
        let history = History::starting(point(5))
            .followed_by(step(6, vec![change(1)]))
            .followed_by(step(7, vec![change(2)]));
        assert_eq!(ids(&history.until(point(6)), point(5)), Some(vec![1]));
        assert_eq!(ids(&history.until(point(6)), point(7)), None);
        assert_eq!(ids(&history.until(point(5)), point(5)), Some(vec![]));
        assert_eq!(ids(&history.until(point(3)), point(5)), None, "older than it remembers");
        assert_eq!(ids(&history.until(point(3)), point(3)), Some(vec![]));
    }

    /// A store that was restored from a backup and then written.
    #[test]
    fn a_generation_of_another_life_is_not_known() {
        let history = History::starting(point(5)).followed_by(step(6, vec![change(1)]));
        for generation in [5, 6] {
            let other = Point { stamp: Stamp(1), ..point(generation) };
            assert_eq!(ids(&history, other), None);
        }
    }

    #[test]
    fn the_oldest_generations_are_forgotten() {
        let mut history = History::starting(point(0));
        for generation in 1..=MAX_STEPS as u64 + 10 {
            history = history.followed_by(step(generation, vec![change(generation)]));
        }
        assert_eq!(ids(&history, point(9)), None);
        assert_eq!(ids(&history, point(10)).unwrap().len(), MAX_STEPS);
        let weights: Vec<_> = (0..300).rev().map(|at| (Generation(at), 1)).collect();
        assert_eq!(kept(&weights), MAX_STEPS, "as a store does it");
    }

    #[test]
    fn a_change_that_is_too_large_to_remember_is_not_remembered() {
        let first = History::starting(point(0)).followed_by(step(1, vec![change(1)]));
        let large: Vec<Change> = (0..=MAX_WEIGHT as u64).map(change).collect();
        let history = first.followed_by(step(2, large));
        assert_eq!(ids(&history, point(1)), None);
        assert_eq!(ids(&history, point(2)), Some(vec![]));
        let history = history.followed_by(step(3, vec![change(1)]));
        assert_eq!(ids(&history, point(2)), Some(vec![1]));
        let weights = |of_second| [(Generation(3), 1), (Generation(2), of_second)];
        assert_eq!(kept(&weights(MAX_WEIGHT + 1)), 1, "as a store does it");
        assert_eq!(kept(&weights(MAX_WEIGHT - 1)), 2);
    }
}
