//! Prometheus metrics. The original's names go only to the metron agent
//! ([`crate::report`]).

runtime::families! {
    certificates "syncer";
    LEASE_HELD: Gauge "syncer_lease_held",
        "1 while this syncer leads, else 0.";
    FENCING_TOKEN: Gauge "syncer_fencing_token",
        "Fencing token of the last term of this syncer; 0 before the first.";
    TERMS: Counter "syncer_terms_total",
        "Terms of leadership begun.";
    LOST_LOCKS: Counter "syncer_lost_locks_total",
        "Terms ended because the lock was lost.";
    LOCK_FAILURES: Counter "syncer_lock_request_failures_total",
        "Requests to the lock server that failed.";
    POLLS: Counter "syncer_polls_total" { outcome: &["unchanged", "synced", "failed"] },
        "Polls of the Cloud Controller by outcome.";
    FAILURES: Counter "syncer_failures_total" {
        cause: &[
            "token", "last-update", "list", "unstable", "store", "refused", "lease-ended",
            "fenced",
        ],
    },
        "Failed polls by cause; refused is the guard of the policy store.";
    LAST_SUCCESS: Gauge "syncer_last_success_timestamp_seconds",
        "Time of the last good poll; 0 before the first.";
    WATERMARK: Gauge "syncer_watermark_timestamp_seconds",
        "Newest Cloud Controller stamp that is synced; 0 before the first.";
    WATERMARK_AGE: Gauge "syncer_watermark_age_seconds",
        "Age of the newest synced stamp by the clock of this machine; grows while nothing changes.";
    CYCLE_SECONDS: Histogram "syncer_cycle_duration_seconds" {
        step: &["read", "store", "store-failed", "total"],
    },
        "Time of a sync by step: reading the list, storing it, failing to store it, all of it.";
    GROUPS: Gauge "syncer_groups",
        "Security groups of the last sync.";
    MALFORMED: Gauge "syncer_malformed_groups",
        "Security groups of the last sync that could not be read.";
    GENERATION: Gauge "syncer_generation",
        "Generation of the policy store after the last sync.";
}
