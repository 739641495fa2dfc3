//! Parses rules that the Cloud Controller accepted into rules that can be enforced.

use super::{AddressRange, Fault, IcmpMatch, PortRange, Protocol, Rule, RuleSpec};

/// Why a rule, or a part of it, is not enforced. Displays as a clause that includes the value, such
/// as `destination "1.2.3" is not an IP address`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unenforceable {
    /// The agent does not know the protocol.
    #[error("protocol {0:?} is not known")]
    Protocol(String),
    /// TCP or UDP without a single usable port.
    #[error("{0} needs ports, and {1:?} has none")]
    NoPorts(&'static str, String),
    /// A rule with ports on a protocol without ports is void.
    #[error("ports {0:?} make no sense with protocol {1:?}")]
    PortsWithoutMeaning(String, String),
    /// An invalid destination of the list; the others stay in force.
    #[error("destination {0:?} {1}")]
    Destination(String, Fault),
    /// An invalid port item of the list; the others stay in force.
    #[error("ports {0:?} {1}")]
    Port(String, Fault),
}

/// Result of [`RuleSpec::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The enforceable rest; `None` when there is none.
    pub rule: Option<Rule>,
    /// The parts that are not enforced, and why. Empty for a valid rule.
    pub problems: Vec<Unenforceable>,
}

impl RuleSpec {
    /// Parses the rule as the original agent does.
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

    /// Only ports that parse make the rule void, including inverted ranges; unparsable ports count
    /// as no ports.
    fn without_ports(&self, protocol: Protocol) -> Result<Protocol, Unenforceable> {
        let is_rubbish = |item| matches!(parse_ports(item), Err(Fault::NotAPort));
        if self.ports.split(',').all(is_rubbish) {
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
        IcmpMatch { icmp_type: self.icmp_type as u8, code: self.icmp_code as u8 }
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

/// Parses one item: a number, or two numbers with a dash between; spaces around numbers are
/// allowed.
fn parse_ports(item: &str) -> Result<PortRange, Fault> {
    let mut ends = item.split('-');
    let (first, last) = match (ends.next(), ends.next(), ends.next()) {
        (Some(port), None, None) => (port, port),
        (Some(first), Some(last), None) => (first, last),
        _ => return Err(Fault::NotAPort),
    };
    PortRange::new(parse_port(first)?, parse_port(last)?).ok_or(Fault::Inverted)
}

/// Parses a decimal number with an optional sign, truncated to 16 bits (65616 becomes 80).
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
    use std::net::Ipv4Addr;

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
            ("10.1.2.3/0008", "[10.0.0.0-10.255.255.255]"),
            ("10.0.0.1-10.0.0.9", "[10.0.0.1-10.0.0.9]"),
            ("10.0.0.1-10.0.0.1", "[10.0.0.1]"),
            ("1.2.3.4,5.6.7.8/32", "[1.2.3.4, 5.6.7.8]"),
            ("::ffff:1.2.3.4", "[1.2.3.4]"),
            ("2001:db8::/127", "[2001:db8::-2001:db8::1]"),
        ] {
            assert_eq!(destinations(text), Ok(range.to_owned()), "{text}");
        }
    }

    /// Destinations that the Cloud Controller accepts and on which the original agent fails.
    #[test]
    fn invalid_destinations_are_explained() {
        for (text, problem) in [
            ("", "destination \"\" is empty"),
            ("1.2.3.4,,5.6.7.8", "destination \"\" is empty"),
            (
                "10.9.0.0/255.255.0.0",
                "destination \"10.9.0.0/255.255.0.0\" is not a CIDR with a prefix length",
            ),
            ("010.9.0.0/8", "destination \"010.9.0.0/8\" is not a CIDR with a prefix length"),
            ("00.0.0.0/0", "destination \"00.0.0.0/0\" is not a CIDR with a prefix length"),
            ("10.0.0.0/+8", "destination \"10.0.0.0/+8\" is not a CIDR with a prefix length"),
            ("10.0.0.0/33", "destination \"10.0.0.0/33\" is not a CIDR with a prefix length"),
            ("10.0.0.0/264", "destination \"10.0.0.0/264\" is not a CIDR with a prefix length"),
            ("10.0.0.0/", "destination \"10.0.0.0/\" is not a CIDR with a prefix length"),
            ("10.0.0.0/8/8", "destination \"10.0.0.0/8/8\" is not a CIDR with a prefix length"),
            (
                "fe80::1%eth0/64",
                "destination \"fe80::1%eth0/64\" is not a CIDR with a prefix length",
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
            for ports in ["80", "x, 65616", "9-1"] {
                let reading = spec(protocol, "10.0.0.1", ports).read();
                assert_eq!(reading.rule, None, "{protocol} {ports}");
                assert_eq!(reading.problems.len(), 1);
            }
        }
        assert!(spec("all", "10.0.0.1", "").read().rule.is_some());
        assert!(spec("all", "10.0.0.1", "x").read().rule.is_some());
    }

    /// Contract 2.4, case 07.
    #[test]
    fn icmp_types_are_cut_to_8_bits() {
        assert_eq!(icmp(-1, -1), IcmpMatch::ANY);
        assert_ne!(icmp(-1, 3), IcmpMatch::ANY, "the original keeps both");
        for any in [icmp(-1, -1), icmp(-1, 3), icmp(255, 0), icmp(511, 0)] {
            assert_eq!(any.exact(), None);
            assert!(any.contains(8, 0));
        }
        assert_eq!(icmp(8, 0).exact(), Some((8, 0)));
        assert_eq!(icmp(8, -1).exact(), Some((8, 255)));
        assert_eq!(icmp(264, 256).exact(), Some((8, 0)));
        assert!(icmp(0, 0).contains(0, 0) && !icmp(0, 0).contains(0, 1));
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
        /// Law 6: no text makes reading fail, and each part that is not enforced is reported.
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
