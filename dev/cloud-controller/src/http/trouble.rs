//! Errors on request, for tests of syncers: while the file of `trouble_file` exists, the word in
//! it says how the responses to GET requests of the API and the internal API are wrong.

use std::path::PathBuf;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::answer;
use crate::json::{Json, Object};

/// Maximum length of a response that is changed.
const LONGEST: usize = 64 << 20;

/// How a response is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Only a status, with `Retry-After: 1` for 429 and 503.
    Status(StatusCode),
    /// Status 200 and an empty object.
    Empty,
    /// Status 200 and a page of HTML, as of a proxy.
    Html,
    /// The first half of the document, as if complete.
    Half,
    /// The connection ends in the middle of the document.
    Cut,
    /// A list without resources, with the total of the whole list.
    Fewer,
}

impl Way {
    fn parse(word: &str) -> Option<Self> {
        match word.trim() {
            "empty" => Some(Self::Empty),
            "html" => Some(Self::Html),
            "half" => Some(Self::Half),
            "cut" => Some(Self::Cut),
            "fewer" => Some(Self::Fewer),
            status => StatusCode::from_bytes(status.as_bytes()).ok().map(Self::Status),
        }
    }
}

/// Changes the responses while the file exists.
pub(crate) async fn apply(
    State(file): State<Option<PathBuf>>,
    request: Request,
    next: Next,
) -> Response {
    let way = match &file {
        Some(file) if request.method() == Method::GET => {
            let word = tokio::fs::read_to_string(file).await;
            word.ok().and_then(|word| Way::parse(&word))
        }
        _ => None,
    };
    match way {
        None => next.run(request).await,
        Some(Way::Status(status)) => refuse(status),
        Some(Way::Empty) => answer(200, &Json::Object(Object::new())),
        Some(Way::Html) => (StatusCode::OK, "<html>Please wait</html>").into_response(),
        Some(Way::Half | Way::Cut | Way::Fewer) => {
            let (mut parts, body) = next.run(request).await.into_parts();
            let Ok(text) = to_bytes(body, LONGEST).await else {
                return refuse(StatusCode::BAD_GATEWAY);
            };
            let half = text.slice(..text.len() / 2);
            parts.headers.remove(CONTENT_LENGTH);
            let body = match way {
                Some(Way::Fewer) => Body::from(without_resources(&text)),
                Some(Way::Cut) => {
                    let broken = Err(std::io::Error::other("cut on request"));
                    Body::from_stream(stream::iter([Ok(half), broken]))
                }
                _ => Body::from(half),
            };
            Response::from_parts(parts, body)
        }
    }
}

fn refuse(status: StatusCode) -> Response {
    let mut response = status.into_response();
    if [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The document with an empty list of resources; any other document as it is.
fn without_resources(text: &Bytes) -> Bytes {
    match Json::parse(text) {
        Ok(Json::Object(mut object)) if object.has("resources") => {
            object.set("resources", Json::Array(Vec::new()));
            Json::Object(object).to_text().into()
        }
        _ => text.clone(),
    }
}
