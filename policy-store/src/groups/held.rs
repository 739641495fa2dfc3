//! Changes of what cells get: freezes, and steps of a roll-out.
//!
//! Both are part of the [`State`]: they are serialized with each other and with Replaces, on all
//! instances that share a database.

use std::sync::Arc;

use jiff::Timestamp;
use model::generation::Point;

use super::{
    archive::{OperatorDecision, action},
    decide::{Held, State},
    in_milliseconds,
    rollout::{Plan, Rollout},
};

/// A change of what cells get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// Cells keep the generation that they have. While frozen: replaces reason and end.
    Freeze {
        /// Why.
        reason: Box<str>,
        /// Who.
        by: Box<str>,
        /// Current time.
        at: Timestamp,
        /// End.
        until: Option<Timestamp>,
    },
    /// Cells get the newest generation.
    Unfreeze {
        /// Why.
        reason: Box<str>,
        /// Who.
        by: Box<str>,
        /// Current time.
        at: Timestamp,
    },
    /// Ends a freeze whose time has passed.
    Expire {
        /// Current time.
        at: Timestamp,
    },
    /// The roll-out goes on to the step after `step` (from 0).
    NextStep {
        /// Generation that is rolled out.
        target: Point,
        /// Its current step.
        step: usize,
        /// Current time.
        at: Timestamp,
    },
    /// The roll-out stops at `step` (from 0).
    StopRollout {
        /// Generation that is rolled out.
        target: Point,
        /// Its current step.
        step: usize,
        /// Why.
        reason: Box<str>,
        /// Current time.
        at: Timestamp,
    },
    /// All cells get the newest generation, whatever the roll-out found.
    FinishRollout {
        /// Why.
        reason: Box<str>,
        /// Who.
        by: Box<str>,
        /// Current time.
        at: Timestamp,
    },
}

/// A change, with the steps of a roll-out that begins with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The change.
    pub change: Hold,
    /// Steps; absent: generations are not rolled out in steps.
    pub plan: Option<Arc<Plan>>,
}

/// Without steps.
impl From<Hold> for Order {
    fn from(change: Hold) -> Self {
        Self { change, plan: None }
    }
}

/// The state after a change, and the entry of the history. `None`: nothing changes. A store without
/// a complete set cannot be frozen, and the roll-out of frozen cells stays where it is.
#[must_use]
pub fn hold(state: &State, Order { change, plan }: &Order) -> Option<(State, OperatorDecision)> {
    match change {
        Hold::Freeze { .. } | Hold::Unfreeze { .. } | Hold::Expire { .. } => {
            freeze(state, change, plan.as_ref())
        }
        Hold::NextStep { .. } | Hold::StopRollout { .. } | Hold::FinishRollout { .. } => {
            roll_out(state, change, plan.as_ref())
        }
    }
}

fn decision(
    state: &State,
    action: &str,
    (by, reason): (&str, &str),
    at: Timestamp,
) -> OperatorDecision {
    let (action, by, reason) = (action.into(), by.into(), reason.into());
    OperatorDecision { at, action, by, reason, generation: state.generation }
}

fn freeze(
    state: &State,
    change: &Hold,
    plan: Option<&Arc<Plan>>,
) -> Option<(State, OperatorDecision)> {
    let freed = |held: &Held, at| {
        // What was stored meanwhile is rolled out; a roll-out that was paused repeats its step.
        let rollout = match &state.rollout {
            Some(paused) => Some(Rollout { since: in_milliseconds(at), ..paused.clone() }),
            None => Rollout::begin((held.point, state.point()), plan, at),
        };
        State { held: None, rollout, ..state.clone() }
    };
    match (change, &state.held) {
        (Hold::Freeze { reason, by, at, until }, before) if state.is_whole() => {
            let base = state.rollout.as_ref().map_or(state.point(), |rollout| rollout.base);
            let (point, since) = match before {
                Some(held) => (held.point, held.since),
                None => (base, in_milliseconds(*at)),
            };
            let until = until.map(in_milliseconds);
            let held = Held { point, reason: reason.clone(), by: by.clone(), since, until };
            let frozen = State { held: Some(held), ..state.clone() };
            Some((frozen, decision(state, action::FREEZE, (by, reason), *at)))
        }
        (Hold::Unfreeze { reason, by, at }, Some(held)) => {
            Some((freed(held, *at), decision(state, action::UNFREEZE, (by, reason), *at)))
        }
        (Hold::Expire { at }, Some(held)) if held.until.is_some_and(|until| until <= *at) => {
            let why = ("", "the end of the freeze");
            Some((freed(held, *at), decision(state, action::UNFREEZE, why, *at)))
        }
        _ => None,
    }
}

fn roll_out(
    state: &State,
    change: &Hold,
    plan: Option<&Arc<Plan>>,
) -> Option<(State, OperatorDecision)> {
    let current = state.rollout.as_ref().filter(|_| state.held.is_none())?;
    // Another instance was first otherwise.
    let is_at = |target: &Point, step: &usize| {
        current.target == *target && current.step == *step && current.stopped.is_none()
    };
    let with = |rollout| State { rollout, ..state.clone() };
    let (rollout, decision) = match change {
        Hold::NextStep { target, step, at } if is_at(target, step) => {
            let reached = match step + 1 {
                next if next < current.plan.steps() => {
                    format!("step {} of {}", next + 1, current.plan.steps())
                }
                _ => "all cells".to_owned(),
            };
            let reason = format!("generation {}: {reached}", target.generation.0);
            let entry = decision(state, action::ROLLOUT_STEP, ("", &reason), *at);
            (current.next(state.point(), plan, *at), entry)
        }
        Hold::StopRollout { target, step, reason, at } if is_at(target, step) => {
            let stopped = Rollout { stopped: Some(reason.clone()), ..current.clone() };
            let reason = format!("generation {}: {reason}", target.generation.0);
            let entry = decision(state, action::ROLLOUT_STOPPED, ("", &reason), *at);
            (Some(stopped), entry)
        }
        Hold::FinishRollout { reason, by, at } => {
            (None, decision(state, action::ROLLOUT_FINISHED, (by, reason), *at))
        }
        _ => return None,
    };
    Some((with(rollout), decision))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::generation::{Generation, Stamp};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn freeze(reason: &str, second: i64, until: Option<i64>) -> Order {
        let until = until.map(at);
        Hold::Freeze { reason: reason.into(), by: "cn=ann".into(), at: at(second), until }.into()
    }

    fn state(generation: u64, held: Option<Held>) -> State {
        let synced_at = Some(at(0));
        State {
            generation: Generation(generation),
            stamp: Stamp(7),
            synced_at,
            held,
            ..State::default()
        }
    }

    #[test]
    fn a_second_freeze_keeps_the_generation() {
        let (first, entry) = hold(&state(4, None), &freeze("release", 1, Some(9))).unwrap();
        let held = first.held.clone().unwrap();
        assert_eq!((held.point.generation, held.since), (Generation(4), at(1)));
        assert_eq!((&*entry.action, entry.generation), ("freeze", Generation(4)));
        let later = State { generation: Generation(6), ..first };
        let (second, entry) = hold(&later, &freeze("longer", 2, None)).unwrap();
        let held = second.held.unwrap();
        assert_eq!((held.point.generation, held.since, held.until), (Generation(4), at(1), None));
        assert_eq!((&*held.reason, entry.generation), ("longer", Generation(6)));
    }

    #[test]
    fn a_freeze_ends_by_request_or_by_its_end() {
        let (frozen, _) = hold(&state(4, None), &freeze("release", 1, Some(9))).unwrap();
        assert_eq!(hold(&frozen, &Hold::Expire { at: at(8) }.into()), None);
        let (after, entry) = hold(&frozen, &Hold::Expire { at: at(9) }.into()).unwrap();
        assert_eq!((after, &*entry.action, &*entry.by), (state(4, None), "unfreeze", ""));
        let unfreeze = Hold::Unfreeze { reason: "done".into(), by: "cn=bob".into(), at: at(3) };
        let unfreeze = Order::from(unfreeze);
        let (after, entry) = hold(&frozen, &unfreeze).unwrap();
        assert_eq!((after, &*entry.by), (state(4, None), "cn=bob"));
        assert_eq!(hold(&state(4, None), &unfreeze), None);
        let (endless, _) = hold(&state(4, None), &freeze("release", 1, None)).unwrap();
        assert_eq!(hold(&endless, &Hold::Expire { at: at(99) }.into()), None);
        assert_eq!(hold(&State::default(), &freeze("too early", 1, None)), None);
    }

    fn plan() -> Option<Arc<Plan>> {
        Some(Arc::new(Plan {
            canary_cells: ["canary".into()].into(),
            percent_steps: [50].into(),
            pause: Duration::from_secs(30),
            max_failing_percent: 0,
        }))
    }

    #[test]
    fn a_step_is_taken_once_and_by_nobody_while_frozen() {
        let point = |generation| Point { generation: Generation(generation), stamp: Stamp(7) };
        let rollout = Rollout::begin((point(3), point(4)), plan().as_ref(), at(1));
        let before = State { rollout, ..state(4, None) };
        let next = |step, second| Order {
            change: Hold::NextStep { target: point(4), step, at: at(second) },
            plan: plan(),
        };
        let (second, entry) = hold(&before, &next(0, 40)).unwrap();
        assert_eq!(&*entry.reason, "generation 4: step 2 of 2");
        assert_eq!(hold(&second, &next(0, 41)), None, "two instances");
        let (frozen, _) = hold(&second, &freeze("release", 50, None)).unwrap();
        assert_eq!(frozen.held.as_ref().unwrap().point, point(3), "what most cells have");
        assert_eq!(hold(&frozen, &next(1, 90)), None);
        let unfreeze = Hold::Unfreeze { reason: "".into(), by: "cn=ann".into(), at: at(100) };
        let (free, _) = hold(&frozen, &Order { change: unfreeze, plan: plan() }).unwrap();
        assert_eq!(free.rollout.as_ref().unwrap().since, at(100), "the whole step again");
        let (done, entry) = hold(&free, &next(1, 140)).unwrap();
        assert_eq!((done.rollout, &*entry.reason), (None, "generation 4: all cells"));
    }

    #[test]
    fn a_stopped_rollout_goes_on_only_by_request() {
        let point = |generation| Point { generation: Generation(generation), stamp: Stamp(7) };
        let rollout = Rollout::begin((point(3), point(4)), plan().as_ref(), at(1));
        let before = State { rollout, ..state(4, None) };
        let (target, reason) = (point(4), "a rule is isolated".into());
        let stop = Hold::StopRollout { target, step: 0, reason, at: at(2) };
        let (stopped, entry) = hold(&before, &stop.clone().into()).unwrap();
        assert_eq!(&*entry.reason, "generation 4: a rule is isolated");
        assert_eq!(hold(&stopped, &stop.into()), None);
        assert_eq!(hold(&stopped, &Hold::NextStep { target, step: 0, at: at(9) }.into()), None);
        let finish =
            Hold::FinishRollout { reason: "harmless".into(), by: "cn=ann".into(), at: at(9) };
        let (after, entry) = hold(&stopped, &finish.clone().into()).unwrap();
        assert_eq!((after, &*entry.by), (state(4, None), "cn=ann"));
        assert_eq!(hold(&state(4, None), &finish.into()), None);
    }

    #[test]
    fn what_was_stored_while_frozen_is_rolled_out() {
        let (frozen, _) = hold(&state(4, None), &freeze("release", 1, Some(9))).unwrap();
        let later = State { generation: Generation(6), ..frozen };
        let expire = Order { change: Hold::Expire { at: at(9) }, plan: plan() };
        let (after, _) = hold(&later, &expire).unwrap();
        let rollout = after.rollout.unwrap();
        assert_eq!(
            (rollout.base.generation, rollout.target.generation),
            (Generation(4), Generation(6))
        );
    }
}
