//! Finds rules that nearly match a connection, with the reason for each mismatch.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use crate::{
    connections::number_of,
    effective::{Permit, Probe, ProbeKind, Service, Source},
    rule::{IcmpMatch, PortRange},
};

/// Maximum number of rules in the result.
const NEAREST: usize = 5;
/// Size from which a range, a /8 of IPv4 or a /32 of IPv6, says little about one
/// address.
const WIDE: [u128; 2] = [1 << 24, 1 << 96];

/// Distance of a permit from a connection: the kind of mismatch, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    /// Address and protocol match, the port does not.
    Port(u128),
    /// The service matches, the address does not: the number of addresses in between.
    Address(u128),
    /// Like `Port`, in a wide range of addresses.
    PortOfMany(u128),
    /// The address matches; the protocol does not.
    Protocol,
    /// Like `Protocol`, in a wide range of addresses.
    ProtocolOfMany,
}

/// Rules that nearly match a connection, each once, the nearest first, with the reason for the
/// mismatch. At most five.
#[must_use]
pub fn near_misses(permits: &[(Permit, Source)], probe: Probe) -> Vec<(&Source, String)> {
    let mut nearest: BTreeMap<(&_, usize), (Distance, &Source, String)> = BTreeMap::new();
    for (permit, source) in permits {
        let Some((distance, reason)) = miss(permit, probe) else { continue };
        let key = (&source.group, source.rule);
        match nearest.get(&key) {
            Some((known, ..)) if *known <= distance => {}
            _ => _ = nearest.insert(key, (distance, source, reason)),
        }
    }
    let mut nearest: Vec<_> = nearest.into_values().collect();
    nearest.sort_by_key(|(distance, source, _)| (*distance, Reverse(source.reach), source.rule));
    nearest.into_iter().take(NEAREST).map(|(_, source, reason)| (source, reason)).collect()
}

fn miss(permit: &Permit, probe: Probe) -> Option<(Distance, String)> {
    let Probe { destination: to, kind } = probe;
    if !permit.destination.contains(to) {
        let gap = gap(permit, to).filter(|_| permit.matches_service(probe))?;
        return Some((Distance::Address(gap), format!("{to} is not in {}", permit.destination)));
    }
    let wide = size(permit) > WIDE[usize::from(to.is_ipv6())];
    let ports = |ports: PortRange, port: u16| {
        let gap =
            u128::from(ports.first().saturating_sub(port).max(port.saturating_sub(ports.last())));
        let distance = if wide { Distance::PortOfMany(gap) } else { Distance::Port(gap) };
        (distance, format!("port {port} is not {ports}"))
    };
    Some(match (permit.service, kind) {
        (Service::Tcp(range), ProbeKind::Tcp(port))
        | (Service::Udp(range), ProbeKind::Udp(port)) => ports(range, port),
        (Service::Icmp(wanted) | Service::Icmpv6(wanted), ProbeKind::Icmp { icmp_type, code }) => {
            let distance = if wide { Distance::PortOfMany(0) } else { Distance::Port(0) };
            let message = format!("type {icmp_type} code {code}");
            (distance, format!("{message} is not {}", icmp(wanted)))
        }
        (service, _) => {
            let distance = if wide { Distance::ProtocolOfMany } else { Distance::Protocol };
            (distance, format!("{} is not {}", of_probe(kind), service.protocol()))
        }
    })
}

/// Number of addresses in between; `None` for another family.
fn gap(permit: &Permit, to: IpAddr) -> Option<u128> {
    let (first, last) = (permit.destination.first(), permit.destination.last());
    let same_family = first.is_ipv4() == to.is_ipv4();
    let (first, last, to) = (number_of(first), number_of(last), number_of(to));
    same_family.then(|| first.saturating_sub(to).max(to.saturating_sub(last)))
}

fn size(permit: &Permit) -> u128 {
    number_of(permit.destination.last()) - number_of(permit.destination.first())
}

fn icmp(wanted: IcmpMatch) -> String {
    match wanted.exact() {
        None => "any message".to_owned(),
        Some((icmp_type, code)) => format!("type {icmp_type} code {code}"),
    }
}

fn of_probe(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Tcp(_) => "tcp",
        ProbeKind::Udp(_) => "udp",
        ProbeKind::Icmp { .. } => "icmp",
        ProbeKind::Other => "another protocol",
    }
}
