//! Prometheus metrics, and the original's metrics under their own names
//! (docs/compatibility/vxlan-policy-agent.md#metrics), which go only to the metron
//! agent.

use std::time::Duration;

use runtime::{dropsonde::Dropsonde, metrics::Family, periodic::every};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Period of the original's uptime metric.
const UPTIME: Duration = Duration::from_secs(30);

/// Records the original's metrics; the default sends to no metron agent.
#[derive(Debug, Clone, Default)]
pub struct Times(Dropsonde);

impl Times {
    /// Also sends to this metron agent.
    #[must_use]
    pub fn new(metron: Dropsonde) -> Self {
        Self(metron)
    }

    /// Records the duration of a step.
    pub(crate) fn took(&self, step: Step, took: Duration) {
        let (name, label) = step.names();
        CYCLE_SECONDS.histogram_by([("step", label)]).record(took);
        self.0.took(name, took);
    }

    /// Sends process metrics and the uptime until `shutdown`.
    ///
    /// # Errors
    /// Never; the result lets this be a task of [`runtime::supervise::Tasks`].
    pub async fn of_process(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let began = Instant::now();
        let uptime = || self.0.value("uptime", began.elapsed().as_secs_f64(), "seconds");
        tokio::join!(self.0.run(&shutdown), every(began, UPTIME, &shutdown, uptime));
        Ok(())
    }
}

/// A step that the original times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Reading the container metadata store.
    Containers,
    /// Polling a policy server.
    Poll,
    /// Applying the rules to the kernel.
    Enforce,
    /// Sweeping unused rules.
    Cleanup,
    /// A cycle from its inputs to the published result.
    Total,
}

impl Step {
    /// The original's name, and the label.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Containers => ("containerMetadataTime", "containers"),
            Self::Poll => ("policyServerASGPollTime", "poll"),
            Self::Enforce => ("asgIptablesEnforceTime", "enforce"),
            Self::Cleanup => ("asgIptablesCleanupTime", "cleanup"),
            Self::Total => ("asgTotalPollTime", "total"),
        }
    }
}

runtime::families! {
    certificates "cell_agent";
    STORE_CONNECTED: Gauge "cell_agent_store_connected" when "enabled is true",
        "1 while the policy store, or the policy server that is polled, answers, else 0.";
    GENERATION: Gauge "cell_agent_enforced_generation",
        "Generation of the policy store that is in force.";
    GENERATION_AGE: Gauge "cell_agent_enforced_generation_age_seconds",
        "Time since the enforced generation came into force.";
    CONTAINERS: Gauge "cell_agent_containers",
        "Containers of the cell.";
    POLICIES: Gauge "cell_agent_policies",
        "Different sets of rules; containers with equal rules share one.";
    RULES_BEFORE: Gauge "cell_agent_rules_before_sharing",
        "Rules of all containers, counted for each container.";
    RULES_AFTER: Gauge "cell_agent_rules_after_sharing",
        "Rules of all containers, shared ones counted once.";
    KERNEL_RULES: Gauge "cell_agent_kernel_rules",
        "Rules of this agent in the kernel.";
    ISOLATED_RULES: Gauge "cell_agent_isolated_rules",
        "Rules left out because they cannot be enforced.";
    ISOLATED_CONTAINERS: Gauge "cell_agent_isolated_containers",
        "Containers whose egress is denied because their entry in the metadata store is bad.";
    WAITING_CONTAINERS: Gauge "cell_agent_waiting_containers",
        "Containers whose chains the CNI plugin has not made.";
    LIMIT_FULL_CONTAINERS: Gauge "cell_agent_connection_limit_full_containers",
        "Containers whose connection limit was full within the last minute.";
    IPV6_UNGOVERNED: Gauge "cell_agent_ipv6_ungoverned",
        "1 while the cell forwards IPv6 packets that no rule decides, else 0.";
    APPLY_SECONDS: Histogram "cell_agent_apply_seconds",
        "Time to bring a change into the kernel.";
    CYCLE_SECONDS: Histogram "cell_agent_cycle_duration_seconds" {
        step: &["containers", "poll", "enforce", "cleanup", "total"],
    },
        "Time of a pass by step.";
    APPLY_FAILURES: Counter "cell_agent_apply_failures_total",
        "Attempts to bring the rules into the kernel that failed.";
    DRIFT_HEALED: Counter "cell_agent_drift_healed_total",
        "Changes of the agent's rules by others that were undone.";
    STORE_FAILURES: Counter "cell_agent_container_store_failures_total",
        "Reads of the container metadata store that failed.";
    WATCH_FAILURES: Counter "cell_agent_policy_store_failures_total",
        "Watches of the policy store that ended or did not begin.";
    POLL_FAILURES: Counter "cell_agent_policy_server_failures_total",
        "Polls of a policy server that failed.";
    FORCE_FAILURES: Counter "cell_agent_force_failures_total",
        "Answers to the CNI plugin that a container has no rules.";
    FORCE_TIMEOUTS: Counter "cell_agent_force_timeouts_total",
        "Waits of the CNI plugin that ended at the deadline.";
    UNKNOWN_SPELLINGS: Counter "cell_agent_unknown_spellings_total",
        "Times that iptables printed rules in an unknown spelling.";
    UNATTRIBUTED: Counter "cell_agent_unattributed_packets_total",
        "Packets rejected because they belong to no known container.";
    DENIED: Counter "cell_agent_denied_packets_total",
        "Rejected packets of known containers; only the data plane nftables counts them.";
    DENIED_RECORDED: Counter "cell_agent_denied_recorded_packets_total",
        "Denied packets in the record of denied connections.";
    DENIED_FLOWS: Gauge "cell_agent_denied_flows",
        "Flows in the record of denied connections.";
    DENIED_OVERRUNS: Counter "cell_agent_denied_overruns_total",
        "Times that the kernel dropped denied packets on the way to the agent because it read too slowly.";
    ALLOWED: Counter "cell_agent_allowed_packets_total",
        "Packets of new connections that security groups allowed; only the data plane nftables counts them.";
    LIMIT_FULL: Counter "cell_agent_connection_limit_full_packets_total",
        "Packets rejected because the connection limit of their container was full.";
}

/// Counts one event.
pub(crate) fn count(family: Family) {
    family.counter().increment(1);
}

/// Sets a gauge.
#[expect(clippy::cast_precision_loss, reason = "a gauge of small numbers")]
pub(crate) fn number(family: Family, value: u64) {
    family.gauge().set(value as f64);
}
