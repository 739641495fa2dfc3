//! Results as text. Pure.

use serde::Serialize;

use super::histogram::Summary;
use super::meter::Cost;

/// One measured run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// The measured operation.
    pub(super) operation: String,
    /// Concurrent calls.
    pub(super) concurrency: usize,
    /// Number of connections.
    pub(super) connections: usize,
    /// Length of the measured period.
    pub(super) seconds: f64,
    /// Figures of the calls.
    pub(super) calls: Summary,
    /// Resource usage.
    pub(super) cost: Cost,
}

impl Report {
    /// The results as text.
    pub(super) fn text(&self) -> String {
        let Self { operation, concurrency, connections, seconds, calls, cost } = self;
        let Summary { operations, per_second, p50_ms, p99_ms, max_ms, bytes, failures } = calls;
        let mut text = format!(
            "{operation}: {concurrency} workers, {connections} connections, {seconds:.1} s\n\
             calls    {per_second:.0}/s ({operations})\n\
             latency  p50 {p50_ms:.2} ms  p99 {p99_ms:.2} ms  max {max_ms:.2} ms\n"
        );
        if *bytes > 0 && *operations > 0 {
            text += &format!("answers  {} bytes each\n", bytes / operations);
        }
        for (code, count) in failures {
            text += &format!("failed   {code} {count}\n");
        }
        text + &costs(cost)
    }
}

/// The lines about CPU and memory.
pub(super) fn costs(cost: &Cost) -> String {
    let Cost {
        server_cores,
        server_micros_per_call,
        server_resident,
        server_peak,
        load_cores,
        other_cores,
    } = cost;
    let mut text = String::new();
    if let (Some(cores), Some(micros)) = (server_cores, server_micros_per_call) {
        text += &format!("server   {micros:.0} us of CPU a call, {cores:.2} cores\n");
    }
    if let (Some(resident), Some(peak)) = (server_resident, server_peak) {
        let (resident, peak) = (mebibytes(*resident), mebibytes(*peak));
        text += &format!("memory   {resident:.1} MiB now, {peak:.1} MiB at most\n");
    }
    text + &format!("machine  load {load_cores:.2} cores, others {other_cores:.2} cores\n")
}

/// Bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::histogram::Tally;

    #[test]
    fn failures_and_costs_are_printed() {
        let mut tally = Tally::default();
        tally.success(Duration::from_millis(2), 100);
        tally.failure(tonic::Code::Unavailable);
        let report = Report {
            operation: "fetch".to_owned(),
            concurrency: 2,
            connections: 1,
            seconds: 1.0,
            calls: tally.summary(Duration::from_secs(1)),
            cost: Cost {
                server_cores: Some(0.5),
                server_micros_per_call: Some(40.0),
                server_resident: Some(3 << 20),
                server_peak: Some(5 << 20),
                load_cores: 0.25,
                other_cores: 0.0,
            },
        };
        let text = report.text();
        for part in ["1/s (1)", "100 bytes each", "Unavailable 1", "40 us", "3.0 MiB", "5.0 MiB"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
