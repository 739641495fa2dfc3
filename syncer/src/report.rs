//! How long syncs take, by the original's names (docs/compatibility/asg-syncer.md#metrics): for the
//! metron agent, and as Prometheus gauges of the last value.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use runtime::dropsonde::Dropsonde;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How often the original tells of its process.
const PROCESS: Duration = Duration::from_secs(10);

/// Makes every `syncer_*` family exist from the start, on standbys too, so that an
/// alarm on a rate or on an absent family works before the first event. Time
/// stamps are 0 until there is one.
pub fn declare() {
    for outcome in ["unchanged", "synced", "failed"] {
        counter!("syncer_polls_total", "outcome" => outcome).absolute(0);
    }
    for cause in FAILURE_CAUSES {
        counter!("syncer_failures_total", "cause" => cause).absolute(0);
    }
    for name in [
        "syncer_terms_total",
        "syncer_lost_locks_total",
        "syncer_lock_request_failures_total",
        "SecurityGroupsStoreReplaceError",
    ] {
        counter!(name).absolute(0);
    }
    for name in [
        "syncer_lease_held",
        "syncer_fencing_token",
        "syncer_last_success_timestamp_seconds",
        "syncer_watermark_timestamp_seconds",
        "syncer_watermark_age_seconds",
        "syncer_groups",
        "syncer_malformed_groups",
        "syncer_generation",
    ] {
        gauge!(name).set(0.0);
    }
    for step in ["read", "store"] {
        _ = histogram!("syncer_cycle_duration_seconds", "step" => step);
    }
}

/// What [`crate::cycle::Error::cause`] may say.
const FAILURE_CAUSES: [&str; 8] =
    ["token", "last-update", "list", "unstable", "store", "refused", "lease-ended", "fenced"];

/// Tells of syncs; a poll without a sync is not told.
#[derive(Debug, Clone)]
pub struct Report {
    metron: Dropsonde,
}

impl Report {
    /// To this agent.
    #[must_use]
    pub fn new(metron: Dropsonde) -> Self {
        Self { metron }
    }

    /// The list was read.
    pub fn retrieved(&self, took: Duration) {
        self.took("SecurityGroupsRetrievalFromCCTime", took);
    }

    /// The store has taken the groups.
    pub fn replaced(&self, took: Duration) {
        self.took("SecurityGroupsStoreReplaceSuccessTime", took);
    }

    /// The store has not taken the groups.
    pub fn not_replaced(&self, took: Duration) {
        const FAILURES: &str = "SecurityGroupsStoreReplaceError";
        self.took("SecurityGroupsStoreReplaceErrorTime", took);
        counter!(FAILURES).increment(1);
        self.metron.count(FAILURES);
    }

    /// The whole of a poll with a list, whatever the store made of it.
    pub fn synced(&self, took: Duration) {
        self.took("SecurityGroupsTotalSyncTime", took);
        debug!("successfully-sent-performance-metrics");
    }

    fn took(&self, name: &'static str, time: Duration) {
        gauge!(name).set(time.as_secs_f64() * 1e3);
        self.metron.took(name, time);
    }

    /// Tells of the process until `shutdown`.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub async fn of_process(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let tell = async {
            let mut ticks = interval(PROCESS);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
                self.metron.process();
            }
        };
        tokio::join!(self.metron.resolve(&shutdown), tell);
        Ok(())
    }
}
