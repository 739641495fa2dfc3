//! Work that repeats until shutdown.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// Calls `work` at `first`, and then once per `period`, until `shutdown`. After a delay, the next
/// call is a full period later.
pub async fn every(
    first: Instant,
    period: Duration,
    shutdown: &CancellationToken,
    mut work: impl FnMut(),
) {
    let mut ticks = interval_at(first, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        work();
    }
}
