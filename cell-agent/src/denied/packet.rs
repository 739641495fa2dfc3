//! Decodes the kernel's messages about denied packets (`linux/netfilter/nfnetlink_log.h`),
//! and the headers of the packets.
//!
//! Pure. Bytes of a container are hostile: a packet that ends early or has unknown headers
//! is read as far as its destination, and a message without addresses is left out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::message::{HEADERS, messages, value};

/// `NFNL_SUBSYS_ULOG` and `NFULNL_MSG_PACKET`.
const PACKET: u16 = 4 << 8;
/// `NFULA_IFINDEX_INDEV` and `NFULA_PAYLOAD`.
const INCOMING: u16 = 4;
const PAYLOAD: u16 = 9;

/// Protocol numbers.
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
/// Headers of IPv6 that another header follows.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// Maximum number of such headers that are skipped.
const HEADERS_MOST: usize = 8;

/// A packet that the kernel denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// Index of the interface on which the packet arrived; 0 if the kernel names none.
    pub interface: u32,
    /// Source address.
    pub source: IpAddr,
    /// Destination, protocol and port.
    pub target: Target,
}

/// What the sender of a packet wanted to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Port of tcp and udp, type and code of icmp.
    pub detail: Detail,
}

/// The part of a [`Target`] that depends on the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detail {
    /// Destination port.
    Port(u16),
    /// Type and code.
    Icmp(u8, u8),
    /// Another protocol, or a packet that ends before the port.
    None,
}

/// Decodes the denied packets of one datagram.
#[must_use]
pub fn denied(datagram: &[u8]) -> Vec<Denied> {
    let packets = messages(datagram).filter(|(kind, _)| *kind == PACKET);
    packets.filter_map(|(_, message)| one(message.get(HEADERS..)?)).collect()
}

fn one(attributes: &[u8]) -> Option<Denied> {
    let interface = value(attributes, INCOMING).and_then(|index| index.try_into().ok());
    let (source, target) = packet(value(attributes, PAYLOAD)?)?;
    Some(Denied { interface: interface.map_or(0, u32::from_be_bytes), source, target })
}

/// The source address and the target of an IP packet.
fn packet(bytes: &[u8]) -> Option<(IpAddr, Target)> {
    match bytes.first()? >> 4 {
        4 => v4(bytes),
        6 => v6(bytes),
        _ => None,
    }
}

fn v4(bytes: &[u8]) -> Option<(IpAddr, Target)> {
    let address =
        |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
    let (source, destination) = (address(12)?, address(16)?);
    let (length, protocol) = (usize::from(bytes.first()? & 15) * 4, *bytes.get(9)?);
    let offset = u16::from_be_bytes([*bytes.get(6)?, *bytes.get(7)?]) & 0x1fff;
    // Only the first fragment has a port.
    let rest = if offset == 0 && length >= 20 { bytes.get(length..) } else { None };
    let detail = detail(protocol, rest.unwrap_or_default());
    Some((source.into(), Target { destination: destination.into(), protocol, detail }))
}

fn v6(bytes: &[u8]) -> Option<(IpAddr, Target)> {
    let address =
        |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
    let (source, destination) = (address(8)?, address(24)?);
    let (protocol, rest) = last_header(*bytes.get(6)?, bytes.get(40..).unwrap_or_default());
    let detail = detail(protocol, rest);
    Some((source.into(), Target { destination: destination.into(), protocol, detail }))
}

/// Skips the headers that another header follows. Returns the protocol and its header,
/// which is empty if the packet ends before.
fn last_header(mut protocol: u8, mut rest: &[u8]) -> (u8, &[u8]) {
    for _ in 0..HEADERS_MOST {
        let length = match (protocol, rest.get(1)) {
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, Some(words)) => {
                8 + 8 * usize::from(*words)
            }
            (AUTHENTICATION, Some(words)) => 8 + 4 * usize::from(*words),
            (FRAGMENT, Some(_)) => {
                let offset = rest.get(2..4).map_or(0, |at| u16::from_be_bytes([at[0], at[1]]) >> 3);
                if offset != 0 {
                    return (rest[0], &[]);
                }
                8
            }
            _ => return (protocol, rest),
        };
        protocol = rest[0];
        rest = rest.get(length..).unwrap_or_default();
    }
    (protocol, &[])
}

fn detail(protocol: u8, header: &[u8]) -> Detail {
    match (protocol, header) {
        (TCP | UDP, [_, _, high, low, ..]) => Detail::Port(u16::from_be_bytes([*high, *low])),
        (ICMP | ICMPV6, [kind, code, ..]) => Detail::Icmp(*kind, *code),
        _ => Detail::None,
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
