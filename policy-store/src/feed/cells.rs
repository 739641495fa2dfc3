//! Cell status: which cells are connected, and the generation that each has in force.
//!
//! Kept in memory; [`Cells::unsaved`] returns the changes for a task that stores them
//! periodically. A crash loses the reports of the last seconds; cells report again.
//!
//! Invariants:
//! - The generation that a cell has in force never goes back (law 4), whatever the
//!   order in which its streams end. Exception: after the store itself went back, as
//!   after a restored backup, reports about generations that no longer exist are
//!   ignored.
//! - Several streams of one cell may overlap, when the cell reconnects before the old
//!   stream is detected as dead. The cell is connected while at least one stream is
//!   open; the report of the newest stream counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use model::{
    generation::{Generation, Stamp},
    ids::CellId,
};

use crate::{
    groups::history::History,
    reports::{Report, Unsaved},
};

/// A cell that is not connected and has not reported for this time, seven days, is
/// deleted.
pub const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A cell that is connected or has reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellStatus {
    /// Id of the cell.
    pub id: CellId,
    /// Whether the cell has an open watch.
    pub connected: bool,
    /// Last report, if any.
    pub report: Option<Report>,
}

impl CellStatus {
    /// Newest generation in force; 0 before the first report.
    #[must_use]
    pub fn enforced(&self) -> Generation {
        self.report.map(|report| report.enforced).unwrap_or_default()
    }

    /// Time of the first generation that the cell has not enforced. `None`: there is no such
    /// generation, or the cell has not reported yet.
    #[must_use]
    pub fn behind_since(&self, history: &History) -> Option<Stamp> {
        history.first_after(self.report?.enforced)
    }
}

#[derive(Debug, Default)]
struct Cell {
    /// Open streams.
    streams: BTreeSet<u64>,
    report: Option<Report>,
    /// Stream that sent `report`; 0 for a report loaded from the store.
    reporter: u64,
    unsaved: bool,
}

#[derive(Debug, Default)]
struct Inner {
    cells: BTreeMap<CellId, Cell>,
    last_stream: u64,
}

/// Registry of cells; see the module. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cells(Arc<Mutex<Inner>>);

/// One stream of a cell. The cell counts as connected until this value is dropped.
#[derive(Debug)]
pub struct Connection {
    cells: Cells,
    cell: CellId,
    stream: u64,
}

impl Cells {
    /// Creates the registry from stored reports.
    #[must_use]
    pub fn new(reports: Vec<(CellId, Report)>) -> Self {
        let cell = |report| Cell { report: Some(report), ..Cell::default() };
        let cells = reports.into_iter().map(|(id, report)| (id, cell(report))).collect();
        Self(Arc::new(Mutex::new(Inner { cells, last_stream: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a stream of a cell.
    #[must_use]
    pub fn connect(&self, cell: CellId) -> Connection {
        let mut inner = self.lock();
        inner.last_stream += 1;
        let stream = inner.last_stream;
        let streams = &mut inner.cells.entry(cell.clone()).or_default().streams;
        let comes = streams.is_empty();
        streams.insert(stream);
        drop(inner);
        if comes {
            tracing::info!(%cell, "cell-connected");
        }
        Connection { cells: self.clone(), cell, stream }
    }

    /// All cells, by id.
    #[must_use]
    pub fn status(&self) -> Vec<CellStatus> {
        let inner = self.lock();
        let status = |(id, cell): (&CellId, &Cell)| CellStatus {
            id: id.clone(),
            connected: !cell.streams.is_empty(),
            report: cell.report,
        };
        inner.cells.iter().map(status).collect()
    }

    /// Counts of the known cells, while the store is at `current`.
    #[must_use]
    pub fn count(&self, current: Generation, history: &History) -> Count {
        let cells = self.status();
        Count {
            known: cells.len(),
            connected: cells.iter().filter(|cell| cell.connected).count(),
            behind: cells.iter().filter(|cell| cell.enforced() < current).count(),
            behind_since: cells.iter().filter_map(|cell| cell.behind_since(history)).min(),
        }
    }

    /// Returns the changes since the last call, and deletes cells that have long been gone.
    #[must_use]
    pub fn unsaved(&self, now: Timestamp) -> Unsaved {
        let mut inner = self.lock();
        let gone = |cell: &Cell| {
            let is_old = |report: Report| now.duration_since(report.at) > FORGOTTEN_AFTER;
            cell.streams.is_empty() && cell.report.is_none_or(is_old)
        };
        let mut forgotten = Vec::new();
        for (id, cell) in inner.cells.extract_if(.., |_, cell| gone(cell)) {
            forgotten.extend(cell.report.map(|report| (id, report.at)));
        }
        let changed = inner.cells.iter_mut().filter(|(_, cell)| cell.unsaved);
        let reports = changed
            .filter_map(|(id, cell)| {
                cell.unsaved = false;
                Some((id.clone(), cell.report?))
            })
            .collect();
        Unsaved { reports, forgotten }
    }

    /// Merges reports that other instances stored. While a cell watches this instance, its
    /// reports here take precedence.
    pub fn merge(&self, reports: Vec<(CellId, Report)>) {
        let mut inner = self.lock();
        for (id, report) in reports {
            let cell = inner.cells.entry(id).or_default();
            if !cell.streams.is_empty() || cell.unsaved {
                continue;
            }
            let before = cell.report.filter(|before| before.at >= report.at);
            cell.report = before.or(Some(report));
        }
    }

    /// The changes that [`Self::unsaved`] returned could not be stored; the next call returns
    /// them again.
    pub fn not_saved(&self, unsaved: &Unsaved) {
        let mut inner = self.lock();
        for (id, _) in &unsaved.reports {
            if let Some(cell) = inner.cells.get_mut(id) {
                cell.unsaved = true;
            }
        }
    }
}

/// Result of [`Cells::count`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Cells that are connected or have reported.
    pub known: usize,
    /// Cells that watch this instance.
    pub connected: usize,
    /// Cells, connected or not, whose generation in force is older than the newest.
    pub behind: usize,
    /// Time of the first generation that at least one of them has not enforced.
    pub behind_since: Option<Stamp>,
}

impl Connection {
    /// Id of the cell.
    #[must_use]
    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    /// Records the report of a cell while the store is at `current`. Returns the previous
    /// generation of the cell, if the cell was behind and has caught up.
    pub fn report(&self, report: Report, current: Generation) -> Option<Generation> {
        let mut inner = self.cells.lock();
        let cell = inner.cells.get_mut(&self.cell)?;
        if self.stream < cell.reporter {
            return None;
        }
        let before = cell.report.map(|before| before.enforced);
        let enforced = enforced(before, &report, current);
        cell.report = Some(Report { enforced, ..report });
        cell.reporter = self.stream;
        cell.unsaved = true;
        before.filter(|before| *before < enforced && enforced == current)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut inner = self.cells.lock();
        let Some(cell) = inner.cells.get_mut(&self.cell) else { return };
        cell.streams.remove(&self.stream);
        let (goes, report) = (cell.streams.is_empty(), cell.report);
        drop(inner);
        if goes {
            let enforced = report.map(|report| report.enforced.0);
            tracing::info!(cell = %self.cell, enforced, "cell-disconnected");
        }
    }
}

/// Generation that a cell has in force: the reported one, limited to existing
/// generations, and never lower than before.
fn enforced(before: Option<Generation>, report: &Report, current: Generation) -> Generation {
    let exists = |generation: Generation| match generation <= current {
        true => generation,
        false => Generation::default(),
    };
    exists(before.unwrap_or_default()).max(exists(report.enforced))
}

#[cfg(test)]
mod tests {
    use model::generation::Point;

    use super::*;
    use crate::groups::history::Step;

    fn cell(id: &str) -> CellId {
        CellId::parse(id).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn report(enforced: u64) -> Report {
        Report { enforced: Generation(enforced), containers: 1, isolated_rules: 0, at: at(0) }
    }

    fn enforced_of(cells: &Cells) -> u64 {
        cells.status()[0].report.unwrap().enforced.0
    }

    #[test]
    fn a_cell_is_connected_while_one_of_its_streams_lives() {
        let cells = Cells::default();
        let old = cells.connect(cell("c1"));
        let new = cells.connect(cell("c1"));
        drop(old);
        assert!(cells.status()[0].connected);
        drop(new);
        assert!(!cells.status()[0].connected);
    }

    #[test]
    fn a_late_word_of_a_dead_stream_does_not_count() {
        let cells = Cells::default();
        let (old, new) = (cells.connect(cell("c1")), cells.connect(cell("c1")));
        new.report(report(7), Generation(9));
        old.report(Report { containers: 99, ..report(8) }, Generation(9));
        assert_eq!(enforced_of(&cells), 7);
        assert_eq!(cells.status()[0].report.unwrap().containers, 1);
    }

    #[test]
    fn what_is_in_force_never_goes_back() {
        let cells = Cells::default();
        let stream = cells.connect(cell("c1"));
        stream.report(report(7), Generation(9));
        stream.report(report(5), Generation(9));
        assert_eq!(enforced_of(&cells), 7);
        let next = cells.connect(cell("c1"));
        next.report(report(6), Generation(9));
        assert_eq!(enforced_of(&cells), 7);
    }

    #[test]
    fn generations_that_do_not_exist_count_for_nothing() {
        let cells = Cells::new(vec![(cell("c1"), report(500))]);
        let stream = cells.connect(cell("c1"));
        stream.report(report(3), Generation(4));
        assert_eq!(enforced_of(&cells), 3, "the store was restored from a backup");
        stream.report(report(400), Generation(4));
        assert_eq!(enforced_of(&cells), 3);
    }

    fn history() -> History {
        let point = |generation| Point { generation: Generation(generation), stamp: Stamp(100) };
        let step = Step { point: Point { stamp: Stamp(200), ..point(2) }, changes: Vec::new() };
        History::starting(point(1)).followed_by([step])
    }

    #[test]
    fn those_behind_are_all_that_are_known_with_less() {
        let cells = Cells::new(vec![(cell("c0"), report(2))]);
        let [behind, current, silent, gone] =
            ["c1", "c2", "c3", "c4"].map(|id| cells.connect(cell(id)));
        let count = || cells.count(Generation(2), &history());
        let all = Count { known: 5, connected: 4, behind: 4, behind_since: None };
        assert_eq!(count(), all, "nobody has reported");
        current.report(report(2), Generation(2));
        gone.report(report(1), Generation(2));
        let since = Some(Stamp(200));
        assert_eq!(count(), Count { behind: 3, behind_since: since, ..all });
        behind.report(report(2), Generation(2));
        drop((gone, silent));
        assert_eq!(count(), Count { connected: 2, behind: 2, behind_since: since, ..all });
        let back = cells.connect(cell("c4"));
        assert_eq!(back.report(report(2), Generation(2)), Some(Generation(1)));
        assert_eq!(back.report(report(2), Generation(2)), None, "it was not behind");
        assert_eq!(count(), Count { connected: 3, behind: 1, behind_since: None, ..all });
    }

    #[test]
    fn what_changed_is_handed_out_once_and_again_when_it_was_not_saved() {
        let cells = Cells::default();
        let stream = cells.connect(cell("c1"));
        assert!(cells.unsaved(at(0)).is_empty(), "nothing reported yet");
        stream.report(report(1), Generation(2));
        let unsaved = cells.unsaved(at(0));
        assert_eq!(unsaved.reports, [(cell("c1"), report(1))]);
        assert!(cells.unsaved(at(0)).is_empty());
        cells.not_saved(&unsaved);
        assert_eq!(cells.unsaved(at(0)), unsaved);
    }

    #[test]
    fn what_others_heard_counts_for_cells_that_are_elsewhere() {
        let cells = Cells::default();
        let later = |enforced, second| Report { at: at(second), ..report(enforced) };
        cells.merge(vec![(cell("c1"), later(3, 10))]);
        cells.merge(vec![(cell("c1"), later(2, 5))]);
        assert_eq!(enforced_of(&cells), 3, "the older word came late");
        assert!(!cells.status()[0].connected);
        let here = cells.connect(cell("c1"));
        here.report(later(4, 11), Generation(9));
        cells.merge(vec![(cell("c1"), later(8, 99))]);
        assert_eq!(enforced_of(&cells), 4);
        assert_eq!(cells.unsaved(at(12)).reports, [(cell("c1"), later(4, 11))]);
        drop(here);
        cells.merge(vec![(cell("c1"), later(8, 99))]);
        assert_eq!(enforced_of(&cells), 8);
        assert!(cells.unsaved(at(100)).is_empty(), "it is written already");
    }

    #[test]
    fn who_is_long_gone_is_forgotten() {
        let cells = Cells::new(vec![(cell("c1"), report(1)), (cell("c2"), report(1))]);
        let stays = cells.connect(cell("c2"));
        let week = FORGOTTEN_AFTER.as_secs();
        assert!(cells.unsaved(at(week)).forgotten.is_empty());
        assert_eq!(cells.unsaved(at(week + 1)).forgotten, [(cell("c1"), at(0))]);
        assert_eq!(cells.status().len(), 1);
        drop(stays);
    }
}
