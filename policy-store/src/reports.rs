//! What cells report, and what of it has to be stored.

use jiff::Timestamp;
use model::{generation::Generation, ids::CellId};

/// What a cell said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The newest generation in force in its kernel; 0 when none.
    pub enforced: Generation,
    /// How many containers it has.
    pub containers: u32,
    /// How many rules it could not enforce.
    pub isolated_rules: u32,
    /// When it said so, by this machine's clock.
    pub at: Timestamp,
}

/// What has to be written down.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unsaved {
    /// New reports.
    pub reports: Vec<(CellId, Report)>,
    /// Cells that are forgotten, and when each said its last word: one that said
    /// something to another instance since is not.
    pub forgotten: Vec<(CellId, Timestamp)>,
}

impl Unsaved {
    /// Whether there is anything to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty() && self.forgotten.is_empty()
    }
}
