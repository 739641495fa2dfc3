//! Valid histories pass; each of ten planted violations, one for each law, is found.

#![expect(clippy::ptr_arg, reason = "all plants have one type")]

use chaos::check::check;
use chaos::history::{
    Claim, Claimed, Entry, Event, Fate, Goal, Moment, Outcome, Phase, line, parse,
};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use crate::model::{CELLS, KEYS, history};

/// Changes a valid history so that it contradicts one law.
type Plant = fn(&mut Vec<Entry>);

/// The violations, each with its law.
const PLANTED: [(u8, &str, Plant); 10] = [
    (1, "a second owner during a lease", second_owner),
    (2, "a new owner with the token of the last one", same_token),
    (3, "an accepted Replace with an old token", old_writer),
    (4, "a generation that goes back", generation_back),
    (5, "an allowed packet dropped during a fault", dropped_during_fault),
    (6, "a bad group that a cell does not report", unreported_bad_group),
    (7, "a denied packet passes before the container is ready", early_packet),
    (8, "a packet that contradicts the old and the new version", mixed),
    (9, "a cell that never gets the last change", never_settled),
    (10, "a process that ends by itself", ended),
];

fn laws(history: &[Entry]) -> Vec<u8> {
    check(history).expect("a begin").into_iter().map(|violation| violation.law).collect()
}

/// The first entry that fits, changed by the function.
fn change(history: &mut [Entry], what: &str, mut change: impl FnMut(&mut Entry) -> bool) {
    assert!(history.iter_mut().any(&mut change), "the history has no {what}");
}

fn second_owner(history: &mut Vec<Entry>) {
    let fits = |entry: &Entry| match &entry.event {
        Event::Claim(claim) => matches!(claim.outcome, Claimed::Granted(_)),
        _ => false,
    };
    let place = history.iter().position(fits).expect("a granted claim");
    let Event::Claim(claim) = history[place].event.clone() else { unreachable!() };
    let at = history[place].at;
    let (sent, later) = (Moment(at.0 + 1), Moment(at.0 + 2));
    let owner = "intruder".to_owned();
    let claim = Claim { owner, sent, outcome: Claimed::Granted(1_000), ..claim };
    history.insert(place + 1, Entry { at: later, event: Event::Claim(claim) });
}

fn same_token(history: &mut Vec<Entry>) {
    change(history, "second token", |entry| match &mut entry.event {
        Event::Claim(claim) if claim.key == KEYS[0] && claim.outcome == Claimed::Granted(2) => {
            claim.outcome = Claimed::Granted(1);
            true
        }
        _ => false,
    });
}

fn old_writer(history: &mut Vec<Entry>) {
    change(history, "refused write", |entry| match &mut entry.event {
        Event::Write { outcome, .. } => {
            *outcome = Outcome::Confirmed;
            true
        }
        _ => false,
    });
}

fn generation_back(history: &mut Vec<Entry>) {
    let mut last = 0;
    change(history, "generation that is seen twice", |entry| match &mut entry.event {
        Event::Store(state) if state.generation == last && last > 0 => {
            state.generation -= 1;
            true
        }
        Event::Store(state) => {
            last = state.generation;
            false
        }
        _ => false,
    });
}

fn dropped_during_fault(history: &mut Vec<Entry>) {
    let is_begin = |entry: &Entry| matches!(entry.event, Event::Fault { begins: true, .. });
    let begin = history.iter().find(|entry| is_begin(entry)).expect("a fault").at;
    change(history, "packet during a fault", |entry| match &mut entry.event {
        Event::Packet { goal: Goal::Always, sent, fate: fate @ Fate::Passed, .. }
            if *sent > begin =>
        {
            *fate = Fate::Rejected;
            true
        }
        _ => false,
    });
}

fn unreported_bad_group(history: &mut Vec<Entry>) {
    for entry in history {
        if let Event::Cell { cell, isolated, .. } = &mut entry.event
            && cell == CELLS[1]
        {
            isolated.clear();
        }
    }
}

fn early_packet(history: &mut Vec<Entry>) {
    let added = history
        .iter()
        .position(|entry| matches!(&entry.event, Event::Container { phase: Phase::Added, .. }));
    let added = added.expect("a container");
    let Event::Container { name, .. } = &history[added].event else { unreachable!() };
    let (container, at) = (name.clone(), history[added].at);
    let sent = Moment(at.0 + 1);
    let event = Event::Packet { container, goal: Goal::Never, sent, fate: Fate::Passed };
    history.insert(added + 1, Entry { at: Moment(at.0 + 2), event });
}

/// A port in the middle of the range is allowed by the versions before and after a change.
fn mixed(history: &mut Vec<Entry>) {
    let ready = history.iter().find_map(|entry| match &entry.event {
        Event::Container { name, group, phase: Phase::Ready, .. } if entry.at > Moment(0) => {
            Some((name.clone(), *group, entry.at))
        }
        _ => None,
    });
    let (container, changing, ready) = ready.expect("a container");
    // The packet is sent before the change, so that two versions are possible.
    let after = history.iter().find_map(|entry| match &entry.event {
        Event::Change { group, version, sent, .. }
            if *group == changing && *version > 2 && *sent > ready =>
        {
            Some((*version, *sent))
        }
        _ => None,
    });
    let (version, sent) = after.expect("a change");
    let goal = Goal::Port(version + 1);
    let at = Moment(sent.0 + 10);
    let sent = Moment(sent.0 - 1);
    let event = Event::Packet { container, goal, sent, fate: Fate::Rejected };
    let place = history.partition_point(|entry| entry.at <= at);
    history.insert(place, Entry { at, event });
}

fn never_settled(history: &mut Vec<Entry>) {
    let last = history.iter().rev().find_map(|entry| match &entry.event {
        Event::Content { generation, .. } => Some(*generation),
        _ => None,
    });
    let last = last.expect("a generation");
    for entry in history {
        if let Event::Cell { cell, generation, .. } = &mut entry.event
            && cell == CELLS[0]
        {
            *generation = (*generation).min(last - 1);
        }
    }
}

fn ended(history: &mut Vec<Entry>) {
    let (process, how) = ("policy-store-1".to_owned(), "exit status: 101".to_owned());
    let at = history[history.len() / 2].at;
    let event = Event::Ended { process, how, expected: false };
    history.insert(history.len() / 2, Entry { at, event });
}

#[test]
fn each_of_ten_planted_violations_is_found() {
    let planted: Vec<u8> = PLANTED.iter().map(|(law, ..)| *law).collect();
    assert_eq!(planted, (1..=10).collect::<Vec<u8>>());
    for (law, what, plant) in PLANTED {
        let mut history = history(7);
        plant(&mut history);
        let found = laws(&history);
        assert!(found.contains(&law), "law {law}, {what}: found {found:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn valid_histories_pass_and_planted_violations_do_not(seed in any::<u64>()) {
        let valid = history(seed);
        prop_assert_eq!(check(&valid).unwrap(), vec![]);
        for (law, what, plant) in PLANTED {
            let mut history = valid.clone();
            plant(&mut history);
            let found = laws(&history);
            prop_assert!(found.contains(&law), "law {}, {}: found {:?}", law, what, found);
        }
    }

    #[test]
    fn histories_are_read_as_they_are_written(seed in any::<u64>()) {
        let valid = history(seed);
        let text: String = valid.iter().map(|entry| line(entry) + "\n").collect();
        prop_assert_eq!(parse(&text).unwrap(), valid);
    }
}
