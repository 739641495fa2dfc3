//! When to read the list: the decisions of the poll loop.
//!
//! Pure. Law 9: every change that the Cloud Controller confirmed arrives, also
//! where its stamp does not tell.
//!
//! | what happens | why it arrives | within |
//! |---|---|---|
//! | the stamp moves, forward or backward | any difference counts | a poll |
//! | two changes under one whole-second stamp, the second after our reading | the list is read once more when the tick has surely passed | [`TICK`] + [`SLACK`] and a poll |
//! | the Cloud Controller has no stamp (404) | it is read every [`Intervals::unstamped`] | that |
//! | the stamp is not moved (v2 API, deleted space, seeding), or moved away and back between two polls | it is read every [`Intervals::full`] | that |
//!
//! Ticks are waited for by our own clock, from when a stamp was first seen: the
//! change that made it happened before that, so its tick ends at most one
//! [`TICK`] after. The Cloud Controller's clock may be off.

use std::time::{Duration, Instant};

use crate::stamp::Stamp;

/// The coarsest stamps that Cloud Controllers give.
pub const TICK: Duration = Duration::from_secs(1);
/// For a transaction that took its stamp within the tick and ends after it.
pub const SLACK: Duration = Duration::from_millis(500);

/// How often, at the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// Between two looks at the stamp.
    pub poll: Duration,
    /// Between two readings where the stamp never moves.
    pub full: Duration,
    /// Between two readings where there is no stamp.
    pub unstamped: Duration,
}

/// Why the list is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing was synced in this term.
    First,
    /// The stamp is another.
    Changed,
    /// There is no stamp, and it is time.
    Unstamped,
    /// The tick of the stamp under which it was read has passed.
    TickPassed,
    /// It is time.
    Periodic,
    /// Somebody asked.
    Requested,
}

impl Reason {
    /// For logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Changed => "changed",
            Self::Unstamped => "unstamped",
            Self::TickPassed => "tick-passed",
            Self::Periodic => "periodic",
            Self::Requested => "requested",
        }
    }
}

/// What has been synced in this term, and what is due.
#[derive(Debug, Clone)]
pub struct Schedule {
    intervals: Intervals,
    seen: Option<(Stamp, Instant)>,
    synced: Option<Synced>,
    requested: bool,
}

#[derive(Debug, Clone, Copy)]
struct Synced {
    stamp: Stamp,
    /// When the reading began: what it shows is at least as new.
    began: Instant,
    /// When the tick of the stamp has passed, if the reading began before.
    again: Option<Instant>,
    /// When a reading is due though nothing moved.
    full: Instant,
}

impl Schedule {
    /// Nothing synced.
    #[must_use]
    pub fn new(intervals: Intervals) -> Self {
        Self { intervals, seen: None, synced: None, requested: false }
    }

    /// The stamp of the last confirmed sync.
    #[must_use]
    pub fn watermark(&self) -> Option<Stamp> {
        self.synced.map(|synced| synced.stamp)
    }

    /// Read the list at the next poll, whatever the stamp says.
    pub fn request(&mut self) {
        self.requested = true;
    }

    /// What to do about `stamp`, which was read at `now`.
    pub fn decide(&mut self, stamp: Stamp, now: Instant) -> Option<Reason> {
        if self.seen.is_none_or(|(seen, _)| seen != stamp) {
            self.seen = Some((stamp, now));
        }
        let Some(synced) = self.synced else { return Some(Reason::First) };
        if stamp != synced.stamp {
            Some(Reason::Changed)
        } else if self.requested {
            Some(Reason::Requested)
        } else if synced.again.is_some_and(|again| again <= now) {
            Some(Reason::TickPassed)
        } else if synced.full <= now {
            Some(Reason::Periodic)
        } else if stamp == Stamp::Unknown && synced.began + self.intervals.unstamped <= now {
            Some(Reason::Unstamped)
        } else {
            None
        }
    }

    /// The store has confirmed a list whose reading began at `began`, under
    /// `stamp`. `spin` in 0..1 spreads the periodic readings of many syncers.
    pub fn synced(&mut self, stamp: Stamp, began: Instant, spin: f64) {
        let first_seen = match self.seen {
            Some((seen, at)) if seen == stamp => at,
            _ => began,
        };
        let passed = first_seen + TICK + SLACK;
        self.requested = false;
        self.synced = Some(Synced {
            stamp,
            began,
            again: (stamp.is_coarse() && began < passed).then_some(passed),
            full: began + jittered(self.intervals.full, spin),
        });
    }

    /// When to poll next, after a poll that went well and ended at `ended`. The
    /// interval is a pause, so that a list which takes longer to read than that
    /// is not read without end.
    #[must_use]
    pub fn next(&self, ended: Instant) -> Instant {
        let poll = ended + self.intervals.poll;
        let again = self.synced.and_then(|synced| synced.again);
        again.filter(|again| *again > ended).map_or(poll, |again| again.min(poll))
    }
}

/// Between 90 % and 100 % of `interval`.
fn jittered(interval: Duration, spin: f64) -> Duration {
    interval.mul_f64(0.9 + 0.1 * spin.clamp(0.0, 1.0))
}
