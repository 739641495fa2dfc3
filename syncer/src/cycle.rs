//! One sync: the store's set becomes the Cloud Controller's list.
//!
//! Law 4: the stamp to remember is part of the result, so nothing is remembered unless
//! the store has confirmed. A failure before that changes nothing, here or in the store;
//! the exception is a commit whose response got lost, after which the same list is sent
//! again.
//!
//! An empty list is read a second time before it is sent to the store. The store's mass
//! removal guard then decides whether most of its groups may be removed.

use std::{
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use jiff::Timestamp;
use model::trace::TraceContext;
use runtime::otlp::{self, Span};
use tokio::time::Instant;
use tracing::{error, info};

use crate::{
    cloud_controller::{self, CloudController, listing::Moved},
    import::Malformed,
    lease::keeper::Term,
    manifest::{ListSnapshot, StoreHashes},
    report::Report,
    stamp::Stamp,
    store::{self, Committed, Origin, Store},
};

/// Reason why a sync failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list could not be read.
    #[error(transparent)]
    CloudController(#[from] cloud_controller::Error),
    /// The store refused or failed the Replace.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The label of the failure metric.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        match self {
            Self::CloudController(err) if err.fault.is_unstable() => "unstable",
            Self::CloudController(err) => err.step.as_str(),
            Self::Store(err) => err.cause(),
        }
    }

    /// Whether the list changed while it was read, which is normal on a busy system.
    #[must_use]
    pub fn is_unstable(&self) -> bool {
        matches!(self, Self::CloudController(err) if err.fault.is_unstable())
    }

    /// `Retry-After` of the failed call.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::CloudController(err) => err.fault.retry_after(),
            Self::Store(_) => None,
        }
    }
}

/// A sync that the store has confirmed.
#[derive(Debug)]
pub struct Synced {
    /// Stamp of the synced list.
    pub stamp: Stamp,
    /// Time when the read began.
    pub began: StdInstant,
    /// Hashes that the store has now.
    pub held: Arc<StoreHashes>,
    /// Result of the Replace.
    pub committed: Committed,
    /// Number of malformed groups.
    pub malformed: usize,
    /// Number of groups whose stored version was kept.
    pub kept: usize,
    /// Whether the list changed while it was read.
    pub moved: bool,
    /// Duration of the read.
    pub read_time: Duration,
    /// Duration of the Replace.
    pub store_time: Duration,
}

/// Why and when a sync began.
#[derive(Debug, Clone, Copy)]
pub struct Cause {
    /// The stamp that was read before.
    pub stamp: Stamp,
    /// When it was seen that the list has to be read, by the wall clock.
    pub noticed_at: Timestamp,
    /// Names the sync.
    pub trace: TraceContext,
    /// What to do with a list that changes while it is read.
    pub moved: Moved,
}

/// Syncs under the stamp of `cause`. `held` are the known hashes in the store;
/// `None` if unknown.
///
/// # Errors
/// The store is unchanged.
pub async fn run(
    cloud_controller: &CloudController,
    store: &Store,
    term: &Term,
    cause: Cause,
    held: Option<Arc<StoreHashes>>,
    times: &Report,
) -> Result<Synced, Error> {
    let Cause { stamp, noticed_at, trace, moved } = cause;
    let began = Instant::now();
    let known = held.as_ref().map(|held| held.len());
    let mut held = held.unwrap_or_default();
    let before = match known {
        Some(count) => count,
        None => store.count().await?,
    };
    let mut reading = read(cloud_controller, &held, before, moved).await?;
    if known.is_none() && reading.needs_held() {
        held = Arc::new(store.held().await?);
    }
    let moved = reading.moved();
    if moved {
        reading = cloud_controller.complete(reading, &held).await?;
        info!(count = reading.count(), "accepted-unstable-security-groups-list");
    }
    let read_time = began.elapsed();
    let origin = Origin { noticed_at, read_at: Timestamp::now(), trace };
    times.retrieved(read_time);
    otlp::record(|| Span::below(trace.ids(), "read-security-groups", read_time));
    report(reading.malformed_groups());
    let malformed = reading.malformed_groups().len();
    let manifest = reading.into_manifest(&held);
    drop(held);
    let sending = Instant::now();
    let committed = store.replace(&manifest, stamp, term, origin).await;
    let store_time = sending.elapsed();
    match &committed {
        Ok(_) => times.replaced(store_time),
        Err(_) => times.not_replaced(store_time),
    }
    Ok(Synced {
        stamp,
        began: began.into_std(),
        committed: committed?,
        malformed,
        kept: manifest.kept,
        moved,
        held: Arc::new(manifest.into_held()),
        read_time,
        store_time,
    })
}

/// Reads the list. An empty list, or one much shorter than the store's (`before`), is read
/// again with a new token and then accepted: a token that lacks authorities gets a part
/// of the list, with numbers that look complete.
async fn read(
    cloud_controller: &CloudController,
    held: &Arc<StoreHashes>,
    before: usize,
    moved: Moved,
) -> Result<ListSnapshot, cloud_controller::Error> {
    let reading = cloud_controller.list(held, moved).await?;
    let count = reading.count();
    if count == 0 {
        info!("reading-empty-list-again");
    } else if shrank(before, count) {
        info!(count, before, "reading-shorter-list-again");
    } else {
        return Ok(reading);
    }
    drop(reading);
    cloud_controller.renew_token().await;
    cloud_controller.list(held, moved).await
}

/// Whether at least two groups and at least a tenth of all are missing.
fn shrank(before: usize, now: usize) -> bool {
    let gone = before.saturating_sub(now);
    gone >= 2 && gone * 10 >= before
}

/// Limit of log lines.
const LINES: usize = 100;

fn report(malformed: &[Malformed]) {
    for Malformed { guid, name, reason } in malformed.iter().take(LINES) {
        let guid = guid.as_ref().map(|guid| guid.as_str());
        error!(guid = guid.unwrap_or_default(), name, error = reason, "malformed-security-group");
    }
    if malformed.len() > LINES {
        error!(count = malformed.len() - LINES, "more-malformed-security-groups");
    }
}
