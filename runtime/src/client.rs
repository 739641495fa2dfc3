//! gRPC channels.
//!
//! What holds:
//! - A channel connects when it is first used, and again after a connection
//!   ended; a call that finds no connection fails at once with UNAVAILABLE.
//! - Each new connection uses the TLS material of that moment.
//! - The server's certificate must name the host of the address, be it a name
//!   or an IP address.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::Service;

use crate::tls::ClientTls;

/// How a channel keeps its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The most that connecting, with the TLS handshake, may take.
    pub connect_timeout: Duration,
    /// After how much silence, while a call is open, the server is pinged. `None`
    /// for never. The genuine Locket answers frequent pings without other traffic
    /// by closing the connection.
    pub keepalive_interval: Option<Duration>,
    /// How long the server may take to answer a ping.
    pub keepalive_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            keepalive_interval: Some(Duration::from_secs(10)),
            keepalive_timeout: Duration::from_secs(10),
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

type Connection = TokioIo<Either<TcpStream, Stream>>;

/// A connection with TLS, for who speaks HTTP/2 on it without a channel.
pub type Stream = TlsStream<BufReader<TcpStream>>;

/// Connects to `host:port`, with TLS and for HTTP/2.
///
/// # Errors
/// When the address is not of that form, when nobody is there, or somebody else.
pub async fn open(address: &str, tls: &ClientTls, options: Options) -> Result<Stream, Error> {
    let (_, target) = target(address, None, Some(tls.clone()), options)?;
    target.within(target.secure(tls)).await.map_err(Error::Open)
}

/// What is read at a time: rustls itself asks for 4 KiB, a fraction of a record.
const READ: usize = 64 << 10;

async fn connect(target: Arc<Target>) -> io::Result<Connection> {
    let opened = async {
        Ok(match &target.tls {
            None => Either::Left(target.dial().await?),
            Some(tls) => Either::Right(target.secure(tls).await?),
        })
    };
    target.within(opened).await.map(TokioIo::new)
}

impl Target {
    async fn dial(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn secure(&self, tls: &ClientTls) -> io::Result<Stream> {
        let mut config = tls.rustls_config()?.as_ref().clone();
        let stream = BufReader::with_capacity(READ, self.dial().await?);
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config)).connect(self.name.clone(), stream).await
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

/// A status as Go prints it, `rpc error: code = NotFound desc = resource-not-found`,
/// followed by the causes that only this side knows, such as a refused connection.
pub fn describe(status: &Status) -> String {
    let (code, message) = (go_name(status.code()), status.message());
    let mut text = format!("rpc error: code = {code} desc = {message}");
    let mut next = status.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) && cause_text != "transport error" {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The name of a code in Go's package `google.golang.org/grpc/codes`.
fn go_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
