//! Laws 3 and 4: what the policy store accepts, and progress that never goes back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use super::Violation;
use crate::history::{Entry, Event, Group, Moment, Outcome, StoreState, Version};

/// When a content was first seen, and the versions in it.
type Seen<'a> = (Moment, &'a [(Group, Version)]);

pub(super) fn check(history: &[Entry]) -> Vec<Violation> {
    let mut violations = old_writers(history);
    violations.extend(contents(history));
    violations.extend(progress(history));
    violations
}

/// Law 3: a Replace is refused if a store had seen a newer token before it was sent.
fn old_writers(history: &[Entry]) -> Vec<Violation> {
    // Tokens by the time from which they are known.
    let known = history.iter().filter_map(|entry| match &entry.event {
        Event::Store(StoreState { token, .. })
        | Event::Write { token, outcome: Outcome::Confirmed, .. } => Some((entry.at, *token)),
        _ => None,
    });
    let mut known = known.peekable();
    let mut newest = 0;
    let mut writes: Vec<(Moment, Moment, u64, &str)> = history
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::Write { store, token, sent, outcome: Outcome::Confirmed } => {
                Some((*sent, entry.at, *token, store.as_str()))
            }
            _ => None,
        })
        .collect();
    writes.sort_unstable();
    let mut violations = Vec::new();
    for (sent, at, token, store) in writes {
        while let Some((_, seen)) = known.next_if(|(at, _)| *at <= sent) {
            newest = newest.max(seen);
        }
        if token < newest {
            let what = format!("{store} accepted token {token} after {newest}");
            violations.push(Violation { law: 3, at, what });
        }
    }
    violations
}

/// Law 3: a later generation has no older version of a group. Law 4: a generation has one
/// content.
fn contents(history: &[Entry]) -> Vec<Violation> {
    let mut by_generation: BTreeMap<u64, Seen<'_>> = BTreeMap::new();
    let mut violations = Vec::new();
    for entry in history {
        let Event::Content { watcher, generation, versions } = &entry.event else { continue };
        match by_generation.entry(*generation) {
            Slot::Vacant(slot) => {
                slot.insert((entry.at, versions));
            }
            Slot::Occupied(slot) if slot.get().1 != versions.as_slice() => {
                let what = format!("{watcher} has another content of generation {generation}");
                violations.push(Violation { law: 4, at: entry.at, what });
            }
            Slot::Occupied(_same) => {}
        }
    }
    let mut newest: BTreeMap<Group, Version> = BTreeMap::new();
    for (generation, (at, versions)) in by_generation {
        for (group, version) in versions {
            let last = newest.entry(*group).or_insert(*version);
            if version < last {
                let what = format!(
                    "generation {generation} has version {version} of group {group} after {last}"
                );
                violations.push(Violation { law: 3, at, what });
            }
            *last = (*last).max(*version);
        }
    }
    violations
}

/// Law 4: what one store or one cell says does not go back.
fn progress(history: &[Entry]) -> Vec<Violation> {
    let mut stores: BTreeMap<&str, (Moment, &StoreState)> = BTreeMap::new();
    let mut cells: BTreeMap<&str, (Moment, u64)> = BTreeMap::new();
    let mut violations = Vec::new();
    let mut back = |at, who: &str, what: &str, from: i128, to: i128| {
        if to < from {
            let what = format!("{what} of {who} goes back from {from} to {to}");
            violations.push(Violation { law: 4, at, what });
        }
    };
    for entry in history {
        match &entry.event {
            Event::Store(state) => {
                let StoreState { store, sent, generation, token, watermark } = state;
                if let Some((at, last)) = stores.get(store.as_str())
                    && at <= sent
                {
                    let pairs = [
                        ("generation", last.generation.into(), i128::from(*generation)),
                        ("token", last.token.into(), i128::from(*token)),
                        ("watermark", last.watermark.into(), i128::from(*watermark)),
                    ];
                    for (what, from, to) in pairs {
                        back(entry.at, store, what, from, to);
                    }
                }
                stores.insert(store, (entry.at, state));
            }
            Event::Cell { cell, sent, generation, isolated: _ } => {
                if let Some((at, last)) = cells.get(cell.as_str())
                    && at <= sent
                {
                    back(
                        entry.at,
                        cell,
                        "enforced generation",
                        (*last).into(),
                        (*generation).into(),
                    );
                }
                cells.insert(cell, (entry.at, *generation));
            }
            _ => {}
        }
    }
    violations
}
