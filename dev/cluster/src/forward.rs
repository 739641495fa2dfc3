//! Forwards connections from a cell to one port of the launcher's own namespace.
//!
//! This simulates the network between a cell and the control plane. Bytes are only
//! copied, so TLS is end to end; while the server is down, a connection is accepted and
//! closed.

use std::net::SocketAddrV4;

use cni::namespace::Namespace;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A bound forwarder.
#[derive(Debug)]
pub(crate) struct Forwarder {
    listener: TcpListener,
    target: SocketAddrV4,
}

impl Forwarder {
    /// Listens in the cell on the address of the target.
    pub(crate) async fn bind(cell: &Namespace, target: SocketAddrV4) -> anyhow::Result<Self> {
        let listener = cell.resident().listen(target).await?;
        Ok(Self { listener, target })
    }

    /// Forwards until `shutdown`.
    pub(crate) async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { listener, target } = self;
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => {
                    // A failed accept concerns only that peer.
                    if let Ok((stream, _peer)) = accepted {
                        connections.spawn(forward(stream, target));
                    }
                }
                Some(_ended) = connections.join_next() => {}
            }
        }
    }
}

async fn forward(mut near: TcpStream, target: SocketAddrV4) {
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    // Small frames go both ways: Nagle's algorithm would delay each.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    // A broken connection ends on both sides; the peers handle that.
    let _ = copy_bidirectional(&mut near, &mut far).await;
}
