//! Computes which rules apply to a container, in which order, and where each was defined.
//!
//! The order is the operator's: global groups before the groups of the space, groups by their
//! position in the store, rules, destinations and ports as written. Equal permits are kept once, at
//! their first position; only after that may a renderer reverse the order
//! (docs/compatibility/vxlan-policy-agent.md#groups-of-a-container, #rule-order, #rule-arguments).
//! All permits allow traffic, so the order only decides which packets are logged.

use std::{collections::HashSet, net::IpAddr};

use crate::{
    group::{Lifecycle, Reach, StoredGroup},
    ids::{GroupGuid, SpaceGuid},
    rule::{AddressRange, IcmpMatch, PortRange, Protocol, Rule, RuleSpec, Unenforceable},
};

/// The smallest unit that a rule allows: one range of addresses over one service. One permit
/// corresponds to one iptables rule of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Permit {
    /// Destination addresses.
    pub destination: AddressRange,
    /// Protocol and ports.
    pub service: Service,
    /// Whether new connections are logged.
    pub log: bool,
}

/// A protocol with at most one port range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Any protocol.
    All,
    /// TCP to these ports.
    Tcp(PortRange),
    /// UDP to these ports.
    Udp(PortRange),
    /// ICMP over IPv4.
    Icmp(IcmpMatch),
    /// ICMP over IPv6.
    Icmpv6(IcmpMatch),
}

/// The fields of a connection's first packet that permits match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol and port.
    pub kind: ProbeKind,
}

/// The part of a [`Probe`] that depends on its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Destination port.
    Tcp(u16),
    /// Destination port.
    Udp(u16),
    /// ICMP in the family of the destination.
    Icmp {
        /// The type.
        icmp_type: u8,
        /// The code.
        code: u8,
    },
    /// Any other protocol.
    Other,
}

impl Service {
    /// The name of the protocol in a rule.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tcp(_) => "tcp",
            Self::Udp(_) => "udp",
            Self::Icmp(_) => "icmp",
            Self::Icmpv6(_) => "icmpv6",
        }
    }

    /// Whether the service matches a packet of this kind; `v6`: whether the packet is IPv6.
    fn matches(self, kind: ProbeKind, v6: bool) -> bool {
        match (self, kind) {
            (Self::All, _) => true,
            (Self::Tcp(ports), ProbeKind::Tcp(port)) | (Self::Udp(ports), ProbeKind::Udp(port)) => {
                ports.contains(port)
            }
            (Self::Icmp(icmp), ProbeKind::Icmp { icmp_type, code }) => {
                !v6 && icmp.contains(icmp_type, code)
            }
            (Self::Icmpv6(icmp), ProbeKind::Icmp { icmp_type, code }) => {
                v6 && icmp.contains(icmp_type, code)
            }
            (Self::Tcp(_) | Self::Udp(_) | Self::Icmp(_) | Self::Icmpv6(_), _) => false,
        }
    }
}

impl Permit {
    /// Whether the permit allows the packet.
    #[must_use]
    pub fn matches(&self, probe: Probe) -> bool {
        self.destination.contains(probe.destination) && self.matches_service(probe)
    }

    /// Whether the service matches, regardless of the destination.
    #[must_use]
    pub fn matches_service(&self, probe: Probe) -> bool {
        self.service.matches(probe.kind, probe.destination.is_ipv6())
    }
}

/// A group with parsed rules, parsed once for all containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadGroup {
    /// The group from the store.
    pub stored: StoredGroup,
    /// Permits with the index of their rule in the group.
    permits: Vec<(usize, Permit)>,
    /// Problems with the index of their rule in the group.
    problems: Vec<(usize, Unenforceable)>,
}

impl ReadGroup {
    /// Parses every rule of the group.
    #[must_use]
    pub fn new(stored: StoredGroup) -> Self {
        let (mut permits, mut problems) = (Vec::new(), Vec::new());
        for (index, spec) in stored.group.rules.iter().enumerate() {
            let reading = spec.read();
            problems.extend(reading.problems.into_iter().map(|problem| (index, problem)));
            permits.extend(reading.rule.iter().flat_map(permits_of).map(|permit| (index, permit)));
        }
        Self { stored, permits, problems }
    }

    fn guid(&self) -> &GroupGuid {
        &self.stored.group.guid
    }

    /// The rule at an index that belongs to a permit or a problem of this group.
    #[must_use]
    pub fn rule(&self, index: usize) -> Option<&RuleSpec> {
        self.stored.group.rules.get(index)
    }

    /// Indices of the rules that allow a packet, ascending.
    #[must_use]
    pub fn rules_for(&self, probe: Probe) -> Vec<usize> {
        let matching = self.permits.iter().filter(|(_, permit)| permit.matches(probe));
        let mut rules: Vec<usize> = matching.map(|(index, _)| *index).collect();
        rules.dedup();
        rules
    }

    /// What the rules of this group allow, each permit with the index of its rule, ascending.
    pub fn permits(&self) -> impl Iterator<Item = (usize, &Permit)> {
        self.permits.iter().map(|(index, permit)| (*index, permit))
    }

    /// The parts of this group that cannot be enforced.
    pub fn problems(&self) -> impl Iterator<Item = (usize, &Unenforceable)> {
        self.problems.iter().map(|(index, problem)| (*index, problem))
    }
}

/// One permit for each destination and port item; destinations are the outer loop.
fn permits_of(rule: &Rule) -> impl Iterator<Item = Permit> {
    let services: Vec<Service> = match &rule.protocol {
        Protocol::All => vec![Service::All],
        Protocol::Tcp(ports) => ports.iter().copied().map(Service::Tcp).collect(),
        Protocol::Udp(ports) => ports.iter().copied().map(Service::Udp).collect(),
        Protocol::Icmp(icmp) => vec![Service::Icmp(*icmp)],
        Protocol::Icmpv6(icmp) => vec![Service::Icmpv6(*icmp)],
    };
    rule.destinations.iter().flat_map(move |destination| {
        let destination = *destination;
        services.clone().into_iter().map(move |service| Permit {
            destination,
            service,
            log: rule.log,
        })
    })
}

/// The first rule that defines a permit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The group.
    pub group: GroupGuid,
    /// Index of the rule in the group, from 0.
    pub rule: usize,
    /// Why the group applies.
    pub reach: Reach,
}

/// The effective rules of a container of one space and lifecycle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EffectiveRules {
    /// In the operator's order, without duplicates.
    pub permits: Vec<(Permit, Source)>,
    /// Permits of later rules that equal one of `permits`, in the same order.
    pub repeated: Vec<(Permit, Source)>,
    /// Isolated rules and rule parts: they cannot be enforced.
    pub isolated: Vec<(Unenforceable, Source)>,
}

/// Computes the rules of a container. `groups` may be in any order and unfiltered. `log_all` sets
/// logging on every permit before duplicates are removed (the original's global logging).
#[must_use]
pub fn effective_rules<'a>(
    groups: impl IntoIterator<Item = &'a ReadGroup>,
    lifecycle: Lifecycle,
    space: &SpaceGuid,
    log_all: bool,
) -> EffectiveRules {
    let mut applying: Vec<(Reach, &ReadGroup)> = groups
        .into_iter()
        .filter_map(|group| Some((group.stored.group.reach(lifecycle, space)?, group)))
        .collect();
    applying.sort_by_key(|(reach, group)| (*reach, group.stored.id));

    let mut seen = HashSet::new();
    let mut rules = EffectiveRules::default();
    for (reach, group) in applying {
        let source = |rule| Source { group: group.guid().clone(), rule, reach };
        for (index, permit) in &group.permits {
            let permit = Permit { log: permit.log || log_all, ..*permit };
            let is_new = seen.insert(permit);
            let list = if is_new { &mut rules.permits } else { &mut rules.repeated };
            list.push((permit, source(*index)));
        }
        for (index, problem) in &group.problems {
            rules.isolated.push((problem.clone(), source(*index)));
        }
    }
    rules
}

/// Decision on a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The deciding permit and its source.
    Allowed(&'a Permit, &'a Source),
    /// No permit matches.
    Denied,
}

impl EffectiveRules {
    /// The verdict of the rules alone, without deny networks and limits. If several permits match,
    /// the last one in the operator's order decides, since the packet filter has it first.
    #[must_use]
    pub fn verdict(&self, probe: Probe) -> Verdict<'_> {
        self.permits
            .iter()
            .rev()
            .find(|(permit, _)| permit.matches(probe))
            .map_or(Verdict::Denied, |(permit, source)| Verdict::Allowed(permit, source))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::group::{GroupId, Scope, SecurityGroup};

    fn space() -> SpaceGuid {
        SpaceGuid::parse("s1").unwrap()
    }

    fn spec(destination: &str, log: bool) -> RuleSpec {
        RuleSpec {
            protocol: "all".to_owned(),
            destination: destination.to_owned(),
            log,
            ..RuleSpec::default()
        }
    }

    fn group(id: u64, everywhere: bool, rules: Vec<RuleSpec>) -> ReadGroup {
        let spaces = if everywhere { BTreeSet::new() } else { BTreeSet::from([space()]) };
        ReadGroup::new(StoredGroup {
            id: GroupId(id),
            group: Arc::new(SecurityGroup {
                guid: GroupGuid::parse(&format!("g{id}")).unwrap(),
                name: format!("g{id}"),
                rules,
                running: Scope { everywhere, spaces },
                staging: Scope::default(),
            }),
        })
    }

    fn shown(rules: &EffectiveRules) -> Vec<String> {
        rules
            .permits
            .iter()
            .map(|(permit, source)| {
                format!("{} {}.{}", permit.destination, source.group, source.rule)
            })
            .collect()
    }

    fn probe(destination: &str) -> Probe {
        Probe { destination: destination.parse().unwrap(), kind: ProbeKind::Tcp(80) }
    }

    #[test]
    fn globals_come_first_then_the_space_each_in_the_order_of_the_store() {
        let groups = [
            group(4, false, vec![spec("10.0.0.4", false)]),
            group(3, true, vec![spec("10.0.0.3", false)]),
            group(1, false, vec![spec("10.0.0.1", false), spec("10.0.1.1", false)]),
            group(2, true, vec![spec("10.0.0.2", false)]),
        ];
        let rules = effective_rules(&groups, Lifecycle::Running, &space(), false);
        assert_eq!(
            shown(&rules),
            ["10.0.0.2 g2.0", "10.0.0.3 g3.0", "10.0.0.1 g1.0", "10.0.1.1 g1.1", "10.0.0.4 g4.0"]
        );
        let staging = effective_rules(&groups, Lifecycle::Staging, &space(), false);
        assert_eq!(staging, EffectiveRules::default());
    }

    #[test]
    fn equal_permits_stay_at_their_first_place() {
        let groups = [
            group(1, true, vec![spec("10.0.0.0/8", false), spec("10.0.0.0-10.255.255.255", false)]),
            group(2, false, vec![spec("10.0.0.0/8", false), spec("10.0.0.0/8", true)]),
        ];
        let rules = effective_rules(&groups, Lifecycle::Running, &space(), false);
        assert_eq!(
            shown(&rules),
            ["10.0.0.0-10.255.255.255 g1.0", "10.0.0.0-10.255.255.255 g2.1"],
            "silent and logging differ"
        );
        let all_logged = effective_rules(&groups, Lifecycle::Running, &space(), true);
        assert_eq!(shown(&all_logged), ["10.0.0.0-10.255.255.255 g1.0"]);
    }

    #[test]
    fn the_rule_lowest_in_the_operators_order_decides_about_logging() {
        let groups = [
            group(1, true, vec![spec("10.0.0.0/8", true)]),
            group(2, false, vec![spec("10.1.0.0/16", false)]),
        ];
        let rules = effective_rules(&groups, Lifecycle::Running, &space(), false);
        let logged = |destination| match rules.verdict(probe(destination)) {
            Verdict::Allowed(permit, _) => Some(permit.log),
            Verdict::Denied => None,
        };
        assert_eq!(logged("10.2.0.1"), Some(true));
        assert_eq!(logged("10.1.0.1"), Some(false));
        assert_eq!(logged("11.0.0.1"), None);
    }

    #[test]
    fn a_bad_rule_is_reported_and_the_rest_applies() {
        let groups =
            [group(1, true, vec![spec("10.9.0.0/255.255.0.0", false), spec("10.0.0.1", false)])];
        let rules = effective_rules(&groups, Lifecycle::Running, &space(), false);
        assert_eq!(shown(&rules), ["10.0.0.1 g1.1"]);
        let [(problem, source)] = rules.isolated.as_slice() else { panic!("{rules:?}") };
        assert!(problem.to_string().contains("10.9.0.0/255.255.0.0"));
        assert_eq!(source.rule, 0);
    }

    #[test]
    fn icmp_looks_at_type_code_and_family() {
        let any = Service::Icmp(IcmpMatch::ANY);
        let echo = Service::Icmp(IcmpMatch { icmp_type: 8, code: 0 });
        let kind = |icmp_type, code| ProbeKind::Icmp { icmp_type, code };
        assert!(any.matches(kind(3, 1), false));
        assert!(!any.matches(kind(3, 1), true));
        assert!(echo.matches(kind(8, 0), false));
        assert!(!echo.matches(kind(8, 1), false));
        assert!(!echo.matches(ProbeKind::Tcp(8), false));
        assert!(Service::All.matches(ProbeKind::Other, false));
    }

    proptest! {
        /// The plan depends on the contents of the groups, not on their order of arrival.
        #[test]
        fn the_order_of_arrival_does_not_matter(
            order in Just((0..6_u64).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let made = |id: u64| group(id, id.is_multiple_of(2), vec![spec(&format!("10.0.{}.1", id / 2), id > 3)]);
            let sorted: Vec<_> = (0..6).map(made).collect();
            let shuffled: Vec<_> = order.into_iter().map(made).collect();
            prop_assert_eq!(
                effective_rules(&sorted, Lifecycle::Running, &space(), false),
                effective_rules(&shuffled, Lifecycle::Running, &space(), false)
            );
        }
    }
}
