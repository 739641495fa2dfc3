//! Readiness of a leader: whether its policy store is reachable, for `/readyz`.
//!
//! A poll without a change does not call the store, so a leader would detect an
//! unreachable store only at the next change. Therefore the leader also requests the
//! store's status every few seconds.

use std::{convert::Infallible, time::Duration};

use runtime::{error::chain, server::Component};
use tokio::time::{Instant, sleep};

use crate::store::Store;

/// Polls the store until the term ends. Not ready after `bound` without a response.
pub(super) async fn watch(store: &Store, component: &Component, bound: Duration) -> Infallible {
    component.ready();
    let mut answered = Instant::now();
    loop {
        match store.count_within(bound / 3).await {
            Ok(_) => {
                answered = Instant::now();
                component.ready();
            }
            Err(err) if answered.elapsed() >= bound => {
                let error = chain(&err);
                component
                    .not_ready(format!("no answer of the policy store for {bound:?}: {error}"));
            }
            Err(_) => {}
        }
        sleep(bound / 6).await;
    }
}
