//! Destinations: address ranges, parsed as the original does.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// Addresses of one family from the first to the last, inclusive, never inverted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressRange {
    /// IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

impl AddressRange {
    /// # Errors
    /// The two are of different families, or the first is greater than the last.
    pub fn try_new(first: IpAddr, last: IpAddr) -> Result<Self, Fault> {
        match (first, last) {
            (IpAddr::V4(a), IpAddr::V4(b)) if a <= b => Ok(Self::V4(a, b)),
            (IpAddr::V6(a), IpAddr::V6(b)) if a <= b => Ok(Self::V6(a, b)),
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => Err(Fault::Inverted),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                Err(Fault::MixedFamilies)
            }
        }
    }

    /// The lowest address.
    #[must_use]
    pub fn first(self) -> IpAddr {
        match self {
            Self::V4(first, _) => first.into(),
            Self::V6(first, _) => first.into(),
        }
    }

    /// The highest address.
    #[must_use]
    pub fn last(self) -> IpAddr {
        match self {
            Self::V4(_, last) => last.into(),
            Self::V6(_, last) => last.into(),
        }
    }

    /// Whether the range contains `address`; never true for the other family.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(first, last), IpAddr::V4(address)) => first <= address && address <= last,
            (Self::V6(first, last), IpAddr::V6(address)) => first <= address && address <= last,
            (Self::V4(..), IpAddr::V6(_)) | (Self::V6(..), IpAddr::V4(_)) => false,
        }
    }

    /// Parses one item of a destination list: an address, a CIDR or a range. Parses as Go does: no
    /// spaces, no leading zeros in IPv4, no dotted netmask, no zone.
    pub(super) fn parse(item: &str) -> Result<Self, Fault> {
        if let Some((first, last)) = item.split_once('-') {
            return Self::try_new(parse_address(first)?, parse_address(last)?);
        }
        if let Some((address, length)) = item.split_once('/') {
            let net = parse_net(address, length).ok_or(Fault::NotACidr)?;
            return Self::try_new(unmapped(net.network()), unmapped(net.broadcast()));
        }
        let address = parse_address(item)?;
        Self::try_new(address, address)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first(), self.last());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn parse_address(text: &str) -> Result<IpAddr, Fault> {
    text.parse().map(unmapped).map_err(|_| Fault::NotAnAddress)
}

/// Parses a network; host bits are ignored. The prefix length consists of digits only, with any
/// number of leading zeros.
fn parse_net(address: &str, length: &str) -> Option<IpNet> {
    let address: IpAddr = address.parse().ok()?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length: u64 = length.parse().ok().filter(|_| digits)?;
    IpNet::new(address, u8::try_from(length).ok()?).ok()
}

/// Maps an IPv4-mapped IPv6 address (`::ffff:1.2.3.4`) to its IPv4 address.
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
    }
}

/// Why an item of a destination or port list is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// No text between two commas.
    #[error("is empty")]
    Empty,
    /// Not an IP address in the agent's syntax.
    #[error("is not an IP address")]
    NotAnAddress,
    /// Has a slash, but is not an address and a prefix length.
    #[error("is not a CIDR with a prefix length")]
    NotACidr,
    /// The end is less than the beginning.
    #[error("ends before it begins")]
    Inverted,
    /// One end is IPv4, the other IPv6.
    #[error("mixes IPv4 and IPv6")]
    MixedFamilies,
    /// The address family does not match the protocol.
    #[error("is of the wrong IP family for the protocol")]
    WrongFamily,
    /// Neither a port nor two ports with one dash between them.
    #[error("is not a port or port range")]
    NotAPort,
}
