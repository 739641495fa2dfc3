//! Responses in the original's form (docs/compatibility/policy-server-internal.md#routes).

use axum::{body::Body, response::Response};
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS},
};

use crate::groups::json;

/// The original sends JSON as plain text.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const A_YEAR: HeaderValue = HeaderValue::from_static("max-age=31536000");
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-vcap-request-id");

fn with(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

/// Success.
pub(super) fn ok(body: impl Into<Body>) -> Response {
    with(StatusCode::OK, body.into())
}

/// Success without a body: Go then sends no content type.
pub(super) fn empty() -> Response {
    Response::default()
}

/// Error, with the original's message.
pub(super) fn error(status: StatusCode, description: &str) -> Response {
    let text = format!("{{\"error\": {}}}", json::encode(&description));
    with(status, text.into())
}

/// The client should retry later.
pub(super) fn unavailable(description: &str, seconds: u32) -> Response {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, description);
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    response
}

/// Unknown path, with Go's response.
pub(super) fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// The path has another method, with the response of the original's router.
pub(super) fn not_allowed(allowed: &Method) -> Response {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    let allowed = HeaderValue::from_str(allowed.as_str()).expect("a method is a token");
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    let mut response = with(status, text.into());
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    response
}

/// Sets the request id of the log, after the id that the request contained.
pub(super) fn sign(response: &mut Response, id: &str, given: Option<&HeaderValue>) {
    let mut value = given.map_or_else(Vec::new, |given| [given.as_bytes(), b"::"].concat());
    value.extend_from_slice(id.as_bytes());
    let headers = response.headers_mut();
    headers.insert(STRICT_TRANSPORT_SECURITY, A_YEAR);
    if let Ok(value) = HeaderValue::from_bytes(&value) {
        headers.insert(REQUEST_ID, value);
    }
}

/// The request id in the request headers.
pub(super) fn given_id(headers: &http::HeaderMap) -> Option<&HeaderValue> {
    headers.get(REQUEST_ID)
}
