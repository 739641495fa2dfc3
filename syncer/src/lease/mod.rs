//! Lease: the syncer's belief that it holds its lock.
//!
//! [`Lease`] is a pure state machine; `keeper` drives it against the lock server.
//! Invariants:
//!
//! - The lease ends at `sent + ttl - margin`, where `sent` is the time at which the
//!   granted request was sent. The server counts its time to live from the arrival of
//!   the request, which is later, so the lease ends at least `margin` before the server
//!   can grant the lock to another owner. The margin is the time for cancelling work in
//!   flight.
//! - A collision ends the lease at once, whatever time is left.
//! - A timeout or an error changes nothing: the server still holds the lock, so the lease
//!   lasts until its end. (The original exits at the first failed renewal.)
//! - A term is one uninterrupted time of holding the lock under one fencing token. A
//!   renewal that returns another token, or succeeds after the lease has ended, begins a
//!   new term, since another leader may have written in between.
//!
//! A paused process cannot detect the end of its lease in time. The store covers that
//! case: it refuses an older fencing token.

pub mod keeper;
pub mod locket;
mod log;
mod term;

use std::time::{Duration, Instant};

use model::lock::FencingToken;

/// Durations of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long the server keeps the lock after a request.
    pub ttl: Duration,
    /// Interval of attempts.
    pub retry_interval: Duration,
}

impl Times {
    /// How much earlier than at the server the lease ends: a fifth of the time to live, 3 s of
    /// the usual 15 s.
    #[must_use]
    pub fn margin(self) -> Duration {
        self.ttl / 5
    }

    fn lease(self) -> Duration {
        self.ttl - self.margin()
    }

    /// Retry interval after a failed renewal: shorter, since little time is left.
    fn hurry(self) -> Duration {
        self.retry_interval / 5
    }
}

/// Whether the lock is held, as far as known.
#[derive(Debug, Clone)]
pub struct Lease {
    times: Times,
    held: Option<HeldLock>,
}

#[derive(Debug, Clone, Copy)]
struct HeldLock {
    token: FencingToken,
    since: Instant,
    ends: Instant,
}

/// Effect of a granted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// A new term begins; a running one is over.
    Began {
        /// Token of the new term.
        token: FencingToken,
        /// End of the lease.
        ends: Instant,
        /// Whether a term was running before.
        broke: bool,
    },
    /// The running term continues.
    Kept {
        /// End of the lease.
        ends: Instant,
    },
    /// The response arrived after the end of its lease and is ignored. `broke`: a running
    /// term has ended meanwhile.
    TooLate {
        /// Whether a term was running before.
        broke: bool,
    },
}

impl Lease {
    /// Creates a lease that is not held.
    #[must_use]
    pub fn new(times: Times) -> Self {
        Self { times, held: None }
    }

    /// Uses other times from the next request on.
    pub fn set_times(&mut self, times: Times) {
        self.times = times;
    }

    /// A request is sent at `sent`. A shorter time to live than before may take effect even if
    /// no response arrives, so it bounds the lease from now on. Returns the end of the lease,
    /// if held.
    pub fn asked(&mut self, sent: Instant) -> Option<Instant> {
        let bound = sent + self.times.lease();
        let held = self.held.as_mut()?;
        held.ends = held.ends.min(bound);
        Some(held.ends)
    }

    /// The server granted the request sent at `sent`; the response arrived at `now`.
    pub fn granted(&mut self, sent: Instant, now: Instant, token: FencingToken) -> Granted {
        let ends = sent + self.times.lease();
        let running = self.held.filter(|held| now < held.ends);
        let broke = self.held.is_some();
        if let Some(held) = running.filter(|held| held.token == token) {
            let ends = held.ends.max(ends);
            self.held = Some(HeldLock { ends, ..held });
            return Granted::Kept { ends };
        }
        if now >= ends {
            self.held = None;
            return Granted::TooLate { broke };
        }
        self.held = Some(HeldLock { token, since: now, ends });
        Granted::Began { token, ends, broke }
    }

    /// Another owner holds the lock, or this process gives up its term. Returns true if that
    /// ended a term.
    pub fn end(&mut self) -> bool {
        self.held.take().is_some()
    }

    /// Ends an expired term. Returns true if it did.
    pub fn expire(&mut self, now: Instant) -> bool {
        self.held.take_if(|held| now >= held.ends).is_some()
    }

    /// Whether the lock is held at `now`.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        self.held.is_some_and(|held| now < held.ends)
    }

    /// End of the lease, if held.
    #[must_use]
    pub fn ends(&self) -> Option<Instant> {
        self.held.map(|held| held.ends)
    }

    /// Start of the running term.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.held.map(|held| held.since)
    }

    /// Time of the next attempt, after one that was sent at `sent` and `failed` or not.
    #[must_use]
    pub fn next_attempt(&self, sent: Instant, now: Instant, failed: bool) -> Instant {
        if failed && self.holds(now) {
            now + self.times.hurry()
        } else {
            sent + self.times.retry_interval
        }
    }

    /// Timeout of an attempt made at `now`: one retry interval, as the original's, and not
    /// beyond the end of a term that it would renew.
    #[must_use]
    pub fn patience(&self, now: Instant) -> Duration {
        let left = self.held.map(|held| held.ends.saturating_duration_since(now));
        left.unwrap_or(self.times.retry_interval).min(self.times.retry_interval)
    }
}
