//! The HTTP handlers: parse, call the state, and present.

pub(crate) mod bodies;
mod discovery;
mod extract;
mod groups;
mod internal;
mod organizations;
mod stubs;
pub(crate) mod trouble;
pub(crate) mod uaa;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

pub(crate) use extract::{Body, Call, Parameters, Scheme};
pub(crate) use internal::internal_router;

use super::json::Json;
use super::present::Base;
use super::refusal::Refusal;
use super::state::Job;
use super::state::access::{Authority, Caller};
use super::store::{Store, new_guid};
use super::uaa::grant;
use super::uaa::token::Signer;
use super::uaa::{Client, Lifetimes};
use super::validate::rules::Flags;

/// Shared state of all handlers.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The state.
    pub(crate) store: Store,
    /// Signs and verifies tokens.
    pub(crate) signer: Signer,
    /// Clients that may request tokens.
    pub(crate) clients: Vec<Client>,
    /// Lifetimes of tokens.
    pub(crate) lifetimes: Lifetimes,
    /// Options of rule validation.
    pub(crate) flags: Flags,
    /// The port of the UAA, for links.
    pub(crate) uaa_port: u16,
}

/// Maximum size of a request's body. The rules of one group can have 16 MB, and escaped JSON can be
/// longer.
const MAX_BODY: usize = 64 << 20;

/// The public API.
pub(crate) fn api_router(shared: Arc<Shared>) -> Router {
    Router::new()
        .merge(discovery::router())
        .merge(groups::router())
        .merge(organizations::router())
        .merge(users::router())
        .merge(stubs::router())
        .merge(internal::forbidden_router())
        .fallback(async || Refusal::UnknownRequest)
        .method_not_allowed_fallback(async || Refusal::UnknownRequest)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(name_request))
        .with_state(shared)
}

impl Shared {
    /// The caller of a request with these headers.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let value = headers.get(axum::http::header::AUTHORIZATION);
        let value = value.and_then(|value| value.to_str().ok()).ok_or(Refusal::NotAuthenticated)?;
        let (scheme, token) = value.split_once(' ').ok_or(Refusal::InvalidToken)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refusal::InvalidToken);
        }
        let claims = self.signer.read(token.trim(), Timestamp::now().as_second());
        let claims = claims.filter(|claims| !grant::is_refresh(claims));
        let claims = claims.ok_or(Refusal::InvalidToken)?;
        let text = |key: &str| claims.at(&[key]).and_then(Json::as_str);
        let id = text("user_id").or_else(|| text("client_id")).ok_or(Refusal::InvalidToken)?;
        let scopes = claims.at(&["scope"]).and_then(Json::as_array).unwrap_or_default();
        Ok(Caller {
            id: id.to_owned(),
            name: text("user_name").unwrap_or(id).to_owned(),
            authority: Authority::from_scopes(scopes.iter().filter_map(Json::as_str)),
        })
    }
}

/// Adds a unique ID to every response, which clients show with errors.
async fn name_request(request: Request, next: Next) -> Response {
    let known = request.headers().get("x-vcap-request-id");
    let known = known.and_then(|value| value.to_str().ok());
    let name = match known {
        Some(known) => format!("{known}::{}", new_guid()),
        None => new_guid(),
    };
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&name) {
        response.headers_mut().insert("x-vcap-request-id", value);
    }
    response
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        answer(self.status(), &self.to_json())
    }
}

/// A JSON response.
pub(crate) fn answer(status: u16, document: &Json) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = (CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    (status, [content_type], document.to_text()).into_response()
}

/// The response to a deletion: the URL of its job.
fn accepted(job: &Job, base: &Base) -> Response {
    let location = base.url(&format!("/v3/jobs/{}", job.guid));
    (StatusCode::ACCEPTED, [(LOCATION, location)]).into_response()
}

/// The fields of a form or query, in order. Invalid UTF-8 is replaced.
pub(crate) fn form(text: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(text).into_owned().collect()
}
