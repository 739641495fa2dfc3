//! Finds the rules and containers that the kernel refuses.
//!
//! A pure search over units, which are single rules and single containers: it proposes
//! units to try together, and receives whether the kernel accepts them. Bisection finds
//! each culprit in about log2(n) trials, also with several culprits, and proves that
//! all other units are accepted together.

use std::collections::BTreeSet;

use model::ids::{ContainerHandle, GroupGuid};

/// The smallest thing that can be left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// A rule of a group, by index.
    Rule(GroupGuid, usize),
    /// A container.
    Container(ContainerHandle),
}

/// The result of the search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Without these units, each with the kernel's reason, everything is accepted.
    Culprits(Vec<(Unit, String)>),
    /// Even an empty ruleset is refused, so no unit is to blame.
    NoUnit(String),
}

/// The state of a search.
#[derive(Debug)]
pub struct Search {
    fine: Vec<Unit>,
    /// Untried units, the last chunk first. The first trial has no units.
    chunks: Vec<Vec<Unit>>,
    culprits: Vec<(Unit, String)>,
    no_unit: Option<String>,
}

impl Search {
    /// A new search.
    #[must_use]
    pub fn new(units: Vec<Unit>) -> Self {
        Self {
            fine: Vec::new(),
            chunks: vec![units, Vec::new()],
            culprits: Vec::new(),
            no_unit: None,
        }
    }

    /// The units to try together, without all others; `None` at the end.
    #[must_use]
    pub fn trial(&self) -> Option<BTreeSet<&Unit>> {
        let chunk = self.chunks.last()?;
        Some(self.fine.iter().chain(chunk).collect())
    }

    /// Records the result of the trial.
    pub fn answer(&mut self, outcome: Result<(), String>) {
        let Some(mut chunk) = self.chunks.pop() else { return };
        match (outcome, chunk.len()) {
            (Ok(()), _) => self.fine.append(&mut chunk),
            (Err(reason), 0) => {
                self.no_unit = Some(reason);
                self.chunks.clear();
            }
            (Err(reason), 1) => {
                self.culprits.extend(chunk.pop().map(|culprit| (culprit, reason)));
            }
            (Err(_), length) => {
                let second = chunk.split_off(length / 2);
                self.chunks.push(second);
                self.chunks.push(chunk);
            }
        }
    }

    /// The result.
    #[must_use]
    pub fn finding(self) -> Finding {
        match self.no_unit {
            Some(reason) => Finding::NoUnit(reason),
            None => Finding::Culprits(self.culprits),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unit(index: usize) -> Unit {
        Unit::Rule(GroupGuid::parse("g").unwrap(), index)
    }

    fn search(count: usize, refuses: impl Fn(&BTreeSet<&Unit>) -> bool) -> (Finding, usize) {
        let mut search = Search::new((0..count).map(unit).collect());
        let mut trials = 0;
        while let Some(trial) = search.trial() {
            let outcome = if refuses(&trial) { Err("no".to_owned()) } else { Ok(()) };
            search.answer(outcome);
            trials += 1;
        }
        (search.finding(), trials)
    }

    proptest! {
        #[test]
        fn exactly_the_culprits_are_found(
            count in 1_usize..200,
            culprits in proptest::collection::btree_set(0_usize..200, 0..4),
        ) {
            let culprits: BTreeSet<Unit> = culprits.into_iter().filter(|c| *c < count).map(unit).collect();
            let (finding, trials) = search(count, |trial| trial.iter().any(|unit| culprits.contains(unit)));
            let Finding::Culprits(found) = finding else { panic!("{finding:?}") };
            let found: BTreeSet<Unit> = found.into_iter().map(|(unit, _)| unit).collect();
            prop_assert!(trials <= 2 + culprits.len() * 18, "{} trials", trials);
            prop_assert_eq!(found, culprits);
        }

        /// Two units that only conflict with each other: one is removed, the other
        /// stays.
        #[test]
        fn of_a_clash_one_side_is_left(a in 0_usize..50, b in 50_usize..100) {
            let (a, b) = (unit(a), unit(b));
            let (finding, _) = search(100, |trial| trial.contains(&a) && trial.contains(&b));
            let Finding::Culprits(found) = finding else { panic!("{finding:?}") };
            prop_assert_eq!(found.len(), 1);
            prop_assert!(found[0].0 == a || found[0].0 == b);
        }
    }

    #[test]
    fn when_nothing_is_taken_no_unit_is_blamed() {
        let (finding, trials) = search(9, |_| true);
        assert_eq!((finding, trials), (Finding::NoUnit("no".to_owned()), 1));
    }
}
