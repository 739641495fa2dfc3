//! What cells say about themselves: who is connected, and what each has in
//! force.
//!
//! Kept in memory; [`Cells::unsaved`] hands out what changed, for a task that
//! writes it down from time to time. A crash loses the reports of the last
//! seconds, and cells report again.
//!
//! What holds:
//! - What a cell has in force never goes back (law 4), whatever order its
//!   streams die in. One exception: after the store itself went back, as after
//!   a restored backup, what the cell said of generations that no longer exist
//!   counts for nothing.
//! - Several streams of one cell may overlap, as they do when it reconnects
//!   before the old stream was noticed to be dead. The cell is connected as long
//!   as one lives; the newest stream that reported is believed.

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

/// After so long without a word, a cell that is not connected is forgotten:
/// seven days.
pub const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A cell that is connected or that reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellStatus {
    /// Who it is.
    pub id: CellId,
    /// Whether it watches.
    pub connected: bool,
    /// What it said last, if anything.
    pub report: Option<Report>,
}

impl CellStatus {
    /// The newest generation in force; 0 before the first report.
    #[must_use]
    pub fn enforced(&self) -> Generation {
        self.report.map(|report| report.enforced).unwrap_or_default()
    }

    /// When the first generation was made that the cell has not enforced. `None`: there
    /// is no such generation, or the cell has not reported yet.
    #[must_use]
    pub fn behind_since(&self, history: &History) -> Option<Stamp> {
        history.first_after(self.report?.enforced)
    }
}

#[derive(Debug, Default)]
struct Cell {
    /// The streams that live.
    streams: BTreeSet<u64>,
    report: Option<Report>,
    /// The stream that `report` came from; 0 for a former life of the store.
    reporter: u64,
    unsaved: bool,
}

#[derive(Debug, Default)]
struct Inner {
    cells: BTreeMap<CellId, Cell>,
    last_stream: u64,
}

/// See the module. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cells(Arc<Mutex<Inner>>);

/// One stream of a cell. The cell counts as connected until it is dropped.
#[derive(Debug)]
pub struct Connection {
    cells: Cells,
    cell: CellId,
    stream: u64,
}

impl Cells {
    /// What was written down.
    #[must_use]
    pub fn new(reports: Vec<(CellId, Report)>) -> Self {
        let cell = |report| Cell { report: Some(report), ..Cell::default() };
        let cells = reports.into_iter().map(|(id, report)| (id, cell(report))).collect();
        Self(Arc::new(Mutex::new(Inner { cells, last_stream: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cell begins to watch.
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

    /// Every cell, by id.
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

    /// The known cells in numbers, while the store is at `current`.
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

    /// Hands out what changed since the last call, and forgets who is long gone.
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

    /// What other instances heard. What a cell says here counts for more while it
    /// watches here.
    pub fn on_message(&self, reports: Vec<(CellId, Report)>) {
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

    /// What [`Self::unsaved`] handed out could not be written: it will be handed
    /// out again.
    pub fn not_saved(&self, unsaved: &Unsaved) {
        let mut inner = self.lock();
        for (id, _) in &unsaved.reports {
            if let Some(cell) = inner.cells.get_mut(id) {
                cell.unsaved = true;
            }
        }
    }
}

/// See [`Cells::count`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Cells that are connected or that reported.
    pub known: usize,
    /// Those that watch this instance.
    pub connected: usize,
    /// Those, connected or not, that have something older than the newest generation in
    /// force.
    pub behind: usize,
    /// When the first generation was made that one of them has not enforced.
    pub behind_since: Option<Stamp>,
}

impl Connection {
    /// Which cell this is.
    #[must_use]
    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    /// The cell says what it has in force, while the store is at `current`. Returns the
    /// generation that it had before, if it was behind and is not any more.
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

/// What a cell has in force by its own words, cut to what there is, and never
/// less than before.
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
        cells.on_message(vec![(cell("c1"), later(3, 10))]);
        cells.on_message(vec![(cell("c1"), later(2, 5))]);
        assert_eq!(enforced_of(&cells), 3, "the older word came late");
        assert!(!cells.status()[0].connected);
        let here = cells.connect(cell("c1"));
        here.report(later(4, 11), Generation(9));
        cells.on_message(vec![(cell("c1"), later(8, 99))]);
        assert_eq!(enforced_of(&cells), 4);
        assert_eq!(cells.unsaved(at(12)).reports, [(cell("c1"), later(4, 11))]);
        drop(here);
        cells.on_message(vec![(cell("c1"), later(8, 99))]);
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
