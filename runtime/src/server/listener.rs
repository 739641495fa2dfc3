//! Bound sockets.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::Error;
use crate::metrics::own;

/// TCP keepalive interval, and timeout for unacknowledged data. A client that reads slowly is alive
/// and subject to the server's limits, so this is not shorter than any of them.
const PROBE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(30);

/// A listening socket. `what` names its server in errors, log lines and the label `server` of
/// metrics: `grpc`, `http`, `admin`, `health`, `control` or `cell`.
#[derive(Debug)]
pub struct Listener {
    what: &'static str,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, OwnedPath),
}

/// Path of a Unix socket, removed on drop of its listener.
#[derive(Debug)]
struct OwnedPath(PathBuf);

impl Drop for OwnedPath {
    fn drop(&mut self) {
        let _already_gone = fs::remove_file(&self.0);
    }
}

/// An accepted connection.
pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    /// Listens on `host:port`. An empty host means all interfaces, port 0 any free port, and an
    /// empty address both, as in the originals.
    ///
    /// # Errors
    /// When the address is invalid or in use; the error names the server.
    pub async fn tcp(what: &'static str, address: &str) -> Result<Self, Error> {
        let addresses = resolve(address).await.map_err(|source| Error::Resolve {
            what,
            address: address.to_owned(),
            source,
        })?;
        let listen = async {
            let listener = TcpListener::bind(addresses.as_slice()).await?;
            let local = listener.local_addr()?;
            Ok(Socket::Tcp(listener, local))
        };
        let socket = listen.await.map_err(|source| Error::Listen {
            what,
            address: address.to_owned(),
            source,
        })?;
        own::begin_server(what);
        Ok(Self { what, socket })
    }

    /// Listens on a Unix socket that only the process's own user may use. A stale socket of a
    /// killed process is removed; a socket in use is not.
    ///
    /// # Errors
    /// When the path cannot be used, or another process listens on it.
    pub async fn unix(what: &'static str, path: &Path) -> Result<Self, Error> {
        let bound = bind_unix(path).await.map_err(|source| Error::Listen {
            what,
            address: path.display().to_string(),
            source,
        })?;
        let socket = Socket::Unix(bound, OwnedPath(path.to_owned()));
        own::begin_server(what);
        Ok(Self { what, socket })
    }

    /// Name of the server for errors and log lines.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// The listening address: `address:port`, or the path of the socket.
    pub fn local_addr(&self) -> String {
        match &self.socket {
            Socket::Tcp(_, address) => address.to_string(),
            Socket::Unix(_, path) => path.0.display().to_string(),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener, _) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                net::notice_dead_peer(&stream, PROBE, SILENCE)?;
                Ok(Accepted::Tcp(stream, address))
            }
            Socket::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream))
            }
        }
    }
}

async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let address = if address.is_empty() { ":0" } else { address };
    let asked = match address.strip_prefix(':') {
        // Without IPv6 in the kernel the first fails and the second is used.
        Some(port) => vec![format!("[::]:{port}"), format!("0.0.0.0:{port}")],
        None => vec![address.to_owned()],
    };
    let mut resolved = Vec::new();
    for address in asked {
        resolved.extend(tokio::net::lookup_host(address).await?);
    }
    Ok(resolved)
}

async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if is_stale(path).await {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether the path is a socket without a listener.
async fn is_stale(path: &Path) -> bool {
    let is_socket = fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .await
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
