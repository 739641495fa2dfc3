//! The JSON API of policy-server-internal, for its clients: polling agents
//! (docs/compatibility/policy-server-internal.md).
//!
//! - A response derives from one snapshot, hence from one generation; the part of each
//!   group is encoded and compressed once for all responses ([`mod@frames`]).
//! - [`admission`] limits concurrent lists. A list is dropped when its connection ends,
//!   and aborted when it is not read to the end within [`LONGEST`].
//! - Container-to-container policies are not supported: those routes return an empty
//!   list, so that an agent runs for its security groups.
//! - A response about groups is never older than one of another instance
//!   ([`freshness`]).
//! - Before the first Replace lists are refused, so that a store that lost its database
//!   does not remove the rules of any cell.

pub mod admission;
mod answer;
pub mod coding;
pub mod frames;
pub mod freshness;
pub mod health;
pub mod query;
pub mod route;
pub mod tags;

use std::{iter, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::State, response::Response};
use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderValue, Request, StatusCode, Uri,
    header::{CONNECTION, CONTENT_ENCODING, VARY},
    request::Parts,
};
use metrics::SharedString;
use runtime::{dropsonde::Dropsonde, tls::Peer};
use tokio::time::Instant;
use tracing::{Instrument as _, Span, debug, error, info_span};
use uuid::Uuid;

use self::{
    admission::{Admission, Permit},
    frames::{Coding, Frames},
    freshness::Fresh,
    query::{Limit, Wanted},
    route::{Route, Routed},
    tags::Tags,
};
use crate::{
    access::{Access, Action},
    groups::{current::SnapshotPublisher, fragment::Texts, snapshot::Snapshot},
    metrics::{
        DENIED, HTTP_LIST_BYTES, HTTP_LISTS_REFUSED, HTTP_REQUESTS, HTTP_SECONDS, HTTP_STALE,
    },
    store::Store,
    uses::Uses,
};

/// Time limit for a client to read a list. Agents take five seconds at most.
pub const LONGEST: Duration = Duration::from_secs(60);
/// Size of the cache of texts for clients without gzip support, in bytes.
const TEXTS: usize = 64 << 20;
/// Size limit of a request body: an id and a type.
const LARGEST_BODY: usize = 64 << 10;
/// Last update of container-to-container policies, which never change. 0 would mean no
/// update yet, so that agents would list each time.
const POLICIES_CHANGED: &str = "1";

/// State shared by the requests.
#[derive(Debug)]
pub struct Api {
    access: Access,
    board: Arc<SnapshotPublisher>,
    fresh: Fresh,
    gate: Admission,
    tags: Tags,
    texts: Texts,
    metron: Dropsonde,
    uses: Uses,
}

impl Api {
    /// Serves `board` to clients that `access` and `gate` admit.
    #[must_use]
    pub fn new(access: Access, board: Arc<SnapshotPublisher>, gate: Admission, tags: Tags) -> Self {
        let fresh = Fresh::new(Arc::clone(&board), None);
        let (texts, metron) = (Texts::new(TEXTS), Dropsonde::default());
        Self { access, board, fresh, gate, tags, texts, metron, uses: Uses::default() }
    }

    /// Notes that agents poll, which report no uses of rules.
    #[must_use]
    pub fn noting(mut self, uses: Uses) -> Self {
        self.uses = uses;
        self
    }

    /// Other instances write to the database: enables the read of its newest generation.
    #[must_use]
    pub fn as_new_as(mut self, store: Arc<dyn Store>) -> Self {
        self.fresh = Fresh::new(Arc::clone(&self.board), Some(store));
        self
    }

    /// Also sends the original's metrics.
    #[must_use]
    pub fn telling(mut self, metron: Dropsonde) -> Self {
        self.metron = metron;
        self
    }

    /// Router for the port of the original.
    pub fn router(self) -> Router {
        Router::new().fallback(answer).with_state(Arc::new(self))
    }
}

async fn answer(State(api): State<Arc<Api>>, request: Request<Body>) -> Response {
    let route = match route::route(request.method(), request.uri().path()) {
        Routed::To(route) => route,
        Routed::NotAllowed(allowed) => return answer::not_allowed(&allowed),
        Routed::NotFound => return answer::not_found(),
    };
    api.uses.polled();
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let id = Uuid::new_v4().to_string();
    let span = span(&parts, &id);
    let serve = async {
        debug!("serving");
        let handler = info_span!("handler", "lager.task" = route.handler());
        let outcome = api.serve(route, &parts, body).instrument(handler.clone()).await;
        let response = outcome.unwrap_or_else(|refusal| refusal.into_logged_response(&handler));
        debug!("done");
        response
    };
    let mut response = serve.instrument(span).await;
    answer::sign(&mut response, &id, answer::given_id(&parts.headers));
    count(&api.metron, route.metric(), response.status(), began.elapsed());
    response
}

/// Span with the request id in every log line, as in the original.
fn span(parts: &Parts, id: &str) -> Span {
    let task = format!("request_{id}");
    info_span!(
        "request",
        "lager.task" = task.as_str(),
        method = parts.method.as_str(),
        request = parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        request_guid = id,
    )
}

/// Counts a request; `name` is the original's name of the route.
fn count(metron: &Dropsonde, name: &'static str, status: StatusCode, took: Duration) {
    metron.count(format_args!("{name}RequestCount"));
    metron.took(format_args!("{name}RequestTime"), took);
    if !status.is_success() {
        metron.count("http_error");
    }
    let status = status.as_u16().to_string();
    let labels = [("route", SharedString::from(name)), ("status", status.into())];
    HTTP_REQUESTS.counter_by(labels).increment(1);
    HTTP_SECONDS.histogram_by([("route", name)]).record(took.as_secs_f64());
}

/// A failed request.
#[derive(Debug)]
struct Refusal {
    response: Box<Response>,
    /// Message for the client.
    description: String,
    /// Cause.
    error: String,
}

impl Refusal {
    fn new(status: StatusCode, description: &str, error: &impl ToString) -> Self {
        let response = Box::new(answer::error(status, description));
        Self { response, description: description.to_owned(), error: error.to_string() }
    }

    fn unavailable(description: &str, seconds: u32, error: &impl ToString) -> Self {
        let response = Box::new(answer::unavailable(description, seconds));
        Self { response, description: description.to_owned(), error: error.to_string() }
    }

    fn into_logged_response(self, handler: &Span) -> Response {
        let Self { response, description, error } = self;
        handler.in_scope(|| error!(error, "{description}"));
        *response
    }
}

impl Api {
    async fn serve(&self, route: Route, parts: &Parts, body: Body) -> Result<Response, Refusal> {
        self.may(parts)?;
        match route {
            Route::Policies => Ok(answer::ok(r#"{"total_policies":0,"policies":[]}"#)),
            Route::PoliciesLastUpdated => Ok(answer::ok(POLICIES_CHANGED)),
            Route::SecurityGroups => self.list(&parts.uri, &parts.headers).await,
            Route::SecurityGroupsLastUpdated => {
                self.wait_until_current().await?;
                Ok(answer::ok(self.last_updated().to_string()))
            }
            Route::CreateTags => self.tag(body).await,
        }
    }

    fn may(&self, parts: &Parts) -> Result<(), Refusal> {
        let identity = parts.extensions.get::<Peer>().and_then(|peer| peer.identity.as_deref());
        self.access.check(identity, Action::Poll).map_err(|denied| {
            DENIED.counter().increment(1);
            Refusal::new(StatusCode::FORBIDDEN, "permission denied", &denied)
        })
    }

    async fn wait_until_current(&self) -> Result<(), Refusal> {
        self.fresh.wait().await.map_err(|stale| {
            HTTP_STALE.counter().increment(1);
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "database read failed", &stale)
        })
    }

    async fn list(&self, uri: &Uri, headers: &HeaderMap) -> Result<Response, Refusal> {
        let wanted = Wanted::parse(uri.query().unwrap_or_default()).map_err(|error| {
            let description = format!("invalid value for '{}' parameter", error.name);
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, &description, &error)
        })?;
        let began = Instant::now();
        let fresh = self.wait_until_current().await;
        let outcome = if fresh.is_ok() { "Success" } else { "Error" };
        let took = began.elapsed();
        self.metron.took(format_args!("SecurityGroupsStoreBySpaceGuids{outcome}Time"), took);
        if fresh.is_err() {
            self.metron.count("SecurityGroupsStoreBySpaceGuidsError");
        }
        fresh?;
        let place = self.gate.enter().await.map_err(|full| {
            HTTP_LISTS_REFUSED.counter().increment(1);
            Refusal::unavailable("too many requests", 1, &full)
        })?;
        let snapshot = self.board.released_base();
        if !snapshot.state.is_whole() {
            let description = "no security groups were synced yet";
            let mut refusal = Refusal::unavailable(description, 5, &"there was no Replace yet");
            // A kept connection would bring the client back to this instance.
            refusal.response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Err(refusal);
        }
        let coding = coding::coding(headers);
        let frames = frames(&snapshot, &wanted, coding, self.texts.clone());
        Ok(send(frames, coding, place))
    }

    /// Last update of the groups, in nanoseconds since 1970: the stamp stored with the
    /// generation, so the same on every instance, and never lower than before.
    fn last_updated(&self) -> i64 {
        self.board.released_base().state.stamp.0
    }

    async fn tag(&self, body: Body) -> Result<Response, Refusal> {
        let body = axum::body::to_bytes(body, LARGEST_BODY).await.map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, "failed reading request body", &error)
        })?;
        let group = tags::parse(&body).map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, "failed parsing request body", &error)
        })?;
        let tag = self.tags.tag(&group).map_err(|error| {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "database create failed", &error)
        })?;
        let tags::Group { id, kind } = group;
        Ok(answer::ok(crate::groups::json::encode(&Tag { id, tag, r#type: kind })))
    }
}

#[derive(serde::Serialize)]
struct Tag {
    id: String,
    tag: String,
    r#type: String,
}

fn frames(snapshot: &Snapshot, wanted: &Wanted, coding: Coding, texts: Texts) -> Frames {
    let Wanted { spaces, from, limit } = wanted;
    let found = snapshot.concerning(spaces, *from);
    let size = match limit {
        Limit::None => found.len(),
        Limit::AtMost(size) => (*size).min(found.len()),
        Limit::Negative => 0,
    };
    let next = match limit {
        Limit::Negative => found.last(),
        Limit::None | Limit::AtMost(_) => found.get(size),
    };
    let next = next.map_or(0, |entry| entry.id.0);
    let entries = found.into_iter().take(size).cloned().collect();
    Frames::new(coding, next, entries, texts)
}

/// A body that is ready at once has a content length; otherwise it is chunked.
fn send(mut frames: Frames, coding: Coding, place: Permit) -> Response {
    let first = frames.next().unwrap_or_default();
    let mut response = match frames.is_empty() {
        true => {
            sent(&first);
            answer::ok(first)
        }
        false => {
            let deadline = Instant::now() + LONGEST;
            let rest = iter::once(first).chain(frames);
            let frames = rest.map(move |frame| {
                // Held until the last frame is taken, or the response is dropped.
                let _place = &place;
                sent(&frame);
                match Instant::now() < deadline {
                    true => Ok(frame),
                    false => Err("the client took too long to read the answer"),
                }
            });
            answer::ok(Body::from_stream(stream::iter(frames)))
        }
    };
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if coding == Coding::Gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn sent(frame: &Bytes) {
    HTTP_LIST_BYTES.counter().increment(frame.len() as u64);
}
