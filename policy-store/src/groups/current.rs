//! Publishes the newest snapshot to all readers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use model::{generation::Generation, ids::SpaceGuid};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    contents::{Contents, Stored},
    released::{ReleaseId, Released},
    snapshot::{Entry, Snapshot},
};
use crate::metrics::{
    FROZEN, GENERATION, GROUPS, RELEASED_GENERATION, ROLLOUT_STEP, ROLLOUT_STOPPED,
};

/// Publisher of snapshots. Readers never wait, and never see a generation go back, as
/// long as only [`crate::committer::Committer`] publishes.
#[derive(Debug)]
pub struct SnapshotPublisher {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<Generation>,
    released: ArcSwap<Released>,
    release_id: watch::Sender<ReleaseId>,
    /// Time of the last confirmed Replace of this process, or of its start.
    confirmed: watch::Sender<Instant>,
}

impl SnapshotPublisher {
    /// Creates it with the stored content, which cells get, too.
    #[must_use]
    pub fn new(snapshot: Snapshot, now: Instant) -> Self {
        let snapshot = Arc::new(snapshot);
        Self::starting(Arc::clone(&snapshot), snapshot.into(), now)
    }

    /// Creates it with the stored content and what cells get, at the start of a process.
    #[must_use]
    pub fn starting(newest: Arc<Snapshot>, released: Released, now: Instant) -> Self {
        gauge(&newest, &released);
        Self {
            generation: watch::Sender::new(newest.state.generation),
            current: ArcSwap::new(newest),
            release_id: watch::Sender::new(released.id()),
            released: ArcSwap::from_pointee(released),
            confirmed: watch::Sender::new(now),
        }
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// What cells get.
    #[must_use]
    pub fn released(&self) -> Arc<Released> {
        self.released.load_full()
    }

    /// What cells get that no roll-out includes yet.
    #[must_use]
    pub fn released_base(&self) -> Arc<Snapshot> {
        Arc::clone(&self.released.load().base)
    }

    /// Notifies when a cell gets another generation.
    #[must_use]
    pub fn releases(&self) -> watch::Receiver<ReleaseId> {
        self.release_id.subscribe()
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

    pub(crate) fn publish(&self, newest: Arc<Snapshot>, released: Released) {
        gauge(&newest, &released);
        let (generation, id) = (newest.state.generation, released.id());
        self.current.store(newest);
        self.released.store(Arc::new(released));
        send_if_changed(&self.generation, generation);
        send_if_changed(&self.release_id, id);
    }

    pub(crate) fn confirm(&self, now: Instant) {
        self.confirmed.send_replace(now);
    }
}

fn send_if_changed<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|sent| {
        let is_change = *sent != value;
        *sent = value;
        is_change
    });
}

#[expect(clippy::cast_precision_loss, reason = "no store comes to 2^52 of either")]
fn gauge(newest: &Snapshot, released: &Released) {
    let flag = |is_set| if is_set { 1.0 } else { 0.0 };
    let rollout = newest.state.rollout.as_ref();
    GENERATION.gauge().set(newest.state.generation.0 as f64);
    RELEASED_GENERATION.gauge().set(released.base.state.generation.0 as f64);
    FROZEN.gauge().set(flag(newest.state.held.is_some()));
    ROLLOUT_STEP.gauge().set(rollout.map_or(0.0, |rollout| (rollout.step + 1) as f64));
    ROLLOUT_STOPPED.gauge().set(flag(rollout.is_some_and(|rollout| rollout.stopped.is_some())));
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
