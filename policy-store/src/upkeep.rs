//! Upkeep of the history: stores how cells got each generation, and drops old entries.
//!
//! Works beside the Replaces, in short transactions. A failure is logged and retried: the history
//! is then incomplete or too long, and nothing else depends on it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use model::generation::Generation;
use runtime::error::chain;
use tokio_util::sync::CancellationToken;

use crate::{
    config::History,
    feed::changes::Changes,
    groups::{archive::Bounds, current::SnapshotPublisher},
    store::Store,
};

/// Interval at which settled generations are stored.
const SAVE: Duration = Duration::from_secs(5);
/// Number of these intervals after which old entries are dropped.
const PRUNE: u32 = 12;
/// Pause between two steps of dropping.
const PAUSE: Duration = Duration::from_millis(100);

/// The task; see the module.
#[derive(Debug)]
pub struct Upkeep {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Newest set, for the time from which days count.
    pub board: Arc<SnapshotPublisher>,
    /// The last changes.
    pub changes: Changes,
    /// Limits.
    pub limits: History,
}

impl Upkeep {
    /// Runs until `stop`, then stores what is known of unfinished generations.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let instance: Arc<str> = uuid::Uuid::new_v4().to_string().into();
        let mut rounds = 0;
        while stop.run_until_cancelled(tokio::time::sleep(SAVE)).await.is_some() {
            self.save(&instance, false).await;
            rounds += 1;
            if rounds % PRUNE == 0 {
                let _stopped = stop.run_until_cancelled(self.prune()).await;
            }
        }
        self.save(&instance, true).await;
        Ok(())
    }

    async fn save(&self, instance: &Arc<str>, is_last: bool) {
        let settled = self.changes.settled(Timestamp::now(), is_last);
        // Without cells there is nothing to tell.
        let progress: Arc<[_]> =
            settled.iter().filter(|(_, reached)| reached.cells > 0).copied().collect();
        if progress.is_empty() {
            return;
        }
        let saved = self.store.history().save_progress(Arc::clone(instance), progress).await;
        if let Err(error) = saved {
            self.changes.not_saved(&settled);
            tracing::error!(error = chain(&error), "failed-to-save-progress");
        }
    }

    async fn prune(&self) {
        let state = &self.board.current().state;
        // A restart has to find the generations that cells get.
        let held = state.held.as_ref().map(|held| held.point.generation);
        let base = state.rollout.as_ref().map(|rollout| rollout.base.generation);
        let keep_from = held.into_iter().chain(base).min();
        let newest = i128::from(state.stamp.0);
        let newest = Timestamp::from_nanosecond(newest).unwrap_or(Timestamp::MAX);
        let bounds = bounds(self.limits, newest.min(Timestamp::now()), keep_from);
        loop {
            match self.store.history().prune(bounds).await {
                Ok(false) => return,
                Ok(true) => tokio::time::sleep(PAUSE).await,
                Err(error) => {
                    tracing::error!(error = chain(&error), "failed-to-prune-history");
                    return;
                }
            }
        }
    }
}

fn bounds(limits: History, from: Timestamp, keep_from: Option<Generation>) -> Bounds {
    let History { time, size } = limits;
    let since = from.checked_sub(time).unwrap_or(Timestamp::MIN);
    Bounds { since, bytes: size, keep_from }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_back() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let limits = History { time: Duration::from_secs(86_400), size: 7 };
        let bounds = bounds(limits, at(1_000_000), Some(Generation(4)));
        assert_eq!((bounds.since, bounds.bytes), (at(913_600), 7));
        assert_eq!(bounds.keep_from, Some(Generation(4)));
        let long = History { time: Duration::MAX, size: 7 };
        assert_eq!(super::bounds(long, at(0), None).since, Timestamp::MIN);
    }
}
