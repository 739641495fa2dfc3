use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
};

use proptest::prelude::*;

use super::*;
use crate::{
    effective::ReadGroup,
    group::{GroupId, Scope, SecurityGroup, StoredGroup},
    ids::GroupGuid,
    rule::RuleSpec,
};

fn permits(rules: &[RuleSpec]) -> Vec<Permit> {
    let group = SecurityGroup {
        guid: GroupGuid::parse("g").unwrap(),
        name: String::new(),
        rules: rules.to_vec(),
        running: Scope::default(),
        staging: Scope::default(),
    };
    let read = ReadGroup::new(StoredGroup { id: GroupId(1), group: Arc::new(group) });
    read.permits().map(|(_, permit)| *permit).collect()
}

fn set(rules: &[RuleSpec]) -> Connections {
    Connections::of(&permits(rules))
}

fn rule(protocol: &str, destination: &str, ports: &str) -> RuleSpec {
    let (protocol, destination, ports) = (protocol.into(), destination.into(), ports.into());
    RuleSpec { protocol, destination, ports, icmp_type: -1, icmp_code: -1, ..RuleSpec::default() }
}

fn shown(set: &Connections) -> Vec<String> {
    set.areas().iter().map(ToString::to_string).collect()
}

#[test]
fn all_covers_every_protocol_of_its_family() {
    let all = set(&[rule("all", "10.0.0.0/8", "")]);
    let to = "10.0.0.0-10.255.255.255";
    assert_eq!(
        shown(&all),
        [
            format!("tcp {to}:0-65535"),
            format!("udp {to}:0-65535"),
            format!("icmp {to} type 0-255 code 0-255"),
            format!("other {to}"),
        ]
    );
    assert!(all.covers(&set(&[rule("tcp", "10.1.2.3", "443"), rule("icmp", "10.0.0.0/9", "")])));
    assert!(!all.covers(&set(&[rule("tcp", "fd00::/8", "443")])));
}

#[test]
fn neighbours_are_one_area() {
    let halves = set(&[rule("tcp", "10.0.0.0/25,10.0.0.128/25", "80,81-90")]);
    assert_eq!(shown(&halves), ["tcp 10.0.0.0-10.0.0.255:80-90"]);
    assert_eq!(halves, set(&[rule("tcp", "10.0.0.0-10.0.0.255", "80-90")]));
}

/// By address, these would be four areas.
#[test]
fn the_shorter_list_of_areas_is_taken() {
    let rules = [rule("tcp", "0.0.0.0/0", "443"), rule("tcp", "10.0.0.0/8", "80")];
    let expected = ["tcp 0.0.0.0-255.255.255.255:443", "tcp 10.0.0.0-10.255.255.255:80"];
    assert_eq!(shown(&set(&rules)), expected);
}

#[test]
fn a_hole_in_icmp_is_a_type_and_a_code() {
    let icmp =
        |icmp_type, icmp_code| RuleSpec { icmp_type, icmp_code, ..rule("icmp", "10.0.0.1", "") };
    let rest = set(&[icmp(-1, -1)]).minus(&set(&[icmp(8, 0), icmp(3, 4)]));
    assert_eq!(
        shown(&rest),
        [
            "icmp 10.0.0.1 type 0-2 code 0-255",
            "icmp 10.0.0.1 type 3-3 code 0-3",
            "icmp 10.0.0.1 type 3-3 code 5-255",
            "icmp 10.0.0.1 type 4-7 code 0-255",
            "icmp 10.0.0.1 type 8-8 code 1-255",
            "icmp 10.0.0.1 type 9-255 code 0-255",
        ]
    );
    // A code of -1 without a type of -1 is the code 255.
    assert_eq!(shown(&set(&[icmp(8, -1)])), ["icmp 10.0.0.1 type 8-8 code 255-255"]);
}

#[test]
fn what_cannot_be_enforced_allows_nothing() {
    for void in [
        rule("tcp", "10.0.0.1", ""),
        rule("all", "10.0.0.1", "80"),
        rule("sctp", "10.0.0.1", "80"),
        rule("tcp", "10.0.0.9-10.0.0.1", "80"),
        rule("icmp", "fd00::1", ""),
    ] {
        assert!(set(std::slice::from_ref(&void)).is_empty(), "{void:?}");
    }
    let partly = set(&[rule("tcp", "10.0.0.1,bad", "80,x")]);
    assert_eq!(shown(&partly), ["tcp 10.0.0.1:80"]);
}

#[test]
fn the_ends_of_the_address_space_are_no_special_case() {
    for destination in ["0.0.0.0/0", "::/0"] {
        let all = set(&[rule("udp", destination, "0-65535")]);
        let ends = set(&[
            rule("udp", "0.0.0.0,255.255.255.255", "0,65535"),
            rule("udp", "::,ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0,65535"),
        ]);
        assert!(all.minus(&all).is_empty());
        assert_eq!(all.union(&ends).minus(&ends).union(&ends), all.union(&ends));
    }
    assert_eq!(
        addresses(permits(&[rule("all", "::/0", "")]).iter().map(|p| p.destination)),
        [0, u128::MAX]
    );
    let twice = permits(&[rule("tcp", "10.0.0.0/24,10.0.0.128/24,10.0.1.1", "1,2")]);
    assert_eq!(addresses(twice.iter().map(|permit| permit.destination)), [257, 0]);
}

/// A small universe: some addresses at the ends and in the middle of each family.
const V4: [u32; 5] = [0, 0x0a00_0000, 0x0a00_0001, 0x0a00_0002, u32::MAX];
const V6: [u128; 3] = [0, 1 << 120, u128::MAX];
const PORTS: [u16; 4] = [80, 81, 82, u16::MAX];
const MESSAGES: [(u8, u8); 4] = [(0, 0), (8, 0), (8, 1), (8, 255)];

fn universe() -> Vec<Probe> {
    let v4 = V4.map(|number| IpAddr::from(Ipv4Addr::from(number)));
    let v6 = V6.map(|number| IpAddr::from(Ipv6Addr::from(number)));
    let kinds: Vec<ProbeKind> = (PORTS.map(ProbeKind::Tcp).into_iter())
        .chain([80, 81].map(ProbeKind::Udp))
        .chain(MESSAGES.map(|(icmp_type, code)| ProbeKind::Icmp { icmp_type, code }))
        .chain([ProbeKind::Other])
        .collect();
    let to = v4.into_iter().chain(v6);
    to.flat_map(|destination| kinds.iter().map(move |kind| Probe { destination, kind: *kind }))
        .collect()
}

/// A rule from a number: each field is one digit. Cheaper than a strategy for each field.
fn rule_of(seed: u64) -> RuleSpec {
    let mut rest = seed;
    let mut digit = |count: usize| {
        let count = u64::try_from(count).unwrap();
        let digit = rest % count;
        rest /= count;
        usize::try_from(digit).unwrap()
    };
    let destinations = 1 + digit(2);
    let mut destination = || {
        let nets = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/31", "::/0", "bad"];
        let kind = digit(8);
        if kind == 0 {
            return nets[digit(nets.len())].to_owned();
        }
        let count = if kind < 6 { V4.len() } else { V6.len() };
        let (one, two) = (digit(count), digit(count));
        let (low, high) = (one.min(two), one.max(two));
        match kind {
            1..6 => format!("{}-{}", Ipv4Addr::from(V4[low]), Ipv4Addr::from(V4[high])),
            _ => format!("{}-{}", Ipv6Addr::from(V6[low]), Ipv6Addr::from(V6[high])),
        }
    };
    let destination = (0..destinations).map(|_| destination()).collect::<Vec<_>>().join(",");
    let protocols = ["tcp", "tcp", "tcp", "udp", "udp", "icmp", "icmp", "icmpv6", "all", "sctp"];
    let protocol = protocols[digit(protocols.len())];
    let ports = ["80", "80-81", "80,82", "0-65535", "82-65535", "81,x", ""];
    let ports = ports[digit(ports.len())];
    let ports = if matches!(protocol, "tcp" | "udp") { ports } else { "" };
    let (icmp_type, icmp_code) = ([-1, 0, 8][digit(3)], [-1, 0, 1][digit(3)]);
    RuleSpec { icmp_type, icmp_code, ..rule(protocol, &destination, ports) }
}

fn some_rules() -> impl Strategy<Value = Vec<RuleSpec>> {
    let seeds = prop::collection::vec(any::<u64>(), 0..5);
    seeds.prop_map(|seeds| seeds.into_iter().map(rule_of).collect())
}

fn is_in(area: &Area, probe: Probe) -> bool {
    let within = |ends: (u8, u8), value: u8| (ends.0..=ends.1).contains(&value);
    area.addresses.contains(probe.destination)
        && match (area.traffic, probe.kind) {
            (Traffic::Tcp(ports), ProbeKind::Tcp(port))
            | (Traffic::Udp(ports), ProbeKind::Udp(port)) => ports.contains(port),
            (Traffic::Icmp { types, codes }, ProbeKind::Icmp { icmp_type, code }) => {
                within(types, icmp_type) && within(codes, code)
            }
            (Traffic::Other, ProbeKind::Other) => true,
            (Traffic::Tcp(_) | Traffic::Udp(_) | Traffic::Icmp { .. } | Traffic::Other, _) => false,
        }
}

/// The set of an area.
fn again(area: &Area) -> Connections {
    let (v6, addresses) = numbers_of(area.addresses);
    let (protocol, numbers) = match area.traffic {
        Traffic::Tcp(ports) => (Protocol::Tcp, vec![(ports.first(), ports.last())]),
        Traffic::Udp(ports) => (Protocol::Udp, vec![(ports.first(), ports.last())]),
        Traffic::Icmp { types, codes } => {
            let each = types.0..=types.1;
            let numbers = each.map(|of| (message(of, codes.0), message(of, codes.1)));
            (Protocol::Icmp, numbers.collect())
        }
        Traffic::Other => (Protocol::Other, vec![(0, u16::MAX)]),
    };
    let mut set = Connections::default();
    let rectangles = numbers.into_iter().map(|numbers| Rectangle { addresses, numbers });
    set.0[place(protocol, v6)] = Region::of(rectangles.collect());
    set
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Each operation equals the same operation on the verdicts of all packets of the universe.
    #[test]
    fn sets_equal_brute_force(one in some_rules(), two in some_rules(), three in some_rules()) {
        static UNIVERSE: LazyLock<Vec<Probe>> = LazyLock::new(universe);
        let [one, two, three] = [one, two, three].map(|rules| permits(&rules));
        let sets = [&one, &two, &three].map(Connections::of::<'_>);
        let union = sets[0].union(&sets[1]);
        let both = sets[0].intersection(&sets[1]);
        let opens = sets[1].minus(&sets[0]).minus(&sets[2]);
        let areas = opens.areas();
        let mut covered = true;
        for &probe in UNIVERSE.iter() {
            let [a, b, c] = [&one, &two, &three]
                .map(|permits| permits.iter().any(|permit| permit.matches(probe)));
            prop_assert_eq!(sets[0].contains(probe), a);
            prop_assert_eq!(union.contains(probe), a || b);
            prop_assert_eq!(both.contains(probe), a && b);
            prop_assert_eq!(opens.contains(probe), b && !a && !c, "{:?}", probe);
            let count = areas.iter().filter(|area| is_in(area, probe)).count();
            prop_assert_eq!(count, usize::from(opens.contains(probe)), "{:?}: areas are disjoint", probe);
            covered &= a || !b;
        }
        // A set can lack a packet outside of the universe.
        prop_assert!(covered || !sets[0].covers(&sets[1]));
        prop_assert_eq!(sets[0].covers(&sets[1]), union == sets[0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The value depends on the connections only, not on how rules write them.
    #[test]
    fn equal_sets_are_equal_values(
        (rules, shuffled) in some_rules().prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
        other in some_rules(),
    ) {
        let (made, other) = (set(&rules), set(&other));
        prop_assert_eq!(&made, &set(&shuffled));
        let each = permits(&rules);
        let one_by_one = each.iter().map(|permit| Connections::of([permit]));
        prop_assert_eq!(&made, &one_by_one.fold(Connections::default(), |set, one| set.union(&one)));
        let both = made.minus(&made.minus(&other));
        prop_assert_eq!(&both, &other.minus(&other.minus(&made)));
        prop_assert_eq!(&both, &made.intersection(&other));
        prop_assert_eq!(&both, &other.intersection(&made));
        prop_assert_eq!(&made.minus(&other).union(&both), &made);
        for permit in &each {
            let touches = !other.is_empty() && Connections::of([permit]).minus(&other) != Connections::of([permit]);
            prop_assert_eq!(other.intersects(permit), touches);
        }
        let areas = made.areas();
        let rebuilt = areas.iter().map(again).fold(Connections::default(), |set, one| set.union(&one));
        prop_assert_eq!(&rebuilt, &made);
    }
}
