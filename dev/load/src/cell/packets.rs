//! Measures the latency of packets from a container through the cell, on one CPU.
//!
//! Sending over a veth pair runs the whole path inside the system call, so the duration
//! of the call is the latency of the packet. Each figure is the minimum of several
//! rounds: other load on the machine only increases it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::time::Instant;

use super::data::{PEER, PORT, TARGET};
use super::lab::Lab;

const ROUNDS: usize = 5;
/// Packets of one flow in a round.
const PACKETS: u32 = 40_000;
/// Flows of one packet in a round; all rounds together fit into the conntrack table.
const FLOWS: u32 = 2_000;
const ANSWERS: usize = 4_000;
const CONNECTIONS: usize = 400;
/// Interval at which the outside threads check for the end.
const GLANCE: Duration = Duration::from_millis(20);

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Latency {
    /// A packet of a flow without responses: each packet walks the rules.
    pub(super) unanswered: f64,
    /// The first packet of a new flow.
    pub(super) flow: f64,
    /// Median of a TCP connect.
    pub(super) connect: f64,
    /// Median round trip in an established flow.
    pub(super) established: f64,
}

/// Measures once the rules are in the kernel.
pub(super) async fn measure(lab: &Lab) -> anyhow::Result<Latency> {
    let (echo, listener) = lab.servers().await?;
    let sockets = Sockets {
        unanswered: lab.udp().await?,
        flows: lab.udp().await?,
        established: lab.udp().await?,
    };
    // Connections use sockets of the container's namespace.
    let connections = lab.inside(sockets_for_connections).await??;
    let measured = tokio::task::spawn_blocking(move || {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let answers = scope.spawn(|| answer(&echo, &done));
            let accepts = scope.spawn(|| accept(&listener, &done));
            let measured = scope.spawn(|| sockets.measure(connections)).join();
            done.store(true, Ordering::Relaxed);
            let panicked = |_| anyhow!("a thread panicked");
            answers.join().map_err(panicked)?.context("answering")?;
            accepts.join().map_err(panicked)?.context("accepting")?;
            measured.map_err(panicked)?
        })
    });
    measured.await.context("measuring")?
}

struct Sockets {
    unanswered: UdpSocket,
    flows: UdpSocket,
    established: UdpSocket,
}

fn sockets_for_connections() -> io::Result<Vec<Socket>> {
    let one = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        // Reset on close, so that no port stays in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_write_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    };
    (0..ROUNDS * CONNECTIONS).map(one).collect()
}

impl Sockets {
    fn measure(self, connections: Vec<Socket>) -> anyhow::Result<Latency> {
        pin()?;
        let mut connections = connections.into_iter();
        let mut best: Option<Latency> = None;
        for round in 0..ROUNDS {
            let now = Latency {
                unanswered: unanswered(&self.unanswered)?,
                flow: flows(&self.flows, round)?,
                connect: connects(connections.by_ref().take(CONNECTIONS))?,
                established: established(&self.established)?,
            };
            best = Some(best.map_or(now, |best| best.min(now)));
        }
        best.context("no round was measured")
    }
}

impl Latency {
    fn min(self, other: Self) -> Self {
        Self {
            unanswered: self.unanswered.min(other.unanswered),
            flow: self.flow.min(other.flow),
            connect: self.connect.min(other.connect),
            established: self.established.min(other.established),
        }
    }
}

/// Pins this thread, and so its packets, to one CPU.
fn pin() -> anyhow::Result<()> {
    let mut first = CpuSet::new();
    first.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &first).context("staying on one processor")
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn unanswered(socket: &UdpSocket) -> anyhow::Result<f64> {
    let to = SocketAddrV4::new(TARGET, PORT);
    let began = Instant::now();
    for _ in 0..PACKETS {
        socket.send_to(&[0; 22], to).context("sending")?;
    }
    Ok(micros(began.elapsed()) / f64::from(PACKETS))
}

/// Each packet goes to a new address.
fn flows(socket: &UdpSocket, round: usize) -> anyhow::Result<f64> {
    let [a, b, ..] = TARGET.octets();
    let first = u32::from(Ipv4Addr::new(a, b, 128, 0)) + u32::try_from(round)? * FLOWS;
    let began = Instant::now();
    for place in first..first + FLOWS {
        let to = SocketAddrV4::new(Ipv4Addr::from(place), PORT);
        socket.send_to(&[0; 22], to).context("sending")?;
    }
    Ok(micros(began.elapsed()) / f64::from(FLOWS))
}

fn established(socket: &UdpSocket) -> anyhow::Result<f64> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let to = SocketAddrV4::new(PEER, PORT);
    let mut times = Vec::with_capacity(ANSWERS);
    for _ in 0..ANSWERS {
        let began = Instant::now();
        socket.send_to(&[0; 22], to).context("asking")?;
        socket.recv_from(&mut [0; 64]).context("waiting for an answer")?;
        times.push(micros(began.elapsed()));
    }
    median(times)
}

fn connects(sockets: impl Iterator<Item = Socket>) -> anyhow::Result<f64> {
    let to: SockAddr = SocketAddrV4::new(PEER, PORT).into();
    let mut times = Vec::with_capacity(CONNECTIONS);
    for socket in sockets {
        let began = Instant::now();
        socket.connect(&to).context("connecting")?;
        times.push(micros(began.elapsed()));
    }
    median(times)
}

pub(super) fn median(mut values: Vec<f64>) -> anyhow::Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("nothing was measured")
}

/// Echoes datagrams until `done`.
fn answer(socket: &UdpSocket, done: &AtomicBool) -> anyhow::Result<()> {
    pin()?;
    socket.set_read_timeout(Some(GLANCE))?;
    let mut buffer = [0; 64];
    while !done.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from)?;
        }
    }
    Ok(())
}

/// Accepts and drops connections until `done`.
fn accept(listener: &TcpListener, done: &AtomicBool) -> anyhow::Result<()> {
    pin()?;
    SockRef::from(listener).set_read_timeout(Some(GLANCE))?;
    while !done.load(Ordering::Relaxed) {
        let _taken: io::Result<(TcpStream, _)> = listener.accept();
    }
    Ok(())
}
