//! Reports of cells, and the changes to store.

use jiff::Timestamp;
use model::{generation::Generation, ids::CellId};

/// Last report of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Newest generation in force in the kernel; 0 when none.
    pub enforced: Generation,
    /// Number of containers.
    pub containers: u32,
    /// Number of isolated rules.
    pub isolated_rules: u32,
    /// Time of the report, by this machine's clock.
    pub at: Timestamp,
}

/// Changes to store.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unsaved {
    /// New reports.
    pub reports: Vec<(CellId, Report)>,
    /// Deleted cells with the time of their last report: a cell that has reported to another
    /// instance since is kept.
    pub forgotten: Vec<(CellId, Timestamp)>,
}

impl Unsaved {
    /// Whether there is nothing to store.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty() && self.forgotten.is_empty()
    }
}
