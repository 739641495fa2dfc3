//! The syncer's belief that it holds its lock.
//!
//! [`Lease`] is a pure state machine; `keeper` drives it against the lock
//! server. What always holds:
//!
//! - The lease ends at `sent + ttl - margin`, where `sent` is when the request
//!   that the server granted was sent. The server counts its time to live from
//!   when the request arrived, which is later, so the lease ends at least
//!   `margin` before the server can give the lock to somebody else. The margin
//!   is the time for cancelling what is in flight.
//! - A collision ends the lease at once, whatever time was left.
//! - No answer, or an error, changes nothing: the lock lives on at the server,
//!   so the lease lives until its end. (The original gives up, and exits, at the
//!   first failed renewal.)
//! - A term is one unbroken time of holding under one fencing token. A renewal
//!   that comes back with another token, or after the lease has ended, begins a
//!   new term, since somebody else may have written in between.
//!
//! A process that is paused cannot notice the end of its lease in time. That
//! case is the store's, which refuses an older fencing token.

pub mod keeper;
pub mod locket;

use std::time::{Duration, Instant};

use model::lock::FencingToken;

/// The times of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long the server keeps the lock after a request.
    pub ttl: Duration,
    /// How long after an attempt the next one is made.
    pub retry_interval: Duration,
}

impl Times {
    /// How much earlier than the server's the lease ends: a fifth of the time
    /// to live, 3 s of the usual 15 s.
    #[must_use]
    pub fn margin(self) -> Duration {
        self.ttl / 5
    }

    fn lease(self) -> Duration {
        self.ttl - self.margin()
    }

    /// After a failed renewal there is little time left, so the next attempt
    /// comes sooner.
    fn hurry(self) -> Duration {
        self.retry_interval / 5
    }
}

/// Whether the lock is held, by all that is known.
#[derive(Debug, Clone)]
pub struct Lease {
    times: Times,
    held: Option<StoreHashes>,
}

#[derive(Debug, Clone, Copy)]
struct StoreHashes {
    token: FencingToken,
    since: Instant,
    ends: Instant,
}

/// What a granted request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// A term begins. When one was running, it is over.
    Began {
        /// The new term's.
        token: FencingToken,
        /// Until when it may be believed.
        ends: Instant,
        /// Whether a term was running until now.
        broke: bool,
    },
    /// The running term goes on.
    Kept {
        /// Until when it may be believed.
        ends: Instant,
    },
    /// The answer took so long that nothing can be made of it. `broke`: a term
    /// was running, and has ended meanwhile.
    TooLate {
        /// Whether a term was running until now.
        broke: bool,
    },
}

impl Lease {
    /// Not held.
    #[must_use]
    pub fn new(times: Times) -> Self {
        Self { times, held: None }
    }

    /// The server granted the request that was sent at `sent`; the answer was
    /// read at `now`.
    pub fn granted(&mut self, sent: Instant, now: Instant, token: FencingToken) -> Granted {
        let ends = sent + self.times.lease();
        let running = self.held.filter(|held| now < held.ends);
        let broke = self.held.is_some();
        if let Some(held) = running.filter(|held| held.token == token) {
            let ends = held.ends.max(ends);
            self.held = Some(StoreHashes { ends, ..held });
            return Granted::Kept { ends };
        }
        if now >= ends {
            self.held = None;
            return Granted::TooLate { broke };
        }
        self.held = Some(StoreHashes { token, since: now, ends });
        Granted::Began { token, ends, broke }
    }

    /// The server says that somebody else holds the lock, or whoever holds the
    /// term gives it up. True when that ended a term.
    pub fn end(&mut self) -> bool {
        self.held.take().is_some()
    }

    /// Ends the term whose time has come. True when it did.
    pub fn expire(&mut self, now: Instant) -> bool {
        self.held.take_if(|held| now >= held.ends).is_some()
    }

    /// Whether the lock is ours at `now`.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        self.held.is_some_and(|held| now < held.ends)
    }

    /// When the belief ends, if there is one.
    #[must_use]
    pub fn ends(&self) -> Option<Instant> {
        self.held.map(|held| held.ends)
    }

    /// When the running term began.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.held.map(|held| held.since)
    }

    /// When to ask next, after an attempt that was sent at `sent` and `failed`
    /// or not.
    #[must_use]
    pub fn next_attempt(&self, sent: Instant, now: Instant, failed: bool) -> Instant {
        if failed && self.holds(now) {
            now + self.times.hurry()
        } else {
            sent + self.times.retry_interval
        }
    }

    /// How long an attempt made at `now` may take: one retry interval, as the
    /// original's, and not beyond the end of a term that it would renew.
    #[must_use]
    pub fn patience(&self, now: Instant) -> Duration {
        let left = self.held.map(|held| held.ends.saturating_duration_since(now));
        left.unwrap_or(self.times.retry_interval).min(self.times.retry_interval)
    }
}
