//! The services of `portcullis.policy.v1`.
//!
//! A handler parses, authorizes, calls, and converts.

mod ask;
mod cells;
mod changes;
mod explain;
mod foundation;
mod history;
mod inventory;
mod messages;
mod parse;
mod release;
mod removal;
mod replace;
pub mod status;
mod unused;
mod uses;
mod watch;
mod what_if;

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use jiff::Timestamp;
use proto::{
    methods,
    policy_v1::{
        ListRequest, ListResponse, ReplaceRequest, ReplaceResponse, StatusRequest, StatusResponse,
        WatchRequest, WatchResponse,
        policy_store_server::{self, PolicyStoreServer},
        status_response,
    },
};
use runtime::server::{ConnectionDraining, Entry, Head};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

pub use self::foundation::Foundation;
use self::{
    messages::{cell, timestamp},
    parse::Wanted,
    replace::Replacing,
    status::{Error, status},
    watch::Watching,
};
use crate::{
    access::{Access, Action},
    committer::Commits,
    config::Replaces,
    feed::watch::Feed,
    groups::page::page,
    metrics::DENIED,
    store::Store,
};

/// Limit of concurrent Replaces: each may hold a whole set.
const REPLACES: usize = 4;
/// Size limit of a message of a Replace: a group and its envelope, with room for writers
/// that send several groups per message.
const MAX_REPLACE_MESSAGE: usize = 24 << 20;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// State shared by the calls.
#[derive(Debug)]
struct Shared {
    access: Access,
    feed: Feed,
    commits: Commits,
    store: Arc<dyn Store>,
    replaces: Arc<Semaphore>,
    /// Limits of a Replace.
    bounds: Replaces,
}

/// The gRPC service.
#[derive(Debug, Clone)]
pub struct PolicyStore(Arc<Shared>);

impl PolicyStore {
    /// Serves `feed` and the history of `store`, and sends Replaces within these limits to
    /// `commits`.
    #[must_use]
    pub fn new(
        access: Access,
        feed: Feed,
        commits: Commits,
        store: Arc<dyn Store>,
        bounds: Replaces,
    ) -> Self {
        let replaces = Arc::new(Semaphore::new(REPLACES));
        Self(Arc::new(Shared { access, feed, commits, store, replaces, bounds }))
    }

    /// The service for operators.
    #[must_use]
    pub fn foundation(&self) -> Foundation {
        Foundation::new(Arc::clone(&self.0))
    }

    /// An entry that authorizes the peer.
    #[must_use]
    pub fn entry(self) -> Entry<PolicyStoreServer<Self>> {
        let judge = Arc::clone(&self.0);
        let server = PolicyStoreServer::new(self);
        let server = server.max_decoding_message_size(MAX_REPLACE_MESSAGE);
        Entry::judged(server, move |head| judge.judge(head))
            .talks(&["Replace", "Watch"])
            .large("Replace", MAX_REPLACE_MESSAGE)
    }

    fn start_replace(&self, requests: Streaming<ReplaceRequest>) -> Result<Replacing, Error> {
        let permit = Arc::clone(&self.0.replaces).try_acquire_owned().map_err(|_| Error::Busy)?;
        let commits = self.0.commits.clone();
        Ok(Replacing::new(requests, &self.0.feed, commits, permit, self.0.bounds))
    }
}

#[tonic::async_trait]
impl policy_store_server::PolicyStore for PolicyStore {
    type ReplaceStream = Answers<ReplaceResponse>;
    type WatchStream = Answers<WatchResponse>;

    async fn replace(
        &self,
        request: Request<Streaming<ReplaceRequest>>,
    ) -> Result<Response<Self::ReplaceStream>, Status> {
        let replacing = self.start_replace(request.into_inner()).map_err(|error| status(&error))?;
        Ok(Response::new(Box::pin(replacing.into_stream())))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let wanted = Wanted::try_from(request.into_inner()).map_err(|error| status(&error))?;
        let Wanted { filter, from, size } = wanted;
        Ok(Response::new(page(&self.0.feed.board.current(), &filter, from, size).into()))
    }

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let identity = runtime::tls::peer(&request).identity;
        let drain = self.0.drain(&request);
        let watching = Watching::new(Arc::clone(&self.0), identity, drain, request.into_inner());
        let stream: Self::WatchStream = Box::pin(watching.into_stream());
        let mut response = Response::new(stream);
        let accepts = MetadataValue::from_static("inventory, rule-uses");
        response.metadata_mut().insert(proto::WATCH_ACCEPTS, accepts);
        Ok(response)
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let snapshot = self.0.feed.board.current();
        let released = self.0.feed.board.released_base();
        let state = &snapshot.state;
        let cells = self.0.feed.cells.status();
        let writer = state.writer.as_ref().map(|owner| status_response::Writer {
            owner: owner.as_str().to_owned(),
            fencing_token: state.token.map_or(0, |token| token.0),
        });
        Ok(Response::new(StatusResponse {
            generation: state.generation.0,
            watermark: state.watermark.map(proto::timestamp),
            writer,
            synced_at: state.synced_at.map(timestamp),
            groups: snapshot.entries().len() as u64,
            cells: cells.into_iter().map(|status| cell(status, released.history())).collect(),
            release: Some(release::release(&self.0.feed)),
            now: Some(timestamp(Timestamp::now())),
            refused_removal: self.0.commits.removals().last().map(Into::into),
        }))
    }
}

impl Shared {
    /// Cancelled when the connection of a call is drained.
    fn drain<T>(&self, request: &Request<T>) -> CancellationToken {
        let leaving = request.extensions().get().map(|ConnectionDraining(leaving)| leaving.clone());
        leaving.unwrap_or_else(|| self.feed.drain.clone())
    }

    /// Whether the peer may call the method. The cell of a Watch is authorized after its
    /// Hello. Unknown methods are refused later.
    fn judge(&self, head: &Head<'_>) -> Result<(), Status> {
        let Some(method) = methods::PolicyStore::parse(head.method) else { return Ok(()) };
        let action = match method {
            methods::PolicyStore::Replace => Action::Replace,
            methods::PolicyStore::List => Action::List,
            methods::PolicyStore::Status => Action::Status,
            methods::PolicyStore::Watch => Action::WatchAsAny,
        };
        let judged = self.check(head.peer.identity.as_deref(), action);
        judged.map_err(|error| status(&error))
    }

    /// Authorizes; log line and response name the same peer.
    fn check(
        &self,
        identity: Option<&runtime::tls::Identity>,
        action: Action,
    ) -> Result<(), Error> {
        self.access.check(identity, action).map_err(|denied| {
            DENIED.counter().increment(1);
            tracing::error!(error = %denied, "permission-denied");
            denied.into()
        })
    }
}
