//! Publishes the newest snapshot to all readers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use model::{generation::Generation, ids::SpaceGuid};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    contents::{Contents, Stored},
    snapshot::{Entry, Snapshot},
};
use crate::metrics::{GENERATION, GROUPS};

/// Publisher of snapshots. Readers never wait, and never see a generation go back, as
/// long as only [`crate::committer::Committer`] publishes.
#[derive(Debug)]
pub struct SnapshotPublisher {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<Generation>,
    /// Time of the last confirmed Replace of this process, or of its start.
    confirmed: watch::Sender<Instant>,
}

impl SnapshotPublisher {
    /// Creates it with the stored content, at the start of a process.
    #[must_use]
    pub fn new(snapshot: Snapshot, now: Instant) -> Self {
        gauge(&snapshot);
        let generation = watch::Sender::new(snapshot.state.generation);
        let current = ArcSwap::from_pointee(snapshot);
        Self { current, generation, confirmed: watch::Sender::new(now) }
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Notifies about new generations. A slow receiver skips some and sees the newest.
    #[must_use]
    pub fn generations(&self) -> watch::Receiver<Generation> {
        self.generation.subscribe()
    }

    /// Time of the last confirmed Replace, including those without changes; the start of
    /// the process before the first.
    #[must_use]
    pub fn confirmed(&self) -> watch::Receiver<Instant> {
        self.confirmed.subscribe()
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        gauge(&snapshot);
        let generation = snapshot.state.generation;
        self.current.store(Arc::new(snapshot));
        self.generation
            .send_if_modified(|published| std::mem::replace(published, generation) != generation);
    }

    pub(crate) fn confirm(&self, now: Instant) {
        self.confirmed.send_replace(now);
    }
}

#[expect(clippy::cast_precision_loss, reason = "no store comes to 2^52 of either")]
fn gauge(snapshot: &Snapshot) {
    GENERATION.gauge().set(snapshot.state.generation.0 as f64);
    GROUPS.gauge().set(snapshot.entries().len() as f64);
}

/// The first snapshot of a process.
impl From<Contents> for Snapshot {
    fn from(contents: Contents) -> Self {
        let Contents { state, groups, past, since: _, reports: _ } = contents;
        // The loader has interned the spaces already.
        let entry = |Stored { id, group, hash }| {
            Arc::new(Entry::new(id, &group, hash, None, SpaceGuid::clone))
        };
        Self::new(state, groups.into_iter().map(entry).collect(), past)
    }
}
