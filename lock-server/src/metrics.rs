//! Metrics: for Prometheus under Portcullis names, and for the loggregator agent under
//! the original's names (docs/compatibility/locket.md#metrics); the agent reads these values.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use metrics::Histogram;
use runtime::metrics::Family;

use crate::lock_version::ByKind;

runtime::families! {
    certificates "lock_server";
    ACTIVE_LOCKS: Gauge "lock_server_active_locks",
        "Locks that are held.";
    ACTIVE_PRESENCES: Gauge "lock_server_active_presences",
        "Presences that are held.";
    LOCKS_EXPIRED: Counter "lock_server_locks_expired_total",
        "Locks deleted at the end of their time to live.";
    PRESENCES_EXPIRED: Counter "lock_server_presences_expired_total",
        "Presences deleted at the end of their time to live.";
    STARTED: Counter "lock_server_requests_started_total" { request_type: RPCS },
        "Requests begun.";
    SUCCEEDED: Counter "lock_server_requests_succeeded_total" { request_type: RPCS },
        "Requests answered; a lock collision is an answer.";
    FAILED: Counter "lock_server_requests_failed_total" { request_type: RPCS },
        "Requests answered with an error.";
    CANCELLED: Counter "lock_server_requests_cancelled_total" { request_type: RPCS },
        "Requests cancelled by their clients.";
    IN_FLIGHT: Gauge "lock_server_requests_in_flight" { request_type: RPCS },
        "Requests that are being served.";
    SECONDS: Histogram "lock_server_request_seconds" { request_type: RPCS },
        "Time to serve a request.";
    DB_OPEN: Gauge "lock_server_db_open_connections" when "the database is on a server",
        "Open connections to the database server.";
    DB_WAITS: Counter "lock_server_db_waits_total" when "the database is on a server",
        "Waits for a connection because all were in use.";
    DB_WAITED: Gauge "lock_server_db_waited_seconds" when "the database is on a server",
        "Time of all waits for a connection since the start.";
    DB_QUERIES: Counter "lock_server_db_queries_total" when "the database is on a server",
        "Statements sent to the database server.";
    DB_SUCCEEDED: Counter "lock_server_db_queries_succeeded_total" when "the database is on a server",
        "Statements that succeeded.";
    DB_FAILED: Counter "lock_server_db_queries_failed_total" when "the database is on a server",
        "Statements that failed.";
    DB_IN_FLIGHT: Gauge "lock_server_db_queries_in_flight_max" when "the database is on a server",
        "Most statements at the same time in the last report_interval.";
    DB_LONGEST: Gauge "lock_server_db_query_seconds_max" when "the database is on a server",
        "Longest statement in the last report_interval.";
}

/// The counted RPCs.
const RPCS: &[&str] = &["Lock", "Fetch", "Release", "FetchAll", "Watch"];

/// A counter for both targets.
#[derive(Debug)]
pub struct Counter {
    shown: metrics::Counter,
    count: AtomicU64,
}

impl Counter {
    fn new(shown: metrics::Counter) -> Self {
        Self { shown, count: AtomicU64::new(0) }
    }

    /// Adds one.
    pub fn increment(&self) {
        self.shown.increment(1);
        self.count.fetch_add(1, Relaxed);
    }

    /// Current value.
    pub fn get(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

/// A gauge for both targets.
#[derive(Debug)]
pub struct Gauge {
    shown: metrics::Gauge,
    count: AtomicI64,
}

impl Gauge {
    fn new(shown: metrics::Gauge) -> Self {
        Self { shown, count: AtomicI64::new(0) }
    }

    /// Adds `difference`.
    pub fn add(&self, difference: i64) {
        self.shown.increment(difference as f64);
        self.count.fetch_add(difference, Relaxed);
    }

    /// Current value.
    pub fn get(&self) -> i64 {
        self.count.load(Relaxed)
    }
}

/// Counts for one kind.
#[derive(Debug)]
pub struct Kind {
    /// ActiveLocks, ActivePresences.
    pub active: Gauge,
    /// LocksExpired, PresenceExpired.
    pub expired: Counter,
}

/// Counts of held and of expired locks.
pub fn population() -> ByKind<Kind> {
    let kind = |active: Family, expired: Family| Kind {
        active: Gauge::new(active.gauge()),
        expired: Counter::new(expired.counter()),
    };
    ByKind {
        locks: kind(ACTIVE_LOCKS, LOCKS_EXPIRED),
        presences: kind(ACTIVE_PRESENCES, PRESENCES_EXPIRED),
    }
}

/// The requests of one RPC.
#[derive(Debug)]
pub struct Requests {
    /// RequestsStarted.
    pub started: Counter,
    /// RequestsSucceeded; a collision is a success.
    pub succeeded: Counter,
    /// RequestsFailed.
    pub failed: Counter,
    /// RequestsCancelled.
    pub cancelled: Counter,
    /// RequestsInFlight.
    pub in_flight: Gauge,
    seconds: Histogram,
    longest: AtomicU64,
}

impl Requests {
    /// Metrics of the RPC with this name.
    pub fn of(rpc: &'static str) -> Self {
        let label = [("request_type", rpc)];
        let count = |family: Family| Counter::new(family.counter_by(label));
        Self {
            started: count(STARTED),
            succeeded: count(SUCCEEDED),
            failed: count(FAILED),
            cancelled: count(CANCELLED),
            in_flight: Gauge::new(IN_FLIGHT.gauge_by(label)),
            seconds: SECONDS.histogram_by(label),
            longest: AtomicU64::new(0),
        }
    }

    /// Records the latency of a request.
    pub fn took(&self, time: Duration) {
        self.seconds.record(time.as_secs_f64());
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.longest.fetch_max(nanoseconds, Relaxed);
    }

    /// RequestLatencyMax: the longest since the last call of this function.
    pub fn take_longest(&self) -> Duration {
        Duration::from_nanos(self.longest.swap(0, Relaxed))
    }
}
