//! What is counted: for Prometheus under our names, and for the loggregator agent
//! under the original's (docs/compatibility/locket.md#metrics), which are read from here.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use metrics::{Histogram, counter, gauge, histogram};
use model::lock::LockKind;

/// A number that rises, for both.
#[derive(Debug)]
pub struct Counter {
    shown: metrics::Counter,
    count: AtomicU64,
}

impl Counter {
    fn new(shown: metrics::Counter) -> Self {
        Self { shown, count: AtomicU64::new(0) }
    }

    /// One more.
    pub fn increment(&self) {
        self.shown.increment(1);
        self.count.fetch_add(1, Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

/// A number that goes up and down, for both.
#[derive(Debug)]
pub struct Gauge {
    shown: metrics::Gauge,
    count: AtomicI64,
}

impl Gauge {
    fn new(shown: metrics::Gauge) -> Self {
        Self { shown, count: AtomicI64::new(0) }
    }

    /// One more or less.
    pub fn add(&self, difference: i64) {
        self.shown.increment(difference as f64);
        self.count.fetch_add(difference, Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> i64 {
        self.count.load(Relaxed)
    }
}

/// How many are held, and how many expired.
#[derive(Debug)]
pub struct Population {
    locks: Kind,
    presences: Kind,
}

/// The locks of one kind.
#[derive(Debug)]
pub struct Kind {
    /// ActiveLocks, ActivePresences.
    pub active: Gauge,
    /// LocksExpired, PresenceExpired.
    pub expired: Counter,
}

impl Default for Population {
    fn default() -> Self {
        let kind = |active: &'static str, expired: &'static str| Kind {
            active: Gauge::new(gauge!(active)),
            expired: Counter::new(counter!(expired)),
        };
        Self {
            locks: kind("lock_server_active_locks", "lock_server_locks_expired_total"),
            presences: kind("lock_server_active_presences", "lock_server_presences_expired_total"),
        }
    }
}

impl Population {
    /// Those of this kind.
    pub fn of(&self, kind: LockKind) -> &Kind {
        match kind {
            LockKind::Lock => &self.locks,
            LockKind::Presence => &self.presences,
        }
    }

    /// One more is held.
    pub fn enters(&self, kind: LockKind) {
        self.of(kind).active.add(1);
    }

    /// One less is held.
    pub fn leaves(&self, kind: LockKind) {
        self.of(kind).active.add(-1);
    }

    /// One was deleted at its deadline.
    pub fn expired(&self, kind: LockKind) {
        self.of(kind).expired.increment();
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
    /// Those of the RPC with this name.
    pub fn of(rpc: &'static str) -> Self {
        let count = |name: &'static str| Counter::new(counter!(name, "request_type" => rpc));
        Self {
            started: count("lock_server_requests_started_total"),
            succeeded: count("lock_server_requests_succeeded_total"),
            failed: count("lock_server_requests_failed_total"),
            cancelled: count("lock_server_requests_cancelled_total"),
            in_flight: Gauge::new(gauge!("lock_server_requests_in_flight", "request_type" => rpc)),
            seconds: histogram!("lock_server_request_seconds", "request_type" => rpc),
            longest: AtomicU64::new(0),
        }
    }

    /// How long one took.
    pub fn took(&self, time: Duration) {
        self.seconds.record(time.as_secs_f64());
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.longest.fetch_max(nanoseconds, Relaxed);
    }

    /// RequestLatencyMax: the longest since the last time that this was asked.
    pub fn take_longest(&self) -> Duration {
        Duration::from_nanos(self.longest.swap(0, Relaxed))
    }
}
