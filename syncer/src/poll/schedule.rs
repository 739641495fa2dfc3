//! Decides when to read the list.
//!
//! Pure. Law 9: every change that the Cloud Controller confirmed arrives, even if the
//! stamp does not show it.
//!
//! | event | why the change arrives | within |
//! |---|---|---|
//! | the stamp changes, forward or backward | any difference counts | a poll |
//! | two changes with the same whole-second stamp, the second after the read | the list is read again when the tick has certainly passed | [`TICK`] + [`SLACK`] and a poll |
//! | the stamp is doubtful: it moved backward, or is gone | in addition, the list is read again | [`DOUBT`] and a poll |
//! | the Cloud Controller has no stamp (404) | the list is read every [`Intervals::unstamped`], or [`UNSTAMPED_SHARE`] times the duration of the last read | that |
//! | the stamp does not change (v2 API, deleted space, seeding), or changes and returns between two polls | the list is read every [`Intervals::full`], or [`FULL_SHARE`] times the duration of the last read | that |
//! | a malformed group becomes well-formed under the same stamp | the list is read again with growing pauses | [`Intervals::repair`] and a poll at first |
//!
//! A read is expensive for the Cloud Controller: seconds for each 10,000 groups. So reads
//! without a known change take at most 1 % of the time, those without a stamp at most
//! 10 %, and those for changes at most half.
//!
//! Ticks are measured by the local clock, from when a stamp was first seen: the change
//! that set the stamp happened before, so its tick ends at most one [`TICK`] later. The
//! Cloud Controller's clock may be off.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::stamp::Stamp;

/// Coarsest resolution of the Cloud Controller's stamps.
pub const TICK: Duration = Duration::from_secs(1);
/// Allowance for a transaction that took its stamp within the tick and commits after it.
pub const SLACK: Duration = Duration::from_millis(500);

/// Time until the list is read again after a doubtful stamp: writers with overlapping
/// stamps have committed by then.
pub const DOUBT: Duration = Duration::from_secs(30);
/// Reads without a known change take at most 1/100 of the time.
pub const FULL_SHARE: u32 = 100;
/// The same for reads without a stamp, which are the only way to detect a change.
pub const UNSTAMPED_SHARE: u32 = 10;
/// The same for repeated reads because of malformed groups.
const REPAIR_SHARE: u32 = 10;

/// Number of recent polls whose shortest duration counts as the Cloud Controller's time for
/// one: a longer duration may be due to a new connection, the network or this machine.
const RECENT_POLLS: usize = 8;
/// Longest interval of polls that take a share of the time: the original's interval.
const LONGEST_POLL: Duration = Duration::from_secs(60);

/// Upper bounds of the intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// Interval of stamp polls.
    pub poll: Duration,
    /// Polls take at most 1/`poll_share` of the time: the interval is longer while the Cloud
    /// Controller responds slowly. 0: the interval is fixed.
    pub poll_share: u32,
    /// Interval of full reads while the stamp does not change.
    pub full: Duration,
    /// Interval of full reads without a stamp.
    pub unstamped: Duration,
    /// Time until the first read after one with malformed groups; doubles.
    pub repair: Duration,
}

/// Reason for reading the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// First sync of the term.
    First,
    /// The stamp changed.
    Changed,
    /// There is no stamp, and a read is due.
    Unstamped,
    /// The tick of the stamp of the last read has passed.
    TickPassed,
    /// A periodic read is due.
    Periodic,
    /// The last read had malformed groups, and the next one is due.
    Malformed,
    /// The time after a doubtful stamp has passed.
    Doubtful,
    /// Requested by sync-now.
    Requested,
}

impl Reason {
    /// Label for logs and metrics.
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

/// Schedule of a term: the last sync and the due reads.
#[derive(Debug, Clone)]
pub struct Schedule {
    intervals: Intervals,
    /// Durations of the last polls.
    polls: VecDeque<Duration>,
    seen: Option<(Stamp, Instant)>,
    synced: Option<Synced>,
    requested: bool,
    /// Due time of a read after a doubtful stamp.
    doubt: Option<Instant>,
    /// Number of consecutive reads with malformed groups.
    repairs: u32,
}

/// A read that the store has confirmed.
#[derive(Debug, Clone, Copy)]
pub struct Confirmed {
    /// Stamp before the read.
    pub stamp: Stamp,
    /// Start of the read: the list is at least as new.
    pub began: Instant,
    /// How long the Cloud Controller was busy with the read.
    pub took: Duration,
    /// Number of malformed groups.
    pub malformed: usize,
}

#[derive(Debug, Clone, Copy)]
struct Synced {
    confirmed: Confirmed,
    /// When the tick of the stamp has passed, if the read began before.
    again: Option<Instant>,
    /// Due time of a read without a change of the stamp.
    full: Instant,
    /// Due time of a read because of malformed groups.
    repair: Option<Instant>,
    /// Due time of a read without a stamp.
    unstamped: Instant,
}

impl Schedule {
    /// Schedule without a sync.
    #[must_use]
    pub fn new(intervals: Intervals) -> Self {
        Self {
            intervals,
            polls: VecDeque::with_capacity(RECENT_POLLS),
            seen: None,
            synced: None,
            requested: false,
            doubt: None,
            repairs: 0,
        }
    }

    /// Stamp of the last confirmed sync.
    #[must_use]
    pub fn watermark(&self) -> Option<Stamp> {
        self.synced.map(|synced| synced.confirmed.stamp)
    }

    /// The Cloud Controller returned its stamp after `took`.
    pub fn polled(&mut self, took: Duration) {
        if self.polls.len() == RECENT_POLLS {
            self.polls.pop_front();
        }
        self.polls.push_back(took);
    }

    /// Interval of stamp polls.
    fn poll_interval(&self) -> Duration {
        let known = self.polls.len() == RECENT_POLLS;
        let shortest = self.polls.iter().min().filter(|_| known).copied().unwrap_or_default();
        let least = shortest.saturating_mul(self.intervals.poll_share).min(LONGEST_POLL);
        self.intervals.poll.max(least)
    }

    /// Forces a read at the next poll, whatever the stamp is.
    pub fn request(&mut self) {
        self.requested = true;
    }

    /// Decides whether to read the list, for `stamp` as read at `now`.
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

    /// Records when a stamp is first seen, and whether the previous stamp makes it doubtful.
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

    /// The store has confirmed a read. `spin` in 0..1 spreads the periodic reads of many
    /// syncers.
    pub fn synced(&mut self, confirmed: Confirmed, spin: f64) {
        let Confirmed { stamp, began, took, malformed } = confirmed;
        let first_seen = match self.seen {
            Some((seen, at)) if seen == stamp => at,
            _ => began,
        };
        let passed = first_seen + TICK + SLACK;
        self.requested = false;
        self.doubt = self.doubt.filter(|doubt| began < *doubt);
        let Intervals { full, unstamped, .. } = self.intervals;
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

    /// Time until malformed groups are read again. It doubles from read to read, and is reset
    /// when more groups are malformed than before.
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

    /// Time of the next poll, after a successful poll that ended at `ended`. The interval is a
    /// pause, and after a read the pause is at least as long as the read was, so that
    /// continuous changes keep the Cloud Controller busy for at most half of the time.
    #[must_use]
    pub fn next(&self, ended: Instant) -> Instant {
        let poll = ended + self.poll_interval();
        let Some(Synced { confirmed, again, repair, .. }) = self.synced else { return poll };
        let due = [again, repair, self.doubt].into_iter().flatten();
        let next = due.filter(|due| *due > ended).fold(poll, Instant::min);
        next.max(confirmed.began + 2 * confirmed.took)
    }
}

/// The larger of 90 % to 100 % of `interval` and 100 % to 110 % of `least`.
fn spread(interval: Duration, least: Duration, spin: f64) -> Duration {
    let tenth = 0.1 * spin.clamp(0.0, 1.0);
    interval.mul_f64(0.9 + tenth).max(least.mul_f64(1.0 + tenth))
}
