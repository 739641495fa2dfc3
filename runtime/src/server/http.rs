//! HTTP servers around an axum router.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::Listener;
use super::connections::{Limits, Protocol, Server};
use super::intake::Arrived;
use crate::supervise::panic_text;
use crate::tls::ServerTls;

/// An HTTP server. Requests have a [`Peer`](crate::tls::Peer) in their extensions; a handler that
/// panics returns 500.
pub struct Http {
    server: Server,
}

impl Http {
    /// Creates a server on a bound listener. It speaks HTTP/1.1; TLS needs
    /// [`Alpn::None`](crate::tls::Alpn::None).
    pub fn new(listener: Listener, tls: Option<ServerTls>) -> Self {
        Self {
            server: Server { listener, tls, protocol: Protocol::Http1, limits: Limits::default() },
        }
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> String {
        self.server.listener.local_addr()
    }

    /// Replaces the default limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.server.limits = limits;
        self
    }

    /// Serves until shutdown; open requests then have `drain` to finish.
    pub async fn serve(self, router: Router, shutdown: CancellationToken, drain: Duration) {
        let guarded = Guarded(router);
        self.server.serve(guarded, shutdown, drain).await;
    }
}

/// A router whose panics become responses.
#[derive(Clone)]
struct Guarded(Router);

type Answer = Pin<Box<dyn Future<Output = Result<Response<axum::body::Body>, Infallible>> + Send>>;

impl Service<Request<Arrived>> for Guarded {
    type Response = Response<axum::body::Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Always ready, as routers are.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Arrived>) -> Answer {
        let request = request.map(|arrived| arrived.body);
        let answer = AssertUnwindSafe(self.0.call(request)).catch_unwind();
        let answer = answer.map(|answer| {
            answer.unwrap_or_else(|panic| {
                let text = panic_text(panic.as_ref());
                tracing::error!(error = text, "handler-panicked");
                Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response())
            })
        });
        Box::pin(answer)
    }
}
