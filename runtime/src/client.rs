//! gRPC channels.
//!
//! What holds:
//! - A channel connects when it is first used, and again after a connection
//!   ended; a call that finds no connection fails at once with UNAVAILABLE.
//! - All addresses of a name are tried (`net`). A connection counts only when its
//!   server has said something after TLS, so that a refused certificate is an error of
//!   connecting.
//! - Each new connection uses the TLS material of that moment.
//! - The server's certificate must name the host of the address, be it a name
//!   or an IP address.

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
    /// Silence in an open call after which the server is pinged; `None` for never.
    /// The original Locket closes a connection whose calls are pinged three times
    /// without an answer of its own in between.
    pub keepalive_interval: Option<Duration>,
    /// How long the server may take to answer a ping.
    pub keepalive_timeout: Duration,
}

/// Default times of the HTTP/2 keepalive: a server that hangs is noticed within 5 s.
/// A dead machine is noticed by TCP as well ([`net::SILENCE`]), also without a call.
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
    /// The default times, or shorter ones, so that a server that hangs is noticed
    /// within `bound`.
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

/// Why there can be no channel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not `host:port`.
    #[error("the address {0} is not host:port")]
    Address(String),
    /// A host that no certificate could name.
    #[error("the host of {0} is neither a name nor an IP address")]
    Host(String),
    /// Nobody is there, or not who is wanted.
    #[error("no connection")]
    Connect(#[source] tonic::transport::Error),
    /// The same, without a channel.
    #[error("no connection")]
    Open(#[source] io::Error),
}

/// A channel to `host:port`.
///
/// # Errors
/// When the address is not of that form. Whether somebody is there shows with
/// the first call.
pub fn channel(address: &str, tls: Option<ClientTls>, options: Options) -> Result<Channel, Error> {
    let (endpoint, target) = target(address, None, tls, options)?;
    Ok(endpoint.connect_with_connector_lazy(connector(target)))
}

/// A channel to `host:port` that is connected, to a server whose certificate
/// must be for `name` wherever it is.
///
/// # Errors
/// When the address is not of that form, when nobody is there, or somebody else.
pub async fn connect_as(
    name: &str,
    address: &str,
    tls: &ClientTls,
    options: Options,
) -> Result<Channel, Error> {
    let (endpoint, target) = target(address, Some(name), Some(tls.clone()), options)?;
    endpoint.connect_with_connector(connector(target)).await.map_err(Error::Connect)
}

/// Where `address` leads. The certificate must be for `name`, or for the host of
/// the address.
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

/// A channel to a Unix socket.
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
    // Our connector does TLS itself; to tonic the connection is a plain one.
    let endpoint = Endpoint::from_static("http://portcullis.invalid")
        .origin(origin)
        .keep_alive_while_idle(false)
        .keep_alive_timeout(keepalive_timeout);
    match keepalive_interval {
        Some(interval) => endpoint.http2_keep_alive_interval(interval),
        None => endpoint,
    }
}

/// Where a channel leads.
struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: Option<ClientTls>,
    connect_timeout: Duration,
}

type Connection = TokioIo<Either<net::Stream, Stream>>;

/// A connection with TLS, for who speaks HTTP/2 on it without a channel.
pub type Stream = TlsStream<BufReader<net::Stream>>;

/// Connects to `host:port`, with TLS and for HTTP/2.
///
/// # Errors
/// When the address is not of that form, when nobody is there, or somebody else.
pub async fn open(address: &str, tls: &ClientTls, options: Options) -> Result<Stream, Error> {
    let (_, target) = target(address, None, Some(tls.clone()), options)?;
    let opened = target.dial(|stream| target.secure(tls, stream));
    target.within(opened).await.map_err(Error::Open)
}

/// What is read at a time: rustls itself asks for 4 KiB, a fraction of a record.
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
    /// Connects to one of the addresses of the host that is `ready` there.
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

    /// In time, and with an error that says where.
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
