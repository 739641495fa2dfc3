//! `portcullis.policy.v1.PolicyStore`.
//!
//! A handler parses, authorizes, calls, and converts. The service is dispatched by hand
//! instead of by generated code, since List and Watch return messages that are encoded
//! already ([`wire`]).

mod parse;
mod replace;
pub mod status;
mod watch;
pub mod wire;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use jiff::Timestamp;
use model::generation::Stamp;
use proto::policy_v1::{
    ListRequest, ReplaceRequest, ReplaceResponse, StatusRequest, StatusResponse, WatchRequest,
    status_response,
};
use runtime::server::{ConnectionDraining, Entry, Head};
use tokio::sync::Semaphore;
use tonic::{
    Request, Response, Status, Streaming, body::Body, codegen::Service, server::NamedService,
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use self::{
    parse::Wanted,
    replace::Replacing,
    status::{Error, status},
    watch::Watching,
    wire::WireCodec,
};
use crate::{
    access::{Access, Action},
    committer::Commits,
    config::Replaces,
    feed::{cells::CellStatus, parts::Part, watch::Feed},
    groups::{
        history::History,
        page::{Page, page},
    },
    metrics::DENIED,
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
    replaces: Arc<Semaphore>,
    /// Limits of a Replace.
    bounds: Replaces,
}

/// The gRPC service.
#[derive(Debug, Clone)]
pub struct PolicyStore(Arc<Shared>);

impl PolicyStore {
    /// Serves `feed`, and sends Replaces within these limits to `commits`. The entry
    /// authorizes the peer.
    #[must_use]
    pub fn entry(access: Access, feed: Feed, commits: Commits, bounds: Replaces) -> Entry<Self> {
        let replaces = Arc::new(Semaphore::new(REPLACES));
        let shared = Arc::new(Shared { access, feed, commits, replaces, bounds });
        let judge = Arc::clone(&shared);
        Entry::judged(Self(shared), move |head| judge.judge(head))
            .talks(&["Replace", "Watch"])
            .large("Replace", MAX_REPLACE_MESSAGE)
    }

    fn replace(
        &self,
        request: Request<Streaming<ReplaceRequest>>,
    ) -> Result<Response<Answers<ReplaceResponse>>, Error> {
        let permit = Arc::clone(&self.0.replaces).try_acquire_owned().map_err(|_| Error::Busy)?;
        let commits = self.0.commits.clone();
        let (requests, bounds) = (request.into_inner(), self.0.bounds);
        let replacing = Replacing::new(requests, &self.0.feed, commits, permit, bounds);
        Ok(Response::new(Box::pin(replacing.into_stream())))
    }

    fn list(&self, request: Request<ListRequest>) -> Result<Response<Page>, Error> {
        let Wanted { filter, from, size } = request.into_inner().try_into()?;
        Ok(Response::new(page(&self.0.feed.board.current(), &filter, from, size)))
    }

    fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Response<Answers<Part>> {
        let identity = runtime::tls::peer(&request).identity;
        let leaving = request.extensions().get().map(|ConnectionDraining(leaving)| leaving.clone());
        let drain = leaving.unwrap_or_else(|| self.0.feed.drain.clone());
        let watching = Watching::new(Arc::clone(&self.0), identity, drain, request.into_inner());
        Response::new(Box::pin(watching.into_stream()))
    }

    fn status(&self) -> Response<StatusResponse> {
        let snapshot = self.0.feed.board.current();
        let state = &snapshot.state;
        let cells = self.0.feed.cells.status();
        let writer = state.writer.as_ref().map(|owner| status_response::Writer {
            owner: owner.as_str().to_owned(),
            fencing_token: state.token.map_or(0, |token| token.0),
        });
        Response::new(StatusResponse {
            generation: state.generation.0,
            watermark: state.watermark.map(proto::timestamp),
            writer,
            synced_at: state.synced_at.map(timestamp),
            groups: snapshot.entries().len() as u64,
            cells: cells.into_iter().map(|status| cell(status, snapshot.history())).collect(),
            now: Some(timestamp(Timestamp::now())),
        })
    }
}

impl Shared {
    /// Whether the peer may call the method. The cell of a Watch is authorized after its
    /// Hello. Unknown methods are refused later.
    fn judge(&self, head: &Head<'_>) -> Result<(), Status> {
        let action = match head.method {
            "Replace" => Action::Replace,
            "List" => Action::List,
            "Status" => Action::Status,
            "Watch" => Action::WatchAsAny,
            _ => return Ok(()),
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

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    // After 1970: the fraction is never negative.
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

fn moment(Stamp(nanoseconds): Stamp) -> prost_types::Timestamp {
    const SECOND: i64 = 1_000_000_000;
    let nanos = i32::try_from(nanoseconds.rem_euclid(SECOND)).expect("less than a second");
    prost_types::Timestamp { seconds: nanoseconds.div_euclid(SECOND), nanos }
}

fn cell(status: CellStatus, history: &History) -> status_response::Cell {
    let (since, enforced) = (status.behind_since(history), status.enforced());
    let CellStatus { id, connected, report } = status;
    status_response::Cell {
        cell_id: id.as_str().to_owned(),
        connected,
        enforced_generation: enforced.0,
        reported_at: report.map(|report| timestamp(report.at)),
        containers: report.map_or(0, |report| report.containers),
        isolated_rules: report.map_or(0, |report| report.isolated_rules),
        behind_since: since.map(moment),
    }
}

fn answer<T>(outcome: Result<T, Error>) -> std::future::Ready<Result<T, Status>> {
    std::future::ready(outcome.map_err(|error| status(&error)))
}

impl NamedService for PolicyStore {
    const NAME: &'static str = "portcullis.policy.v1.PolicyStore";
}

type Later = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for PolicyStore {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Later;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Later {
        let this = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/portcullis.policy.v1.PolicyStore/Replace" => {
                    let method = service_fn(|request| answer(this.replace(request)));
                    tonic::server::Grpc::new(ProstCodec::default())
                        .max_decoding_message_size(MAX_REPLACE_MESSAGE)
                        .streaming(method, request)
                        .await
                }
                "/portcullis.policy.v1.PolicyStore/List" => {
                    let method = service_fn(|request| answer(this.list(request)));
                    tonic::server::Grpc::new(WireCodec::default()).unary(method, request).await
                }
                "/portcullis.policy.v1.PolicyStore/Watch" => {
                    let method = service_fn(|request| answer(Ok(this.watch(request))));
                    tonic::server::Grpc::new(WireCodec::default()).streaming(method, request).await
                }
                "/portcullis.policy.v1.PolicyStore/Status" => {
                    let method = service_fn(|_: Request<StatusRequest>| answer(Ok(this.status())));
                    tonic::server::Grpc::new(ProstCodec::default()).unary(method, request).await
                }
                path => Status::unimplemented(format!("there is no method {path}")).into_http(),
            })
        })
    }
}
