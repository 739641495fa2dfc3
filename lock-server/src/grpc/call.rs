//! Common parts of every call: span, debug lines, metrics, the log line of a failure,
//! the status.

use model::lock::{self, LockKind};
use proto::models::{Resource, TypeCode};
use runtime::{client, error::chain, server::Deadline};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument as _, Span, info_span};

use super::TooLarge;
use crate::{
    access::{Denied, OutOfBounds},
    lock_version, locks,
    metrics::Requests,
    store,
};

/// Reason for an error status.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The request message is invalid.
    #[error(transparent)]
    Request(#[from] proto::Error),
    /// The lock store refuses the request.
    #[error(transparent)]
    Locks(#[from] locks::Error),
    /// The peer has no access to the method.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The peer may not take or release this lock, or not for this time to live.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// The response exceeds the message size limit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// The only mapping from refusals to gRPC statuses (docs/compatibility/locket.md#errors).
pub(super) fn status(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Request(proto::Error::Missing("resource")) => {
            return Status::invalid_argument("invalid-request");
        }
        Refusal::Request(error) => match error {
            proto::Error::Missing(_) | proto::Error::Invalid { .. } => Code::InvalidArgument,
            proto::Error::Lock(error) => match error {
                lock::Error::InvalidType => Code::NotFound,
                lock::Error::InvalidTtl | lock::Error::InvalidOwner => Code::InvalidArgument,
                lock::Error::TooLong { .. } => Code::InvalidArgument,
            },
        },
        Refusal::Locks(error) => match error {
            locks::Error::Collision => Code::AlreadyExists,
            locks::Error::NotFound => Code::NotFound,
            locks::Error::Deadline => Code::DeadlineExceeded,
            locks::Error::Store(error) => match error {
                store::Error::Unavailable(_)
                | store::Error::Unreadable(_)
                | store::Error::Closed => Code::Unavailable,
                store::Error::Unstorable(_) => Code::InvalidArgument,
                store::Error::TooManyWatchers => Code::ResourceExhausted,
            },
        },
        Refusal::Denied(_) | Refusal::OutOfBounds(OutOfBounds::Key { .. }) => {
            Code::PermissionDenied
        }
        Refusal::OutOfBounds(OutOfBounds::Ttl { .. }) => Code::InvalidArgument,
        Refusal::TooLarge(_) => Code::ResourceExhausted,
    };
    Status::new(code, refusal.to_string())
}

/// Log fields of a request.
#[derive(Debug, Default)]
pub(super) struct About {
    pub(super) uuid: lock_version::Request,
    pub(super) key: String,
    pub(super) owner: String,
    pub(super) type_code: i32,
    /// Deadline that the client set.
    pub(super) deadline: Option<Instant>,
}

impl About {
    /// Adds the deadline that the client set.
    pub(super) fn until<T>(self, request: &Request<T>) -> Self {
        let deadline = request.extensions().get::<Deadline>();
        Self { deadline: deadline.map(|Deadline(at)| *at), ..self }
    }

    pub(super) fn of(uuid: &lock_version::Request, resource: Option<&Resource>) -> Self {
        let uuid = uuid.clone();
        match resource {
            None => Self { uuid, ..Self::default() },
            Some(resource) => Self {
                uuid,
                key: resource.key.clone(),
                owner: resource.owner.clone(),
                type_code: resource.type_code,
                deadline: None,
            },
        }
    }
}

/// Statistics per method.
#[derive(Debug)]
pub struct Calls {
    pub(super) lock: Method,
    pub(super) fetch: Method,
    pub(super) release: Method,
    pub(super) fetch_all: Method,
    pub(super) watch: Method,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            lock: Method::new("Lock", || info_span!("lock"), lock_failed),
            fetch: Method::new("Fetch", || info_span!("fetch"), fetch_failed),
            release: Method::new("Release", || info_span!("release"), release_failed),
            fetch_all: Method::new("FetchAll", || info_span!("fetch-all"), fetch_all_failed),
            watch: Method::new("Watch", || info_span!("watch"), watch_failed),
        }
    }
}

impl Calls {
    /// Request metrics of the original's methods, by the original's names.
    pub fn of_the_original(&self) -> [(&'static str, &Requests); 4] {
        [&self.lock, &self.release, &self.fetch, &self.fetch_all]
            .map(|method| (method.name, &method.requests))
    }
}

#[derive(Debug)]
pub(super) struct Method {
    name: &'static str,
    requests: Requests,
    span: fn() -> Span,
    /// Logs that the store failed, with this error.
    log_failure: LogFailure,
}

type LogFailure = fn(&About, &str);

fn lock_failed(About { uuid, key, owner, .. }: &About, error: &str) {
    let uuid = uuid.as_deref();
    tracing::error!(error, key, owner, "request-uuid" = uuid, "failed-locking-lock");
}

fn release_failed(About { key, owner, type_code, .. }: &About, error: &str) {
    let span = info_span!("release-lock", key, owner, "type-code" = type_code);
    span.in_scope(|| tracing::error!(error, "failed-to-release-lock"));
}

fn fetch_failed(About { key, .. }: &About, error: &str) {
    let span = info_span!("fetch-lock", key);
    span.in_scope(|| tracing::error!(error, "failed-to-fetch-lock"));
}

fn fetch_all_failed(About { type_code, .. }: &About, error: &str) {
    let kind = TypeCode::try_from(*type_code).ok();
    let kind = kind.and_then(|code| LockKind::try_from(code).ok());
    let span = info_span!("fetch-all-locks", r#type = kind.map_or("", LockKind::as_str));
    span.in_scope(|| tracing::error!(error, "failed-to-fetch-locks"));
}

fn watch_failed(About { key, .. }: &About, error: &str) {
    tracing::error!(error, key, "request-failed");
}

impl Method {
    fn new(name: &'static str, span: fn() -> Span, log_failure: LogFailure) -> Self {
        Self { name, requests: Requests::of(name), span, log_failure }
    }

    /// Serves a call that needs neither waiting nor log lines; `None` when
    /// [`Method::serve`] has to serve it. Nearly all calls take this path, and the log
    /// fields would be a tenth of their cost.
    pub(super) fn try_fast_path<T>(&self, work: impl FnOnce() -> Option<T>) -> Option<T> {
        if tracing::enabled!(tracing::Level::DEBUG) {
            return None;
        }
        let begun = Instant::now();
        let answer = work()?;
        self.requests.started.increment();
        self.requests.succeeded.increment();
        self.requests.took(begun.elapsed());
        Some(answer)
    }

    /// Refuses a call before its request body is read.
    pub(super) fn refuse(&self, about: About, refusal: &Refusal) -> Status {
        let mut call = Call::begin(self, about);
        let status = (self.span)().in_scope(|| call.refuse(refusal));
        let outcome: Result<(), Status> = Err(status.clone());
        call.end(&outcome);
        status
    }

    /// Serves one call.
    pub(super) async fn serve<T>(
        &self,
        about: About,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response<T>, Status> {
        let mut call = Call::begin(self, about);
        let span = (self.span)();
        let outcome = async {
            tracing::debug!("started");
            let outcome = work.await;
            tracing::debug!("complete");
            outcome.map_err(|refusal| call.refuse(&refusal))
        }
        .instrument(span)
        .await;
        call.end(&outcome);
        outcome.map(Response::new)
    }
}

/// A call in progress. Dropped before its end means that the client cancelled it.
struct Call<'a> {
    method: &'a Method,
    about: About,
    begun: Instant,
    ended: bool,
}

impl<'a> Call<'a> {
    fn begin(method: &'a Method, about: About) -> Self {
        method.requests.started.increment();
        method.requests.in_flight.add(1);
        Self { method, about, begun: Instant::now(), ended: false }
    }

    /// Logs the error, unless it is an expected one.
    fn refuse(&self, refusal: &Refusal) -> Status {
        let status = status(refusal);
        let About { key, type_code, .. } = &self.about;
        let error = client::describe(&status);
        match refusal {
            Refusal::Request(_) | Refusal::OutOfBounds(OutOfBounds::Ttl { .. }) => {
                tracing::error!(error, "typeCode" = type_code, "invalid-request");
            }
            Refusal::Denied(_) | Refusal::OutOfBounds(OutOfBounds::Key { .. }) => {
                tracing::error!(error, "permission-denied");
            }
            Refusal::TooLarge(_) => tracing::error!(error, "answer-too-large"),
            Refusal::Locks(locks::Error::Collision) => {}
            Refusal::Locks(locks::Error::NotFound) => {
                let span = info_span!("fetch-lock");
                span.in_scope(|| tracing::debug!(error, key, "failed-to-fetch-lock"));
            }
            Refusal::Locks(cause @ (locks::Error::Deadline | locks::Error::Store(_))) => {
                (self.method.log_failure)(&self.about, &chain(cause));
            }
        }
        status
    }

    fn end<T>(&mut self, outcome: &Result<T, Status>) {
        self.ended = true;
        let requests = &self.method.requests;
        match outcome {
            Err(status) if status.code() != Code::AlreadyExists => requests.failed.increment(),
            Ok(_) | Err(_) => requests.succeeded.increment(),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let requests = &self.method.requests;
        requests.in_flight.add(-1);
        requests.took(self.begun.elapsed());
        if !self.ended {
            let About { uuid, key, owner, type_code: _, deadline } = &self.about;
            let message = if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                "context-deadline-exceeded"
            } else {
                requests.cancelled.increment();
                "context-cancelled"
            };
            tracing::info!(
                "request-id" = uuid.as_deref(),
                "request-type" = self.method.name,
                "resource-key" = key,
                "resource-owner" = owner,
                "{message}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::access::Action;

    #[test]
    fn codes_and_texts() {
        let too_long = lock::Error::TooLong { field: "key", chars: 300, max: 255 };
        let cause = Arc::new(storage::Error::Closed);
        let denied = Denied { peer: "the peer cn=x".to_owned(), action: Action::Write };
        let table: [(Refusal, Code, &str); 15] = [
            (
                TooLarge(5_000_000_000).into(),
                Code::ResourceExhausted,
                "the answer has 5000000000 bytes, at most 67108864 are sent",
            ),
            (denied.into(), Code::PermissionDenied, "the peer cn=x may not write locks"),
            (proto::Error::Missing("resource").into(), Code::InvalidArgument, "invalid-request"),
            (
                proto::Error::Missing("selector").into(),
                Code::InvalidArgument,
                "selector is missing",
            ),
            (proto::Error::from(lock::Error::InvalidType).into(), Code::NotFound, "invalid-type"),
            (
                proto::Error::from(lock::Error::InvalidTtl).into(),
                Code::InvalidArgument,
                "invalid-ttl",
            ),
            (
                proto::Error::from(lock::Error::InvalidOwner).into(),
                Code::InvalidArgument,
                "invalid-owner",
            ),
            (
                proto::Error::from(too_long).into(),
                Code::InvalidArgument,
                "key has 300 characters, at most 255 are allowed",
            ),
            (locks::Error::Collision.into(), Code::AlreadyExists, "lock-collision"),
            (locks::Error::NotFound.into(), Code::NotFound, "resource-not-found"),
            (locks::Error::Deadline.into(), Code::DeadlineExceeded, "context deadline exceeded"),
            (
                locks::Error::from(store::Error::Unstorable(Arc::clone(&cause) as _)).into(),
                Code::InvalidArgument,
                "the database cannot keep this text",
            ),
            (
                locks::Error::from(store::Error::Unavailable(cause)).into(),
                Code::Unavailable,
                "the store does not take the change",
            ),
            (
                locks::Error::from(store::Error::Closed).into(),
                Code::Unavailable,
                "the store is shut down",
            ),
            (
                locks::Error::from(store::Error::TooManyWatchers).into(),
                Code::ResourceExhausted,
                "too many watchers",
            ),
        ];
        for (refusal, code, text) in table {
            let status = status(&refusal);
            assert_eq!((status.code(), status.message()), (code, text), "{refusal:?}");
        }
    }

    #[test]
    fn statuses_are_shown_as_go_shows_them() {
        let status = Status::already_exists("lock-collision");
        assert_eq!(
            client::describe(&status),
            "rpc error: code = AlreadyExists desc = lock-collision"
        );
    }
}
