//! A read-only web page on the admin address: live view of generation, changes and cells,
//! search, and the question why an app can (not) connect.
//!
//! The page is a client of the gRPC services in this process, without their access
//! control: like `/metrics`, it is for everyone who can reach the admin address. It needs
//! no build step and no other server. Texts of users reach the browser as JSON and become
//! text nodes; the content security policy forbids inline scripts.

mod answers;
mod json;
mod live;

use std::sync::{Arc, OnceLock, atomic::AtomicUsize};

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::grpc::{Foundation, PolicyStore};

/// The browser loads nothing from other servers, and runs only `page.js`.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The services that the page asks.
#[derive(Debug, Clone)]
pub struct Services {
    /// Status and groups.
    pub store: PolicyStore,
    /// Cells, containers, changes, explanations.
    pub foundation: Foundation,
}

/// The page; it answers 503 until [`Page::open`].
#[derive(Debug, Clone, Default)]
pub struct Page(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    services: OnceLock<Services>,
    /// Open live views.
    views: Arc<AtomicUsize>,
}

impl Page {
    /// The services are ready.
    pub fn open(&self, services: Services) {
        _ = self.0.services.set(services);
    }

    /// Routes of the page.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/", get(|| asset("text/html", include_str!("page.html"))))
            .route("/page.css", get(|| asset("text/css", include_str!("page.css"))))
            .route("/page.js", get(|| asset("text/javascript", include_str!("page.js"))))
            .route("/live", get(live))
            .route("/search", get(search))
            .route("/explain", get(explain))
            .with_state(self.clone())
    }

    fn services(&self) -> Result<&Services, Status> {
        let loading = || Status::unavailable("the policy store is still loading the groups");
        self.0.services.get().ok_or_else(loading)
    }
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    secured(kind, Body::from(text))
}

async fn live(State(page): State<Page>) -> Response {
    let started = match page.services() {
        Ok(services) => live::events(services, &page.0.views).await,
        Err(status) => Err(status),
    };
    match started {
        Ok(events) => secured("text/event-stream", Body::from_stream(events)),
        Err(status) => failed(&status),
    }
}

async fn search(State(page): State<Page>, RawQuery(query): RawQuery) -> Response {
    answer(match page.services() {
        Ok(services) => answers::search(services, &parameters(query)).await,
        Err(status) => Err(status),
    })
}

async fn explain(State(page): State<Page>, RawQuery(query): RawQuery) -> Response {
    answer(match page.services() {
        Ok(services) => answers::explain(services, &parameters(query)).await,
        Err(status) => Err(status),
    })
}

/// Names and values of a query.
type Parameters = Vec<(String, String)>;

fn parameters(query: Option<String>) -> Parameters {
    let query = query.unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

fn answer(answer: Result<Value, Status>) -> Response {
    match answer {
        Ok(value) => secured("application/json", value.to_string().into()),
        Err(status) => failed(&status),
    }
}

fn failed(status: &Status) -> Response {
    let mut response =
        secured("application/json", json!({ "error": status.message() }).to_string().into());
    *response.status_mut() = match status.code() {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unavailable | Code::ResourceExhausted => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    response
}

fn secured(kind: &'static str, body: Body) -> Response {
    let mut response = body.into_response();
    let value = HeaderValue::from_static;
    let headers: [(HeaderName, HeaderValue); 5] = [
        (
            header::CONTENT_TYPE,
            HeaderValue::try_from(format!("{kind}; charset=utf-8")).unwrap_or(value("text/plain")),
        ),
        (header::CONTENT_SECURITY_POLICY, value(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, value("nosniff")),
        (header::REFERRER_POLICY, value("no-referrer")),
        (header::CACHE_CONTROL, value("no-store")),
    ];
    response.headers_mut().extend(headers);
    response
}
