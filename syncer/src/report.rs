//! Sync durations: for the metron agent under the original's names
//! (docs/compatibility/asg-syncer.md#metrics), for Prometheus by step.

use std::time::Duration;

use runtime::dropsonde::Dropsonde;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::metrics::CYCLE_SECONDS;

/// Reports syncs; polls without a sync are not reported.
#[derive(Debug, Clone)]
pub struct Report {
    metron: Dropsonde,
}

impl Report {
    /// Reports to this agent.
    #[must_use]
    pub fn new(metron: Dropsonde) -> Self {
        Self { metron }
    }

    /// The list was read.
    pub fn retrieved(&self, took: Duration) {
        self.took("SecurityGroupsRetrievalFromCCTime", "read", took);
    }

    /// The store confirmed the Replace.
    pub fn replaced(&self, took: Duration) {
        self.took("SecurityGroupsStoreReplaceSuccessTime", "store", took);
    }

    /// The store refused or failed the Replace.
    pub fn not_replaced(&self, took: Duration) {
        self.took("SecurityGroupsStoreReplaceErrorTime", "store-failed", took);
        self.metron.count("SecurityGroupsStoreReplaceError");
    }

    /// Duration of a poll with a list, whatever the result of the Replace.
    pub fn synced(&self, took: Duration) {
        self.took("SecurityGroupsTotalSyncTime", "total", took);
        debug!("successfully-sent-performance-metrics");
    }

    fn took(&self, name: &'static str, step: &'static str, time: Duration) {
        CYCLE_SECONDS.histogram_by([("step", step)]).record(time);
        self.metron.took(name, time);
    }

    /// Reports process metrics until `shutdown`.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub async fn of_process(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        self.metron.run(&shutdown).await;
        Ok(())
    }
}
