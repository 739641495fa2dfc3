//! Deletes locks whose time to live has ended.
//!
//! Uses compare-and-delete: a lock that was claimed since the deadline was set stays.
//! A failed expiry is retried until it succeeds or the lock is claimed again.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use runtime::error::chain;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use crate::{
    feed::Feed,
    lock_version::LockVersion,
    store::{Expired, Store},
};

/// Limit of concurrent expiries: when a whole zone fails, they share commits.
const AT_ONCE: usize = 256;
/// Retry delay of a failed expiry.
pub const RETRY: Duration = Duration::from_secs(1);

/// Deletes expired locks until `shutdown`.
pub async fn run<S: Store>(
    store: S,
    feed: Feed,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            due = feed.due(AT_ONCE - running.len()), if running.len() < AT_ONCE => {
                for held in due {
                    running.spawn(expire(store.clone(), feed.clone(), held));
                }
            }
            Some(ended) = running.join_next() => ended.context("an expiry")?,
        }
    }
}

async fn expire<S: Store>(store: S, feed: Feed, held: Arc<LockVersion>) {
    let outer = info_span!("lock");
    let span = info_span!(
        parent: &outer,
        "register-ttl",
        key = held.lock.key.as_str(),
        "modified-index" = held.index,
        r#type = held.lock.kind.as_str(),
        "request-uuid" = held.request.as_deref(),
    );
    let work = async {
        match store.expire(&held).await {
            Ok(Expired::Deleted(_) | Expired::Absent) => {}
            Ok(Expired::Newer(newer)) => feed.seen(&newer),
            Err(error) => {
                tracing::error!(error = chain(&error), "failed-compare-and-release");
                feed.retry(&held, RETRY);
            }
        }
    };
    work.instrument(span).await;
}
