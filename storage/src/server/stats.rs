//! Statistics for the original's metrics (docs/compatibility/locket.md#metrics).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Statistics since the start, unless stated otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Currently open connections.
    pub open: usize,
    /// Number of waits for a free connection.
    pub waits: u64,
    /// Total time of these waits.
    pub waited: Duration,
    /// Statements, including those that begin and end transactions.
    pub queries: u64,
    /// Successful statements.
    pub succeeded: u64,
    /// Failed statements.
    pub failed: u64,
    /// Maximum number of concurrent statements since the last read.
    pub in_flight: u64,
    /// Longest statement since the last read.
    pub longest: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    waits: AtomicU64,
    waited: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    longest: AtomicU64,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Counters {
    pub(super) fn waited(&self, time: Duration) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waited.fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// Starts counting a statement; dropped without [`Query::end`], it counts as failed.
    pub(super) fn begin(&self) -> Query<'_> {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_flight.fetch_max(now, Ordering::Relaxed);
        Query { counters: self, begun: Instant::now(), succeeded: false }
    }

    /// Returns the statistics and resets the maxima.
    pub(super) fn look(&self, open: usize) -> Stats {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let (succeeded, failed) =
            (self.succeeded.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        Stats {
            open,
            waits: self.waits.load(Ordering::Relaxed),
            waited: Duration::from_nanos(self.waited.load(Ordering::Relaxed)),
            queries: succeeded + failed + in_flight,
            succeeded,
            failed,
            in_flight: self.most_in_flight.swap(in_flight, Ordering::Relaxed).max(in_flight),
            longest: Duration::from_nanos(self.longest.swap(0, Ordering::Relaxed)),
        }
    }
}

pub(super) struct Query<'a> {
    counters: &'a Counters,
    begun: Instant,
    succeeded: bool,
}

impl Query<'_> {
    pub(super) fn end(mut self, succeeded: bool) {
        self.succeeded = succeeded;
    }
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        let counters = self.counters;
        let outcome = if self.succeeded { &counters.succeeded } else { &counters.failed };
        outcome.fetch_add(1, Ordering::Relaxed);
        counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        counters.longest.fetch_max(nanos(self.begun.elapsed()), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn maxima_are_reset_by_each_read() {
        let counters = Counters::default();
        let (one, two) = (counters.begin(), counters.begin());
        tokio::time::advance(Duration::from_secs(2)).await;
        one.end(true);
        let expected = Stats {
            queries: 2,
            succeeded: 1,
            in_flight: 2,
            longest: Duration::from_secs(2),
            ..Stats::default()
        };
        assert_eq!(counters.look(0), expected);
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(two);
        let stats = counters.look(0);
        assert_eq!((stats.queries, stats.failed, stats.in_flight), (2, 1, 1));
        assert_eq!(stats.longest, Duration::from_secs(3));
        let stats = counters.look(0);
        assert_eq!((stats.in_flight, stats.longest), (0, Duration::ZERO));
    }
}
