//! Judges a history: which laws of docs/architecture.md it contradicts. Pure.
//!
//! | law | judged | not judged |
//! |---|---|---|
//! | 1 | two owners at a time, a lock refused or unknown to its owner before its end | |
//! | 2 | fencing tokens that do not rise with the owner, or are given twice | |
//! | 3 | a Replace with an older token than seen; a generation with older content than an earlier one | a writer without a token |
//! | 4 | generation, token, watermark and "enforced" that go back; packets that contradict the generation that a cell reported as enforced | the watermark against the content |
//! | 5 | packets during a fault that contradict every version of the group that can be in force | rules of fields other than the port |
//! | 6 | a cell that does not report the bad group, or reports another; without faults, packets that contradict the one version in force | |
//! | 7 | a denied packet that passes before the agent has confirmed the container's rules | the frames before the container has an address |
//! | 8 | during a change, packets that contradict all versions of the group | a mix that no packet met |
//! | 9 | changes that are not in force within the bounds, and cells that differ after the end of all faults | changes during faults |
//! | 10 | a process that ends by itself | a task that ends without its process |

mod locks;
mod packets;
mod store;
mod versions;

use std::collections::BTreeMap;

use crate::history::{Begin, Entry, Event, Moment};

/// An entry that contradicts a law.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The number of the law.
    pub law: u8,
    /// The time of the entry.
    pub at: Moment,
    /// The contradiction.
    pub what: String,
}

/// Numbers of entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// By kind of entry.
    pub kinds: BTreeMap<&'static str, usize>,
}

/// All violations, in the order of their time.
///
/// # Errors
/// The history does not begin with its parameters.
pub fn check(history: &[Entry]) -> Result<Vec<Violation>, String> {
    let begin = begin(history)?;
    let mut violations = locks::check(history);
    violations.extend(store::check(history));
    violations.extend(packets::check(history, begin));
    violations.extend(history.iter().filter_map(ended));
    violations.sort_by_key(|violation| violation.at);
    Ok(violations)
}

/// The parameters of the run.
///
/// # Errors
/// The history does not begin with them.
pub fn begin(history: &[Entry]) -> Result<&Begin, String> {
    match history.first() {
        Some(Entry { event: Event::Begin(begin), .. }) => Ok(begin),
        _ => Err("the history has no begin".to_owned()),
    }
}

/// Counts the entries.
pub fn count(history: &[Entry]) -> Counts {
    let mut counts = Counts::default();
    for entry in history {
        *counts.kinds.entry(kind(&entry.event)).or_default() += 1;
    }
    counts
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Begin(_) | Event::Trouble | Event::Calm | Event::End => "marks",
        Event::Claim(_) => "lock claims",
        Event::Release { .. } => "lock releases",
        Event::Owner { .. } => "lock observations",
        Event::Write { .. } => "writes with an old token",
        Event::Store(_) => "store observations",
        Event::Content { .. } => "watched generations",
        Event::Cell { .. } => "cell observations",
        Event::Change { .. } => "changes",
        Event::Container { .. } => "steps of containers",
        Event::Packet { .. } => "packets",
        Event::Fault { begins: true, .. } => "faults",
        Event::Fault { begins: false, .. } => "ends of faults",
        Event::Ended { .. } => "ends of processes",
    }
}

/// Law 10.
fn ended(entry: &Entry) -> Option<Violation> {
    match &entry.event {
        Event::Ended { process, how, expected: false } => {
            let what = format!("{process} ended by itself: {how}");
            Some(Violation { law: 10, at: entry.at, what })
        }
        _ => None,
    }
}
