//! Staged roll-out: a generation reaches the cells in steps.
//!
//! The roll-out is part of the [`State`](super::decide::State), as a freeze is: all instances that share a database, and
//! a restarted one, give a cell the same generation. A roll-out has the plan with which it began,
//! so a changed configuration applies to the next one.
//!
//! - While a roll-out is in progress, newer generations wait; the next roll-out begins with the
//!   newest one.
//! - A stopped roll-out ends with the next generation, which goes first to the cells that already
//!   have the stopped one.
//! - A freeze pauses a roll-out.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use model::{generation::Point, ids::CellId};
use sha2::{Digest as _, Sha256};

use super::in_milliseconds;

/// Steps of roll-outs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Ids of the cells of the first step; a `*` matches any text. Empty: no such step.
    pub canary_cells: Box<[Box<str>]>,
    /// Share of the cells of each further step in percent, ascending, from 1 to 99. All cells
    /// follow after the last step.
    pub percent_steps: Box<[u8]>,
    /// Duration of a step.
    pub pause: Duration,
    /// Share of the cells of a step, in percent, that may fail without a stop.
    pub max_failing_percent: u8,
}

impl Plan {
    /// Number of steps before all cells get the generation.
    #[must_use]
    pub fn steps(&self) -> usize {
        usize::from(!self.canary_cells.is_empty()) + self.percent_steps.len()
    }

    /// Share of the cells, beside the canaries, that a step (from 0) includes, in percent.
    #[must_use]
    pub fn percent(&self, step: usize) -> u8 {
        if step >= self.steps() {
            return 100;
        }
        let canary_steps = usize::from(!self.canary_cells.is_empty());
        step.checked_sub(canary_steps).map_or(0, |index| self.percent_steps[index])
    }

    /// Whether a step (from 0) includes the cell. A step includes all cells of the steps before.
    #[must_use]
    pub fn includes(&self, step: usize, cell: &CellId) -> bool {
        self.canary_cells.iter().any(|pattern| matches(pattern, cell.as_str()))
            || percentile(cell) < u64::from(self.percent(step))
    }
}

/// Whether the pattern, with at most one `*`, matches the whole text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, end)) => {
            text.strip_prefix(start).is_some_and(|remainder| remainder.ends_with(end))
        }
    }
}

/// Position of the cell in the order in which cells get a generation, from 0 to 99. It depends on
/// the id alone, so all instances agree.
fn percentile(cell: &CellId) -> u64 {
    let hash = Sha256::digest(cell.as_str());
    u64::from(u16::from_be_bytes([hash[0], hash[1]])) % 100
}

/// A generation that some cells get, and others do not get yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// Generation of the cells that the step does not include.
    pub base: Point,
    /// Generation of the cells that it includes.
    pub target: Point,
    /// The steps.
    pub plan: Arc<Plan>,
    /// The current step, from 0.
    pub step: usize,
    /// When the step began, by the clock of the instance that stored it.
    pub since: Timestamp,
    /// Why the roll-out stopped; absent while it is in progress.
    pub stopped: Option<Box<str>>,
}

impl Rollout {
    /// Begins a roll-out with its first step. `None`: all cells get `target` at once.
    #[must_use]
    pub fn begin(
        (base, target): (Point, Point),
        plan: Option<&Arc<Plan>>,
        at: Timestamp,
    ) -> Option<Self> {
        let plan = plan.filter(|plan| plan.steps() > 0 && base != target)?;
        let (plan, since) = (Arc::clone(plan), in_milliseconds(at));
        Some(Self { base, target, plan, step: 0, since, stopped: None })
    }

    /// Whether the cell gets the target.
    #[must_use]
    pub fn includes(&self, cell: &CellId) -> bool {
        self.plan.includes(self.step, cell)
    }

    /// The roll-out after the current step; `newest` is the newest generation. `None`: all cells
    /// get the newest generation.
    #[must_use]
    pub fn next(&self, newest: Point, plan: Option<&Arc<Plan>>, at: Timestamp) -> Option<Self> {
        match self.step + 1 {
            step if step < self.plan.steps() => {
                Some(Self { step, since: in_milliseconds(at), ..self.clone() })
            }
            _ => Self::begin((self.target, newest), plan, at),
        }
    }
}

/// The roll-out after a change from one generation to the next, while cells are not frozen.
#[must_use]
pub fn after_change(
    current: Option<&Rollout>,
    (before, newest): (Point, Point),
    plan: Option<&Arc<Plan>>,
    at: Timestamp,
) -> Option<Rollout> {
    match current {
        Some(rollout) if rollout.stopped.is_none() => Some(rollout.clone()),
        Some(stopped) => {
            let again = Rollout::begin((stopped.base, newest), plan, at)?;
            let step = stopped.step.min(again.plan.steps() - 1);
            Some(Rollout { step, ..again })
        }
        None => Rollout::begin((before, newest), plan, at),
    }
}

#[cfg(test)]
mod tests {
    use model::generation::{Generation, Stamp};

    use super::*;

    fn plan(canary_cells: &[&str], percent_steps: &[u8]) -> Arc<Plan> {
        let canary_cells = canary_cells.iter().map(|&pattern| pattern.into()).collect();
        Arc::new(Plan {
            canary_cells,
            percent_steps: percent_steps.into(),
            pause: Duration::from_secs(30),
            max_failing_percent: 0,
        })
    }

    fn point(generation: u64) -> Point {
        Point { generation: Generation(generation), stamp: Stamp(7) }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn cells() -> impl Iterator<Item = CellId> {
        (0..1000).map(|index| CellId::parse(&format!("cell-{index}")).unwrap())
    }

    #[test]
    fn each_step_includes_those_before_and_about_its_share() {
        let plan = plan(&["cell-1*9", "cell-5"], &[1, 10, 50]);
        assert_eq!(
            (plan.steps(), [0, 1, 3, 4].map(|step| plan.percent(step))),
            (4, [0, 1, 50, 100])
        );
        let included = |step| cells().filter(|cell| plan.includes(step, cell)).count();
        let is_canary = |id: &str| plan.includes(0, &CellId::parse(id).unwrap());
        assert_eq!(
            ["cell-19", "cell-5", "cell-55", "cell-1"].map(is_canary),
            [true, true, false, false]
        );
        let canaries = included(0);
        assert_eq!(canaries, 12);
        assert!((70..130).contains(&(included(2) - canaries)), "{}", included(2));
        assert!((430..570).contains(&included(3)), "{}", included(3));
        assert_eq!(included(4), 1000);
        for cell in cells() {
            let steps: Vec<bool> = (0..5).map(|step| plan.includes(step, &cell)).collect();
            assert!(steps.is_sorted(), "{cell}: {steps:?}");
        }
    }

    /// Other values would give cells another generation after an upgrade of the store.
    #[test]
    fn the_order_of_cells_does_not_depend_on_the_program() {
        let order = |id: &str| percentile(&CellId::parse(id).unwrap());
        assert_eq!(["cell-1", "cell-2", "cell-3"].map(order), [74, 86, 59]);
    }

    #[test]
    fn newer_generations_wait_and_go_together() {
        let plan = plan(&["c"], &[50]);
        let first = after_change(None, (point(1), point(2)), Some(&plan), at(1)).unwrap();
        let busy = after_change(Some(&first), (point(2), point(3)), Some(&plan), at(2));
        assert_eq!(busy.as_ref(), Some(&first));
        let second = first.next(point(4), Some(&plan), at(3)).unwrap();
        assert_eq!((second.step, second.since, second.target), (1, at(3), point(2)));
        let next = second.next(point(4), Some(&plan), at(4)).unwrap();
        assert_eq!((next.base, next.target, next.step), (point(2), point(4), 0));
        assert_eq!(second.next(point(2), Some(&plan), at(4)), None, "nothing waits");
        assert_eq!(second.next(point(4), None, at(4)), None, "switched off");
    }

    #[test]
    fn the_next_generation_replaces_a_stopped_one_where_that_is() {
        let plan = plan(&["c"], &[50]);
        let first = Rollout::begin((point(1), point(2)), Some(&plan), at(1)).unwrap();
        let stopped = Rollout { step: 1, stopped: Some("isolated".into()), ..first };
        let points = (point(2), point(3));
        let again = after_change(Some(&stopped), points, Some(&plan), at(9)).unwrap();
        assert_eq!((again.base, again.target, again.step), (point(1), point(3), 1));
        assert_eq!((again.since, again.stopped), (at(9), None));
        assert_eq!(after_change(Some(&stopped), points, None, at(9)), None, "switched off");
    }
}
