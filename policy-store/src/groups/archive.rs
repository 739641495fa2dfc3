//! History of the generations, as stores keep it (ADR 0037). Operators read it, and from the
//! newest set it leads back to an older one ([`Snapshot::undone`]).
//!
//! A store keeps an [`Entry`] for each generation and, of each changed group, the content
//! *before* the change. The content after a change is the one before the group's next change,
//! or the newest one: each content is stored once, and new groups cost nothing.
//!
//! Not to be confused with [`super::history`]: the last changes, for watchers.
//!
//! [`Snapshot::undone`]: super::snapshot::Snapshot::undone

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use model::{
    generation::{Generation, Point, Watermark},
    group::GroupId,
    ids::GroupGuid,
    lock::Owner,
};

use super::{contents::Stored, decide::Origin};

/// Limit of groups that an entry names.
pub const NAMED_GROUPS: usize = 20;
/// Limit of entries that one call of [`expired`] drops.
pub const DROPPED_AT_ONCE: usize = 64;
/// Times after the commit for which an entry has the number of cells.
pub const MARKS: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
];

/// What happened to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// New.
    Added,
    /// New content.
    Changed,
    /// Gone.
    Removed,
}

/// A group of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedGroup {
    /// Guid.
    pub guid: GroupGuid,
    /// Name after the change; of a removed group, before.
    pub name: Box<str>,
    /// What happened.
    pub kind: Kind,
}

/// An entry and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Rises with each entry.
    pub number: u64,
    /// The entry.
    pub entry: Entry,
}

/// Something that the history remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A Replace made a generation.
    Change(Box<Change>),
    /// An operator, or the store itself, decided something.
    Decision(Box<OperatorDecision>),
}

/// A generation that a Replace made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The generation.
    pub point: Point,
    /// Commit time, by the clock of the instance that committed.
    pub at: Timestamp,
    /// The writer; absent for a generation that is older than the history.
    pub owner: Option<Owner>,
    /// The Cloud Controller's stamp.
    pub watermark: Option<Watermark>,
    /// Times and trace of the sync.
    pub origin: Origin,
    /// Number of new groups.
    pub added: u64,
    /// Number of groups with new content.
    pub changed: u64,
    /// Number of removed groups.
    pub removed: u64,
    /// The first [`NAMED_GROUPS`], ascending by id; empty for a set that was imported into an
    /// empty store.
    pub groups: Vec<ChangedGroup>,
    /// How the cells of all instances got the generation; absent before an instance stored it.
    pub reached: Option<Reached>,
}

/// A decision about the generations that cells get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorDecision {
    /// When, by the clock of the instance that received it.
    pub at: Timestamp,
    /// One of [`action`].
    pub action: Box<str>,
    /// Subject of the client certificate; empty for the store itself.
    pub by: Box<str>,
    /// Why, in the words of the operator.
    pub reason: Box<str>,
    /// The newest generation at that time.
    pub generation: Generation,
}

/// Names of decisions.
pub mod action {
    /// Cells keep the generation that they have.
    pub const FREEZE: &str = "freeze";
    /// Cells get the newest generation again.
    pub const UNFREEZE: &str = "unfreeze";
    /// A refused removal may pass once.
    pub const ACCEPT_REMOVAL: &str = "accept-removal";
    /// A roll-out reached its next step, or all cells.
    pub const ROLLOUT_STEP: &str = "rollout-step";
    /// A roll-out in steps stopped.
    pub const ROLLOUT_STOPPED: &str = "rollout-stopped";
    /// All cells get the newest generation, without further steps.
    pub const ROLLOUT_FINISHED: &str = "rollout-finished";
}

/// How many cells got a generation how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reached {
    /// Cells that were connected at the commit.
    pub cells: u32,
    /// Cells that had the generation in force until each of [`MARKS`].
    pub until: [u32; MARKS.len()],
    /// Time of the slowest of them.
    pub slowest: Option<Duration>,
}

impl Reached {
    /// Of one instance. `times`: from the commit to the report of each cell; absent for a cell
    /// that has not reported.
    pub fn of(times: impl Iterator<Item = Option<Duration>>) -> Self {
        let mut reached = Self::default();
        for time in times {
            reached.cells = reached.cells.saturating_add(1);
            let Some(time) = time else { continue };
            for (count, mark) in reached.until.iter_mut().zip(MARKS) {
                *count += u32::from(time <= mark);
            }
            reached.slowest = reached.slowest.max(Some(time));
        }
        reached
    }

    /// Of this and of another instance: a cell watches one of them.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.cells = self.cells.saturating_add(other.cells);
        for (count, more) in self.until.iter_mut().zip(other.until) {
            *count = count.saturating_add(more);
        }
        self.slowest = self.slowest.max(other.slowest);
        self
    }
}

/// Selects entries; an absent part selects all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Entries with a lower number.
    pub before: Option<u64>,
    /// The change that made this generation.
    pub generation: Option<Generation>,
    /// Changes of the group that has this guid, or had this name after the change.
    pub group: Option<String>,
    /// At most this many.
    pub size: usize,
}

/// Leads from a newer generation to an older one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undo {
    /// The newer generation.
    pub from: Generation,
    /// The older one.
    pub to: Point,
    /// The groups that changed in between, as they were at the older one; `None` for a group
    /// that did not exist.
    pub groups: BTreeMap<GroupId, Option<Stored>>,
}

/// Limits of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Older entries are dropped.
    pub since: Timestamp,
    /// Size limit in bytes, as stored.
    pub bytes: u64,
    /// This generation and later ones are kept in any case.
    pub keep_from: Option<Generation>,
}

/// Fields of an entry on which its end depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighed {
    /// Number of the entry.
    pub number: u64,
    /// Its generation.
    pub generation: Generation,
    /// Its time.
    pub at: Timestamp,
    /// Its size.
    pub bytes: u64,
}

/// How many of the oldest entries to drop. `total`: size of all entries. The newest generation
/// is kept in any case: it is the one to which a freeze leads back.
#[must_use]
pub fn expired(oldest_first: &[Weighed], total: u64, newest: Generation, bounds: &Bounds) -> usize {
    let keep_from = bounds.keep_from.map_or(newest, |keep_from| keep_from.min(newest));
    let mut left = total;
    let ends = |entry: &&Weighed| {
        let is_over = entry.at < bounds.since || left > bounds.bytes;
        left = left.saturating_sub(entry.bytes);
        is_over && entry.generation < keep_from
    };
    oldest_first.iter().take(DROPPED_AT_ONCE).take_while(ends).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u64) -> Vec<Weighed> {
        let entry = |number: u64| Weighed {
            number,
            generation: Generation(number),
            at: Timestamp::from_second(i64::try_from(number).unwrap()).unwrap(),
            bytes: 10,
        };
        (1..=count).map(entry).collect()
    }

    fn bounds(since: i64, bytes: u64, keep_from: Option<u64>) -> Bounds {
        let since = Timestamp::from_second(since).unwrap();
        Bounds { since, bytes, keep_from: keep_from.map(Generation) }
    }

    #[test]
    fn old_entries_and_those_over_the_size_end() {
        let dropped = |bounds| expired(&entries(9), 90, Generation(9), &bounds);
        assert_eq!(dropped(bounds(0, 90, None)), 0);
        assert_eq!(dropped(bounds(3, 90, None)), 2, "those before the third second");
        assert_eq!(dropped(bounds(0, 65, None)), 3, "until 60 bytes are left");
        assert_eq!(dropped(bounds(7, 65, None)), 6);
        assert_eq!(dropped(bounds(99, 0, None)), 8, "never the newest");
        assert_eq!(dropped(bounds(99, 0, Some(4))), 3, "nor what is kept");
        assert_eq!(dropped(bounds(99, 0, Some(40))), 8);
        let many = expired(&entries(500), 5_000, Generation(500), &bounds(999, 0, None));
        assert_eq!(many, DROPPED_AT_ONCE);
    }

    #[test]
    fn cells_are_counted_until_each_mark() {
        let after = |millis| Some(Duration::from_millis(millis));
        let times = [after(100), after(101), after(9_000), after(700_000), None];
        let one = Reached::of(times.into_iter());
        let expected =
            Reached { cells: 5, until: [1, 2, 3, 3, 3], slowest: Some(Duration::from_secs(700)) };
        assert_eq!(one, expected);
        let both = one.and(&Reached::of([after(5)].into_iter()));
        assert_eq!((both.cells, both.until, both.slowest), (6, [2, 3, 4, 4, 4], one.slowest));
        assert_eq!(Reached::of([].into_iter()), Reached::default());
    }
}
