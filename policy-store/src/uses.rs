//! Uses of rules that cells reported, on their way to the database. Pure, except for the lock.
//!
//! Cells repeat what a store may not have written ([`proto::policy_v1`], RuleUses), so what is
//! lost with this process is sent again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{
    ids::{CellId, GroupGuid},
    uses::{Observed, PermitKey, Window},
};

/// Seconds of a day.
pub const DAY: i64 = 86_400;
/// Limit of stored permits; with more, the record of uses stops.
pub const PERMITS_MOST: u64 = 1_000_000;
/// Days after the last use for which the record of a permit is kept.
pub const DAYS_KEPT: i64 = 400;
/// The same for permits of groups that are deleted.
pub const DAYS_KEPT_DELETED: i64 = 90;

/// Name of all cells whose agents poll over HTTP, in the coverage.
pub const POLLING: &str = "(agents over HTTP)";

/// A permit of a group.
pub type Permitted = (GroupGuid, PermitKey);

/// What a cell reported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reported {
    /// Permits that were used.
    pub used: Vec<Permitted>,
    /// For which time these, with those before in the stream, are all uses.
    pub window: Option<Window>,
}

/// Days of the first and last known use, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// First use.
    pub first: i64,
    /// Last use.
    pub last: i64,
}

/// Everything that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    /// Used permits.
    pub uses: HashMap<Permitted, Used>,
    /// Cells that were connected while uses were recorded.
    pub cells: BTreeMap<CellId, Observed>,
}

/// What is written in one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Used permits, ascending.
    pub used: BTreeSet<Permitted>,
    /// For which time each cell reported all uses.
    pub windows: BTreeMap<CellId, Vec<Window>>,
    /// Connected cells.
    pub seen: BTreeSet<CellId>,
    /// Time of the batch, in seconds since 1970: the uses were not later.
    pub at: i64,
}

impl Batch {
    /// Day of the uses.
    #[must_use]
    pub fn day(&self) -> i64 {
        self.at.div_euclid(DAY)
    }

    /// Cells of the batch, ascending.
    #[must_use]
    pub fn cells(&self) -> BTreeSet<&CellId> {
        self.windows.keys().chain(&self.seen).collect()
    }

    /// Adds the batch to what is stored of a cell.
    pub fn observe(&self, cell: &CellId, observed: &mut Observed) {
        if self.seen.contains(cell) {
            observed.seen(self.at);
        }
        for window in self.windows.get(cell).into_iter().flatten() {
            observed.add(*window, self.at);
        }
    }
}

/// Reports that are not written yet. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Uses(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    used: BTreeSet<Permitted>,
    windows: BTreeMap<CellId, Vec<Window>>,
    /// Whether a cell has reported uses to this instance.
    active: bool,
    /// Whether an agent polled over HTTP since the last batch.
    polled: bool,
}

impl Uses {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message of a cell.
    pub fn add(&self, cell: &CellId, Reported { used, window }: Reported) {
        let mut pending = self.lock();
        pending.active = true;
        pending.used.extend(used);
        if let Some(window) = window {
            add(&mut pending.windows, cell, window);
        }
    }

    /// An agent polled over HTTP: such agents report no uses.
    pub fn polled(&self) {
        self.lock().polled = true;
    }

    /// What is to be written now; `None` as long as no cell reports uses.
    #[must_use]
    pub fn take(&self, connected: Vec<CellId>, at: i64) -> Option<Batch> {
        let mut pending = self.lock();
        if !pending.active {
            return None;
        }
        let (used, windows) = (mem::take(&mut pending.used), mem::take(&mut pending.windows));
        let mut seen: BTreeSet<CellId> = connected.into_iter().collect();
        if mem::take(&mut pending.polled) {
            seen.extend(CellId::parse(POLLING));
        }
        Some(Batch { used, windows, seen, at })
    }

    /// The batch was not written. Beyond [`PERMITS_MOST`] it is given up: the coverage of its
    /// cells then has a gap.
    pub fn not_saved(&self, batch: &Batch) {
        let mut pending = self.lock();
        if (pending.used.len() + batch.used.len()) as u64 > PERMITS_MOST {
            return;
        }
        pending.used.extend(batch.used.iter().cloned());
        let later = mem::take(&mut pending.windows);
        for (cell, windows) in batch.windows.iter().chain(&later) {
            windows.iter().for_each(|window| add(&mut pending.windows, cell, *window));
        }
    }
}

fn add(all: &mut BTreeMap<CellId, Vec<Window>>, cell: &CellId, window: Window) {
    let windows = all.entry(cell.clone()).or_default();
    match windows.last_mut() {
        Some(last) if window.from <= last.until && window.from >= last.from => {
            last.until = last.until.max(window.until);
        }
        _ => windows.push(window),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: i64, until: i64) -> Window {
        Window { from, until }
    }

    #[test]
    fn windows_that_touch_become_one_and_a_gap_stays() {
        let (uses, cell) = (Uses::default(), CellId::parse("cell-1").unwrap());
        assert_eq!(uses.take(vec![cell.clone()], 9), None, "no cell counts");
        for (from, until) in [(10, 20), (20, 30), (40, 50)] {
            let window = Some(window(from, until));
            uses.add(&cell, Reported { used: Vec::new(), window });
        }
        let batch = uses.take(vec![cell.clone()], 60).unwrap();
        assert_eq!(batch.windows[&cell], [window(10, 30), window(40, 50)]);
        uses.add(&cell, Reported { used: Vec::new(), window: Some(window(50, 60)) });
        uses.not_saved(&batch);
        let batch = uses.take(Vec::new(), 60).unwrap();
        assert_eq!(batch.windows[&cell], [window(10, 30), window(40, 60)]);
        let mut observed = Observed::default();
        batch.observe(&cell, &mut observed);
        assert_eq!((observed.since, observed.until, observed.missed), (Some(10), 60, 10));
    }
}
