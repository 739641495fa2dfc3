//! The groups and containers of a full cell, like in the original's measurement
//! (docs/compatibility/vxlan-policy-agent.md#baseline). Pure.

use std::net::Ipv4Addr;

use cni::metadata::Entry;
use model::group::{Scope, SecurityGroup};
use model::ids::{GroupGuid, SpaceGuid};
use model::rule::RuleSpec;

/// Number of spaces that share the containers; one more has a container of its own.
const SPACES: u32 = 25;

/// Destination of probe packets, which is allowed.
pub(super) const TARGET: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 77);
/// Addresses around the destination, which are allowed as well.
pub(super) const TARGETS: &str = "10.1.0.0/16";
/// Source of the responses.
pub(super) const PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The port of both addresses.
pub(super) const PORT: u16 = 4_000;

/// Half of a container's rules are from a global group, which is the first; the other
/// half from the group of its space.
pub(super) fn groups(rules: u32) -> Vec<SecurityGroup> {
    let of_all = SecurityGroup {
        running: Scope { everywhere: true, ..Scope::default() },
        ..group(0, mixed(0, rules / 2))
    };
    let of_space = |number| SecurityGroup {
        running: Scope { spaces: [space(number)].into_iter().collect(), ..Scope::default() },
        ..group(number, mixed(number, rules - rules / 2))
    };
    [of_all].into_iter().chain((1..=SPACES + 1).map(of_space)).collect()
}

/// One global group. Its first rules, which are the last in the original's order, allow
/// the probe packets. With `port_ranges`, all other rules use one of so many port
/// ranges, and so does the rule for probe packets.
pub(super) fn probed(rules: u32, port_ranges: Option<u32>) -> Vec<SecurityGroup> {
    let ports = port_ranges.map_or(PORT.to_string(), |_| format!("{PORT}-{}", PORT + 9));
    let mut all = vec![
        rule("udp", TARGETS, &ports),
        rule("udp", &PEER.to_string(), &ports),
        rule("tcp", &PEER.to_string(), &ports),
    ];
    let more = rules.saturating_sub(3);
    all.extend(match port_ranges {
        None => mixed(0, more),
        Some(ranges) => ranged(more, ranges),
    });
    let running = Scope { everywhere: true, ..Scope::default() };
    vec![SecurityGroup { running, ..group(0, all) }]
}

/// Mix: 60 % host and port, 20 % a small network and a port, 20 % ranges.
fn mixed(group: u32, count: u32) -> Vec<RuleSpec> {
    let rules = (0..count).map(|n| {
        let [_, _, high, low] = n.to_be_bytes();
        let (third, last) = (n / 30 % 250, n % 30 * 8);
        let place = group + 30 * (n / 7_500);
        match n % 5 {
            0..=2 => rule(
                "tcp",
                &format!("10.{}.{high}.{low}", group + 128),
                &(1_000 + n % 60_000).to_string(),
            ),
            3 => rule("udp", &format!("11.{place}.{third}.{last}/29"), "53"),
            _ => rule(
                "all",
                &format!("12.{place}.{third}.{last}-12.{place}.{third}.{}", last + 5),
                "",
            ),
        }
    });
    rules.collect()
}

/// Addresses with this number of different port ranges.
fn ranged(count: u32, ranges: u32) -> Vec<RuleSpec> {
    let rules = (0..count).map(|n| {
        let [_, _, high, low] = n.to_be_bytes();
        let first = 10_000 + n % ranges * 100;
        rule("udp", &format!("10.129.{high}.{low}"), &format!("{first}-{}", first + 50))
    });
    rules.collect()
}

fn rule(protocol: &str, destination: &str, ports: &str) -> RuleSpec {
    RuleSpec {
        protocol: protocol.to_owned(),
        destination: destination.to_owned(),
        ports: ports.to_owned(),
        ..RuleSpec::default()
    }
}

fn group(number: u32, rules: Vec<RuleSpec>) -> SecurityGroup {
    SecurityGroup {
        guid: GroupGuid::parse(&guid(2, number)).expect("it has the form of a guid"),
        name: format!("asg-{number}"),
        rules,
        running: Scope::default(),
        staging: Scope::default(),
    }
}

fn space(number: u32) -> SpaceGuid {
    SpaceGuid::parse(&guid(1, number)).expect("it has the form of a guid")
}

fn guid(kind: u8, number: u32) -> String {
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
}

/// The containers of a cell: the last one has a space of its own.
pub(super) fn containers(count: u32) -> Vec<Entry> {
    (1..=count)
        .map(|number| {
            container(number, if number == count { SPACES + 1 } else { number % SPACES + 1 })
        })
        .collect()
}

/// An additional container.
pub(super) fn another(number: u32) -> Entry {
    container(number, number % SPACES + 1)
}

fn container(number: u32, in_space: u32) -> Entry {
    let texts = [
        ("policy_group_id", guid(3, number)),
        ("space_id", guid(1, in_space)),
        ("container_workload", "app".to_owned()),
    ];
    let metadata = texts.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    // Handles differ in the first characters, which chain names use.
    let handle = format!("{number:08x}-0000-4000-8000-00000000cafe");
    Entry { handle, ip: address(number).to_string(), metadata: Some(metadata) }
}

/// The address of a container.
pub(super) fn address(number: u32) -> Ipv4Addr {
    let [_, _, high, low] = (256 + number).to_be_bytes();
    Ipv4Addr::new(10, 255, high, low)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use model::effective::ReadGroup;
    use model::group::{GroupId, StoredGroup};

    use super::*;

    #[test]
    fn every_rule_can_be_enforced_and_is_another() {
        for groups in [groups(500), probed(10_000, None), probed(10_000, Some(200))] {
            for group in groups {
                let texts = group.rules.iter().map(|rule| (&rule.protocol, &rule.destination));
                let unlike = texts.collect::<BTreeSet<_>>().len();
                assert_eq!(unlike, group.rules.len(), "{}", group.name);
                let stored = StoredGroup { id: GroupId(1), group: Arc::new(group) };
                let read = ReadGroup::new(stored);
                assert_eq!(read.problems().count(), 0);
            }
        }
    }

    #[test]
    fn a_container_has_so_many_rules_and_the_last_a_space_of_its_own() {
        let groups = groups(50);
        assert_eq!((groups.len(), groups[0].rules.len(), groups[3].rules.len()), (27, 25, 25));
        let containers = containers(250);
        let space = |entry: &Entry| entry.metadata.as_ref().unwrap()["space_id"].clone();
        let last = space(containers.last().unwrap());
        assert_eq!(containers.iter().filter(|entry| space(entry) == last).count(), 1);
        let addresses: BTreeSet<_> = containers.iter().map(|entry| &entry.ip).collect();
        assert_eq!(addresses.len(), 250);
    }
}
