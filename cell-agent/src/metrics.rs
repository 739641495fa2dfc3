//! Metrics that the original has go by its names (contracts/cell-agent.md 4.1):
//! the last value, in milliseconds.

use std::time::Duration;

/// Sets a value of the original's.
pub(crate) fn milliseconds(name: &'static str, took: Duration) {
    metrics::gauge!(name).set(took.as_secs_f64() * 1000.0);
}

/// Sets a number of things.
#[expect(clippy::cast_precision_loss, reason = "a gauge of small numbers")]
pub(crate) fn number(name: &'static str, value: u64) {
    metrics::gauge!(name).set(value as f64);
}
