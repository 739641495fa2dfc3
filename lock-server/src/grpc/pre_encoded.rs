//! Pre-encoded responses: the bytes go to the connection unchanged, with the trailers of
//! the original (docs/compatibility/locket.md#wire).
//!
//! A handler with an encoded message returns [`Encoded::response`], whose message is an
//! empty placeholder; [`PreEncoded`] around the generated server replaces it with the
//! bytes. The generated server would copy them into a buffer for each response.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use tonic::{Response, Status, body::Body, server::NamedService};
use tower::Service;

/// A length-prefixed gRPC message: flag, length, message.
#[derive(Debug, Clone)]
pub(super) struct Encoded(Bytes);

/// Size limit of a response: about 400,000 presences. Encoding and sending a larger one
/// takes longer than clients wait, and most clients accept at most 4 MiB.
const LARGEST: usize = 64 << 20;

/// The response is larger than `LARGEST`.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the answer has {0} bytes, at most {LARGEST} are sent")]
pub struct TooLarge(pub(super) usize);

/// Length of the prefix of a gRPC message.
const PREFIX: usize = 5;

impl Encoded {
    /// Encodes a message of `len` bytes that `put` writes.
    pub(super) fn message(len: usize, put: impl FnOnce(&mut BytesMut)) -> Result<Self, TooLarge> {
        let declared = u32::try_from(len).ok().filter(|_| len <= LARGEST);
        let declared = declared.ok_or(TooLarge(len))?;
        let mut buffer = BytesMut::with_capacity(PREFIX + len);
        buffer.put_u8(0);
        buffer.put_u32(declared);
        put(&mut buffer);
        debug_assert_eq!(buffer.len(), PREFIX + len);
        Ok(Self(buffer.freeze()))
    }

    /// Encodes a protobuf message.
    pub(super) fn of(message: &impl Message) -> Result<Self, TooLarge> {
        Self::message(message.encoded_len(), |buffer| {
            message.encode(buffer).expect("a buffer that grows");
        })
    }

    /// Length in bytes, with the prefix.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The message without the prefix.
    #[cfg(test)]
    pub(super) fn message_bytes(&self) -> &[u8] {
        &self.0[PREFIX..]
    }

    /// A response with this message; must be served by [`PreEncoded`].
    pub(super) fn response<T: Default>(self) -> Response<T> {
        let mut response = Response::new(T::default());
        response.extensions_mut().insert(self);
        response
    }

    fn into_body(self) -> Body {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        trailers.insert(Status::GRPC_MESSAGE, HeaderValue::from_static(""));
        let frames = [Frame::data(self.0), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
        Body::new(StreamBody::new(stream::iter(frames)))
    }
}

/// Wraps the generated server `S` and sends `Encoded` responses as they are.
#[derive(Debug, Clone)]
pub struct PreEncoded<S>(pub(super) S);

impl<S: NamedService> NamedService for PreEncoded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for PreEncoded<S>
where
    S: Service<Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Answer(self.0.call(request))
    }
}

/// Response future of [`PreEncoded`].
#[derive(Debug)]
pub struct Answer<F>(F);

impl<F> Future for Answer<F>
where
    F: Future<Output = Result<http::Response<Body>, Infallible>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Ok(mut response) = ready!(Pin::new(&mut self.0).poll(context));
        if let Some(encoded) = response.extensions_mut().remove::<Encoded>() {
            *response.body_mut() = encoded.into_body();
        }
        Poll::Ready(Ok(response))
    }
}
