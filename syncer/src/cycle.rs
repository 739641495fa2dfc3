//! One sync: the Cloud Controller's list becomes the store's set.
//!
//! Law 4: the stamp that is to be remembered is part of the result, so there is
//! nothing to remember unless the store has confirmed. Whatever fails before
//! that has changed nothing, here or there; one exception is a commit whose
//! answer got lost, after which the same list is simply sent again.
//!
//! An empty list is read a second time before it is believed, and then goes to
//! the store, whose guard has the last word on removing most of what it holds.

use std::{
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use tokio::time::Instant;
use tracing::{error, info};

use crate::{
    cloud_controller::{self, CloudController},
    import::Malformed,
    lease::keeper::Term,
    manifest::{ListSnapshot, StoreHashes},
    report::Report,
    stamp::Stamp,
    store::{self, Committed, Store},
};

/// Why a sync did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list could not be read.
    #[error(transparent)]
    CloudController(#[from] cloud_controller::Error),
    /// The store did not take it.
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

    /// Whether the list did not stand still, which a busy system may do.
    #[must_use]
    pub fn is_unstable(&self) -> bool {
        matches!(self, Self::CloudController(err) if err.fault.is_unstable())
    }

    /// How long the other side asks to be left alone.
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
    /// The stamp that it stands for.
    pub stamp: Stamp,
    /// When the reading began.
    pub began: StdInstant,
    /// What the store holds now.
    pub held: Arc<StoreHashes>,
    /// What changed.
    pub committed: Committed,
    /// Groups that could not be read.
    pub malformed: usize,
    /// Groups of which the store keeps the version that it had.
    pub kept: usize,
    /// How long the list took.
    pub read_time: Duration,
    /// How long the store took.
    pub store_time: Duration,
}

/// Syncs under `stamp`, which was read before. `held` is what the store is
/// known to hold; `None` if nobody knows.
///
/// # Errors
/// The store holds what it held before.
pub async fn run(
    cloud_controller: &CloudController,
    store: &Store,
    term: &Term,
    stamp: Stamp,
    held: Option<Arc<StoreHashes>>,
    times: &Report,
) -> Result<Synced, Error> {
    let began = Instant::now();
    let known = held.as_ref().map(|held| held.len());
    let mut held = held.unwrap_or_default();
    let before = match known {
        Some(count) => count,
        None => store.count().await?,
    };
    let reading = read(cloud_controller, &held, before).await?;
    let read_time = began.elapsed();
    times.retrieved(read_time);
    if known.is_none() && reading.needs_held() {
        held = Arc::new(store.held().await?);
    }
    report(reading.malformed_groups());
    let malformed = reading.malformed_groups().len();
    let manifest = reading.into_manifest(&held);
    drop(held);
    let sending = Instant::now();
    let committed = store.replace(&manifest, stamp, term).await;
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
        held: Arc::new(manifest.into_held()),
        read_time,
        store_time,
    })
}

/// Reads the list. One that is empty, or much shorter than what the store has
/// (`before`), is read again with another token, and believed then: a token that
/// lacks authorities gets a part of the list, which is whole by its numbers.
async fn read(
    cloud_controller: &CloudController,
    held: &Arc<StoreHashes>,
    before: usize,
) -> Result<ListSnapshot, cloud_controller::Error> {
    let reading = cloud_controller.list(held).await?;
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
    cloud_controller.list(held).await
}

/// Whether at least two groups and a tenth of all are gone.
fn shrank(before: usize, now: usize) -> bool {
    let gone = before.saturating_sub(now);
    gone >= 2 && gone * 10 >= before
}

/// More lines than this say nothing more.
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
