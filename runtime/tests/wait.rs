//! Bounded waits for a condition.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

const LONGEST: Duration = Duration::from_secs(20);

/// Waits until `condition` holds, or fails with `what`.
pub(crate) async fn until<F>(what: &str, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < LONGEST, "waited {LONGEST:?} in vain: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
