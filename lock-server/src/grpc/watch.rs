//! Response stream of a watch.

use std::{pin::Pin, sync::Arc, vec};

use futures_util::stream;
use proto::lock_v1::{WatchResponse, watch_response::Kind};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    feed::{Event, Subscription},
    lock_version::{LockList, LockVersion},
};

/// Initial locks, then the sync marker, then events.
pub(super) type Stream = Pin<Box<dyn stream::Stream<Item = Result<WatchResponse, Status>> + Send>>;

struct Watch {
    existing: vec::IntoIter<Arc<LockVersion>>,
    synced: bool,
    subscription: Subscription,
    shutdown: CancellationToken,
}

/// Ends with RESOURCE_EXHAUSTED when the watcher is too slow, with UNAVAILABLE
/// at `shutdown`.
pub(super) fn stream(
    existing: &LockList,
    subscription: Subscription,
    shutdown: CancellationToken,
) -> Stream {
    let existing: Vec<_> = existing.iter().cloned().collect();
    let watch = Watch { existing: existing.into_iter(), synced: false, subscription, shutdown };
    Box::pin(stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        match watch.next().await {
            Ok(response) => Some((Ok(response), Some(watch))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

impl Watch {
    async fn next(&mut self) -> Result<WatchResponse, Status> {
        if let Some(held) = self.existing.next() {
            return Ok(response(Kind::Existing, &held));
        }
        if !self.synced {
            self.synced = true;
            return Ok(WatchResponse {
                kind: Kind::Synced.into(),
                resource: None,
                fencing_token: 0,
            });
        }
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {
                Err(Status::unavailable("the server is shutting down"))
            }
            event = self.subscription.next() => match event {
                Ok(event) => Ok(of(&event)),
                Err(lagged) => Err(Status::resource_exhausted(lagged.to_string())),
            },
        }
    }
}

fn of(event: &Event) -> WatchResponse {
    match event {
        Event::Acquired(held) => response(Kind::Acquired, held),
        Event::Updated { before: _, held } | Event::Refreshed(held) => {
            response(Kind::Updated, held)
        }
        Event::Released(held) => response(Kind::Released, held),
        Event::Expired(held) => response(Kind::Expired, held),
    }
}

fn response(kind: Kind, held: &LockVersion) -> WatchResponse {
    WatchResponse {
        kind: kind.into(),
        resource: Some(super::shown(held)),
        fencing_token: held.lock.token.0,
    }
}
