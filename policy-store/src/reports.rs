//! Reports of cells, and the changes to store. [`Agent`] and [`Details`] are never stored.

use std::time::Duration;

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

/// The agent of a cell, as it introduced itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Agent {
    /// Version; empty when the agent is older than this field.
    pub version: Box<str>,
    /// Data plane; empty when the agent is older than this field.
    pub plane: Box<str>,
    /// Whether the agent answers questions.
    pub answers_questions: bool,
}

/// The parts of a report that are kept in memory only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    /// When the state in force was last confirmed, by the cell's clock.
    pub enforced_at: Option<Timestamp>,
    /// From the arrival of the generation on the cell until it was in force.
    pub apply_time: Option<Duration>,
    /// Changes of others in the kernel that the agent undid.
    pub drift_healed: u64,
    /// Error of the last reconcile; empty when it succeeded.
    pub last_error: Box<str>,
    /// Packet counters.
    pub counters: Option<Counters>,
}

/// Packets since the start of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets of new connections that groups allowed, if counted.
    pub allowed: Option<u64>,
    /// Rejected packets of known containers, if counted.
    pub denied: Option<u64>,
    /// Rejected packets that belong to no known container.
    pub unattributed: u64,
}
