//! Metrics that the original has go by its names
//! (docs/compatibility/vxlan-policy-agent.md#metrics): to the metron agent as it sends them, and to
//! Prometheus as the last value. Ours begin with `cell_agent_` and go to Prometheus alone.

use std::time::Duration;

use runtime::dropsonde::Dropsonde;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the original tells of its process, and of each third time of its
/// age.
const PROCESS: Duration = Duration::from_secs(10);
const UPTIME_EACH: u32 = 3;

/// Takes the original's values; the default tells no metron agent.
#[derive(Debug, Clone, Default)]
pub struct Times(Dropsonde);

impl Times {
    /// Tells this agent as well.
    #[must_use]
    pub fn new(metron: Dropsonde) -> Self {
        Self(metron)
    }

    /// How long something took.
    pub(crate) fn took(&self, name: &'static str, took: Duration) {
        metrics::gauge!(name).set(took.as_secs_f64() * 1000.0);
        self.0.took(name, took);
    }

    /// Tells of the process until `shutdown`.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`runtime::supervise::Tasks`].
    pub async fn of_process(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        if !self.0.is_told() {
            shutdown.cancelled().await;
            return Ok(());
        }
        let began = Instant::now();
        let tell = async {
            let mut ticks = interval(PROCESS);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut count = 0_u32;
            while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
                self.0.process();
                if count.is_multiple_of(UPTIME_EACH) {
                    self.0.value("uptime", began.elapsed().as_secs_f64(), "seconds");
                }
                count = count.wrapping_add(1);
            }
        };
        tokio::join!(self.0.resolve(&shutdown), tell);
        Ok(())
    }
}

/// How often the kernel did not take what it was to hold.
pub(crate) const APPLY_FAILURES: &str = "cell_agent_apply_failures_total";
/// How often somebody else's change was undone.
pub(crate) const DRIFT_HEALED: &str = "cell_agent_drift_healed_total";
/// How often the container metadata store could not be read.
pub(crate) const STORE_FAILURES: &str = "cell_agent_container_store_failures_total";
/// How often a watch of the policy store ended, or did not begin.
pub(crate) const WATCH_FAILURES: &str = "cell_agent_policy_store_failures_total";
/// How often a policy server did not answer a poll.
pub(crate) const POLL_FAILURES: &str = "cell_agent_policy_server_failures_total";
/// How often the CNI plugin was told that a container has no rules.
pub(crate) const FORCE_FAILURES: &str = "cell_agent_force_failures_total";

/// How often the CNI plugin waited until the deadline.
pub(crate) const FORCE_TIMEOUTS: &str = "cell_agent_force_timeouts_total";
/// How often a program printed rules in an unknown spelling.
pub(crate) const UNKNOWN_SPELLINGS: &str = "cell_agent_unknown_spellings_total";
/// Packets rejected because they are no known container's.
pub(crate) const UNATTRIBUTED: &str = "cell_agent_unattributed_packets_total";
/// Packets rejected because a container's connection limit had no place for them.
pub(crate) const LIMIT_FULL: &str = "cell_agent_connection_limit_full_packets_total";

const COUNTERS: [&str; 10] = [
    APPLY_FAILURES,
    DRIFT_HEALED,
    STORE_FAILURES,
    WATCH_FAILURES,
    POLL_FAILURES,
    FORCE_FAILURES,
    FORCE_TIMEOUTS,
    UNKNOWN_SPELLINGS,
    UNATTRIBUTED,
    LIMIT_FULL,
];

/// Shows what has not happened yet: nothing is no failure, and not the same as no
/// metric.
pub(crate) fn begin() {
    for name in COUNTERS {
        metrics::counter!(name).increment(0);
    }
}

/// Sets a time that goes on.
pub(crate) fn seconds(name: &'static str, time: Duration) {
    metrics::gauge!(name).set(time.as_secs_f64());
}

/// Adds to a distribution of times.
pub(crate) fn took(name: &'static str, time: Duration) {
    metrics::histogram!(name).record(time.as_secs_f64());
}

/// Counts something that happened.
pub(crate) fn count(name: &'static str) {
    metrics::counter!(name).increment(1);
}

/// Counts several things that happened.
pub(crate) fn add(name: &'static str, several: u64) {
    metrics::counter!(name).increment(several);
}

/// Sets a number of things.
#[expect(clippy::cast_precision_loss, reason = "a gauge of small numbers")]
pub(crate) fn number(name: &'static str, value: u64) {
    metrics::gauge!(name).set(value as f64);
}
