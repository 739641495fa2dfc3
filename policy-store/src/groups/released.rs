//! What cells get.

use std::sync::Arc;

use model::{generation::Generation, ids::CellId};

use super::{rollout::Rollout, snapshot::Snapshot};

/// The snapshots that cells get.
#[derive(Debug, Clone)]
pub struct Released {
    /// Of most cells: the newest one, the one at which cells are frozen, or the one before a
    /// roll-out.
    pub base: Arc<Snapshot>,
    /// The generation that is rolled out in steps.
    pub ahead: Option<Ahead>,
}

/// A generation that only some cells get.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// Its snapshot.
    pub snapshot: Arc<Snapshot>,
    /// The roll-out.
    pub rollout: Rollout,
}

/// Changes whenever a cell gets another generation than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseId {
    base: Generation,
    ahead: Option<(Generation, usize)>,
}

/// All cells get the snapshot.
impl From<Arc<Snapshot>> for Released {
    fn from(base: Arc<Snapshot>) -> Self {
        Self { base, ahead: None }
    }
}

impl Released {
    /// What the cell gets.
    #[must_use]
    pub fn of(&self, cell: &CellId) -> &Arc<Snapshot> {
        match &self.ahead {
            Some(ahead) if ahead.rollout.includes(cell) => &ahead.snapshot,
            _ => &self.base,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ReleaseId {
        let ahead = self.ahead.as_ref();
        ReleaseId {
            base: self.base.state.generation,
            ahead: ahead.map(|ahead| (ahead.snapshot.state.generation, ahead.rollout.step)),
        }
    }

    /// Its snapshots.
    pub fn snapshots(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        std::iter::once(&self.base).chain(self.ahead.as_ref().map(|ahead| &ahead.snapshot))
    }
}
