//! What the servers report, as values. All texts are escaped and bounded already, except
//! [`Cell::id`], which is only compared and sent back to the store.

use std::time::Duration;

use jiff::Timestamp;

/// A cell that is behind for longer counts as late.
const LATE: Duration = Duration::from_secs(5);

/// A cell that needed longer for the newest generation counts as slow.
const SLOW: Duration = Duration::from_secs(1);

/// State of the policy store and its cells.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Store {
    pub(crate) generation: u64,
    /// What cells get: the newest generation, or the one at which they are frozen.
    pub(crate) released: u64,
    pub(crate) groups: u64,
    pub(crate) watermark: Option<Timestamp>,
    pub(crate) synced_at: Option<Timestamp>,
    pub(crate) writer: Option<Owner>,
    /// The store's clock.
    pub(crate) now: Option<Timestamp>,
    /// In natural order of their names.
    pub(crate) cells: Vec<Cell>,
    /// Instances that did not answer, while others did: a sentence for each.
    pub(crate) silent: Vec<String>,
    /// A sentence about a freeze, and one for each mass removal that an instance refused.
    pub(crate) warnings: Vec<String>,
}

/// Owner of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) name: String,
    /// Absent with the original Locket.
    pub(crate) token: Option<u64>,
}

/// A lock of the lock server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lock {
    pub(crate) key: String,
    pub(crate) owner: Owner,
}

/// A cell.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Cell {
    /// As the store spells it; never displayed.
    pub(crate) id: String,
    /// For display.
    pub(crate) name: String,
    pub(crate) connected: bool,
    pub(crate) generation: u64,
    pub(crate) reported_at: Option<Timestamp>,
    pub(crate) containers: u32,
    pub(crate) isolated_rules: u32,
    pub(crate) behind_since: Option<Timestamp>,
    /// Absent if the store does not know them.
    pub(crate) details: Option<Details>,
}

/// Details of a cell that the instance of the store knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Details {
    pub(crate) version: String,
    pub(crate) plane: String,
    pub(crate) connection_changed_at: Option<Timestamp>,
    pub(crate) enforced_at: Option<Timestamp>,
    pub(crate) apply_time: Option<Duration>,
    pub(crate) lag: Option<Duration>,
    pub(crate) drift_healed: u64,
    pub(crate) last_error: String,
    pub(crate) counters: Option<Counters>,
    pub(crate) isolated: Vec<Isolated>,
    pub(crate) isolated_total: u32,
}

/// Packet counters since the start of an agent; absent if not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) allowed: Option<u64>,
    pub(crate) denied: Option<u64>,
    pub(crate) unattributed: u64,
}

/// A rule that a cell cannot enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Isolated {
    pub(crate) group: String,
    pub(crate) rule_index: u32,
    pub(crate) reason: String,
}

/// A container of a cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) handle: String,
    pub(crate) address: String,
    pub(crate) app: String,
    pub(crate) space: String,
    pub(crate) workload: String,
    pub(crate) rules: u32,
    pub(crate) isolated_rules: u32,
    /// Empty if the rules are in force.
    pub(crate) problem: String,
}

/// The containers of one cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Containers {
    /// The cell's id.
    pub(crate) cell: String,
    pub(crate) list: Vec<Container>,
    pub(crate) total: u64,
    /// Why they are not known; empty if they are.
    pub(crate) unknown: String,
}

/// A change of the set of groups.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Change {
    pub(crate) generation: u64,
    pub(crate) trace: String,
    pub(crate) owner: String,
    pub(crate) watermark: Option<Timestamp>,
    pub(crate) noticed_at: Option<Timestamp>,
    pub(crate) read_at: Option<Timestamp>,
    pub(crate) committed_at: Option<Timestamp>,
    pub(crate) added: u64,
    pub(crate) changed: u64,
    pub(crate) removed: u64,
    pub(crate) groups: Vec<ChangedGroup>,
    pub(crate) cells: u32,
    pub(crate) enforced: u32,
    pub(crate) median: Option<Duration>,
    pub(crate) p99: Option<Duration>,
    pub(crate) slowest: Option<Duration>,
    pub(crate) slowest_cells: Vec<SlowCell>,
}

/// A group of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChangedGroup {
    /// `+` added, `~` changed, `-` removed.
    pub(crate) sign: char,
    pub(crate) name: String,
    pub(crate) guid: String,
}

/// A cell that enforces a change late, or not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlowCell {
    pub(crate) name: String,
    pub(crate) after: Option<Duration>,
    pub(crate) connected: bool,
}

/// The hops of a change, in their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hops {
    /// From the Cloud Controller's stamp until the syncer noticed it.
    pub(crate) notice: Option<Duration>,
    /// Until the syncer had read all groups.
    pub(crate) read: Option<Duration>,
    /// Until the store had committed them.
    pub(crate) commit: Option<Duration>,
    /// Until the last cell reported them, or until now.
    pub(crate) enforce: Option<Duration>,
}

impl Hops {
    /// In order, with their names.
    pub(crate) fn all(&self) -> [(&'static str, Option<Duration>); 4] {
        let Self { notice, read, commit, enforce } = *self;
        [("noticed", notice), ("read", read), ("committed", commit), ("enforced", enforce)]
    }

    /// Sum of the known hops.
    pub(crate) fn total(&self) -> Duration {
        self.all().iter().filter_map(|(_, time)| *time).sum()
    }
}

impl Change {
    /// Whether every cell has reported the change.
    pub(crate) fn is_complete(&self) -> bool {
        self.enforced >= self.cells
    }

    /// Adds what another instance of the store knows of the same change: each instance has
    /// the cells that watch it, and one knows when the syncer noticed and read.
    pub(crate) fn join(&mut self, other: &Self) {
        self.noticed_at = self.noticed_at.or(other.noticed_at);
        self.read_at = self.read_at.or(other.read_at);
        // The instance that committed saw the commit first.
        self.committed_at = self.committed_at.into_iter().chain(other.committed_at).min();
        if self.trace.is_empty() {
            self.trace.clone_from(&other.trace);
        }
        self.cells = self.cells.saturating_add(other.cells);
        self.enforced = self.enforced.saturating_add(other.enforced);
        // Upper bounds: the times of all cells are not known here.
        self.median = self.median.max(other.median);
        self.p99 = self.p99.max(other.p99);
        self.slowest = self.slowest.max(other.slowest);
        self.slowest_cells.extend(other.slowest_cells.iter().cloned());
        let rank = |cell: &SlowCell| (cell.after.is_some(), std::cmp::Reverse(cell.after));
        self.slowest_cells.sort_by_key(rank);
    }

    /// The hops, as far as they are known. A negative time, from clocks that differ, is 0.
    pub(crate) fn hops(&self, now: Option<Timestamp>) -> Hops {
        let between = |from: Option<Timestamp>, to: Option<Timestamp>| Some(elapsed(from?, to?));
        let waiting = || between(self.committed_at, now);
        Hops {
            notice: between(self.watermark, self.noticed_at),
            read: between(self.noticed_at, self.read_at),
            commit: between(self.read_at, self.committed_at),
            enforce: if self.is_complete() { self.slowest } else { waiting() },
        }
    }
}

/// The state of a cell in one word, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Not connected to the store.
    Lost,
    /// Its last reconcile failed.
    Failing,
    /// Behind for a long time.
    Late,
    /// Behind.
    Behind,
    /// Has the newest generation, but needed long for it.
    Slow,
    /// Has the newest generation, without some rules.
    Isolating,
    /// Has the newest generation.
    Current,
}

impl Level {
    /// All levels, the worst first.
    pub(crate) const ALL: [Self; 7] = [
        Self::Lost,
        Self::Failing,
        Self::Late,
        Self::Behind,
        Self::Slow,
        Self::Isolating,
        Self::Current,
    ];

    /// A symbol of one column.
    pub(crate) fn symbol(self) -> char {
        match self {
            Self::Lost => 'x',
            Self::Failing => 'E',
            Self::Late => '!',
            Self::Behind => '~',
            Self::Slow => 's',
            Self::Isolating => 'i',
            Self::Current => 'o',
        }
    }

    /// Its meaning.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Lost => "not connected to the policy store",
            Self::Failing => "last reconcile failed",
            Self::Late => "behind for more than 5 s",
            Self::Behind => "behind",
            Self::Slow => "up to date, but the last change took more than 1 s",
            Self::Isolating => "up to date, but some rules cannot be enforced",
            Self::Current => "up to date",
        }
    }
}

impl Cell {
    /// Its level, compared with the newest generation.
    pub(crate) fn level(&self, newest: u64, now: Option<Timestamp>) -> Level {
        let details = self.details.as_ref();
        let lag = details.and_then(|details| details.lag);
        if !self.connected {
            Level::Lost
        } else if details.is_some_and(|details| !details.last_error.is_empty()) {
            Level::Failing
        } else if self.generation < newest {
            let behind = self.behind_for(now);
            if behind > Some(LATE) { Level::Late } else { Level::Behind }
        } else if lag > Some(SLOW) {
            Level::Slow
        } else if self.isolated_rules > 0 {
            Level::Isolating
        } else {
            Level::Current
        }
    }

    /// Time since the first generation that it lacks.
    pub(crate) fn behind_for(&self, now: Option<Timestamp>) -> Option<Duration> {
        Some(elapsed(self.behind_since?, now?))
    }
}

/// Time from one to the other; 0 if negative.
pub(crate) fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Option<Timestamp> {
        Timestamp::from_millisecond(millis).ok()
    }

    #[test]
    fn the_worst_fact_is_the_level() {
        let details = Details { lag: Some(Duration::from_millis(90)), ..Details::default() };
        let good =
            Cell { connected: true, generation: 7, details: Some(details), ..Cell::default() };
        let level = |change: &dyn Fn(&mut Cell)| {
            let mut cell = good.clone();
            change(&mut cell);
            cell.level(7, at(20_000))
        };
        let with =
            |change: &dyn Fn(&mut Details)| level(&|cell| change(cell.details.as_mut().unwrap()));
        assert_eq!(level(&|_| {}), Level::Current);
        assert_eq!(level(&|cell| cell.details = None), Level::Current);
        assert_eq!(level(&|cell| cell.isolated_rules = 1), Level::Isolating);
        assert_eq!(with(&|details| details.lag = Some(Duration::from_secs(2))), Level::Slow);
        assert_eq!(with(&|details| details.last_error = "nft".to_owned()), Level::Failing);
        assert_eq!(level(&|cell| cell.connected = false), Level::Lost);
        let behind = |since: Option<Timestamp>| {
            level(&|cell| (cell.generation, cell.behind_since) = (6, since))
        };
        assert_eq!(behind(at(19_000)), Level::Behind);
        assert_eq!(behind(None), Level::Behind);
        assert_eq!(behind(at(14_999)), Level::Late);
        assert!(Level::ALL.is_sorted());
    }

    #[test]
    fn hops_follow_each_other_and_are_never_negative() {
        let mut change = Change {
            watermark: at(1_000),
            noticed_at: at(900),
            read_at: at(950),
            committed_at: at(1_000),
            cells: 2,
            enforced: 1,
            ..Change::default()
        };
        let millis = |hops: Hops| hops.all().map(|(_, time)| time.map(|time| time.as_millis()));
        let hops = change.hops(at(1_070));
        assert_eq!(millis(hops), [Some(0), Some(50), Some(50), Some(70)]);
        assert_eq!(hops.total().as_millis(), 170);
        (change.enforced, change.slowest) = (2, Some(Duration::from_millis(60)));
        assert_eq!(change.hops(at(9_000)).enforce, change.slowest);
        let part = Change {
            cells: 3,
            enforced: 3,
            slowest: Some(Duration::from_millis(75)),
            noticed_at: None,
            ..change.clone()
        };
        let mut both = part.clone();
        both.join(&change);
        assert_eq!((both.cells, both.enforced, both.noticed_at), (5, 5, change.noticed_at));
        assert_eq!(both.slowest, part.slowest);
        change.noticed_at = None;
        let hops = change.hops(at(9_000));
        assert_eq!(millis(hops), [None, None, Some(50), Some(60)]);
    }
}
