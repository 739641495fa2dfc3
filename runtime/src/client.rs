//! gRPC channels.
//!
//! Invariants:
//! - A channel connects on first use and reconnects after a connection ends. A call without a
//!   connection fails at once with UNAVAILABLE.
//! - All addresses of a name are tried (`net`). A connection counts as established only after the
//!   server has sent its first bytes after TLS, so a rejected certificate is a connect error.
//! - Each new connection uses the TLS material current at that time.
//! - The server's certificate must be valid for the host of the address, which is a name or an IP
//!   address.

mod describe;
mod refusal;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use net::Addresses;
use rustls_pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::tls::ClientTls;

pub use describe::describe;

/// Timeouts and HTTP/2 keepalive of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Connect timeout, including the TLS handshake, for all addresses together.
    pub connect_timeout: Duration,
    /// Idle time in an open call after which the client sends a ping; `None` disables pings. The
    /// original Locket closes a connection after three pings on its calls without a response of its
    /// own in between.
    pub keepalive_interval: Option<Duration>,
    /// Timeout for the response to a ping.
    pub keepalive_timeout: Duration,
}

/// Default keepalive: a server that hangs is detected within 5 s. TCP also detects a dead machine
/// ([`net::SILENCE`]), even without an open call.
const KEEPALIVE: [Duration; 2] = [Duration::from_secs(2), Duration::from_millis(2_250)];

impl Default for Options {
    fn default() -> Self {
        let [interval, timeout] = KEEPALIVE;
        Self {
            connect_timeout: Duration::from_secs(10),
            keepalive_interval: Some(interval),
            keepalive_timeout: timeout,
        }
    }
}

impl Options {
    /// The default times, or shorter ones, so that a server that hangs is detected within `bound`.
    #[must_use]
    pub fn noticing_within(bound: Duration) -> Self {
        let [interval, timeout] = KEEPALIVE;
        let half = bound / 2;
        Self {
            keepalive_interval: Some(interval.min(half)),
            keepalive_timeout: timeout.min(half),
            ..Self::default()
        }
    }
}

/// Error from creating a channel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not `host:port`.
    #[error("the address {0} is not host:port")]
    Address(String),
    /// The host is not a valid name for a certificate.
    #[error("the host of {0} is neither a name nor an IP address")]
    Host(String),
    /// The connection failed, or the peer's certificate is not the expected one.
    #[error("no connection")]
    Connect(#[source] tonic::transport::Error),
    /// Connection failure without a channel.
    #[error("no connection")]
    Open(#[source] io::Error),
}

/// Creates a channel to `host:port`.
///
/// # Errors
/// When the address is not of that form. An unreachable server is an error of the first call.
pub fn channel(address: &str, tls: Option<ClientTls>, options: Options) -> Result<Channel, Error> {
    let (endpoint, target) = target(address, None, tls, options)?;
    Ok(endpoint.connect_with_connector_lazy(connector(target)))
}

/// Creates a connected channel to `host:port`. The server's certificate must be valid for `name`,
/// whatever the address.
///
/// # Errors
/// When the address is not of that form, the connection fails, or the certificate does not match.
pub async fn connect_as(
    name: &str,
    address: &str,
    tls: &ClientTls,
    options: Options,
) -> Result<Channel, Error> {
    let (endpoint, target) = target(address, Some(name), Some(tls.clone()), options)?;
    endpoint.connect_with_connector(connector(target)).await.map_err(Error::Connect)
}

/// Resolves `address` to a target. The certificate must be valid for `name`, or else for the host
/// of the address.
fn target(
    address: &str,
    name: Option<&str>,
    tls: Option<ClientTls>,
    options: Options,
) -> Result<(Endpoint, Target), Error> {
    let malformed = || Error::Address(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
    let port: u16 = port.parse().map_err(|_| malformed())?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bracketed.unwrap_or(host);
    let name = ServerName::try_from(name.unwrap_or(host).to_owned());
    let name = name.map_err(|_| Error::Host(address.to_owned()))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let origin: Uri = format!("{scheme}://{address}").parse().map_err(|_| malformed())?;
    let Options { connect_timeout, .. } = options;
    let target = Target { host: host.to_owned(), port, name, tls, connect_timeout };
    Ok((endpoint(origin, options), target))
}

fn connector(
    target: Target,
) -> impl Service<Uri, Response = Connection, Error = io::Error, Future: Send> + Send + 'static {
    let target = Arc::new(target);
    tower::service_fn(move |_: Uri| connect(Arc::clone(&target)))
}

/// Creates a channel to a Unix socket.
pub fn unix(path: &Path) -> Channel {
    let path: Arc<PathBuf> = Arc::new(path.to_owned());
    let connector = tower::service_fn(move |_: Uri| {
        let path = Arc::clone(&path);
        async move {
            let connected = UnixStream::connect(path.as_path()).await.map(TokioIo::new);
            connected.map_err(|error| {
                let text = format!("connecting to {}: {error}", path.display());
                io::Error::new(error.kind(), text)
            })
        }
    });
    let origin = Uri::from_static("http://localhost");
    endpoint(origin, Options::default()).connect_with_connector_lazy(connector)
}

fn endpoint(origin: Uri, options: Options) -> Endpoint {
    let Options { connect_timeout: _, keepalive_interval, keepalive_timeout } = options;
    // The connector does TLS itself, so tonic gets a plaintext connection.
    let endpoint = Endpoint::from_static("http://portcullis.invalid")
        .origin(origin)
        .keep_alive_while_idle(false)
        .keep_alive_timeout(keepalive_timeout);
    match keepalive_interval {
        Some(interval) => endpoint.http2_keep_alive_interval(interval),
        None => endpoint,
    }
}

/// Destination of a channel.
struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: Option<ClientTls>,
    connect_timeout: Duration,
}

type Connection = TokioIo<Either<net::Stream, Stream>>;

/// TLS connection for code that speaks HTTP/2 without a channel.
pub type Stream = TlsStream<BufReader<net::Stream>>;

/// Connects to `host:port` with TLS and ALPN for HTTP/2.
///
/// # Errors
/// When the address is not of that form, the connection fails, or the certificate does not match.
pub async fn open(address: &str, tls: &ClientTls, options: Options) -> Result<Stream, Error> {
    let (_, target) = target(address, None, Some(tls.clone()), options)?;
    let opened = target.dial(|stream| target.secure(tls, stream));
    target.within(opened).await.map_err(Error::Open)
}

/// Read buffer size. rustls alone reads 4 KiB at a time, a fraction of a record.
const READ: usize = 64 << 10;

async fn connect(target: Arc<Target>) -> io::Result<Connection> {
    let opened = target.dial(async |stream| {
        Ok(match &target.tls {
            None => Either::Left(stream),
            Some(tls) => Either::Right(target.secure(tls, stream).await?),
        })
    });
    target.within(opened).await.map(TokioIo::new)
}

impl Target {
    /// Connects to the first address of the host for which `ready` succeeds.
    async fn dial<T, F>(&self, ready: impl Fn(net::Stream) -> F) -> io::Result<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        let addresses = Addresses::of(&self.host, self.port).await?;
        net::open(&addresses, |_, stream| ready(stream)).await
    }

    async fn secure(&self, tls: &ClientTls, stream: net::Stream) -> io::Result<Stream> {
        let mut config = tls.rustls_config()?.as_ref().clone();
        let stream = BufReader::with_capacity(READ, stream);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let connected = TlsConnector::from(Arc::clone(&config)).connect(self.name.clone(), stream);
        let mut stream = connected.await.map_err(|error| refusal::in_handshake(error, &config))?;
        refusal::greeting(&mut stream, &config).await?;
        Ok(stream)
    }

    /// Applies the connect timeout and adds the address to errors.
    async fn within<T>(&self, opened: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let opened = tokio::time::timeout(self.connect_timeout, opened).await;
        let opened = opened.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
        opened.map_err(|error: io::Error| {
            let Self { host, port, .. } = self;
            let text = crate::error::text(&error);
            io::Error::new(error.kind(), format!("connecting to {host}:{port}: {text}"))
        })
    }
}
