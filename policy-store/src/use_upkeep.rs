//! Writes the uses of rules that cells reported, and drops old records.
//!
//! A failure is logged and retried. When the record is full, nothing more is written: the coverage
//! then ends there, and no rule is called unused wrongly.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use runtime::error::chain;
use tokio_util::sync::CancellationToken;

use crate::{
    feed::watch::Feed,
    store::Store,
    uses::{Batch, PERMITS_MOST, Permitted},
};

/// Uses are written once in as many intervals of saved reports.
const SAVE: u32 = 12;
/// But at least this often: agents forget what they sent three minutes ago.
const SAVE_MOST: Duration = Duration::from_secs(60);
/// Number of writes after which old records are dropped.
const PRUNE: u64 = 60;

/// The task; see the module.
#[derive(Debug)]
pub struct UseUpkeep {
    store: Arc<dyn Store>,
    feed: Feed,
    /// Permits that this instance wrote on a day: once is enough.
    written: (i64, HashSet<Permitted>),
    /// Stored permits, at most; `None` before the first count.
    stored: Option<u64>,
    saves: u64,
}

impl UseUpkeep {
    /// A task that is not running yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, feed: Feed) -> Self {
        Self { store, feed, written: (0, HashSet::new()), stored: None, saves: 0 }
    }

    /// Writes periodically until `stop`, and then once more. `reports`: the interval at which
    /// reports of cells are saved.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub async fn run(mut self, reports: Duration, stop: CancellationToken) -> anyhow::Result<()> {
        let every = (SAVE * reports).min(SAVE_MOST);
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            self.save().await;
        }
        self.save().await;
        Ok(())
    }

    async fn save(&mut self) {
        let at = Timestamp::now().as_second();
        let Some(batch) = self.feed.uses.take(self.feed.cells.connected(), at) else { return };
        let day = batch.day();
        if self.stored.is_none() || self.saves.is_multiple_of(PRUNE) {
            match self.store.uses().prune(day).await {
                Ok(left) => self.stored = Some(left),
                Err(error) => {
                    tracing::error!(error = chain(&error), "failed-to-prune-uses");
                    self.feed.uses.not_saved(&batch);
                    return;
                }
            }
        }
        self.saves += 1;
        if self.written.0 != day {
            self.written = (day, HashSet::new());
        }
        let used = batch.used.iter().filter(|permit| !self.written.1.contains(*permit));
        let fresh = Arc::new(Batch { used: used.cloned().collect(), ..batch.clone() });
        let stored = self.stored.unwrap_or(0) + fresh.used.len() as u64;
        if stored > PERMITS_MOST {
            tracing::error!(permits = stored, "record-of-uses-is-full");
            self.stored = None;
            return;
        }
        match self.store.uses().save(Arc::clone(&fresh)).await {
            Ok(()) => {
                self.stored = Some(stored);
                self.written.1.extend(fresh.used.iter().cloned());
            }
            Err(error) => {
                self.feed.uses.not_saved(&batch);
                tracing::error!(error = chain(&error), "failed-to-save-uses");
            }
        }
    }
}
