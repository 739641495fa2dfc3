//! Sets of new connections, and the difference between two of them.
//!
//! [`Connections`] is the set that permits allow, which is what cells enforce: invalid rules and
//! rule parts have no permits. A set is kept for each protocol as a region of address
//! and port, or of address and ICMP type and code. All sets are canonical: the same connections are
//! the same value, however the rules are written.

mod area;
mod region;
mod spans;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use self::area::{Area, Traffic};
use self::region::{Rectangle, Region};
use crate::{
    effective::{Permit, Probe, ProbeKind, Service},
    rule::{AddressRange, IcmpMatch},
};

/// What a region is about. ICMP is that of the address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Other,
}

const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Other];
/// Regions of both families.
const REGIONS: usize = 2 * PROTOCOLS.len();

fn place(protocol: Protocol, v6: bool) -> usize {
    2 * protocol as usize + usize::from(v6)
}

/// A set of new connections; see the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Connections([Region; REGIONS]);

impl Connections {
    /// The connections that any of the permits allows.
    #[must_use]
    pub fn of<'a>(permits: impl IntoIterator<Item = &'a Permit>) -> Self {
        let mut rectangles: [Vec<Rectangle>; REGIONS] = Default::default();
        for (place, rectangle) in permits.into_iter().flat_map(parts) {
            rectangles[place].push(rectangle);
        }
        Self(rectangles.map(Region::of))
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Region::is_empty)
    }

    /// The connections of either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, Region::union)
    }

    /// The connections of both sets. Takes time by the size of the smaller set.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, Region::intersection)
    }

    /// The connections of this set that are not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, Region::minus)
    }

    fn combine(&self, other: &Self, combine: impl Fn(&Region, &Region) -> Region) -> Self {
        Self(std::array::from_fn(|place| combine(&self.0[place], &other.0[place])))
    }

    /// Whether all connections of `other` are in this set.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.minus(self).is_empty()
    }

    /// Whether the permit allows a connection of this set.
    #[must_use]
    pub fn intersects(&self, permit: &Permit) -> bool {
        parts(permit).any(|(place, rectangle)| self.0[place].intersects(rectangle))
    }

    /// Whether a connection that begins with this packet is in the set.
    #[must_use]
    pub fn contains(&self, probe: Probe) -> bool {
        let (protocol, number) = match probe.kind {
            ProbeKind::Tcp(port) => (Protocol::Tcp, port),
            ProbeKind::Udp(port) => (Protocol::Udp, port),
            ProbeKind::Icmp { icmp_type, code } => (Protocol::Icmp, message(icmp_type, code)),
            ProbeKind::Other => (Protocol::Other, 0),
        };
        let to = probe.destination;
        self.0[place(protocol, to.is_ipv6())].contains(number_of(to), number)
    }

    /// Disjoint areas, ascending by protocol and address, whose union is the set.
    #[must_use]
    pub fn areas(&self) -> Vec<Area> {
        let regions = PROTOCOLS.into_iter().flat_map(|protocol| {
            [false, true].map(|v6| (protocol, v6, &self.0[place(protocol, v6)]))
        });
        let areas = regions.flat_map(|(protocol, v6, region)| {
            let rectangles = region.rectangles().into_iter();
            rectangles.flat_map(move |rectangle| area::areas(protocol, v6, rectangle))
        });
        areas.collect()
    }
}

/// Number of IPv4 and of IPv6 addresses in any of the ranges, each once; saturates.
#[must_use]
pub fn addresses(ranges: impl IntoIterator<Item = AddressRange>) -> [u128; 2] {
    let mut rectangles: [Vec<Rectangle>; 2] = Default::default();
    for range in ranges {
        let (v6, addresses) = numbers_of(range);
        rectangles[usize::from(v6)].push(Rectangle { addresses, numbers: (0, 0) });
    }
    rectangles.map(|rectangles| Region::of(rectangles).addresses())
}

/// The rectangles of a permit, each with the place of its region.
fn parts(permit: &Permit) -> impl Iterator<Item = (usize, Rectangle)> + use<> {
    let (v6, addresses) = numbers_of(permit.destination);
    let all = (0, u16::MAX);
    let icmp = move |wanted: IcmpMatch| match wanted.exact() {
        None => all,
        Some((icmp_type, code)) => (message(icmp_type, code), message(icmp_type, code)),
    };
    let service = permit.service;
    let of = move |protocol| {
        let numbers = match (service, protocol) {
            (Service::All, _) => all,
            (Service::Tcp(ports), Protocol::Tcp) | (Service::Udp(ports), Protocol::Udp) => {
                (ports.first(), ports.last())
            }
            (Service::Icmp(wanted), Protocol::Icmp) if !v6 => icmp(wanted),
            (Service::Icmpv6(wanted), Protocol::Icmp) if v6 => icmp(wanted),
            (Service::Tcp(_) | Service::Udp(_) | Service::Icmp(_) | Service::Icmpv6(_), _) => {
                return None;
            }
        };
        Some((place(protocol, v6), Rectangle { addresses, numbers }))
    };
    PROTOCOLS.into_iter().filter_map(of)
}

/// Type and code of an ICMP message as one number.
fn message(icmp_type: u8, code: u8) -> u16 {
    u16::from_be_bytes([icmp_type, code])
}

pub(crate) fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// Whether the range is of IPv6, and its ends.
fn numbers_of(range: AddressRange) -> (bool, (u128, u128)) {
    let (first, last) = (range.first(), range.last());
    (first.is_ipv6(), (number_of(first), number_of(last)))
}
