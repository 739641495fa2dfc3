//! When to read the list: the decisions of the poll loop.
//!
//! Pure. Law 9: every change that the Cloud Controller confirmed arrives, also
//! where its stamp does not tell.
//!
//! | what happens | why it arrives | within |
//! |---|---|---|
//! | the stamp moves, forward or backward | any difference counts | a poll |
//! | two changes under one whole-second stamp, the second after our reading | the list is read once more when the tick has surely passed | [`TICK`] + [`SLACK`] and a poll |
//! | the stamp looks wrong: it moved backward, or is gone | besides, the list is read once more | [`DOUBT`] and a poll |
//! | the Cloud Controller has no stamp (404) | it is read every [`Intervals::unstamped`], or [`UNSTAMPED_SHARE`] times what the last reading took | that |
//! | the stamp is not moved (v2 API, deleted space, seeding), or moved away and back between two polls | it is read every [`Intervals::full`], or [`FULL_SHARE`] times what the last reading took | that |
//! | a group could not be read, and then can be, under the same stamp | the list is read again with growing pauses | [`Intervals::repair`] and a poll at first |
//!
//! Reading costs the Cloud Controller: seconds for each 10,000 groups. So a
//! reading without a known change takes at most 1 % of the time, one where there
//! is no stamp at most 10 %, and those for changes at most half.
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

/// How long after a stamp that looks wrong the list is read once more: writers
/// whose stamps overlap have committed by then.
pub const DOUBT: Duration = Duration::from_secs(30);
/// Readings without a known change take at most one part in this of the time.
pub const FULL_SHARE: u32 = 100;
/// The same for readings where there is no stamp, which are the only way to see a
/// change.
pub const UNSTAMPED_SHARE: u32 = 10;
/// The same for further readings because of malformed groups.
const REPAIR_SHARE: u32 = 10;

/// How often, at the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// Between two looks at the stamp.
    pub poll: Duration,
    /// Between two readings where the stamp never moves.
    pub full: Duration,
    /// Between two readings where there is no stamp.
    pub unstamped: Duration,
    /// Until the first reading after one with malformed groups; it doubles.
    pub repair: Duration,
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
    /// The last reading had malformed groups, and it is time.
    Malformed,
    /// A stamp looked wrong a while ago.
    Doubtful,
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
            Self::Malformed => "malformed-groups",
            Self::Doubtful => "doubtful-stamp",
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
    /// When a reading is due because a stamp looked wrong.
    doubt: Option<Instant>,
    /// Readings in a row that had malformed groups.
    repairs: u32,
}

/// A reading that the store has confirmed.
#[derive(Debug, Clone, Copy)]
pub struct Confirmed {
    /// The stamp before it.
    pub stamp: Stamp,
    /// When it began: what it shows is at least as new.
    pub began: Instant,
    /// How long the Cloud Controller was busy with it.
    pub took: Duration,
    /// Groups that could not be read.
    pub malformed: usize,
}

#[derive(Debug, Clone, Copy)]
struct Synced {
    confirmed: Confirmed,
    /// When the tick of the stamp has passed, if the reading began before.
    again: Option<Instant>,
    /// When a reading is due though nothing moved.
    full: Instant,
    /// When a reading is due because groups were malformed.
    repair: Option<Instant>,
    /// When a reading is due if there is no stamp.
    unstamped: Instant,
}

impl Schedule {
    /// Nothing synced.
    #[must_use]
    pub fn new(intervals: Intervals) -> Self {
        Self { intervals, seen: None, synced: None, requested: false, doubt: None, repairs: 0 }
    }

    /// The stamp of the last confirmed sync.
    #[must_use]
    pub fn watermark(&self) -> Option<Stamp> {
        self.synced.map(|synced| synced.confirmed.stamp)
    }

    /// Read the list at the next poll, whatever the stamp says.
    pub fn request(&mut self) {
        self.requested = true;
    }

    /// What to do about `stamp`, which was read at `now`.
    pub fn decide(&mut self, stamp: Stamp, now: Instant) -> Option<Reason> {
        self.see(stamp, now);
        let Some(synced) = self.synced else { return Some(Reason::First) };
        let due = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
        if stamp != synced.confirmed.stamp {
            Some(Reason::Changed)
        } else if self.requested {
            Some(Reason::Requested)
        } else if due(synced.again) {
            Some(Reason::TickPassed)
        } else if due(self.doubt) {
            Some(Reason::Doubtful)
        } else if due(synced.repair) {
            Some(Reason::Malformed)
        } else if synced.full <= now {
            Some(Reason::Periodic)
        } else if stamp == Stamp::Unknown && synced.unstamped <= now {
            Some(Reason::Unstamped)
        } else {
            None
        }
    }

    /// Notes when a stamp is first seen, and when the stamp before makes it look
    /// wrong.
    fn see(&mut self, stamp: Stamp, now: Instant) {
        let before = match self.seen {
            Some((seen, _)) if seen == stamp => return,
            seen => seen.map(|(seen, _)| seen),
        };
        self.seen = Some((stamp, now));
        let wrong = match (before, stamp) {
            (Some(Stamp::At(before)), Stamp::At(stamp)) => stamp < before,
            (Some(Stamp::At(_)), Stamp::Unknown) => true,
            (Some(Stamp::Unknown) | None, _) => false,
        };
        if wrong {
            let took = self.synced.map_or(Duration::ZERO, |synced| synced.confirmed.took);
            self.doubt.get_or_insert(now + DOUBT.max(took * REPAIR_SHARE));
        }
    }

    /// The store has confirmed a reading. `spin` in 0..1 spreads the readings of
    /// many syncers that nothing but the time causes.
    pub fn synced(&mut self, confirmed: Confirmed, spin: f64) {
        let Confirmed { stamp, began, took, malformed } = confirmed;
        let first_seen = match self.seen {
            Some((seen, at)) if seen == stamp => at,
            _ => began,
        };
        let passed = first_seen + TICK + SLACK;
        self.requested = false;
        self.doubt = self.doubt.filter(|doubt| began < *doubt);
        let Intervals { poll: _, full, unstamped, repair: _ } = self.intervals;
        let full = began + spread(full, took * FULL_SHARE, spin);
        let repair = self.repair(malformed, took).map(|pause| began + took + pause);
        self.synced = Some(Synced {
            confirmed,
            again: (stamp.is_coarse() && began < passed).then_some(passed),
            full,
            repair: repair.filter(|repair| *repair < full),
            unstamped: began + unstamped.max(took * UNSTAMPED_SHARE),
        });
    }

    /// The pause until malformed groups are read again. It doubles from reading to
    /// reading, and begins anew when more groups are malformed than before.
    fn repair(&mut self, malformed: usize, took: Duration) -> Option<Duration> {
        let before = self.synced.map_or(0, |synced| synced.confirmed.malformed);
        if malformed == 0 {
            self.repairs = 0;
            return None;
        }
        if malformed > before {
            self.repairs = 0;
        }
        let pause = match self.repairs {
            0 => self.intervals.repair,
            repairs => {
                let factor = 2_u32.saturating_pow(repairs);
                self.intervals.repair.saturating_mul(factor).max(took * REPAIR_SHARE)
            }
        };
        self.repairs = (self.repairs + 1).min(20);
        Some(pause)
    }

    /// When to poll next, after a poll that went well and ended at `ended`. The
    /// interval is a pause, and after a reading the pause is at least as long as
    /// the reading was, so that changes without end do not keep the Cloud
    /// Controller busy for more than half of the time.
    #[must_use]
    pub fn next(&self, ended: Instant) -> Instant {
        let poll = ended + self.intervals.poll;
        let Some(Synced { confirmed, again, repair, .. }) = self.synced else { return poll };
        let due = [again, repair, self.doubt].into_iter().flatten();
        let next = due.filter(|due| *due > ended).fold(poll, Instant::min);
        next.max(confirmed.began + 2 * confirmed.took)
    }
}

/// Between 90 % and 100 % of `interval`, or between 100 % and 110 % of `least`,
/// whatever is more.
fn spread(interval: Duration, least: Duration, spin: f64) -> Duration {
    let tenth = 0.1 * spin.clamp(0.0, 1.0);
    interval.mul_f64(0.9 + tenth).max(least.mul_f64(1.0 + tenth))
}
