//! Decides whether a rule that is not enforced was meant for a connection.
//!
//! Parses more than [`crate::rule`] enforces: dotted netmasks, inverted ranges, blanks,
//! protocol names in capitals. Nothing here affects packets.

use std::net::IpAddr;

use crate::{
    effective::{Probe, ProbeKind},
    rule::{RuleSpec, Unenforceable},
};
use ipnet::IpNet;

/// Whether a rule matches a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// No match.
    No,
    /// A part of the rule cannot be parsed, and the rest matches.
    Maybe,
    /// Match.
    Yes,
}

impl Fit {
    fn exactly(fits: bool) -> Self {
        if fits { Self::Yes } else { Self::No }
    }

    fn maybe(fits: Option<bool>) -> Self {
        fits.map_or(Self::Maybe, Self::exactly)
    }
}

/// Whether the part of the rule with the problem matches; without a problem, the rule.
#[must_use]
pub fn fit(spec: &RuleSpec, problem: Option<&Unenforceable>, probe: Probe) -> Fit {
    let (mut destination, mut ports) = (spec.destination.as_str(), spec.ports.as_str());
    match problem {
        Some(Unenforceable::Destination(item, _)) => destination = item,
        Some(Unenforceable::Port(item, _)) => ports = item,
        Some(
            Unenforceable::Protocol(_)
            | Unenforceable::NoPorts(..)
            | Unenforceable::PortsWithoutMeaning(..),
        )
        | None => {}
    }
    service(spec, ports, probe).min(any(destination, |item| addresses(item, probe.destination)))
}

fn any(list: &str, fit: impl Fn(&str) -> Option<bool>) -> Fit {
    let items = list.split(',').map(str::trim).map(|item| Fit::maybe(fit(item)));
    items.max().unwrap_or(Fit::Maybe)
}

fn service(spec: &RuleSpec, ports: &str, probe: Probe) -> Fit {
    let to_port = |port: u16| match ports.trim() {
        "" => Fit::Yes,
        list => any(list, |item| within_ports(item, port)),
    };
    let protocol = spec.protocol.trim().to_ascii_lowercase();
    let every = matches!(protocol.as_str(), "all" | "any" | "");
    match (protocol.as_str(), probe.kind) {
        ("tcp" | "6", ProbeKind::Tcp(port)) | ("udp" | "17", ProbeKind::Udp(port)) => to_port(port),
        (_, ProbeKind::Tcp(port) | ProbeKind::Udp(port)) if every => to_port(port),
        _ if every => Fit::Yes,
        ("icmp" | "1" | "icmpv6" | "ipv6-icmp" | "58", ProbeKind::Icmp { icmp_type, code }) => {
            let is = |wanted: i32, value: u8| {
                wanted == -1 || wanted == 255 || wanted == i32::from(value)
            };
            Fit::exactly(is(spec.icmp_type, icmp_type) && is(spec.icmp_code, code))
        }
        ("tcp" | "6" | "udp" | "17" | "icmp" | "1" | "icmpv6" | "ipv6-icmp" | "58", _) => Fit::No,
        _ => Fit::Maybe,
    }
}

fn within_ports(item: &str, port: u16) -> Option<bool> {
    let mut ends = item.split(['-', ':']).map(|end| end.trim().parse::<u32>());
    let first = ends.next()?.ok()?;
    let last = ends.next().unwrap_or(Ok(first)).ok()?;
    let port = u32::from(port);
    ends.next().is_none().then_some((first.min(last)..=first.max(last)).contains(&port))
}

fn addresses(item: &str, to: IpAddr) -> Option<bool> {
    let parse = |text: &str| text.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    if let Some((first, last)) = item.split_once('-') {
        let (first, last) = (parse(first)?, parse(last)?);
        let same = first.is_ipv4() == last.is_ipv4();
        return same.then(|| {
            first.is_ipv4() == to.is_ipv4() && (first.min(last)..=first.max(last)).contains(&to)
        });
    }
    if let Some((address, mask)) = item.split_once('/') {
        let address = parse(address)?;
        let net = match mask.trim().parse::<u8>() {
            Ok(length) => IpNet::new(address, length).ok()?,
            Err(_) => IpNet::with_netmask(address, parse(mask)?).ok()?,
        };
        return Some(net.contains(&to));
    }
    Some(parse(item)? == to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(protocol: &str, destination: &str, ports: &str) -> RuleSpec {
        RuleSpec {
            protocol: protocol.to_owned(),
            destination: destination.to_owned(),
            ports: ports.to_owned(),
            ..RuleSpec::default()
        }
    }

    /// Whether the first problem of a rule matches TCP to 10.0.0.5:80.
    fn of(protocol: &str, destination: &str, ports: &str) -> Fit {
        let spec = spec(protocol, destination, ports);
        let problems = spec.read().problems;
        assert!(!problems.is_empty(), "{spec:?} can be enforced");
        let probe = Probe { destination: "10.0.0.5".parse().unwrap(), kind: ProbeKind::Tcp(80) };
        fit(&spec, problems.first(), probe)
    }

    #[test]
    fn a_rule_is_read_as_it_was_meant() {
        for (protocol, destination, ports) in [
            ("tcp", "10.0.0.0/255.255.255.0", "80"),
            ("tcp", "10.0.0.9-10.0.0.1", "80"),
            ("tcp", " 10.0.0.5", "80"),
            ("TCP", "10.0.0.5", "80"),
            ("tcp", "10.0.0.0/8", "90-70"),
            ("tcp", "10.0.0.0/8", ""),
            ("all", "10.0.0.0/8", "80"),
        ] {
            assert_eq!(of(protocol, destination, ports), Fit::Yes, "{protocol} {destination}");
        }
        for (protocol, destination, ports) in [
            ("tcp", "10.0.1.0/255.255.255.0", "80"),
            ("tcp", "10.0.0.0/255.255.255.0", "81"),
            ("udp", "10.0.0.0/255.255.255.0", "80"),
            ("all", "10.0.0.0/8", "81"),
            ("gre", "10.0.1.0/24", ""),
            // Only the part that is not enforced counts.
            ("tcp", "10.0.0.5,10.9.0.0/255.255.255.0", "80"),
            ("tcp", "10.0.0.5", "80,90-81"),
            ("tcp", "::1-10.0.0.9", "81"),
        ] {
            assert_eq!(of(protocol, destination, ports), Fit::No, "{protocol} {destination}");
        }
        for (protocol, destination, ports) in [
            ("tcp", "db.example.com", "80"),
            ("gre", "10.0.0.5", ""),
            ("tcp", "10.0.0.5", "http"),
            ("tcp", "10.0.0.0/255.0.255.0", "80"),
            ("tcp", "::1-10.0.0.9", "80"),
        ] {
            assert_eq!(of(protocol, destination, ports), Fit::Maybe, "{protocol} {destination}");
        }
    }
}
