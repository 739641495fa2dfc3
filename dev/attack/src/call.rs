//! gRPC calls with arbitrary bytes, complete or not.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, header};

/// A gRPC request to `host:port` without a message.
///
/// # Panics
/// Address or path are not valid in a URL.
#[must_use]
pub fn request(address: &str, path: &str) -> Request<()> {
    Request::post(format!("https://{address}{path}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())
        .expect("a good request")
}

/// `grpc-status` of the response to these bytes, `none` for a response without one. A call that
/// does not end its request stays open until the response arrives.
///
/// # Errors
/// The error of the stream or of the connection.
pub async fn status(
    send: SendRequest<Bytes>,
    request: Request<()>,
    bytes: Bytes,
    ends: bool,
) -> Result<String, h2::Error> {
    let (answer, mut stream) = send.ready().await?.send_request(request, false)?;
    stream.send_data(bytes, ends)?;
    let (head, mut body) = answer.await?.into_parts();
    if let Some(status) = text(&head.headers) {
        return Ok(status);
    }
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?;
    Ok(trailers.as_ref().and_then(text).unwrap_or_else(|| "none".to_owned()))
}

fn text(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("grpc-status")?.to_str().ok()?.to_owned())
}

/// The prefix of a gRPC message of `announced` bytes, and `sent` bytes of it.
#[must_use]
pub fn unfinished(announced: u32, sent: usize) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(announced.to_be_bytes());
    bytes.resize(bytes.len() + sent, 0);
    bytes.into()
}

/// A gRPC message with its prefix.
///
/// # Panics
/// The message has 4 GiB or more.
#[must_use]
pub fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("messages are below 4 GiB");
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}
