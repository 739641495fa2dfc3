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
//!   open; the report and the inventory of the newest stream count.
//! - A cell that disconnects keeps its inventory until the cell is deleted. Queries get
//!   the inventories behind `Arc`s, so that they never hold the lock while they compute.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use model::{
    generation::{Generation, Stamp},
    ids::CellId,
};

use crate::{
    groups::history::History,
    reports::{Agent, Details, Report, Unsaved},
};

use super::{
    inventory::{self, Inventory, Update},
    questions::Desk,
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

/// A cell with what this instance received over its watches.
#[derive(Debug, Clone)]
pub struct KnownCell {
    /// What every instance knows.
    pub status: CellStatus,
    /// Absent for a cell that never watched this instance since its start.
    pub here: Option<Here>,
}

impl KnownCell {
    /// Containers and isolated rules; absent when the cell never reported them here.
    #[must_use]
    pub fn inventory(&self) -> Option<&Inventory> {
        self.here.as_ref()?.inventory.as_deref()
    }
}

/// What this instance received over the watches of a cell.
#[derive(Debug, Clone)]
pub struct Here {
    /// The agent, by the newest Hello.
    pub agent: Arc<Agent>,
    /// When the cell last connected, or disconnected.
    pub changed_at: Timestamp,
    /// Details of the last report.
    pub details: Option<Arc<Details>>,
    /// From the commit of the newest generation that the cell reported until the report;
    /// absent when the cell was not connected at the commit.
    pub lag: Option<Duration>,
    /// Containers and isolated rules; absent before the first inventory.
    pub inventory: Option<Arc<Inventory>>,
}

#[derive(Debug, Default)]
struct Cell {
    /// Open streams, with their desks for questions.
    streams: BTreeMap<u64, Desk>,
    here: Option<Here>,
    /// Stream that sent the inventory; 0 when none.
    lister: u64,
    report: Option<Report>,
    /// Stream that sent `report`; 0 for a report loaded from the store.
    reporter: u64,
    unsaved: bool,
}

impl Cell {
    fn status(&self, id: &CellId) -> CellStatus {
        let connected = !self.streams.is_empty();
        CellStatus { id: id.clone(), connected, report: self.report }
    }
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

    /// Registers a stream of a cell, and where the stream takes questions.
    #[must_use]
    pub fn connect(&self, cell: CellId, agent: Agent, desk: Desk, now: Timestamp) -> Connection {
        let agent = Arc::new(agent);
        let mut inner = self.lock();
        inner.last_stream += 1;
        let stream = inner.last_stream;
        let known = inner.cells.entry(cell.clone()).or_default();
        let comes = known.streams.is_empty();
        known.streams.insert(stream, desk);
        known.here = Some(match known.here.take() {
            Some(here) => Here { agent, changed_at: now, ..here },
            None => Here { agent, changed_at: now, details: None, lag: None, inventory: None },
        });
        drop(inner);
        if comes {
            tracing::info!(%cell, "cell-connected");
        }
        Connection { cells: self.clone(), cell, stream }
    }

    /// All cells, by id.
    #[must_use]
    pub fn status(&self) -> Vec<CellStatus> {
        self.lock().cells.iter().map(|(id, cell)| cell.status(id)).collect()
    }

    /// All cells, by id, with what this instance received from them.
    #[must_use]
    pub fn known(&self) -> Vec<KnownCell> {
        let inner = self.lock();
        let known = |(id, cell): (&CellId, &Cell)| KnownCell {
            status: cell.status(id),
            here: cell.here.clone(),
        };
        inner.cells.iter().map(known).collect()
    }

    /// The connected cells, ascending by id.
    #[must_use]
    pub fn connected(&self) -> Vec<CellId> {
        let inner = self.lock();
        let connected = inner.cells.iter().filter(|(_, cell)| !cell.streams.is_empty());
        connected.map(|(id, _)| id.clone()).collect()
    }

    /// Whether the cell has an open watch.
    #[must_use]
    pub fn is_connected(&self, cell: &CellId) -> bool {
        self.lock().cells.get(cell).is_some_and(|cell| !cell.streams.is_empty())
    }

    /// Where to ask a cell: the desk of its newest stream, and its agent. The outer `None`:
    /// no such cell is known; the inner one: the cell does not watch this instance.
    #[must_use]
    pub fn desk(&self, cell: &CellId) -> Option<Option<(Desk, Arc<Agent>)>> {
        let inner = self.lock();
        let cell = inner.cells.get(cell)?;
        let newest = cell.streams.values().next_back().cloned();
        Some(newest.zip(cell.here.as_ref().map(|here| Arc::clone(&here.agent))))
    }

    /// Number of containers in all inventories.
    #[must_use]
    pub fn containers(&self) -> usize {
        let inner = self.lock();
        let inventories =
            inner.cells.values().filter_map(|cell| cell.here.as_ref()?.inventory.as_ref());
        inventories.map(|inventory| inventory.containers().len()).sum()
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

/// A report of a newer generation than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Generation in force before; absent when this is the first report.
    pub before: Option<Generation>,
    /// Generation in force now.
    pub enforced: Generation,
}

impl Connection {
    /// Id of the cell.
    #[must_use]
    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    /// Records the report of a cell while the store is at `current`. Returns the progress
    /// of the cell, if it has made any.
    pub fn report(&self, report: Report, current: Generation) -> Option<Progress> {
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
        (before.unwrap_or_default() < enforced).then_some(Progress { before, enforced })
    }

    /// Records the time since the commit of the newest generation that the cell reported.
    pub fn lag(&self, lag: Option<Duration>) {
        let mut inner = self.cells.lock();
        if let Some(here) = inner.cells.get_mut(&self.cell).and_then(|cell| cell.here.as_mut()) {
            here.lag = lag;
        }
    }

    /// Records the details of the report of a cell.
    pub fn details(&self, details: Details) {
        let details = Arc::new(details);
        let mut inner = self.cells.lock();
        let Some(cell) = inner.cells.get_mut(&self.cell) else { return };
        if let Some(here) = cell.here.as_mut().filter(|_| self.stream >= cell.reporter) {
            here.details = Some(details);
        }
    }

    /// Applies a change of the inventory of a cell. The first of a stream replaces the
    /// inventory of an older stream.
    ///
    /// # Errors
    /// Too many containers, or an incomplete first update.
    pub fn update(&self, update: Update) -> Result<(), inventory::Error> {
        let mut inner = self.cells.lock();
        let Some(cell) = inner.cells.get_mut(&self.cell) else { return Ok(()) };
        let Some(here) = cell.here.as_mut().filter(|_| self.stream >= cell.lister) else {
            return Ok(());
        };
        if self.stream > cell.lister {
            if !update.reset {
                return Err(inventory::Error::NoReset);
            }
            here.inventory = None;
            cell.lister = self.stream;
        }
        // Copies the inventory only while a query reads the same one.
        Arc::make_mut(here.inventory.get_or_insert_default()).apply(update)
    }

    /// Records when the stream ends. Called before the drop, which reads no clock.
    pub fn ends(&self, now: Timestamp) {
        let mut inner = self.cells.lock();
        let Some(cell) = inner.cells.get_mut(&self.cell) else { return };
        if cell.streams.len() == 1
            && let Some(here) = &mut cell.here
        {
            here.changed_at = now;
        }
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
#[path = "cells_tests.rs"]
mod tests;
