//! Sends single raw packets, and determines their verdicts.

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::Instant;

use crate::lab::Lab;

/// Kind of packet to send.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Tcp {
        port: u16,
        source: u16,
        flags: u8,
    },
    Udp {
        port: u16,
        source: u16,
    },
    Icmp {
        icmp_type: u8,
        code: u8,
    },
    /// Any other protocol, by its number.
    Other(u8),
}

/// The first packet of a new TCP connection.
pub(crate) fn connection(port: u16) -> Kind {
    static SOURCE: AtomicU16 = AtomicU16::new(20_000);
    Kind::Tcp { port, source: SOURCE.fetch_add(1, Ordering::Relaxed), flags: 2 }
}

/// Verdict on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The packet arrived outside.
    Accept,
    /// ICMP port unreachable was returned.
    Reject,
    /// No packet was seen.
    Blocked,
}

/// Sends from inside and listens on both sides.
pub(crate) struct Prober {
    out: Socket,
    next: AtomicU16,
    fates: Arc<Mutex<BTreeMap<u16, Fate>>>,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const RAW: i32 = 255;
const TICK: Duration = Duration::from_millis(20);

impl Prober {
    pub(crate) fn new(lab: &Lab) -> Self {
        let out = lab.inside.run(|| {
            let protocol = Protocol::from(RAW);
            Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).expect("raw sockets are allowed")
        });
        let errors = lab
            .inside
            .run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap());
        let seen = lab.outside.run(|| {
            let protocol = Protocol::from(i32::from(ETHERTYPE_IPV4.to_be()));
            Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap()
        });
        // A flood must not fill a buffer: a lost packet would look like a blocked one.
        for socket in [&seen, &errors] {
            let size = 64 << 20;
            // Without root, `rmem_max` bounds the size.
            if setsockopt(socket, RcvBufForce, &size).is_err() {
                socket.set_recv_buffer_size(size).unwrap();
            }
        }
        let fates: Arc<Mutex<BTreeMap<u16, Fate>>> = Arc::default();
        listen(seen, &fates, |packet| Some((identification(packet)?, Fate::Accept)));
        listen(errors, &fates, |packet| {
            let header = usize::from(packet.first()? & 15) * 4;
            let unreachable = packet.get(header..header + 2)? == [3, 3];
            let quoted = packet.get(header + 8..)?;
            unreachable.then_some((identification(quoted)?, Fate::Reject))
        });
        Self { out, next: AtomicU16::new(1), fates }
    }

    /// Sends one packet, with a unique identification.
    pub(crate) fn send(&self, from: Ipv4Addr, to: Ipv4Addr, kind: Kind) -> u16 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.fates.lock().unwrap().remove(&id);
        let packet = packet(id, from, to, kind);
        self.out.send_to(&packet, &SocketAddrV4::new(to, 0).into()).unwrap();
        id
    }

    pub(crate) fn fate(&self, id: u16) -> Option<Fate> {
        self.fates.lock().unwrap().get(&id).copied()
    }

    /// Sends one packet and waits for the verdict.
    pub(crate) async fn probe(&self, from: Ipv4Addr, to: Ipv4Addr, kind: Kind) -> Fate {
        let id = self.send(from, to, kind);
        let deadline = Instant::now() + Duration::from_millis(400);
        while Instant::now() < deadline {
            if let Some(fate) = self.fate(id) {
                return fate;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Fate::Blocked
    }
}

/// Records arriving packets until the test process ends or the receiver is dropped.
fn listen(
    mut socket: Socket,
    fates: &Arc<Mutex<BTreeMap<u16, Fate>>>,
    read: impl Fn(&[u8]) -> Option<(u16, Fate)> + Send + 'static,
) {
    socket.set_read_timeout(Some(TICK)).unwrap();
    let fates = Arc::downgrade(fates);
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Some(fates) = fates.upgrade() {
            let Ok(length) = socket.read(&mut buffer) else { continue };
            if let Some((id, fate)) = read(&buffer[..length]) {
                fates.lock().unwrap().insert(id, fate);
            }
        }
    });
}

fn identification(packet: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?))
}

/// A complete IPv4 packet with correct checksums: conntrack marks others as invalid.
fn packet(id: u16, from: Ipv4Addr, to: Ipv4Addr, kind: Kind) -> Vec<u8> {
    let (protocol, body) = match kind {
        Kind::Tcp { port, source, flags } => (6, tcp(port, source, flags)),
        Kind::Udp { port, source } => (17, udp(port, source)),
        Kind::Icmp { icmp_type, code } => (1, icmp(icmp_type, code)),
        Kind::Other(protocol) => (protocol, vec![0; 16]),
    };
    let length = u16::try_from(20 + body.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend([0, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut body = body;
    let place = match protocol {
        6 => Some(16),
        17 => Some(6),
        1 => Some(2),
        _ => None,
    };
    if let Some(place) = place {
        let mut summed = Vec::new();
        if protocol != 1 {
            summed.extend(from.octets());
            summed.extend(to.octets());
            summed.extend([0, protocol]);
            summed.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        }
        summed.extend(&body);
        let sum = checksum(&summed);
        body[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(body);
    packet
}

fn tcp(port: u16, source: u16, flags: u8) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(source.to_be_bytes());
    body.extend(port.to_be_bytes());
    body.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 4, 0, 0, 0, 0, 0]);
    body
}

fn udp(port: u16, source: u16) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(source.to_be_bytes());
    body.extend(port.to_be_bytes());
    body.extend([0, 12, 0, 0]);
    body.extend(*b"ping");
    body
}

/// Errors quote a packet; other types have an identifier.
fn icmp(icmp_type: u8, code: u8) -> Vec<u8> {
    let mut body = vec![icmp_type, code, 0, 0, 0, 1, 0, 1];
    body.extend([0; 28]);
    body
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
