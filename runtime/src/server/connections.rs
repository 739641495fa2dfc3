//! From a listener to HTTP connections: accepting, TLS, limits and draining.
//!
//! What holds:
//! - A connection that fails, in TLS or later, ends alone. Handshakes run beside
//!   each other and have a deadline.
//! - When there are too many connections or no file descriptors, new ones wait
//!   in the kernel's queue; the server goes on.
//! - After shutdown nothing is accepted; connections are told to go one after
//!   another (HTTP/2: a GOAWAY), open requests may end. A client that shows no sign
//!   of life for [`SIGN`] is cut off then. When `drain` has passed, what is left is
//!   cut off. When `serve` returns, no task of it runs.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use super::Listener;
use super::executor::InlineExecutor;
use super::intake::{Account, Arrived, Budget};
use super::listener::Accepted;
use super::write_timeout::{Seen, Signs, WriteTimeout};
use crate::metrics::own;
use crate::tls::{self, Alpn, Identity, Peer, ServerTls};
use crate::write_coalescing::CoalescingStream;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bounds of a server, generous by default.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's queue.
    pub connections: usize,
    /// Open requests of one HTTP/2 connection.
    pub streams: u32,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long an HTTP/1 connection may be without a request, or a request may
    /// take to arrive. Well above the minute after which agents poll again.
    pub idle: Duration,
    /// How long an HTTP/1 client may take none of what is sent to it.
    pub stall: Duration,
    /// How much of an HTTP/1 request's head, and of an answer that its client
    /// does not take, one connection holds.
    pub buffer: usize,
    /// After how much silence an HTTP/2 client is pinged.
    pub keepalive_interval: Duration,
    /// How long the client may take to answer a ping. An HTTP/2 client that takes
    /// none of what is sent to it is given up after both times together.
    pub keepalive_timeout: Duration,
    /// Bytes of the unfinished gRPC messages of all connections. More than the
    /// largest message.
    pub unfinished: usize,
    /// The same for one connection.
    pub unfinished_each: usize,
    /// Time for a gRPC message to arrive, from its first byte.
    pub message_time: Duration,
    /// Over how much time connections are told to go after shutdown, at most: each
    /// [`GOAWAY_INTERVAL`] after the one before, or closer if there are many. Their clients
    /// then come to other servers one after another, too.
    pub spread: Duration,
}

/// Two connections are told to go this long after each other, if there is time: as
/// many clients a second can be welcomed elsewhere, each with a TLS handshake.
pub const GOAWAY_INTERVAL: Duration = Duration::from_millis(2);

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            streams: 4_096,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(180),
            stall: Duration::from_secs(30),
            buffer: 408 << 10,
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(4),
            unfinished: 64 << 20,
            unfinished_each: 32 << 20,
            message_time: Duration::from_secs(60),
            spread: Duration::ZERO,
        }
    }
}

/// In the extensions of each request: falls when the connection of the request is
/// told to go. A stream that has no end of its own ends then, so that its client
/// comes back on another connection.
#[derive(Debug, Clone, Default)]
pub struct ConnectionDraining(pub CancellationToken);

/// Who is told to go when.
#[derive(Debug, Default)]
struct StaggeredDrain {
    /// It begins.
    begun: CancellationToken,
    /// Between two of them; in microseconds.
    step: AtomicU32,
    /// How many were told.
    told: AtomicU32,
}

impl StaggeredDrain {
    /// So many are to go within `spread`.
    fn begin(&self, connections: usize, spread: Duration) {
        let step = spread / u32::try_from(connections).unwrap_or(u32::MAX).max(1);
        let step =
            u32::try_from(step.min(GOAWAY_INTERVAL).as_micros()).expect("a few milliseconds");
        self.step.store(step, Relaxed);
        self.begun.cancel();
    }

    /// Waits for the turn of the connection that asks.
    async fn turn(&self) {
        self.begun.cancelled().await;
        let before = self.told.fetch_add(1, Relaxed);
        let pause = Duration::from_micros(self.step.load(Relaxed).into()) * before;
        tokio::time::sleep(pause).await;
    }
}

/// Which HTTP the connections of a server speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// How many streams of a connection may be reset at once before it is taken for
/// an attack.
const RESETS: usize = 4_096;

/// Time for a client that was told to go to show that it is alive: an HTTP/2 client
/// answers a ping at once, and each client takes what it is sent.
const SIGN: Duration = Duration::from_secs(2);

/// How long to wait after the kernel refused to give us a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server, before it serves.
pub(super) struct Server {
    pub(super) listener: Listener,
    pub(super) tls: Option<ServerTls>,
    pub(super) protocol: Protocol,
    pub(super) limits: Limits,
}

impl Server {
    /// Serves `service` on every connection until shutdown, and then drains. Each
    /// request has a [`Peer`] in its extensions.
    pub(super) async fn serve<S, B>(self, service: S, shutdown: CancellationToken, drain: Duration)
    where
        S: Service<Request<Arrived>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Self { listener, tls, protocol, limits } = self;
        let streams = InlineExecutor::default();
        // Also when this future is dropped instead of ended.
        let _cut = streams.cut.clone().drop_guard();
        let shared = Arc::new(Shared {
            what: listener.what(),
            service,
            tls,
            protocol,
            budget: Arc::new(Budget::new(listener.what(), &limits)),
            http: http_builder(protocol, limits, streams.clone()),
            handshake: limits.handshake,
            stall: match protocol {
                Protocol::Http1 => limits.stall,
                Protocol::Http2 => limits.keepalive_interval + limits.keepalive_timeout,
            },
            shutdown: shutdown.clone(),
            exodus: StaggeredDrain::default(),
        });
        let places = Arc::new(Semaphore::new(limits.connections));
        let mut connections = JoinSet::new();
        while let Some((accepted, place)) =
            shutdown.run_until_cancelled(accept(&listener, &places)).await
        {
            connections.spawn(Arc::clone(&shared).serve_one(accepted, place));
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        while connections.try_join_next().is_some() {}
        shared.exodus.begin(connections.len(), limits.spread);
        let drained = async {
            while connections.join_next().await.is_some() {}
            streams.ended().await;
        };
        if tokio::time::timeout(drain, drained).await.is_err() {
            let left = connections.len();
            tracing::warn!(server = shared.what, connections = left, "drain-deadline-exceeded");
            connections.shutdown().await;
            streams.cut().await;
        }
    }
}

/// What all connections of a server share.
struct Shared<S> {
    what: &'static str,
    service: S,
    tls: Option<ServerTls>,
    protocol: Protocol,
    budget: Arc<Budget>,
    http: auto::Builder<InlineExecutor>,
    handshake: Duration,
    /// For HTTP/2 as well: the end of a connection whose pings are not answered is a
    /// frame, which waits for a client that reads nothing.
    stall: Duration,
    shutdown: CancellationToken,
    exodus: StaggeredDrain,
}

impl<S, B> Shared<S>
where
    S: Service<Request<Arrived>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    async fn serve_one(self: Arc<Self>, accepted: Accepted, _place: OwnedSemaphorePermit) {
        let _open = Open::new(self.what);
        match accepted {
            Accepted::Tcp(stream, address) => {
                let peer = Peer::at(Some(address));
                if self.expects_tls_but_gets_http(&stream).await {
                    refuse_plain_http(stream).await;
                } else {
                    self.secure(stream, peer).await;
                }
            }
            Accepted::Unix(stream) => self.secure(stream, Peer::at(None)).await,
        }
    }

    /// Whether a client speaks plain HTTP/1 to a port with TLS. A TLS record
    /// begins with a byte below 32, a request line with a capital letter.
    async fn expects_tls_but_gets_http(&self, stream: &TcpStream) -> bool {
        if self.tls.as_ref().is_none_or(|tls| tls.alpn() == Alpn::H2) {
            return false;
        }
        let mut first = [0];
        let peeked = tokio::time::timeout(self.handshake, stream.peek(&mut first));
        let peeked = self.shutdown.run_until_cancelled(peeked).await;
        matches!(peeked, Some(Ok(Ok(1)))) && first[0].is_ascii_uppercase()
    }

    async fn secure<I>(&self, stream: I, peer: Peer)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.tls else {
            return self.drive(stream, peer).await;
        };
        let shaken = tls::record_rejected(shake_hands(tls, stream, self.handshake));
        let (shaken, refused) = match self.shutdown.run_until_cancelled(shaken).await {
            None => return,
            Some(shaken) => shaken,
        };
        match shaken {
            Ok(stream) => {
                let identity = identity_of(&stream).map(Arc::new);
                self.drive(stream, Peer { identity, ..peer }).await;
            }
            Err(error) => self.note_refused(&peer, refused.as_ref(), &error),
        }
    }

    /// `refused` are the names in a certificate that is not good: what the client
    /// says of itself.
    fn note_refused(&self, peer: &Peer, refused: Option<&Identity>, error: &io::Error) {
        own::TLS_FAILURES.counter_by([("server", self.what)]).increment(1);
        let peer = peer.address.map(|address| address.to_string());
        let (server, peer) = (self.what, peer.as_deref());
        let certificate = refused.map(ToString::to_string);
        let is_no_client = error.kind() == io::ErrorKind::UnexpectedEof;
        let error = crate::error::text(error);
        if is_no_client {
            // A port scanner, a load balancer's probe: no TLS client at all.
            tracing::debug!(server, peer, error, "tls-handshake-failed");
        } else {
            tracing::info!(server, peer, certificate, error, "tls-handshake-failed");
        }
    }

    /// Serves HTTP on an open connection until it ends or is drained.
    async fn drive<I>(&self, stream: I, peer: Peer)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let leaving = ConnectionDraining::default();
        let account = Arc::new(Account::new(Arc::clone(&self.budget), peer.clone()));
        let service = hyper::service::service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(leaving.clone());
            let account = Arc::clone(&account);
            let request = request.map(|body| Arrived { body, account });
            self.service.clone().oneshot(request)
        });
        let stream = WriteTimeout::new(stream, self.stall);
        let signs = stream.signs();
        let stream = match self.protocol {
            Protocol::Http1 => CoalescingStream::direct(stream),
            Protocol::Http2 => CoalescingStream::new(stream),
        };
        let driver = stream.share();
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = poll_fn(|context| driver.poll_and_flush(connection.as_mut(), context)) => ended,
            () = self.exodus.turn() => {
                let _before = signs.take();
                connection.as_mut().graceful_shutdown();
                leaving.0.cancel();
                tokio::select! {
                    biased;
                    ended = poll_fn(|context| driver.poll_and_flush(connection.as_mut(), context)) => ended,
                    () = self.frozen(&signs) => return self.note_frozen(&peer),
                }
            }
        };
        if let Err(error) = ended {
            let peer = peer.address.map(|address| address.to_string());
            let (server, peer) = (self.what, peer.as_deref());
            tracing::debug!(server, peer, error = %error, "connection-failed");
        }
    }

    /// Waits until a client that was told to go shows no sign of life. An HTTP/2
    /// client is sent a ping with the GOAWAY; after the answer it may be silent, as
    /// may an HTTP/1 client that waits for its answer.
    async fn frozen(&self, signs: &Signs) {
        let mut owes_answer = self.protocol == Protocol::Http2;
        loop {
            tokio::time::sleep(SIGN).await;
            let Seen { read, is_stuck } = signs.take();
            if is_stuck || (owes_answer && !read) {
                return;
            }
            owes_answer = false;
        }
    }

    fn note_frozen(&self, peer: &Peer) {
        let address = peer.address.map(|address| address.to_string());
        let certificate = peer.identity.as_ref().map(ToString::to_string);
        let (server, seconds) = (self.what, SIGN.as_secs());
        tracing::info!(server, peer = address, certificate, seconds, "frozen-client-cut-off");
    }
}

/// Answers as Go's servers do; health checks rely on getting an answer
/// (docs/compatibility/policy-server-internal.md#listeners).
async fn refuse_plain_http(mut stream: TcpStream) {
    let answer = b"HTTP/1.0 400 Bad Request\r\n\r\n\
        Client sent an HTTP request to an HTTPS server.\n";
    let _gone = stream.write_all(answer).await;
    // What is unread when a socket closes resets it, and may take the answer along.
    let _gone = stream.shutdown().await;
    let mut request = [0; 4_096];
    let _gone = tokio::time::timeout(ACCEPT_PAUSE, stream.read(&mut request)).await;
}

async fn shake_hands<I>(tls: &ServerTls, stream: I, within: Duration) -> io::Result<TlsStream<I>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let shaken = TlsAcceptor::from(tls.rustls_config()).accept(stream);
    let shaken = tokio::time::timeout(within, shaken).await;
    let mut stream = shaken.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))?;
    let agreed = stream.get_ref().1.alpn_protocol();
    if tls.alpn() == Alpn::H2 && agreed != Some(b"h2") {
        // rustls lets clients through that offer no protocol at all.
        let _gone = stream.shutdown().await;
        return Err(io::Error::other("the client does not offer the protocol h2"));
    }
    Ok(stream)
}

fn identity_of<I>(stream: &TlsStream<I>) -> Option<Identity> {
    let chain = stream.get_ref().1.peer_certificates()?;
    chain.first().map(Identity::of)
}

fn http_builder(
    protocol: Protocol,
    limits: Limits,
    streams: InlineExecutor,
) -> auto::Builder<InlineExecutor> {
    let mut builder = match protocol {
        Protocol::Http1 => auto::Builder::new(streams).http1_only(),
        Protocol::Http2 => auto::Builder::new(streams).http2_only(),
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        // As Go's servers write the names of headers.
        .title_case_headers(true)
        .max_buf_size(limits.buffer);
    builder
        .http2()
        .timer(TokioTimer::new())
        // grpc-go's servers send no date either (docs/compatibility/locket.md#wire).
        .auto_date_header(false)
        .max_concurrent_streams(limits.streams)
        // Clients that give up many calls at once are not attackers here.
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

/// The next connection, as soon as there is place for it.
async fn accept(listener: &Listener, places: &Arc<Semaphore>) -> (Accepted, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.expect("the semaphore is never closed");
    let mut complained = false;
    loop {
        match listener.accept().await {
            Ok(connection) => return (connection, place),
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                if !complained {
                    complained = true;
                    let server = listener.what();
                    tracing::error!(error = %error, server, "failed-to-accept");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the connection died before it was accepted, rather than the listener
/// being in trouble.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
    )
}

/// Counts a connection for as long as it lives.
struct Open(metrics::Gauge);

impl Open {
    fn new(server: &'static str) -> Self {
        let gauge = own::CONNECTIONS.gauge_by([("server", server)]);
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}
