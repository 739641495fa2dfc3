//! A gRPC service with one empty call, on the same stack as the services: the runtime's
//! gRPC server with its limits, guards and mutual TLS. Any additional cost of a service
//! is its own.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::Context as _;
use runtime::server::{Grpc, Health, Listener};
use runtime::tls::{Alpn, Files, ServerTls};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::{raw_tls, say};

/// The path of the call.
pub(super) const PATH: &str = "/portcullis.load.v1.Empty/Call";
/// The server's first output line; the listen address follows.
pub(super) const LISTENS: &str = "listening on ";

/// Serve a call that does nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Listen address, host:port; port 0: any free port
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// PEM file of the CA of client certificates
    #[arg(long)]
    ca: PathBuf,
    /// PEM file of the server certificate
    #[arg(long)]
    cert: PathBuf,
    /// PEM file of its private key
    #[arg(long)]
    key: PathBuf,
    /// Serve responses of any requested length over TLS alone, without HTTP/2
    #[arg(long)]
    bare: bool,
}

/// Serves until SIGTERM or SIGINT.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { listen, ca, cert, key, bare } = arguments;
    let tls = ServerTls::load(&Files { ca, cert, key }, Alpn::H2)?;
    if bare {
        let listener = TcpListener::bind(&listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
        say(&format!("{LISTENS}{}\n", listener.local_addr()?))?;
        let stop = stopped()?;
        return tokio::select! {
            served = raw_tls::serve(listener, tls) => Ok(served?),
            () = stop => Ok(()),
        };
    }
    let listener = Listener::tcp("empty", &listen).await?;
    say(&format!("{LISTENS}{}\n", listener.local_addr()))?;
    let shutdown = CancellationToken::new();
    let server = Grpc::new(listener, Some(tls), &Health::new()).add(Empty);
    let stop = stopped()?;
    let stop = async {
        stop.await;
        shutdown.cancel();
    };
    let (served, ()) = tokio::join!(server.serve(shutdown.clone(), Duration::ZERO), stop);
    Ok(served?)
}

/// Waits for SIGTERM or SIGINT.
pub(super) fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[derive(Debug, Clone, Copy)]
struct Empty;

impl NamedService for Empty {
    const NAME: &'static str = "portcullis.load.v1.Empty";
}

impl Service<http::Request<Body>> for Empty {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Same as in generated servers.
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<(), ()>::default());
            Ok(grpc.unary(Self, request).await)
        })
    }
}

impl UnaryService<()> for Empty {
    type Response = ();
    type Future = Ready<Result<Response<()>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(())))
    }
}
