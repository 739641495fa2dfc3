//! Simulates the internet: a namespace that responds on every port of its addresses.
//! TCP and UDP echo; the kernel answers pings.

use std::net::{Ipv4Addr, SocketAddrV4};

use cni::namespace::Namespace;
use cni::tools;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The port that all others are redirected to.
const ECHO_PORT: u16 = 7;

/// Maximum datagram length.
const LONGEST_DATAGRAM: usize = 65_535;

/// The bound sockets of the simulated internet.
#[derive(Debug)]
pub struct Outside {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Outside {
    /// Binds in the namespace, and redirects every port to the bound ones.
    pub async fn bind(namespace: &Namespace) -> anyhow::Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, ECHO_PORT);
        let tcp = namespace.resident().listen(address).await?;
        let udp = namespace.resident().udp(address).await?;
        let rules = format!(
            "table ip outside {{ chain prerouting {{ \
             type nat hook prerouting priority dstnat; \
             fib daddr type local meta l4proto {{ tcp, udp }} redirect to :{ECHO_PORT}; }}; }}\n"
        );
        let exec = ["netns", "exec", namespace.name(), "nft", "-f", "-"];
        tools::run_with_input("ip", exec, &rules)?;
        Ok(Self { tcp, udp })
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { tcp, udp } = self;
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            result = echo_streams(tcp) => result,
            result = echo_datagrams(udp) => result,
        }
    }
}

async fn echo_streams(listener: TcpListener) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A failed accept (the peer has disconnected) concerns only that peer.
                if let Ok((stream, _peer)) = accepted {
                    connections.spawn(echo(stream));
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    // A reset connection needs no error.
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

async fn echo_datagrams(socket: UdpSocket) -> anyhow::Result<()> {
    let mut datagram = vec![0; LONGEST_DATAGRAM];
    loop {
        // Errors are ICMP errors of earlier datagrams.
        if let Ok((length, peer)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(&datagram[..length], peer).await;
        }
    }
}
