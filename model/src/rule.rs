//! One rule of a security group, in its two grades.
//!
//! [`RuleSpec`] is what the Cloud Controller accepted: text. [`Rule`] is what
//! can be enforced: addresses, ports and ICMP types, where nothing senseless can
//! be written. [`RuleSpec::read`] leads from the first to the second and is
//! total: what cannot be enforced is a value that says why, so one bad rule
//! never costs a container its other rules, and is never dropped in silence.
//!
//! The reading follows the original agent to the letter, with its oddities
//! (contracts/cell-agent.md 2.4): numbers are cut to 16 and 8 bits, ICMP type
//! 255 means any, a rule of protocol `all` with ports is void.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// A rule as the Cloud Controller states it. Absent text is empty and absent
/// numbers are 0, as the original stores them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct RuleSpec {
    /// `tcp`, `udp`, `icmp`, `icmpv6` or `all`.
    pub protocol: String,
    /// Addresses, CIDRs and ranges, separated by commas.
    pub destination: String,
    /// Ports and port ranges, separated by commas.
    pub ports: String,
    /// ICMP type; -1 and 255 mean any.
    pub icmp_type: i32,
    /// ICMP code.
    pub icmp_code: i32,
    /// For people.
    pub description: String,
    /// Whether new connections that the rule allows are logged.
    pub log: bool,
}

/// A rule that can be enforced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// With its ports or its ICMP type.
    pub protocol: Protocol,
    /// At least one; all that are meant.
    pub destinations: Vec<AddressRange>,
    /// Whether new connections are logged.
    pub log: bool,
}

/// What a rule allows, besides where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Everything.
    All,
    /// TCP to any of these ports; at least one.
    Tcp(Vec<PortRange>),
    /// UDP to any of these ports; at least one.
    Udp(Vec<PortRange>),
    /// ICMP over IPv4.
    Icmp(IcmpMatch),
    /// ICMP over IPv6.
    Icmpv6(IcmpMatch),
}

/// Which ICMP messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IcmpMatch {
    /// Every one.
    Any,
    /// Exactly this type and code.
    Exact {
        /// The type.
        icmp_type: u8,
        /// The code. 255 is a code like any other: a rule with a type and code
        /// -1 matches no message that occurs.
        code: u8,
    },
}

/// Ports from `first` to `last`, both included, never inverted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `None` when `first` is greater than `last`.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Addresses of one family from the first to the last, both included, never
/// inverted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressRange {
    /// IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

impl AddressRange {
    /// # Errors
    /// The two are of different families, or the first is behind the last.
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

    /// Whether `address` is one of them; an address of the other family is not.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(first, last), IpAddr::V4(address)) => first <= address && address <= last,
            (Self::V6(first, last), IpAddr::V6(address)) => first <= address && address <= last,
            (Self::V4(..), IpAddr::V6(_)) | (Self::V6(..), IpAddr::V4(_)) => false,
        }
    }

    /// One item of a destination list: an address, a CIDR or a range. Parsed as
    /// Go does: no blanks, no leading zeros in IPv4, no dotted netmask, no zone.
    fn parse(item: &str) -> Result<Self, Fault> {
        if let Some((first, last)) = item.split_once('-') {
            return Self::try_new(parse_address(first)?, parse_address(last)?);
        }
        if item.contains('/') {
            let net: IpNet = item.parse().map_err(|_| Fault::NotACidr)?;
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

/// An IPv4 address written as IPv6 (`::ffff:1.2.3.4`) is the IPv4 address.
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
    }
}

/// What is wrong with one item of a destination or port list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// Nothing stands between two commas.
    #[error("is empty")]
    Empty,
    /// Not an IP address as the agent reads them.
    #[error("is not an IP address")]
    NotAnAddress,
    /// A slash, but not an address and a prefix length.
    #[error("is not a CIDR with a prefix length")]
    NotACidr,
    /// The end comes before the beginning.
    #[error("ends before it begins")]
    Inverted,
    /// One end is IPv4, the other IPv6.
    #[error("mixes IPv4 and IPv6")]
    MixedFamilies,
    /// Not of the family that the protocol works over.
    #[error("is of the wrong IP family for the protocol")]
    WrongFamily,
    /// Neither a port nor two ports with one dash between them.
    #[error("is not a port or port range")]
    NotAPort,
}

/// Why a rule, or a part of it, is not enforced. Displays as a clause that
/// names the value, such as `destination "1.2.3" is not an IP address`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unenforceable {
    /// The protocol is none that the agent knows.
    #[error("protocol {0:?} is not known")]
    Protocol(String),
    /// TCP or UDP without a single usable port.
    #[error("{0} needs ports, and {1:?} has none")]
    NoPorts(&'static str, String),
    /// Ports on a protocol that has none make the rule void.
    #[error("ports {0:?} make no sense with protocol {1:?}")]
    PortsWithoutMeaning(String, String),
    /// One destination of the list; the others stay in force.
    #[error("destination {0:?} {1}")]
    Destination(String, Fault),
    /// One port item of the list; the others stay in force.
    #[error("ports {0:?} {1}")]
    Port(String, Fault),
}

/// What [`RuleSpec::read`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What is left to enforce; `None` when nothing is.
    pub rule: Option<Rule>,
    /// What is not enforced, and why. Empty for a good rule.
    pub problems: Vec<Unenforceable>,
}

impl RuleSpec {
    /// Reads the rule as the agent does.
    #[must_use]
    pub fn read(&self) -> Reading {
        let mut problems = Vec::new();
        let rule = self.read_rule(&mut problems);
        Reading { rule, problems }
    }

    fn read_rule(&self, problems: &mut Vec<Unenforceable>) -> Option<Rule> {
        let protocol = match self.read_protocol(problems) {
            Ok(protocol) => protocol,
            Err(problem) => {
                problems.push(problem);
                return None;
            }
        };
        let destinations = self.read_destinations(&protocol, problems);
        (!destinations.is_empty()).then_some(Rule { protocol, destinations, log: self.log })
    }

    fn read_protocol(&self, problems: &mut Vec<Unenforceable>) -> Result<Protocol, Unenforceable> {
        let with_ports = |name, ports: Vec<PortRange>, make: fn(Vec<PortRange>) -> Protocol| {
            if ports.is_empty() {
                Err(Unenforceable::NoPorts(name, self.ports.clone()))
            } else {
                Ok(make(ports))
            }
        };
        match self.protocol.as_str() {
            "tcp" => with_ports("tcp", self.read_ports(problems), Protocol::Tcp),
            "udp" => with_ports("udp", self.read_ports(problems), Protocol::Udp),
            "icmp" => self.without_ports(Protocol::Icmp(self.icmp())),
            "icmpv6" => self.without_ports(Protocol::Icmpv6(self.icmp())),
            "all" => self.without_ports(Protocol::All),
            other => Err(Unenforceable::Protocol(other.to_owned())),
        }
    }

    /// Only ports that parse make the rule void; rubbish counts as no ports.
    fn without_ports(&self, protocol: Protocol) -> Result<Protocol, Unenforceable> {
        if self.read_ports(&mut Vec::new()).is_empty() {
            Ok(protocol)
        } else {
            Err(Unenforceable::PortsWithoutMeaning(self.ports.clone(), self.protocol.clone()))
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the original cuts to 8 bits: -1 is 255"
    )]
    fn icmp(&self) -> IcmpMatch {
        match (self.icmp_type as u8, self.icmp_code as u8) {
            (255, _) => IcmpMatch::Any,
            (icmp_type, code) => IcmpMatch::Exact { icmp_type, code },
        }
    }

    fn read_ports(&self, problems: &mut Vec<Unenforceable>) -> Vec<PortRange> {
        if self.ports.is_empty() {
            return Vec::new();
        }
        let mut ranges = Vec::new();
        for item in self.ports.split(',') {
            match parse_ports(item) {
                Ok(range) => ranges.push(range),
                Err(fault) => problems.push(Unenforceable::Port(item.to_owned(), fault)),
            }
        }
        ranges
    }

    fn read_destinations(
        &self,
        protocol: &Protocol,
        problems: &mut Vec<Unenforceable>,
    ) -> Vec<AddressRange> {
        let mut ranges = Vec::new();
        for item in self.destination.split(',') {
            let range = match item {
                "" => Err(Fault::Empty),
                _ => AddressRange::parse(item).and_then(|range| of_family(protocol, range)),
            };
            match range {
                Ok(range) => ranges.push(range),
                Err(fault) => problems.push(Unenforceable::Destination(item.to_owned(), fault)),
            }
        }
        ranges
    }
}

fn of_family(protocol: &Protocol, range: AddressRange) -> Result<AddressRange, Fault> {
    match (protocol, range) {
        (Protocol::Icmp(_), AddressRange::V6(..)) | (Protocol::Icmpv6(_), AddressRange::V4(..)) => {
            Err(Fault::WrongFamily)
        }
        (Protocol::All | Protocol::Tcp(_) | Protocol::Udp(_), _)
        | (Protocol::Icmp(_), AddressRange::V4(..))
        | (Protocol::Icmpv6(_), AddressRange::V6(..)) => Ok(range),
    }
}

/// One item: a number, or two with a dash between; blanks around numbers.
fn parse_ports(item: &str) -> Result<PortRange, Fault> {
    let mut ends = item.split('-');
    let (first, last) = match (ends.next(), ends.next(), ends.next()) {
        (Some(port), None, None) => (port, port),
        (Some(first), Some(last), None) => (first, last),
        _ => return Err(Fault::NotAPort),
    };
    PortRange::new(parse_port(first)?, parse_port(last)?).ok_or(Fault::Inverted)
}

/// A decimal number with an optional sign, cut to 16 bits (65616 is 80).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the original cuts to 16 bits"
)]
fn parse_port(text: &str) -> Result<u16, Fault> {
    text.trim().parse::<i64>().map(|number| number as u16).map_err(|_| Fault::NotAPort)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(protocol: &str, destination: &str, ports: &str) -> RuleSpec {
        RuleSpec {
            protocol: protocol.to_owned(),
            destination: destination.to_owned(),
            ports: ports.to_owned(),
            ..RuleSpec::default()
        }
    }

    fn icmp(icmp_type: i32, icmp_code: i32) -> IcmpMatch {
        let spec = RuleSpec { icmp_type, icmp_code, ..spec("icmp", "10.0.0.1", "") };
        match spec.read().rule.expect("the rule is good").protocol {
            Protocol::Icmp(icmp) => icmp,
            other => panic!("{other:?}"),
        }
    }

    fn destinations(text: &str) -> Result<String, String> {
        let reading = spec("all", text, "").read();
        match (reading.rule, reading.problems.as_slice()) {
            (Some(rule), []) => Ok(format!("{:?}", rule.destinations)),
            (_, problems) => {
                Err(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
        }
    }

    fn ports(text: &str) -> (String, usize) {
        let reading = spec("tcp", "10.0.0.1", text).read();
        match reading.rule.map(|rule| rule.protocol) {
            Some(Protocol::Tcp(ports)) => (format!("{ports:?}"), reading.problems.len()),
            Some(other) => panic!("{other:?}"),
            None => ("void".to_owned(), reading.problems.len()),
        }
    }

    #[test]
    fn destination_forms() {
        for (text, range) in [
            ("1.2.3.4", "[1.2.3.4]"),
            ("10.1.2.3/8", "[10.0.0.0-10.255.255.255]"),
            ("0.0.0.0/0", "[0.0.0.0-255.255.255.255]"),
            ("10.0.0.1-10.0.0.9", "[10.0.0.1-10.0.0.9]"),
            ("10.0.0.1-10.0.0.1", "[10.0.0.1]"),
            ("1.2.3.4,5.6.7.8/32", "[1.2.3.4, 5.6.7.8]"),
            ("::ffff:1.2.3.4", "[1.2.3.4]"),
            ("2001:db8::/127", "[2001:db8::-2001:db8::1]"),
        ] {
            assert_eq!(destinations(text), Ok(range.to_owned()), "{text}");
        }
    }

    /// What the Cloud Controller lets through and the original agent chokes on.
    #[test]
    fn poison_destinations_say_what_is_wrong() {
        for (text, problem) in [
            ("", "destination \"\" is empty"),
            ("1.2.3.4,,5.6.7.8", "destination \"\" is empty"),
            (
                "10.9.0.0/255.255.0.0",
                "destination \"10.9.0.0/255.255.0.0\" is not a CIDR with a prefix length",
            ),
            ("10.0.0.1-", "destination \"10.0.0.1-\" is not an IP address"),
            ("10.0.0.1-10.0.0.2-", "destination \"10.0.0.1-10.0.0.2-\" is not an IP address"),
            ("010.0.0.1", "destination \"010.0.0.1\" is not an IP address"),
            (" 10.0.0.1", "destination \" 10.0.0.1\" is not an IP address"),
            ("10.0.0.9-10.0.0.1", "destination \"10.0.0.9-10.0.0.1\" ends before it begins"),
            ("10.0.0.1-2001:db8::1", "destination \"10.0.0.1-2001:db8::1\" mixes IPv4 and IPv6"),
            ("fe80::1%eth0", "destination \"fe80::1%eth0\" is not an IP address"),
            ("[::1]", "destination \"[::1]\" is not an IP address"),
        ] {
            assert_eq!(destinations(text), Err(problem.to_owned()), "{text}");
        }
    }

    #[test]
    fn one_bad_destination_costs_only_itself() {
        let reading = spec("all", "1.2.3.4,bad,5.6.7.8", "").read();
        assert_eq!(format!("{:?}", reading.rule.unwrap().destinations), "[1.2.3.4, 5.6.7.8]");
        assert_eq!(
            reading.problems,
            [Unenforceable::Destination("bad".to_owned(), Fault::NotAnAddress)]
        );
    }

    /// Contract 2.4, case 06.
    #[test]
    fn ports_keep_the_oddities_of_the_original() {
        for (text, read) in [
            ("80", ("[80]", 0)),
            ("80,443,1-5", ("[80, 443, 1-5]", 0)),
            (" 80 , 443 ", ("[80, 443]", 0)),
            ("1 - 5", ("[1-5]", 0)),
            ("65616", ("[80]", 0)),
            ("+80", ("[80]", 0)),
            ("80,", ("[80]", 1)),
            ("80,x,443", ("[80, 443]", 1)),
            ("1-2-3,80", ("[80]", 1)),
            ("9-1,80", ("[80]", 1)),
            ("-80", ("void", 2)),
            ("", ("void", 1)),
            ("x", ("void", 2)),
            ("99999999999999999999", ("void", 2)),
        ] {
            let (ranges, problems) = ports(text);
            assert_eq!((ranges.as_str(), problems), read, "{text:?}");
        }
    }

    #[test]
    fn ports_without_meaning_make_a_rule_void() {
        for protocol in ["all", "icmp", "icmpv6"] {
            let reading = spec(protocol, "10.0.0.1", "80").read();
            assert_eq!(reading.rule, None);
            assert_eq!(reading.problems.len(), 1);
        }
        assert!(spec("all", "10.0.0.1", "").read().rule.is_some());
        assert!(spec("all", "10.0.0.1", "x").read().rule.is_some());
    }

    /// Contract 2.4, case 07.
    #[test]
    fn icmp_types_are_cut_to_8_bits() {
        let exact = |icmp_type, code| IcmpMatch::Exact { icmp_type, code };
        assert_eq!(icmp(-1, -1), IcmpMatch::Any);
        assert_eq!(icmp(-1, 3), IcmpMatch::Any);
        assert_eq!(icmp(255, 0), IcmpMatch::Any);
        assert_eq!(icmp(8, 0), exact(8, 0));
        assert_eq!(icmp(8, -1), exact(8, 255));
        assert_eq!(icmp(0, 0), exact(0, 0));
    }

    #[test]
    fn protocols_are_spelt_exactly() {
        for protocol in ["TCP", "sctp", "", "Icmp"] {
            assert_eq!(
                spec(protocol, "10.0.0.1", "80").read().problems,
                [Unenforceable::Protocol(protocol.to_owned())]
            );
        }
    }

    #[test]
    fn icmp_goes_with_its_family() {
        assert_eq!(spec("icmp", "2001:db8::1", "").read().rule, None);
        assert_eq!(spec("icmpv6", "10.0.0.1", "").read().rule, None);
        assert!(spec("icmpv6", "2001:db8::1", "").read().rule.is_some());
    }

    proptest! {
        /// Law 6: no text makes reading fail, and what is not enforced is told.
        #[test]
        fn reading_is_total(
            protocol in "tcp|udp|icmp|icmpv6|all|[a-z]{0,3}",
            destination in "[0-9a-f.:,/ -]{0,40}|\\PC{0,20}",
            ports in "[0-9, -]{0,20}|\\PC{0,10}",
            icmp_type: i32,
            icmp_code: i32,
        ) {
            let spec = RuleSpec {
                icmp_type, icmp_code, ..spec(&protocol, &destination, &ports)
            };
            let reading = spec.read();
            prop_assert!(reading.rule.is_some() || !reading.problems.is_empty());
            if let Some(rule) = reading.rule {
                prop_assert!(!rule.destinations.is_empty());
            }
        }

        #[test]
        fn ranges_hold_their_ends_and_nothing_outside(a: u32, b: u32, probe: u32) {
            let (low, high) = (a.min(b), a.max(b));
            let text = format!("{}-{}", Ipv4Addr::from(low), Ipv4Addr::from(high));
            let range = AddressRange::parse(&text).unwrap();
            prop_assert_eq!(
                range.contains(Ipv4Addr::from(probe).into()),
                (low..=high).contains(&probe)
            );
        }
    }
}
