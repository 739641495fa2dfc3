//! Requests and responses of gRPC services in this process.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tonic::{Code, Status, body::Body};

/// A request with these bytes as its body.
#[must_use]
pub fn request(path: &str, body: &[u8]) -> Request<Body> {
    let body = Body::new(Full::new(Bytes::copy_from_slice(body)));
    let request = Request::post(path).header("content-type", "application/grpc");
    request.body(body).expect("the path is valid")
}

/// The status of a response, and its body. Of a stream without end, `None` after what it sends at
/// once: the clock of the runtime must be paused, so that waiting takes no time.
pub async fn answer(response: Response<Body>) -> (Option<Status>, Bytes) {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return (Some(status), Bytes::new());
    }
    let mut body = response.into_body();
    let (mut content, mut status) = (Vec::new(), None);
    let ends = async {
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    status = Some(error);
                    break;
                }
            };
            if let Some(trailers) = frame.trailers_ref() {
                status = Status::from_header_map(trailers);
            }
            content.extend(frame.into_data().unwrap_or_default());
        }
    };
    let _endless = tokio::time::timeout(std::time::Duration::from_millis(1), ends).await;
    (status, content.into())
}

/// Outcome of a call: path, code and message.
///
/// # Panics
/// When the code is none of `expected`.
#[must_use]
pub fn outcome(path: &str, status: Option<&Status>, expected: &[Code]) -> String {
    let Some(status) = status else { return format!("{path} goes on") };
    let (code, message) = (status.code(), status.message());
    assert!(expected.contains(&code), "{path}: {code:?} {message:?}");
    // The message repeats a name of the request.
    let message = if code == Code::NotFound { "" } else { message };
    format!("{path} {code:?} {message}")
}

/// The messages of a body.
///
/// # Panics
/// When the body ends in a message.
#[must_use]
pub fn messages(mut body: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((head, rest)) = body.split_at_checked(5) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let (message, after) = rest.split_at(usize::try_from(length).expect("64 bits"));
        messages.push(message);
        body = after;
    }
    assert!(body.is_empty(), "the body ends in a prefix");
    messages
}

/// A runtime on this thread whose clock is paused.
#[must_use]
pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime")
}
