//! The history of a run: every operation and observation with its time, one JSON line each.
//! Pure: the time is that of the lines.
//!
//! Entries are in the order of their end. An operation names the time at which it was sent;
//! one without a known result (timeout, broken connection) may or may not have taken effect.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Microseconds since the begin of the run, by the monotonic clock.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment that is `time` later.
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The moment that is `time` earlier, at least the begin.
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Seconds since the begin.
    pub fn seconds(self) -> f64 {
        Duration::from_micros(self.0).as_secs_f64()
    }
}

/// An event with its time; of an operation, the time of its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The time.
    pub at: Moment,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// The number of a security group that changes, from 0. Each space has one.
pub type Group = u32;

/// The version of a group's rules, from 0.
pub type Version = u32;

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The first entry.
    Begin(Begin),
    /// A call of `Lock`.
    Claim(Claim),
    /// A call of `Release`. From `sent` on, the owner does not believe to own the lock.
    Release {
        /// The lock.
        key: String,
        /// Its owner.
        owner: String,
        /// When the request was sent.
        sent: Moment,
        /// Whether the server confirmed.
        confirmed: bool,
    },
    /// An answer to `Fetch`.
    Owner {
        /// The lock.
        key: String,
        /// When the request was sent.
        sent: Moment,
        /// The owner in the answer.
        owner: Option<String>,
    },
    /// A Replace.
    Write {
        /// The policy store.
        store: String,
        /// The fencing token.
        token: u64,
        /// When the request was sent.
        sent: Moment,
        /// The result.
        outcome: Outcome,
    },
    /// The state of a policy store.
    Store(StoreState),
    /// A complete state that a watcher received.
    Content {
        /// The watcher.
        watcher: String,
        /// The generation.
        generation: u64,
        /// The version of each group.
        versions: Vec<(Group, Version)>,
    },
    /// The state of a cell agent.
    Cell {
        /// The cell.
        cell: String,
        /// When it was asked.
        sent: Moment,
        /// The generation in force.
        generation: u64,
        /// Names of the groups with isolated rules.
        isolated: Vec<String>,
    },
    /// A change of a group at the Cloud Controller.
    Change {
        /// The group.
        group: Group,
        /// The new version.
        version: Version,
        /// The first and the last number of the ports that it allows.
        ports: (u32, u32),
        /// When the request was sent.
        sent: Moment,
        /// The result.
        outcome: Outcome,
    },
    /// A container appears, starts or ends.
    Container {
        /// Its name, never used again.
        name: String,
        /// Its cell.
        cell: String,
        /// The group of its space.
        group: Group,
        /// The step.
        phase: Phase,
    },
    /// A packet; the time of the entry is that of the answer or of the timeout.
    Packet {
        /// The sender.
        container: String,
        /// The destination.
        goal: Goal,
        /// When it was sent.
        sent: Moment,
        /// What became of it.
        fate: Fate,
    },
    /// A fault begins or ends.
    Fault {
        /// Distinguishes the faults.
        number: u32,
        /// The fault, for people.
        what: String,
        /// Whether it begins.
        begins: bool,
        /// The cell whose rules somebody else removes: its packets are not judged until the
        /// agent has had time to restore them.
        flushed: Option<String>,
    },
    /// A process ended.
    Ended {
        /// The process.
        process: String,
        /// How it ended.
        how: String,
        /// Whether a fault of the run ended it, or may have.
        expected: bool,
    },
    /// The times of the schedule count from here.
    Trouble,
    /// All faults and changes are over.
    Calm,
    /// The last entry.
    End,
}

/// The parameters of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// The seed of the schedule.
    pub seed: u64,
    /// SQLite, PostgreSQL or MariaDB.
    pub backend: String,
    /// The data plane.
    pub plane: String,
    /// The cells.
    pub cells: Vec<String>,
    /// The name of the group with a rule that cells cannot enforce.
    pub bad_group: Option<String>,
    /// Whether a failover of the database can lose acknowledged commits.
    #[serde(default)]
    pub loses_commits: bool,
    /// The stated bounds.
    pub bounds: Bounds,
}

/// The bounds of a run, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// After the end of the last fault, all parts work within this time.
    pub recovery: u64,
    /// Without faults, a change is in force within this time.
    pub change: u64,
    /// An agent restores its rules in the kernel within this time.
    pub heal: u64,
    /// A change with an unknown result can take effect until this time after the result of
    /// the next change.
    pub late: u64,
}

impl Bounds {
    pub(crate) fn recovery(self) -> Duration {
        Duration::from_micros(self.recovery)
    }

    pub(crate) fn change(self) -> Duration {
        Duration::from_micros(self.change)
    }

    pub(crate) fn heal(self) -> Duration {
        Duration::from_micros(self.heal)
    }

    pub(crate) fn late(self) -> Duration {
        Duration::from_micros(self.late)
    }
}

/// A call of `Lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The lock.
    pub key: String,
    /// The owner.
    pub owner: String,
    /// When the request was sent.
    pub sent: Moment,
    /// The time to live, in microseconds.
    pub ttl: u64,
    /// The result.
    pub outcome: Claimed,
}

/// The result of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claimed {
    /// The owner has the lock, with this fencing token.
    Granted(u64),
    /// Another owner has it.
    Refused,
    /// No answer, or an error that says nothing about the owner.
    Unknown,
}

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It took effect.
    Confirmed,
    /// It has no effect.
    Refused,
    /// It has an effect, has none, or will have one.
    Unknown,
}

/// The state of a policy store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreState {
    /// The store.
    pub store: String,
    /// When it was asked.
    pub sent: Moment,
    /// The newest generation.
    pub generation: u64,
    /// The fencing token of the last writer.
    pub token: u64,
    /// The Cloud Controller's stamp, in seconds.
    pub watermark: i64,
}

/// The steps of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It has an address.
    Added,
    /// The agent has confirmed its rules.
    Ready,
    /// It is about to be removed.
    Gone,
}

/// The destination of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Allowed for all containers at all times.
    Always,
    /// Never allowed.
    Never,
    /// The port of that number, at the destination of the container's group.
    Port(u32),
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It arrived, and an answer came back.
    Passed,
    /// An ICMP error came back.
    Rejected,
    /// Neither.
    Silent,
}

/// The line of an entry, without the end of the line.
pub fn line(entry: &Entry) -> String {
    serde_json::to_string(entry).expect("an entry has no map and no foreign type")
}

/// The entries of a history, in the order of their end.
///
/// # Errors
/// The number of the first line that is no entry, with the reason. A last line without an end
/// is ignored: the writer was killed.
pub fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(whole.lines()) {
        let entry = serde_json::from_str(line).map_err(|why| format!("line {number}: {why}"))?;
        entries.push(entry);
    }
    entries.sort_by_key(|entry: &Entry| entry.at);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let at = Moment(7);
        let owner = || "a".to_owned();
        let events = [
            Event::Claim(Claim {
                key: "k".to_owned(),
                owner: owner(),
                sent: Moment(3),
                ttl: 5,
                outcome: Claimed::Granted(9),
            }),
            Event::Content { watcher: owner(), generation: 4, versions: vec![(0, 1), (1, 2)] },
            Event::Packet {
                container: owner(),
                goal: Goal::Port(3),
                sent: Moment(6),
                fate: Fate::Passed,
            },
            Event::Calm,
        ];
        events.into_iter().map(|event| Entry { at, event }).collect()
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        let text: String = entries().iter().map(|entry| line(entry) + "\n").collect();
        assert_eq!(parse(&text), Ok(entries()));
        assert_eq!(text.lines().last(), Some(r#"{"at":7,"event":"calm"}"#));
    }

    #[test]
    fn a_torn_last_line_is_ignored_and_another_one_is_an_error() {
        let text = line(&entries()[0]) + "\n" + r#"{"at":7,"eve"#;
        assert_eq!(parse(&text).unwrap().len(), 1);
        let error = parse("{}\n").unwrap_err();
        assert!(error.starts_with("line 1: "), "{error}");
    }
}
