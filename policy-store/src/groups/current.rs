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
use crate::metrics::{FROZEN, GENERATION, GROUPS, RELEASED_GENERATION};

/// Publisher of snapshots. Readers never wait, and never see a generation go back, as
/// long as only [`crate::committer::Committer`] publishes.
#[derive(Debug)]
pub struct SnapshotPublisher {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<Generation>,
    /// What cells get: the newest, or an older one while cells are frozen.
    released: ArcSwap<Snapshot>,
    released_generation: watch::Sender<Generation>,
    /// Time of the last confirmed Replace of this process, or of its start.
    confirmed: watch::Sender<Instant>,
}

impl SnapshotPublisher {
    /// Creates it with the stored content, which cells get, too.
    #[must_use]
    pub fn new(snapshot: Snapshot, now: Instant) -> Self {
        let snapshot = Arc::new(snapshot);
        Self::starting(Arc::clone(&snapshot), snapshot, now)
    }

    /// Creates it with the stored content and what cells get, at the start of a process.
    #[must_use]
    pub fn starting(newest: Arc<Snapshot>, released: Arc<Snapshot>, now: Instant) -> Self {
        gauge(&newest, &released);
        Self {
            generation: watch::Sender::new(newest.state.generation),
            current: ArcSwap::new(newest),
            released_generation: watch::Sender::new(released.state.generation),
            released: ArcSwap::new(released),
            confirmed: watch::Sender::new(now),
        }
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// What cells get: the newest snapshot, or an older one while cells are frozen.
    #[must_use]
    pub fn released(&self) -> Arc<Snapshot> {
        self.released.load_full()
    }

    /// Notifies about generations that cells get.
    #[must_use]
    pub fn releases(&self) -> watch::Receiver<Generation> {
        self.released_generation.subscribe()
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

    pub(crate) fn publish(&self, newest: Arc<Snapshot>, released: Arc<Snapshot>) {
        gauge(&newest, &released);
        let generations = [&newest, &released].map(|snapshot| snapshot.state.generation);
        self.current.store(newest);
        self.released.store(released);
        let senders = [&self.generation, &self.released_generation];
        for (sender, generation) in senders.into_iter().zip(generations) {
            sender.send_if_modified(|published| {
                std::mem::replace(published, generation) != generation
            });
        }
    }

    pub(crate) fn confirm(&self, now: Instant) {
        self.confirmed.send_replace(now);
    }
}

#[expect(clippy::cast_precision_loss, reason = "no store comes to 2^52 of either")]
fn gauge(newest: &Snapshot, released: &Snapshot) {
    GENERATION.gauge().set(newest.state.generation.0 as f64);
    RELEASED_GENERATION.gauge().set(released.state.generation.0 as f64);
    FROZEN.gauge().set(if newest.state.held.is_some() { 1.0 } else { 0.0 });
    GROUPS.gauge().set(newest.entries().len() as f64);
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
