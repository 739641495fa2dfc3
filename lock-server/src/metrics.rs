//! What is counted. Prometheus names; the original's counters of the same
//! meaning stand beside them (contracts/locket.md 4.7).

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use model::lock::LockKind;

/// How many are held, and how many expired.
#[derive(Debug)]
pub struct Population {
    locks: Kind,
    presences: Kind,
}

#[derive(Debug)]
struct Kind {
    active: Gauge,
    expired: Counter,
}

impl Default for Population {
    fn default() -> Self {
        let kind = |active: &'static str, expired: &'static str| Kind {
            active: gauge!(active),
            expired: counter!(expired),
        };
        Self {
            // ActiveLocks, LocksExpired
            locks: kind("lock_server_active_locks", "lock_server_locks_expired_total"),
            // ActivePresences, PresenceExpired
            presences: kind("lock_server_active_presences", "lock_server_presences_expired_total"),
        }
    }
}

impl Population {
    fn of(&self, kind: LockKind) -> &Kind {
        match kind {
            LockKind::Lock => &self.locks,
            LockKind::Presence => &self.presences,
        }
    }

    /// One more is held.
    pub fn enters(&self, kind: LockKind) {
        self.of(kind).active.increment(1.0);
    }

    /// One less is held.
    pub fn leaves(&self, kind: LockKind) {
        self.of(kind).active.decrement(1.0);
    }

    /// One was deleted at its deadline.
    pub fn expired(&self, kind: LockKind) {
        self.of(kind).expired.increment(1);
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
}

impl Requests {
    /// Those of the RPC with this name.
    pub fn of(rpc: &'static str) -> Self {
        let count = |name: &'static str| counter!(name, "request_type" => rpc);
        Self {
            started: count("lock_server_requests_started_total"),
            succeeded: count("lock_server_requests_succeeded_total"),
            failed: count("lock_server_requests_failed_total"),
            cancelled: count("lock_server_requests_cancelled_total"),
            in_flight: gauge!("lock_server_requests_in_flight", "request_type" => rpc),
            seconds: histogram!("lock_server_request_seconds", "request_type" => rpc),
        }
    }

    /// How long one took.
    pub fn took(&self, time: Duration) {
        self.seconds.record(time.as_secs_f64());
    }
}
