//! From a listener to HTTP connections: accept, TLS, limits and drain.
//!
//! Invariants:
//! - A failure of a connection, in TLS or later, affects only that connection. Handshakes run
//!   concurrently and have a deadline.
//! - When the connection limit is reached or file descriptors run out, new connections wait in the
//!   kernel's accept queue; the server keeps running.
//! - After shutdown no connection is accepted. Connections are closed gracefully one after another
//!   (HTTP/2: a GOAWAY), and open requests may finish. From then on, a client without any sign of
//!   life for [`SIGN`] is disconnected. After `drain`, all remaining connections are closed. When
//!   `serve` returns, no task of the server runs.

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

/// Limits of a server, generous by default.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of connections; more wait in the kernel's accept queue.
    pub connections: usize,
    /// Maximum number of concurrent streams of one HTTP/2 connection.
    pub streams: u32,
    /// TLS handshake timeout, and after it the timeout for the HTTP/2 preface.
    pub handshake: Duration,
    /// Timeout of an HTTP/1 connection without a request, and for the arrival of a request. Well
    /// above the minute after which agents poll again.
    pub idle: Duration,
    /// Write timeout of an HTTP/1 connection whose client does not read.
    pub stall: Duration,
    /// Buffer of one HTTP/1 connection: maximum size of a request's head, and of response bytes
    /// that the client has not read.
    pub buffer: usize,
    /// Idle time after which an HTTP/2 client is pinged.
    pub keepalive_interval: Duration,
    /// Timeout for the client's response to a ping. An HTTP/2 connection whose client does not read
    /// is closed after both times together.
    pub keepalive_timeout: Duration,
    /// Maximum bytes of incomplete gRPC messages over all connections. Must exceed the largest
    /// message.
    pub unfinished: usize,
    /// Maximum bytes of incomplete gRPC messages of one connection.
    pub unfinished_each: usize,
    /// Timeout for a gRPC message to arrive, from its first byte.
    pub message_time: Duration,
    /// Maximum time after shutdown over which GOAWAYs are spread: each [`GOAWAY_INTERVAL`] after
    /// the previous one, or less if there are many connections. This also spreads the reconnects of
    /// the clients to other servers.
    pub spread: Duration,
}

/// Interval between two GOAWAYs, if there is time. Other servers can accept clients at this rate,
/// each with a TLS handshake.
pub const GOAWAY_INTERVAL: Duration = Duration::from_millis(2);

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            streams: 4_096,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(180),
            stall: Duration::from_secs(30),
            buffer: 64 << 10,
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(4),
            unfinished: 64 << 20,
            unfinished_each: 32 << 20,
            message_time: Duration::from_secs(60),
            spread: Duration::ZERO,
        }
    }
}

/// Request extension: cancelled when the server drains the connection of the request (HTTP/2:
/// GOAWAY). An unbounded stream ends then, so that its client reconnects on another connection.
#[derive(Debug, Clone, Default)]
pub struct ConnectionDraining(pub CancellationToken);

/// Schedules the GOAWAYs of a drain.
#[derive(Debug, Default)]
struct StaggeredDrain {
    /// Cancelled when the drain begins.
    begun: CancellationToken,
    /// Microseconds between two GOAWAYs.
    step: AtomicU32,
    /// Number of GOAWAYs scheduled.
    started: AtomicU32,
}

impl StaggeredDrain {
    /// Begins to drain `connections` within `spread`.
    fn begin(&self, connections: usize, spread: Duration) {
        let step = spread / u32::try_from(connections).unwrap_or(u32::MAX).max(1);
        let step =
            u32::try_from(step.min(GOAWAY_INTERVAL).as_micros()).expect("a few milliseconds");
        self.step.store(step, Relaxed);
        self.begun.cancel();
    }

    /// Waits until the calling connection may send its GOAWAY.
    async fn turn(&self) {
        self.begun.cancelled().await;
        let before = self.started.fetch_add(1, Relaxed);
        let pause = Duration::from_micros(self.step.load(Relaxed).into()) * before;
        tokio::time::sleep(pause).await;
    }
}

/// HTTP version that a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Maximum number of pending stream resets of a connection before it counts as an attack.
const RESETS: usize = 4_096;

/// Time for a drained client to show a sign of life: an HTTP/2 client answers a ping at once, and
/// every client reads the bytes sent to it.
const SIGN: Duration = Duration::from_secs(2);

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that is not running yet.
pub(super) struct Server {
    pub(super) listener: Listener,
    pub(super) tls: Option<ServerTls>,
    pub(super) protocol: Protocol,
    pub(super) limits: Limits,
}

impl Server {
    /// Serves `service` on every connection until shutdown, then drains. Each request has a
    /// [`Peer`] in its extensions.
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
        // Also closes the connections when this future is dropped.
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

/// State shared by all connections of a server.
struct Shared<S> {
    what: &'static str,
    service: S,
    tls: Option<ServerTls>,
    protocol: Protocol,
    budget: Arc<Budget>,
    http: auto::Builder<InlineExecutor>,
    handshake: Duration,
    /// Applies to HTTP/2 as well: closing a connection with unanswered pings sends a frame, which
    /// blocks when the client does not read.
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

    /// Whether a client speaks plaintext HTTP/1 to a TLS port. A TLS record begins with a byte
    /// below 32, a request line with a capital letter.
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

    /// `refused` has the names of a rejected certificate. They are unverified claims of the client.
    fn note_refused(&self, peer: &Peer, refused: Option<&Identity>, error: &io::Error) {
        own::TLS_FAILURES.counter_by([("server", self.what)]).increment(1);
        let peer = peer.address.map(|address| address.to_string());
        let (server, peer) = (self.what, peer.as_deref());
        let certificate = refused.map(ToString::to_string);
        let is_no_client = error.kind() == io::ErrorKind::UnexpectedEof;
        let error = crate::error::text(error);
        if is_no_client {
            // Not a TLS client, such as a port scanner or a load balancer's probe.
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
            () = self.mute(&signs) => return self.note_mute(&peer),
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

    /// Returns when an HTTP/2 client has not sent its preface in time: keepalive begins after it.
    async fn mute(&self, signs: &Signs) {
        tokio::time::sleep(self.handshake).await;
        if self.protocol == Protocol::Http1 || signs.has_preface() {
            std::future::pending::<()>().await;
        }
    }

    fn note_mute(&self, peer: &Peer) {
        let address = peer.address.map(|address| address.to_string());
        let (server, seconds) = (self.what, self.handshake.as_secs());
        tracing::debug!(server, peer = address, seconds, "no-http2-preface");
    }

    /// Waits until a drained client shows no sign of life. An HTTP/2 client gets a ping with the
    /// GOAWAY; after its response it may be silent, like an HTTP/1 client that waits for a
    /// response.
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

/// Responds as Go's servers do; health checks rely on a response
/// (docs/compatibility/policy-server-internal.md#listeners).
async fn refuse_plain_http(mut stream: TcpStream) {
    let answer = b"HTTP/1.0 400 Bad Request\r\n\r\n\
        Client sent an HTTP request to an HTTPS server.\n";
    let _gone = stream.write_all(answer).await;
    // Closing a socket with unread bytes sends a reset, which may discard the response.
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
        // rustls accepts clients that offer no ALPN protocol.
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
        // Go's servers write header names in title case.
        .title_case_headers(true)
        .max_buf_size(limits.buffer);
    builder
        .http2()
        .timer(TokioTimer::new())
        // grpc-go's servers send no date header (docs/compatibility/locket.md#wire).
        .auto_date_header(false)
        .max_concurrent_streams(limits.streams)
        // Clients that cancel many calls at once are not attackers here.
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

/// Accepts the next connection as soon as the connection limit allows.
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

/// Whether the error concerns one connection that died before accept, not the listener.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
    )
}

/// Counts a connection while it is open.
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
