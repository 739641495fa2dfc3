//! Aggregates the calls of a run. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::Code;

/// Latencies in microseconds, and failures by code. One per worker, then merged.
#[derive(Debug)]
pub struct Tally {
    latencies: Histogram<u64>,
    failures: BTreeMap<String, u64>,
    bytes: u64,
}

/// The figures of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Calls that succeeded.
    pub operations: u64,
    /// Successful calls per second.
    pub per_second: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
    /// Maximum latency in milliseconds.
    pub max_ms: f64,
    /// Bytes of all responses, if counted.
    pub bytes: u64,
    /// Failures by code.
    pub failures: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latencies = Histogram::new(3).expect("three digits are within what it can do");
        Self { latencies, failures: BTreeMap::new(), bytes: 0 }
    }
}

impl Tally {
    /// Counts a successful call with its latency and response size.
    pub fn success(&mut self, took: Duration, bytes: usize) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latencies.record(micros).expect("a histogram that grows takes every value");
        self.bytes += bytes as u64;
    }

    /// Adds bytes beyond those of the responses.
    pub fn add_bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Counts a failed call.
    pub fn failure(&mut self, code: Code) {
        *self.failures.entry(format!("{code:?}")).or_default() += 1;
    }

    /// Merges the tally of another worker.
    pub fn add(&mut self, other: Self) {
        let Self { latencies, failures, bytes } = other;
        self.latencies.add(latencies).expect("a histogram that grows takes every value");
        for (code, count) in failures {
            *self.failures.entry(code).or_default() += count;
        }
        self.bytes += bytes;
    }

    /// The summary of a run of length `elapsed`.
    pub fn summary(self, elapsed: Duration) -> Summary {
        let Self { latencies, failures, bytes } = self;
        let operations = latencies.len();
        let at = |quantile| millis(latencies.value_at_quantile(quantile));
        Summary {
            operations,
            per_second: per(operations, elapsed),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: millis(latencies.max()),
            bytes,
            failures,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

/// Rate per second; 0 for an empty period.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn per(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

/// The median; for an even number of values the lower of the two middle ones.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    values.get(middle).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_all_workers_together() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        for millis in 1..=50 {
            one.success(Duration::from_millis(millis), 10);
            other.success(Duration::from_millis(50 + millis), 10);
        }
        other.failure(Code::AlreadyExists);
        one.failure(Code::AlreadyExists);
        one.failure(Code::Unavailable);
        one.add(other);
        let summary = one.summary(Duration::from_secs(2));
        assert_eq!((summary.operations, summary.bytes), (100, 1_000));
        assert!((summary.per_second - 50.0).abs() < 1e-9);
        for (found, expected) in
            [(summary.p50_ms, 50.0), (summary.p99_ms, 99.0), (summary.max_ms, 100.0)]
        {
            assert!((found - expected).abs() <= expected / 1_000.0, "{found} {expected}");
        }
        let failures: Vec<_> = summary.failures.into_iter().collect();
        assert_eq!(failures, [("AlreadyExists".into(), 2), ("Unavailable".into(), 1)]);
    }

    #[test]
    fn an_empty_run_has_a_summary() {
        let summary = Tally::default().summary(Duration::ZERO);
        assert_eq!((summary.operations, summary.failures.len()), (0, 0));
        assert!(summary.per_second.abs() < f64::EPSILON);
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.0));
    }
}
