//! Test helpers.

pub(crate) mod client;
pub(crate) mod http;
pub(crate) mod original;
pub(crate) mod process;
pub(crate) mod served;
pub(crate) mod sets;
pub(crate) mod site;

use std::time::Duration;

/// Timeout of any expected event.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition, and names it on timeout.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
