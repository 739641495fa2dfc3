//! The last changes, shared by the committer, which records them, the watches, which
//! record when cells enforced them, and readers.
//!
//! A reader has no queue: each [`Follower::next`] gives the newest state of a change.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use model::{
    generation::{Generation, Watermark},
    ids::CellId,
    trace::TraceContext,
};
use tokio::{sync::watch, time::Instant};

use super::{
    cells::Cells,
    ring::{Committed, Filter, Next, Reader, Ring, Shown},
};
use crate::{groups::archive::Reached, metrics::CHANGE_SECONDS};

#[derive(Debug, Default)]
struct Shared {
    ring: Mutex<Ring>,
    /// Rises with each change and each update of one.
    version: watch::Sender<u64>,
}

/// The last changes; see the module. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Changes(Arc<Shared>);

impl Changes {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        self.0.version.send_modify(|version| *version += 1);
    }

    /// Records generations, before their publication: no report of one can come earlier.
    pub fn record(&self, generations: Vec<Committed>, cells: &Cells) {
        if generations.is_empty() {
            return;
        }
        let connected = cells.connected();
        let mut ring = self.ring();
        for change in generations {
            measure(&change);
            ring.push(change, connected.clone());
        }
        drop(ring);
        self.notify();
    }

    /// Records that a cell has `generation` in force and had `before` until then. Returns
    /// the time since the commit of `generation`, if the cell was connected then.
    pub fn enforced(
        &self,
        cell: &CellId,
        before: Generation,
        generation: Generation,
        now: Timestamp,
    ) -> Option<Duration> {
        let times = self.ring().enforced(cell, before, generation, now);
        let (newest, lag) = *times.last()?;
        self.notify();
        for (_, time) in &times {
            hop("enforce", *time);
        }
        (newest == generation).then_some(lag)
    }

    /// Trace context of the sync that made the newest generation, if it is this one.
    #[must_use]
    pub fn trace(&self, generation: Generation) -> Option<TraceContext> {
        let ring = self.ring();
        ring.newest().filter(|newest| newest.generation == generation)?.origin.trace
    }

    /// See [`Ring::settled`].
    #[must_use]
    pub fn settled(&self, now: Timestamp, is_last: bool) -> Vec<(Generation, Reached)> {
        self.ring().settled(now, is_last)
    }

    /// See [`Ring::not_saved`].
    pub fn not_saved(&self, generations: &[(Generation, Reached)]) {
        self.ring().not_saved(generations);
    }

    /// Starts with the last `last` changes that the filter selects; with `follow`, goes on
    /// with later ones and with updates.
    #[must_use]
    pub fn follow(&self, filter: Filter, last: usize, follow: bool) -> Follower {
        let versions = self.0.version.subscribe();
        let reader = self.ring().reader(filter, last);
        Follower { changes: self.clone(), reader, versions, follow, began: Instant::now() }
    }
}

/// A reader of changes.
#[derive(Debug)]
pub struct Follower {
    changes: Changes,
    reader: Reader,
    versions: watch::Receiver<u64>,
    follow: bool,
    began: Instant,
}

impl Follower {
    /// The next change; `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<Shown> {
        loop {
            // Mark before reading, so that a later change is not missed.
            self.versions.mark_unchanged();
            let next = self.changes.ring().next(&mut self.reader, self.began.elapsed());
            let due = match next {
                Next::Change(shown) => return Some(*shown),
                Next::Update { due } => due,
            };
            if !self.follow {
                return None;
            }
            let update = async {
                match due {
                    Some(due) => tokio::time::sleep_until(self.began + due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // `changes` keeps the sender alive.
                _changed = self.versions.changed() => {}
                () = update => {}
            }
        }
    }
}

/// Records the hops until the commit, as far as this instance knows them.
fn measure(change: &Committed) {
    let origin = &change.origin;
    let stamp = change.watermark.and_then(time);
    let hops = [
        ("notice", stamp, origin.noticed_at),
        ("read", origin.noticed_at, origin.read_at),
        ("commit", origin.read_at, Some(change.at)),
    ];
    for (name, from, to) in hops {
        if let (Some(from), Some(to)) = (from, to) {
            // A difference between two clocks makes no negative time.
            hop(name, Duration::try_from(to.duration_since(from)).unwrap_or_default());
        }
    }
}

fn time(watermark: Watermark) -> Option<Timestamp> {
    let nanoseconds = i32::try_from(watermark.nanoseconds()).ok()?;
    Timestamp::new(watermark.seconds(), nanoseconds).ok()
}

fn hop(name: &'static str, time: Duration) {
    CHANGE_SECONDS.histogram_by([("hop", name)]).record(time.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::decide::Origin;

    fn change(generation: u64) -> Committed {
        Committed {
            generation: Generation(generation),
            origin: Origin::default(),
            owner: None,
            watermark: None,
            at: Timestamp::UNIX_EPOCH,
            groups: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_waits_for_changes_and_one_that_does_not_follow_ends() {
        let (changes, cells) = (Changes::default(), Cells::default());
        changes.record(vec![change(1)], &cells);
        let mut once = changes.follow(Filter::default(), 9, false);
        assert_eq!(once.next().await.unwrap().change.generation, Generation(1));
        assert!(once.next().await.is_none());
        let mut follower = changes.follow(Filter::default(), 0, true);
        let next = follower.next();
        let (next, ()) = tokio::join!(next, async {
            tokio::task::yield_now().await;
            changes.record(vec![change(2)], &cells);
        });
        assert_eq!(next.unwrap().change.generation, Generation(2));
        assert_eq!(changes.trace(Generation(2)), None);
        let an_hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(an_hour, follower.next()).await.is_err());
    }
}
