//! A call that does nothing, on the same stack: the runtime's gRPC server with
//! its limits, guards and mutual TLS. What a service does beyond it is its own.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use runtime::server::{Grpc, Health, Listener};
use runtime::tls::{Alpn, Files, ServerTls};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::say;

/// Where the call is found.
pub(super) const PATH: &str = "/portcullis.load.v1.Empty/Call";
/// What the server says once it listens; its address follows.
pub(super) const LISTENS: &str = "listening on ";

/// Serve a call that does nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// The authority that clients' certificates chain to.
    #[arg(long)]
    ca: PathBuf,
    /// The server's certificate.
    #[arg(long)]
    cert: PathBuf,
    /// Its key.
    #[arg(long)]
    key: PathBuf,
}

/// Serves until SIGTERM or SIGINT.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { listen, ca, cert, key } = arguments;
    let tls = ServerTls::load(&Files { ca, cert, key }, Alpn::H2)?;
    let listener = Listener::tcp("empty", &listen).await?;
    say(&format!("{LISTENS}{}\n", listener.local_addr()))?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = Grpc::new(listener, Some(tls), &Health::new()).add(Empty);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    };
    let (served, ()) = tokio::join!(server.serve(shutdown.clone(), Duration::ZERO), stop);
    Ok(served?)
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

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // As the generated servers do it.
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
