//! Parts of a set of connections, for people and messages.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{Protocol, region::Rectangle};
use crate::rule::{AddressRange, PortRange};

/// Connections of one protocol to a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Destination addresses.
    pub addresses: AddressRange,
    /// Protocol with its ports, or ICMP types and codes.
    pub traffic: Traffic,
}

/// Protocol of an [`Area`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// TCP to these ports.
    Tcp(PortRange),
    /// UDP to these ports.
    Udp(PortRange),
    /// ICMP of the family of the addresses: inclusive ranges.
    Icmp {
        /// First and last type.
        types: (u8, u8),
        /// First and last code of each of these types.
        codes: (u8, u8),
    },
    /// All other protocols.
    Other,
}

impl Area {
    /// `tcp`, `udp`, `icmp`, `icmpv6` or `other`.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        match (self.traffic, self.addresses) {
            (Traffic::Tcp(_), _) => "tcp",
            (Traffic::Udp(_), _) => "udp",
            (Traffic::Icmp { .. }, AddressRange::V4(..)) => "icmp",
            (Traffic::Icmp { .. }, AddressRange::V6(..)) => "icmpv6",
            (Traffic::Other, _) => "other",
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, to) = (self.protocol(), self.addresses);
        match self.traffic {
            Traffic::Tcp(ports) | Traffic::Udp(ports) => write!(f, "{protocol} {to}:{ports}"),
            Traffic::Icmp { types, codes } => {
                let (of, code) = (types.0, codes.0);
                write!(f, "{protocol} {to} type {of}-{} code {code}-{}", types.1, codes.1)
            }
            Traffic::Other => write!(f, "{protocol} {to}"),
        }
    }
}

/// The areas of a rectangle.
pub(super) fn areas(
    protocol: Protocol,
    v6: bool,
    rectangle: Rectangle,
) -> impl Iterator<Item = Area> {
    let Rectangle { addresses: (first, last), numbers } = rectangle;
    let addresses = match v6 {
        true => AddressRange::V6(Ipv6Addr::from(first), Ipv6Addr::from(last)),
        false => AddressRange::V4(v4(first), v4(last)),
    };
    let ports = || PortRange::new(numbers.0, numbers.1).expect("a rectangle is never inverted");
    let traffic = match protocol {
        Protocol::Tcp => vec![Traffic::Tcp(ports())],
        Protocol::Udp => vec![Traffic::Udp(ports())],
        Protocol::Icmp => messages(numbers),
        Protocol::Other => vec![Traffic::Other],
    };
    traffic.into_iter().map(move |traffic| Area { addresses, traffic })
}

/// An interval of messages, by type and then code, as ranges of types with the same codes.
fn messages((first, last): (u16, u16)) -> Vec<Traffic> {
    let [of, from] = first.to_be_bytes();
    let [to, until] = last.to_be_bytes();
    let icmp = |types, codes| Traffic::Icmp { types, codes };
    if of == to {
        return vec![icmp((of, of), (from, until))];
    }
    let mut messages = Vec::new();
    let (mut whole_from, mut whole_to) = (of, to);
    if from != 0 {
        messages.push(icmp((of, of), (from, u8::MAX)));
        whole_from += 1;
    }
    if until != u8::MAX {
        whole_to -= 1;
    }
    if whole_from <= whole_to {
        messages.push(icmp((whole_from, whole_to), (0, u8::MAX)));
    }
    if until != u8::MAX {
        messages.push(icmp((to, to), (0, until)));
    }
    messages
}

fn v4(number: u128) -> Ipv4Addr {
    Ipv4Addr::from(u32::try_from(number).expect("regions of IPv4 have addresses of IPv4"))
}
