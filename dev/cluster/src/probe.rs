//! Probes from a container: one new connection, datagram or ping, with a timeout for
//! the response.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context;
use cni::namespace::Resident;
use socket2::{Protocol, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

/// Timeout of one probe.
pub const TIMEOUT: Duration = Duration::from_millis(1500);

/// Timeout of one probe of [`until`]. The kernel repeats an unanswered SYN only after 1 s: a longer
/// wait would measure the repetition instead of the change.
const SHORT: Duration = Duration::from_millis(25);

/// Pause between two probes of [`until`].
const PAUSE: Duration = Duration::from_millis(2);

/// The destination of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A new TCP connection.
    Tcp(SocketAddrV4),
    /// A datagram to an echo server.
    Udp(SocketAddrV4),
    /// An ICMP echo request.
    Ping(Ipv4Addr),
}

impl Target {
    /// A TCP target.
    pub fn tcp(address: Ipv4Addr, port: u16) -> Self {
        Self::Tcp(SocketAddrV4::new(address, port))
    }

    /// A UDP target.
    pub fn udp(address: Ipv4Addr, port: u16) -> Self {
        Self::Udp(SocketAddrV4::new(address, port))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Ping(address) => write!(f, "icmp {address}"),
        }
    }
}

/// The outcome of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The connection was accepted, or the echo arrived.
    Open,
    /// Refused: a reset, or ICMP port unreachable.
    Refused,
    /// Another ICMP unreachable.
    Unreachable,
    /// No response within the timeout.
    Silent,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Silent => "no answer",
        })
    }
}

/// Sends one probe from the resident's namespace.
///
/// # Errors
/// Only failures outside the network: no socket, no thread.
pub async fn probe(from: &Resident, target: Target) -> anyhow::Result<Outcome> {
    probe_within(from, target, TIMEOUT).await
}

async fn probe_within(from: &Resident, target: Target, limit: Duration) -> anyhow::Result<Outcome> {
    let answer = match target {
        Target::Tcp(address) => {
            let socket = from.tcp().await?;
            timeout(limit, socket.connect(address.into())).await.map(|r| r.map(drop))
        }
        Target::Udp(address) => {
            let socket = from.udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).await?;
            timeout(limit, exchange(&socket, address, b"portcullis")).await
        }
        Target::Ping(address) => {
            let socket = from.socket(Type::DGRAM, Protocol::ICMPV4).await?;
            let socket = UdpSocket::from_std(socket.into())?;
            let target = SocketAddrV4::new(address, 0);
            timeout(limit, exchange(&socket, target, &ECHO_REQUEST)).await
        }
    };
    match answer {
        Ok(Ok(())) => Ok(Outcome::Open),
        Ok(Err(error)) => meaning(&error).ok_or(error).context("the probe could not be sent"),
        Err(_elapsed) => Ok(Outcome::Silent),
    }
}

/// Type 8, code 0; the kernel fills in the checksum and the identifier of an
/// unprivileged ICMP socket.
const ECHO_REQUEST: [u8; 16] = *b"\x08\0\0\0\0\0\0\x01portcull";

async fn exchange(socket: &UdpSocket, to: SocketAddrV4, text: &[u8]) -> io::Result<()> {
    socket.connect(to).await?;
    socket.send(text).await?;
    socket.recv(&mut [0; 64]).await.map(drop)
}

fn meaning(error: &io::Error) -> Option<Outcome> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(Outcome::Refused),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Some(Outcome::Unreachable)
        }
        io::ErrorKind::TimedOut => Some(Outcome::Silent),
        _ => None,
    }
}

/// Repeats a probe until it has the wanted outcome; returns the time from `since` to
/// the first such packet.
pub async fn until(
    from: &Resident,
    target: Target,
    wanted: Outcome,
    since: Instant,
    limit: Duration,
) -> anyhow::Result<Result<Duration, Outcome>> {
    loop {
        if probe_within(from, target, SHORT).await? == wanted {
            return Ok(Ok(since.elapsed()));
        }
        if since.elapsed() > limit {
            let seen = probe(from, target).await?;
            return Ok(if seen == wanted { Ok(since.elapsed()) } else { Err(seen) });
        }
        sleep(PAUSE).await;
    }
}

/// A TCP connection that stays open between probes.
#[derive(Debug)]
pub struct Kept {
    stream: TcpStream,
}

impl Kept {
    /// Opens the connection from the resident's namespace.
    pub async fn open(from: &Resident, to: SocketAddrV4) -> anyhow::Result<Self> {
        let connected = timeout(TIMEOUT, from.tcp().await?.connect(to.into())).await;
        let stream = connected.context("no answer")?.context("not connected")?;
        Ok(Self { stream })
    }

    /// Whether a message is echoed.
    pub async fn echoes(&mut self) -> bool {
        let word = *b"still there?";
        let mut back = [0; 12];
        let exchange = async {
            self.stream.write_all(&word).await?;
            self.stream.read_exact(&mut back).await
        };
        matches!(timeout(TIMEOUT, exchange).await, Ok(Ok(_length))) && back == word
    }
}
