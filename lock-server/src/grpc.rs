//! gRPC services: Locket and LockWatch.
//!
//! A handler parses, calls, converts. `call` has the common parts of every call:
//! spans, debug lines, metrics, the mapping of errors.

mod call;
mod fetch_all_cache;
mod pre_encoded;
mod watch;

use std::sync::Arc;

use http::HeaderMap;
use model::lock::{Claim, LockKind, Release, Selector, Ttl};
use proto::{
    lock_v1,
    lock_v1::lock_watch_server::LockWatchServer,
    methods,
    models::{
        self,
        locket_server::{Locket, LocketServer},
    },
};
use runtime::{
    server::{Entry, Head},
    tls::peer,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use self::{
    call::{About, Method},
    fetch_all_cache::Answers,
    pre_encoded::Encoded,
};
pub use self::{
    call::{Calls, Refusal},
    pre_encoded::{PreEncoded, TooLarge},
};
use crate::{
    access::{Access, Action, OutOfBounds},
    lock_version::{self, LockVersion},
    locks::Locks,
    store::Store,
};

/// Serves both gRPC services; clones share everything.
#[derive(Debug)]
pub struct Service<S> {
    locks: Locks<S>,
    access: Arc<Access>,
    calls: Arc<Calls>,
    answers: Arc<Answers>,
    /// Ends watch streams, which would otherwise delay the drain.
    shutdown: CancellationToken,
}

impl<S: Clone> Clone for Service<S> {
    fn clone(&self) -> Self {
        let Self { locks, access, calls, answers, shutdown } = self;
        Self {
            locks: locks.clone(),
            access: Arc::clone(access),
            calls: Arc::clone(calls),
            answers: Arc::clone(answers),
            shutdown: shutdown.clone(),
        }
    }
}

impl<S: Store> Service<S> {
    /// Serves `locks` to every client; watches end at `shutdown`.
    pub fn new(locks: Locks<S>, shutdown: CancellationToken) -> Self {
        let (access, calls, answers) = (Arc::default(), Arc::default(), Arc::default());
        Self { locks, access, calls, answers, shutdown }
    }

    /// Restricts access to the given rules.
    #[must_use]
    pub fn only(self, access: Access) -> Self {
        Self { access: Arc::new(access), ..self }
    }

    /// Per-method statistics, for reporters.
    pub fn calls(&self) -> Arc<Calls> {
        Arc::clone(&self.calls)
    }

    /// The gRPC services, Locket and LockWatch. The entries authorize the peer; the
    /// services themselves do not.
    pub fn servers(self) -> (Entry<PreEncoded<LocketServer<Self>>>, Entry<LockWatchServer<Self>>) {
        let (locket, watch) = (self.clone(), self.clone());
        (
            Entry::judged(PreEncoded(LocketServer::new(self.clone())), move |head| {
                locket.judge(head, locket_method(&locket.calls, head.method))
            }),
            Entry::judged(LockWatchServer::new(self), move |head| {
                watch.judge(head, watch_method(&watch.calls, head.method))
            }),
        )
    }

    /// Checks that the peer may take this lock for this time to live, or release it.
    fn check_lock<T>(
        &self,
        request: &Request<T>,
        key: &str,
        ttl: Option<Ttl>,
    ) -> Result<(), OutOfBounds> {
        if !self.access.has_bounds() {
            return Ok(());
        }
        self.access.check_lock(peer(request).identity.as_deref(), key, ttl)
    }

    /// Checks that the peer may call the method. Unknown methods are refused later.
    fn judge(&self, head: &Head<'_>, called: Option<(&Method, Action)>) -> Result<(), Status> {
        let Some((method, action)) = called else { return Ok(()) };
        let judged = self.access.check(head.peer.identity.as_deref(), action);
        judged.map_err(|denied| {
            let uuid = uuid_of(head.headers);
            method.refuse(About { uuid, ..About::default() }, &denied.into())
        })
    }
}

/// Statistics and required access of a method of Locket.
fn locket_method<'a>(calls: &'a Calls, name: &str) -> Option<(&'a Method, Action)> {
    Some(match methods::Locket::parse(name)? {
        methods::Locket::Lock => (&calls.lock, Action::Write),
        methods::Locket::Release => (&calls.release, Action::Write),
        methods::Locket::Fetch => (&calls.fetch, Action::Read),
        methods::Locket::FetchAll => (&calls.fetch_all, Action::Read),
    })
}

/// Statistics and required access of a method of LockWatch.
fn watch_method<'a>(calls: &'a Calls, name: &str) -> Option<(&'a Method, Action)> {
    Some(match methods::LockWatch::parse(name)? {
        methods::LockWatch::Watch => (&calls.watch, Action::Read),
    })
}

/// Response with a single lock.
fn shown_alone(held: &LockVersion) -> Result<Encoded, TooLarge> {
    Encoded::of(&models::FetchResponse { resource: Some(shown(held)) })
}

/// Converts a lock to its protobuf message.
#[expect(deprecated, reason = "`type` is part of the answers")]
fn shown(held: &LockVersion) -> models::Resource {
    let resource = models::Resource::from(&held.lock);
    match &held.foreign_type {
        None => resource,
        Some(foreign) => models::Resource {
            r#type: foreign.as_ref().to_owned(),
            type_code: models::TypeCode::Unknown.into(),
            ..resource
        },
    }
}

/// `uuid` of the request metadata: any text, not validated.
fn request_uuid<T>(request: &Request<T>) -> lock_version::Request {
    uuid_of(request.metadata().as_ref())
}

fn uuid_of(headers: &HeaderMap) -> lock_version::Request {
    let uuid = headers.get("uuid")?;
    Some(uuid.to_str().map_or_else(|_| String::from_utf8_lossy(uuid.as_bytes()).into(), Arc::from))
}

#[tonic::async_trait]
impl<S: Store> Locket for Service<S> {
    async fn lock(
        &self,
        request: Request<models::LockRequest>,
    ) -> Result<Response<models::LockResponse>, Status> {
        let uuid = request_uuid(&request);
        let claim = Claim::try_from(request.get_ref());
        let bounds = match &claim {
            Ok(claim) => self.check_lock(&request, claim.key.as_str(), Some(claim.ttl)),
            Err(_) => Ok(()),
        };
        let refreshed = self.calls.lock.try_fast_path(|| {
            bounds.as_ref().ok()?;
            let fencing_token = self.locks.refresh(claim.as_ref().ok()?, &uuid)?.0;
            Encoded::of(&models::LockResponse { fencing_token }).ok()
        });
        if let Some(answer) = refreshed {
            return Ok(answer.response());
        }
        let about = About::of(&uuid, request.get_ref().resource.as_ref()).until(&request);
        // Frees the request before the wait for the store.
        drop(request);
        self.calls
            .lock
            .serve(about, async {
                bounds?;
                let fencing_token = self.locks.lock(claim?, uuid).await?.0;
                Ok(Encoded::of(&models::LockResponse { fencing_token })?)
            })
            .await
            .map(|answer| answer.into_inner().response())
    }

    async fn fetch(
        &self,
        request: Request<models::FetchRequest>,
    ) -> Result<Response<models::FetchResponse>, Status> {
        let known = self
            .calls
            .fetch
            .try_fast_path(|| shown_alone(&*self.locks.known(&request.get_ref().key)?).ok());
        if let Some(answer) = known {
            return Ok(answer.response());
        }
        let (uuid, key) = (request_uuid(&request), request.get_ref().key.clone());
        let about = About { uuid, key, ..About::default() }.until(&request);
        self.calls
            .fetch
            .serve(about, async {
                let models::FetchRequest { key } = request.into_inner();
                let held = self.locks.fetch(&key).await?;
                Ok(shown_alone(&held)?)
            })
            .await
            .map(|answer| answer.into_inner().response())
    }

    async fn release(
        &self,
        request: Request<models::ReleaseRequest>,
    ) -> Result<Response<models::ReleaseResponse>, Status> {
        let uuid = request_uuid(&request);
        let about = About::of(&uuid, request.get_ref().resource.as_ref()).until(&request);
        let type_code = about.type_code;
        self.calls
            .release
            .serve(about, async {
                let (metadata, extensions, message) = request.into_parts();
                let release = Release::try_from(message)?;
                let request = Request::from_parts(metadata, extensions, ());
                self.check_lock(&request, &release.key, None)?;
                self.locks.release(release, type_code).await?;
                Ok(Encoded::of(&models::ReleaseResponse {})?)
            })
            .await
            .map(|answer| answer.into_inner().response())
    }

    async fn fetch_all(
        &self,
        request: Request<models::FetchAllRequest>,
    ) -> Result<Response<models::FetchAllResponse>, Status> {
        let uuid = request_uuid(&request);
        let type_code = request.get_ref().type_code;
        let about = About { uuid, type_code, ..About::default() }.until(&request);
        self.calls
            .fetch_all
            .serve(about, async {
                let kind = LockKind::try_from(request.into_inner())?;
                let held = self.locks.fetch_all(kind).await?;
                Ok(self.answers.encode(kind, held)?)
            })
            .await
            .map(|answer| answer.into_inner().response())
    }
}

#[tonic::async_trait]
impl<S: Store> lock_v1::lock_watch_server::LockWatch for Service<S> {
    type WatchStream = watch::Stream;

    async fn watch(
        &self,
        request: Request<lock_v1::WatchRequest>,
    ) -> Result<Response<watch::Stream>, Status> {
        let about = About { uuid: request_uuid(&request), ..About::default() }.until(&request);
        self.calls
            .watch
            .serve(about, async {
                let selector = Selector::try_from(request.into_inner())?;
                let (held, subscription) = self.locks.watch(&selector).await?;
                Ok(watch::stream(&held, subscription, self.shutdown.clone()))
            })
            .await
    }
}
