//! Connections of the attacker to a door.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;

/// A connection of any kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) type Stream = Box<dyn Io>;

/// Where a door is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// HTTP version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http1 => Vec::new(),
            Self::Http2 => vec![b"h2".to_vec()],
        }
    }
}

/// A door with the attacker's certificate.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    pub(crate) address: Address,
    /// `None` for a door without TLS.
    tls: Option<[Arc<ClientConfig>; 2]>,
}

impl Dial {
    pub(crate) fn new(address: Address, tls: Option<&ClientConfig>) -> Self {
        let tls = tls.map(|tls| {
            [Protocol::Http1, Protocol::Http2].map(|protocol| {
                let mut tls = tls.clone();
                tls.alpn_protocols = protocol.alpn();
                Arc::new(tls)
            })
        });
        Self { address, tls }
    }

    /// The configuration of TLS; `None` for a door without TLS.
    pub(crate) fn tls(&self, protocol: Protocol) -> Option<&Arc<ClientConfig>> {
        let [http1, http2] = self.tls.as_ref()?;
        Some(if protocol == Protocol::Http1 { http1 } else { http2 })
    }

    /// Connects without TLS.
    pub(crate) async fn plain(&self) -> io::Result<Stream> {
        Ok(match &self.address {
            Address::Tcp(address) => Box::new(tcp(*address).await?),
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }

    /// Connects, with TLS if the door has it.
    pub(crate) async fn open(&self, protocol: Protocol) -> io::Result<Stream> {
        match self.tls(protocol) {
            None => self.plain().await,
            Some(tls) => Ok(Box::new(self.secure(Arc::clone(tls)).await?)),
        }
    }

    /// Connects with this configuration of TLS.
    pub(crate) async fn secure(&self, tls: Arc<ClientConfig>) -> io::Result<TlsStream<Stream>> {
        let name = ServerName::try_from("localhost").expect("a host name");
        TlsConnector::from(tls).connect(name, self.plain().await?).await
    }
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
