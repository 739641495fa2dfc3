//! The last changes of the set, and which cells have enforced them when.
//!
//! Bounded by the number of changes and by the number of their groups; the oldest are
//! forgotten first. Each change lists the cells that were connected at its commit, with
//! the time until each reported it: at 1,000 cells a full ring takes some 32 MB.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use model::{
    generation::{Generation, Watermark},
    ids::CellId,
    lock::Owner,
};

pub use crate::groups::archive::{ChangedGroup, Kind};
use crate::groups::{
    archive::Reached,
    decide::Origin,
    history::{Change, Step},
    snapshot::{Entry, Snapshot},
};

/// Limit of remembered changes.
pub const MAX_CHANGES: usize = 1_000;
/// Limit of the groups of all remembered changes.
const MAX_GROUPS: usize = 200_000;
/// Number of characters of a name that are kept: the longest name that the Cloud Controller has.
const MAX_NAME: usize = 255;
/// Minimum time between two updates of a change for one reader.
pub const COALESCED: Duration = Duration::from_millis(100);
/// Time after which the history no longer waits for cells.
const LAST_MARK: SignedDuration = SignedDuration::from_mins(10);
/// Number of cells that a summary names.
const SLOWEST: usize = 10;

/// A generation that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The generation.
    pub generation: Generation,
    /// Times and trace of the sync; empty when another instance committed.
    pub origin: Origin,
    /// The writer.
    pub owner: Option<Owner>,
    /// The Cloud Controller's stamp.
    pub watermark: Option<Watermark>,
    /// When this instance published the generation, by its clock.
    pub at: Timestamp,
    /// All groups of the change.
    pub groups: Vec<ChangedGroup>,
}

impl Committed {
    /// Number of groups of this kind.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.groups.iter().filter(|group| group.kind == kind).count()
    }
}

/// The generations between two snapshots, oldest first. `origin` is that of the generation
/// that this instance committed, if any.
#[must_use]
pub fn committed(
    before: &Snapshot,
    after: &Snapshot,
    origin: Option<(Generation, Origin)>,
    at: Timestamp,
) -> Vec<Committed> {
    let (old, new) = (before.point(), after.point());
    if old.generation >= new.generation {
        return Vec::new();
    }
    let of = |generation, groups| Committed {
        generation,
        origin: origin.filter(|(of, _)| *of == generation).map_or_else(Origin::default, |of| of.1),
        owner: after.state.writer.clone(),
        // A Cloud Controller without any change has the stamp 1970.
        watermark: after.state.watermark.filter(|stamp| stamp.seconds() > 0),
        at,
        groups,
    };
    let Some(steps) = after.history().steps_since(old) else {
        // The history does not reach back that far: one change stands for all.
        return vec![of(new.generation, difference(before, after))];
    };
    let steps: Vec<&Step> = steps.collect();
    let mut later = HashSet::new();
    let newest_first = steps.into_iter().rev().map(|step| {
        let group = |change: &Change| {
            let is_last = later.insert(change.id);
            changed(before, after, change, is_last)
        };
        of(step.point.generation, step.changes.iter().map(group).collect())
    });
    let mut generations: Vec<_> = newest_first.collect();
    generations.reverse();
    generations
}

/// `is_last`: no later generation changes the group. An id is never used again.
fn changed(before: &Snapshot, after: &Snapshot, change: &Change, is_last: bool) -> ChangedGroup {
    let (old, new) = (before.get(change.id), after.get(change.id));
    let kind = match &change.before {
        None => Kind::Added,
        Some(_) if is_last && new.is_none() => Kind::Removed,
        Some(_) => Kind::Changed,
    };
    let name = new.or(old).map(|entry| name(entry)).unwrap_or_default();
    ChangedGroup { guid: change.guid.clone(), name, kind }
}

fn name(entry: &Entry) -> Box<str> {
    let name = proto::group_name(entry.encoded.clone());
    name.chars().take(MAX_NAME).collect()
}

fn difference(before: &Snapshot, after: &Snapshot) -> Vec<ChangedGroup> {
    let group =
        |entry: &Entry, kind| ChangedGroup { guid: entry.guid.clone(), name: name(entry), kind };
    let gone = before.entries().iter().filter(|entry| after.get(entry.id).is_none());
    let upserted = after.entries().iter().filter_map(|entry| match before.get(entry.id) {
        None => Some(group(entry, Kind::Added)),
        Some(old) if old.hash != entry.hash => Some(group(entry, Kind::Changed)),
        Some(_) => None,
    });
    gone.map(|entry| group(entry, Kind::Removed)).chain(upserted).collect()
}

/// Time from the commit until a cell reported the generation, in microseconds; absent while
/// the cell has not.
type After = Option<u64>;

#[derive(Debug)]
struct Remembered {
    change: Arc<Committed>,
    /// The cells that were connected at the commit, ascending by id.
    cells: Vec<(CellId, After)>,
    /// Number of those that have reported the generation.
    enforced: usize,
    /// Rises with each update.
    version: u64,
    /// Whether the history has the times of the cells.
    is_saved: bool,
}

impl Remembered {
    fn is_final(&self) -> bool {
        self.enforced == self.cells.len()
    }
}

/// A change with a summary of its enforcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The change.
    pub change: Arc<Committed>,
    /// Number of cells that were connected at the commit.
    pub cells: usize,
    /// Number of those that have reported the generation.
    pub enforced: usize,
    /// Median, 99th percentile and maximum over those; absent when there are none.
    pub times: Option<[Duration; 3]>,
    /// Cells that have not, then the slowest: the first ones.
    pub slowest: Vec<(CellId, Option<Duration>)>,
}

impl From<&Remembered> for Shown {
    fn from(remembered: &Remembered) -> Self {
        let Remembered { change, cells, enforced, version: _, is_saved: _ } = remembered;
        let mut times: Vec<u64> = cells.iter().filter_map(|(_, after)| *after).collect();
        times.sort_unstable();
        // The nearest rank.
        let rank = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
        let percentiles = (!times.is_empty()).then(|| [50, 99, 100].map(rank));
        let mut slowest: Vec<&(CellId, After)> = cells.iter().collect();
        // A cell that has not reported is slower than any that has.
        let slowness = |after: After| after.map_or(u64::MAX, |micros| micros.min(u64::MAX - 1));
        slowest.sort_by_key(|(_, after)| Reverse(slowness(*after)));
        let slowest = slowest.into_iter().take(SLOWEST);
        Self {
            change: Arc::clone(change),
            cells: cells.len(),
            enforced: *enforced,
            times: percentiles.map(|times| times.map(Duration::from_micros)),
            slowest: slowest
                .map(|(cell, after)| (cell.clone(), after.map(Duration::from_micros)))
                .collect(),
        }
    }
}

/// Selects changes; an absent part selects all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// This generation.
    pub generation: Option<Generation>,
    /// Changes of the group with this guid or name.
    pub group: Option<String>,
}

impl Filter {
    fn fits(&self, change: &Committed) -> bool {
        let is =
            |group: &ChangedGroup, text: &str| group.guid.as_str() == text || *group.name == *text;
        self.generation.is_none_or(|generation| generation == change.generation)
            && self
                .group
                .as_deref()
                .is_none_or(|text| change.groups.iter().any(|group| is(group, text)))
    }
}

/// Position of a reader in the ring.
#[derive(Debug)]
pub struct Reader {
    filter: Filter,
    /// Later changes are new.
    read: Generation,
    /// The read changes that some cells have not enforced.
    open: BTreeMap<Generation, Sent>,
}

/// State of a change when it was read.
#[derive(Debug, Clone, Copy)]
struct Sent {
    version: u64,
    at: Duration,
}

/// Result of [`Ring::next`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A new change, or an update of one.
    Change(Box<Shown>),
    /// Nothing now; `due`: when an update that was coalesced is due.
    Update {
        /// By the clock of the reader.
        due: Option<Duration>,
    },
}

/// The last changes; see the module.
#[derive(Debug, Default)]
pub struct Ring {
    /// Oldest first.
    changes: VecDeque<Remembered>,
    groups: usize,
    version: u64,
}

impl Ring {
    /// Remembers a change, of which these cells have to report the enforcement.
    pub fn push(&mut self, change: Committed, mut cells: Vec<CellId>) {
        cells.sort_unstable();
        self.version += 1;
        self.groups += change.groups.len();
        self.changes.push_back(Remembered {
            change: Arc::new(change),
            cells: cells.into_iter().map(|cell| (cell, None)).collect(),
            enforced: 0,
            version: self.version,
            is_saved: false,
        });
        while self.changes.len() > MAX_CHANGES
            || (self.groups > MAX_GROUPS && self.changes.len() > 1)
        {
            let Some(oldest) = self.changes.pop_front() else { break };
            self.groups -= oldest.change.groups.len();
        }
    }

    /// Number of remembered changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether no change is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The newest change.
    #[must_use]
    pub fn newest(&self) -> Option<&Committed> {
        self.changes.back().map(|remembered| &*remembered.change)
    }

    /// Records the report of a cell that has a generation in force and had `before` until
    /// then. Returns the time since the commit of each generation that the cell was
    /// connected at and has now, oldest first.
    pub fn enforced(
        &mut self,
        cell: &CellId,
        before: Generation,
        generation: Generation,
        now: Timestamp,
    ) -> Vec<(Generation, Duration)> {
        let first = self.changes.partition_point(|kept| kept.change.generation <= before);
        let passed = self.changes.range_mut(first..);
        let mut times = Vec::new();
        for kept in passed.take_while(|kept| kept.change.generation <= generation) {
            let Ok(place) = kept.cells.binary_search_by(|(id, _)| id.cmp(cell)) else { continue };
            let (_, after) = &mut kept.cells[place];
            if after.is_some() {
                continue;
            }
            // A clock that was set back makes no negative time.
            let time = Duration::try_from(now.duration_since(kept.change.at)).unwrap_or_default();
            *after = Some(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
            kept.enforced += 1;
            self.version += 1;
            kept.version = self.version;
            times.push((kept.change.generation, time));
        }
        times
    }

    /// How cells got the generations that all connected cells have, or that are older than the
    /// last mark of the history; with `is_last`, of all generations. Each generation once.
    pub fn settled(&mut self, now: Timestamp, is_last: bool) -> Vec<(Generation, Reached)> {
        let is_settled = |kept: &&mut Remembered| {
            let is_old = now.duration_since(kept.change.at) > LAST_MARK;
            !kept.is_saved && (is_last || is_old || kept.is_final())
        };
        let settled = self.changes.iter_mut().filter(is_settled).map(|kept| {
            kept.is_saved = true;
            let times = kept.cells.iter().map(|(_, after)| after.map(Duration::from_micros));
            (kept.change.generation, Reached::of(times))
        });
        settled.collect()
    }

    /// The generations could not be saved: [`Self::settled`] returns them again.
    pub fn not_saved(&mut self, generations: &[(Generation, Reached)]) {
        for (generation, _) in generations {
            let place = self.changes.binary_search_by_key(generation, |k| k.change.generation);
            if let Some(kept) = place.ok().and_then(|place| self.changes.get_mut(place)) {
                kept.is_saved = false;
            }
        }
    }

    /// A reader of the last `last` changes that the filter selects, and of later ones.
    #[must_use]
    pub fn reader(&self, filter: Filter, last: usize) -> Reader {
        let fitting = self.changes.iter().rev().filter(|kept| filter.fits(&kept.change));
        let first = fitting.take(last).last().map(|kept| kept.change.generation);
        let newest = self.newest().map_or(Generation::default(), |change| change.generation);
        let read = match first {
            Some(first) => Generation(first.0.saturating_sub(1)),
            None => newest,
        };
        Reader { filter, read, open: BTreeMap::new() }
    }

    /// The next change for a reader: a new one, or one that was updated since it was read.
    /// Updates of a change come at most each [`COALESCED`]; the one with which all cells
    /// have enforced it comes at once. `now` is the time since any start.
    pub fn next(&self, reader: &mut Reader, now: Duration) -> Next {
        let place = self.changes.partition_point(|kept| kept.change.generation <= reader.read);
        let new = self.changes.range(place..).find(|kept| reader.filter.fits(&kept.change));
        let oldest = self.changes.front().map(|oldest| oldest.change.generation);
        reader.open.retain(|generation, _| oldest.is_some_and(|oldest| *generation >= oldest));
        let updates = reader.open.iter().filter_map(|(generation, sent)| {
            let kept = self.get(*generation).filter(|kept| kept.version > sent.version)?;
            let due = if kept.is_final() { now } else { sent.at + COALESCED };
            Some((due, kept))
        });
        let next = match new {
            Some(kept) => Some((now, kept)),
            None => updates.min_by_key(|(due, _)| *due),
        };
        let Some((due, kept)) = next else { return Next::Update { due: None } };
        if due > now {
            return Next::Update { due: Some(due) };
        }
        let generation = kept.change.generation;
        reader.read = reader.read.max(generation);
        match kept.is_final() {
            true => _ = reader.open.remove(&generation),
            false => _ = reader.open.insert(generation, Sent { version: kept.version, at: now }),
        }
        Next::Change(Box::new(kept.into()))
    }

    fn get(&self, generation: Generation) -> Option<&Remembered> {
        let place = self.changes.binary_search_by_key(&generation, |kept| kept.change.generation);
        place.ok().and_then(|place| self.changes.get(place))
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
