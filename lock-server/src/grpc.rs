//! The wire: Locket, and our watch beside it.
//!
//! A handler parses, calls, converts. What every call has in common (spans,
//! debug lines, metrics, the mapping of errors) is in `call`.

mod call;
mod watch;

use std::sync::Arc;

use model::lock::{Claim, LockKind, Release, Selector};
use proto::{
    lock_v1,
    models::{self, locket_server::Locket},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

pub use self::call::Refusal;
use self::call::{About, Calls};
use crate::{held, locks::Locks, store::Store};

/// Serves both services; clones share everything.
#[derive(Debug)]
pub struct Service<S> {
    locks: Locks<S>,
    calls: Arc<Calls>,
    /// Ends the watches, which would hold up the drain.
    shutdown: CancellationToken,
}

impl<S: Clone> Clone for Service<S> {
    fn clone(&self) -> Self {
        let Self { locks, calls, shutdown } = self;
        Self { locks: locks.clone(), calls: Arc::clone(calls), shutdown: shutdown.clone() }
    }
}

impl<S: Store> Service<S> {
    /// Serves `locks`; watches end at `shutdown`.
    pub fn new(locks: Locks<S>, shutdown: CancellationToken) -> Self {
        Self { locks, calls: Arc::default(), shutdown }
    }
}

/// `uuid` of the metadata: any text, not to be validated.
fn request_uuid<T>(request: &Request<T>) -> held::Request {
    let uuid = request.metadata().get("uuid")?;
    Some(uuid.to_str().map_or_else(|_| String::from_utf8_lossy(uuid.as_bytes()).into(), Arc::from))
}

#[tonic::async_trait]
impl<S: Store> Locket for Service<S> {
    async fn lock(
        &self,
        request: Request<models::LockRequest>,
    ) -> Result<Response<models::LockResponse>, Status> {
        let uuid = request_uuid(&request);
        let about = About::of(&uuid, request.get_ref().resource.as_ref());
        self.calls
            .lock
            .serve(about, async {
                let claim = Claim::try_from(request.into_inner())?;
                let token = self.locks.lock(claim, uuid).await?;
                Ok(models::LockResponse { fencing_token: token.0 })
            })
            .await
    }

    async fn fetch(
        &self,
        request: Request<models::FetchRequest>,
    ) -> Result<Response<models::FetchResponse>, Status> {
        let uuid = request_uuid(&request);
        let models::FetchRequest { key } = request.into_inner();
        let about = About { uuid, key: key.clone(), ..About::default() };
        self.calls
            .fetch
            .serve(about, async {
                let held = self.locks.fetch(&key).await?;
                Ok(models::FetchResponse { resource: Some((&held.lock).into()) })
            })
            .await
    }

    async fn release(
        &self,
        request: Request<models::ReleaseRequest>,
    ) -> Result<Response<models::ReleaseResponse>, Status> {
        let uuid = request_uuid(&request);
        let about = About::of(&uuid, request.get_ref().resource.as_ref());
        self.calls
            .release
            .serve(about, async {
                let release = Release::try_from(request.into_inner())?;
                self.locks.release(release).await?;
                Ok(models::ReleaseResponse {})
            })
            .await
    }

    async fn fetch_all(
        &self,
        request: Request<models::FetchAllRequest>,
    ) -> Result<Response<models::FetchAllResponse>, Status> {
        let uuid = request_uuid(&request);
        let type_code = request.get_ref().type_code;
        let about = About { uuid, type_code, ..About::default() };
        self.calls
            .fetch_all
            .serve(about, async {
                let kind = LockKind::try_from(request.into_inner())?;
                let held = self.locks.fetch_all(kind).await?;
                let resources = held.iter().map(|held| (&held.lock).into()).collect();
                Ok(models::FetchAllResponse { resources })
            })
            .await
    }
}

#[tonic::async_trait]
impl<S: Store> lock_v1::lock_watch_server::LockWatch for Service<S> {
    type WatchStream = watch::Stream;

    async fn watch(
        &self,
        request: Request<lock_v1::WatchRequest>,
    ) -> Result<Response<watch::Stream>, Status> {
        let about = About { uuid: request_uuid(&request), ..About::default() };
        self.calls
            .watch
            .serve(about, async {
                let selector = Selector::try_from(request.into_inner())?;
                let (held, subscription) = self.locks.watch(&selector).await?;
                Ok(watch::stream(held, subscription, self.shutdown.clone()))
            })
            .await
    }
}
