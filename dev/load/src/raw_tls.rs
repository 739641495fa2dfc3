//! Measures TLS alone: responses of a requested length on the connections of the
//! services, with neither HTTP/2 nor messages. The cost of a large response beyond this
//! is ours; the cost of TLS itself is the machine's: its cipher, its kernel's TCP, and
//! their copies.
//!
//! A request is a number of 8 bytes, big-endian: the length of the response.

use std::io;

use prost::bytes::Bytes;
use runtime::client::{self, Options, Stream};
use runtime::tls::ServerTls;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::Status;

use super::connect::Target;

/// Write size of a server, the same as in the services.
const PIECE: usize = 64 << 10;
/// Maximum length of a response: 64 MiB.
const LONGEST: u64 = 64 << 20;

/// Serves until it is dropped. Closed connections are not reported.
pub(super) async fn serve(listener: TcpListener, tls: ServerTls) -> io::Result<()> {
    let piece = Bytes::from(vec![b'v'; PIECE]);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(tls.rustls_config());
        connections.spawn(answer(acceptor, stream, piece.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream, piece: Bytes) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    loop {
        let mut left = stream.read_u64().await?.min(LONGEST) as usize;
        while left > 0 {
            let count = left.min(piece.len());
            stream.write_all(&piece[..count]).await?;
            left -= count;
        }
        stream.flush().await?;
    }
}

/// A caller's connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    bytes: usize,
}

impl Connection {
    /// Connects; responses have this length in bytes.
    pub(super) async fn open(target: &Target, bytes: usize) -> anyhow::Result<Self> {
        let stream = client::open(&target.address, &target.tls()?, Options::default()).await?;
        Ok(Self { stream, bytes })
    }

    /// Sends a request, and counts the bytes of the response.
    pub(super) async fn call(&mut self) -> Result<usize, Status> {
        let exchanged = self.exchange().await;
        exchanged.map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn exchange(&mut self) -> io::Result<usize> {
        let Self { stream, bytes } = self;
        stream.write_u64(*bytes as u64).await?;
        stream.flush().await?;
        let mut left = *bytes;
        while left > 0 {
            // Read from the decrypted buffer, without another copy.
            let count = stream.fill_buf().await?.len();
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            stream.consume(count);
            left = left.saturating_sub(count);
        }
        Ok(*bytes)
    }
}
