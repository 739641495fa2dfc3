//! Freeze: cells keep a generation while newer ones are stored.
//!
//! The freeze is part of the [`State`]: a Replace and a freeze are serialized with each other, on
//! all instances that share a database.

use jiff::Timestamp;

use super::{
    archive::{OperatorDecision, action},
    decide::{Held, State, in_milliseconds},
};

/// A change of the freeze.
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
}

/// The state after a change of the freeze, and the entry of the history. `None`: nothing changes; a
/// store without a complete set cannot be frozen.
#[must_use]
pub fn hold(state: &State, change: &Hold) -> Option<(State, OperatorDecision)> {
    let decision = |action: &str, by: &str, reason: &str, at| OperatorDecision {
        at,
        action: action.into(),
        by: by.into(),
        reason: reason.into(),
        generation: state.generation,
    };
    if !state.is_whole() && matches!(change, Hold::Freeze { .. }) {
        return None;
    }
    let with = |held| State { held, ..state.clone() };
    match (change, &state.held) {
        (Hold::Freeze { reason, by, at, until }, before) => {
            let (point, since) = match before {
                Some(held) => (held.point, held.since),
                None => (state.point(), in_milliseconds(*at)),
            };
            let until = until.map(in_milliseconds);
            let held = Held { point, reason: reason.clone(), by: by.clone(), since, until };
            Some((with(Some(held)), decision(action::FREEZE, by, reason, *at)))
        }
        (Hold::Unfreeze { reason, by, at }, Some(_)) => {
            Some((with(None), decision(action::UNFREEZE, by, reason, *at)))
        }
        (Hold::Expire { at }, Some(Held { until: Some(until), .. })) if until <= at => {
            Some((with(None), decision(action::UNFREEZE, "", "the end of the freeze", *at)))
        }
        (Hold::Unfreeze { .. } | Hold::Expire { .. }, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use model::generation::{Generation, Stamp};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn freeze(reason: &str, second: i64, until: Option<i64>) -> Hold {
        let until = until.map(at);
        Hold::Freeze { reason: reason.into(), by: "cn=ann".into(), at: at(second), until }
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
        assert_eq!(hold(&frozen, &Hold::Expire { at: at(8) }), None);
        let (after, entry) = hold(&frozen, &Hold::Expire { at: at(9) }).unwrap();
        assert_eq!((after, &*entry.action, &*entry.by), (state(4, None), "unfreeze", ""));
        let unfreeze = Hold::Unfreeze { reason: "done".into(), by: "cn=bob".into(), at: at(3) };
        let (after, entry) = hold(&frozen, &unfreeze).unwrap();
        assert_eq!((after, &*entry.by), (state(4, None), "cn=bob"));
        assert_eq!(hold(&state(4, None), &unfreeze), None);
        let (endless, _) = hold(&state(4, None), &freeze("release", 1, None)).unwrap();
        assert_eq!(hold(&endless, &Hold::Expire { at: at(99) }), None);
        assert_eq!(hold(&State::default(), &freeze("too early", 1, None)), None);
    }
}
