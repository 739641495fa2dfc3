use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use ipnet::IpNet;
use model::{
    effective::{EffectiveRules, Permit, Service},
    ids::{GroupGuid, SpaceGuid},
    rule::{IcmpMatch, PortRange},
};

use super::*;
use crate::plan::{DenyNetworks, RecordDenied, Segment};

fn settings() -> Settings {
    Settings {
        by_address: true,
        overlay: "10.255.0.0/16".parse().unwrap(),
        underlay: Vec::new(),
        disable_network_policy: false,
        deny_networks: DenyNetworks::default(),
        log_all: false,
        denied_logs_per_second: 3,
        udp_logs_per_second: 100,
        connection_limit: None,
        record_denied: None,
        count_use: false,
    }
}

fn to(text: &str) -> AddressRange {
    if let Ok(net) = text.parse::<IpNet>() {
        return range(net);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    AddressRange::try_new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
}

fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap()
}

fn permit(destination: &str, service: Service) -> Permit {
    Permit { destination: to(destination), service, log: false }
}

fn belongs(space: &str, lifecycle: Lifecycle) -> Belongs {
    Belongs { space: SpaceGuid::parse(space).unwrap(), lifecycle }
}

fn segment(group: &str, permits: Vec<Permit>) -> Arc<Segment> {
    Arc::new(Segment { group: GroupGuid::parse(group).unwrap(), permits })
}

fn policy(deny: &[&str], segments: Vec<Arc<Segment>>) -> Policy {
    let deny = deny.iter().map(|text| text.parse().unwrap()).collect();
    Policy { deny, segments, rules: EffectiveRules::default(), refused: Vec::new() }
}

fn ruleset(
    settings: Settings,
    containers: &[(&str, &str, Assignment)],
    policies: impl IntoIterator<Item = (Belongs, Policy)>,
) -> Ruleset {
    let planned = |(handle, address, assignment): &(&str, &str, Assignment)| {
        let (address, more) = (address.parse().ok(), BTreeSet::new());
        let planned = Planned { address, more, assignment: assignment.clone() };
        (ContainerHandle::parse(handle).unwrap(), planned)
    };
    Ruleset {
        settings: Arc::new(settings),
        containers: containers.iter().map(planned).collect(),
        policies: policies.into_iter().map(|(at, policy)| (at, Arc::new(policy))).collect(),
        claimed: containers.iter().filter_map(|(_, address, _)| address.parse().ok()).collect(),
        ignored: BTreeSet::new(),
        interfaces: BTreeSet::from(["cni0".to_owned()]),
    }
}

/// Compares with a file; `UPDATE_GOLDEN=1` writes it.
fn golden(name: &str, table: &Table) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = format!("{}{}", table.block(), table.elements());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name}; UPDATE_GOLDEN=1 writes it anew");
}

/// Every kind of rule in one segment, and every kind of container.
#[test]
fn a_cell_as_it_is_written() {
    let app = belongs("s1", Lifecycle::Running);
    let staging = belongs("s1", Lifecycle::Staging);
    let tcp = |first, last| Service::Tcp(ports(first, last));
    let logged = Permit { log: true, ..permit("10.0.0.1", tcp(443, 443)) };
    let rules = segment(
        "g1",
        vec![
            permit("10.0.0.1", tcp(80, 80)),
            permit("10.0.0.2", Service::Udp(ports(53, 53))),
            permit("10.1.0.0-10.1.255.255", tcp(80, 90)),
            permit("10.2.0.0-10.2.255.255", tcp(80, 90)),
            permit("10.3.0.1-10.3.0.9", Service::All),
            permit("10.5.0.0/16", Service::Icmp(IcmpMatch::ANY)),
            permit("10.5.0.0/16", Service::Icmp(IcmpMatch { icmp_type: 8, code: 0 })),
            permit("2001:db8::/32", Service::Icmpv6(IcmpMatch { icmp_type: 128, code: 0 })),
            permit("2001:db8::1", tcp(80, 80)),
            logged,
            permit("0.0.0.0/0", Service::Udp(ports(1, 65535))),
            permit("::/0", Service::All),
        ],
    );
    let policies = [
        (app.clone(), policy(&["10.11.0.0/16", "10.10.0.0/16", "fd00::/8"], vec![rules])),
        (staging.clone(), policy(&[], Vec::new())),
    ];
    let unknown = Assignment::Unknown(SpaceGuid::parse("s9").unwrap());
    let containers = [
        ("00000001-aaaa-bbbb-cccc-0123456789ab", "10.255.1.1", Assignment::Bound(app)),
        ("00000002-aaaa-bbbb-cccc-0123456789ab", "10.255.1.2", Assignment::Bound(staging)),
        ("00000003-aaaa-bbbb-cccc-0123456789ab", "10.255.1.3", unknown),
        ("00000004-aaaa-bbbb-cccc-0123456789ab", "", Assignment::Isolated("no".to_owned())),
    ];
    golden("cell.nft", &render(&ruleset(settings(), &containers, policies), ""));
}

/// Every setting of the configuration, and a container outside the overlay.
#[test]
fn every_switch_as_it_is_written() {
    let app = belongs("s1", Lifecycle::Running);
    let containers = [
        ("a\"b$c", "10.255.1.1", Assignment::Bound(app.clone())),
        ("elsewhere", "192.0.2.7", Assignment::Bound(app.clone())),
        ("six", "fd00:255::7", Assignment::Bound(app.clone())),
    ];
    let settings = Settings {
        underlay: vec!["eth0".to_owned(), "eth1".to_owned()],
        disable_network_policy: true,
        log_all: true,
        connection_limit: Some(ConnectionLimit {
            per_second: 100,
            burst: 1050,
            log: true,
            destinations: 99,
        }),
        record_denied: Some(RecordDenied { group: 7, per_second: 100, asked_for: false }),
        ..settings()
    };
    let all = Permit { log: true, ..permit("10.1.0.0/16", Service::All) };
    let policies = [(app, policy(&[], vec![segment("g1", vec![all])]))];
    golden("switches.nft", &render(&ruleset(settings, &containers, policies), ""));
}

/// More port ranges than a few go behind a map, cut where they overlap.
#[test]
fn many_port_ranges_as_they_are_written() {
    let permits = (0..6_u16).map(|n| {
        let service = Service::Tcp(ports(100 * n + 1, 100 * n + 150));
        permit(&format!("10.{n}.0.0/16"), service)
    });
    let same =
        (0..6_u16).map(|n| permit("10.9.0.0/24", Service::Udp(ports(10 * n + 1, 10 * n + 1))));
    let app = belongs("s1", Lifecycle::Running);
    let segments = vec![segment("g1", permits.chain(same).collect())];
    let containers = [("c", "10.255.1.1", Assignment::Bound(app.clone()))];
    golden(
        "ports.nft",
        &render(&ruleset(settings(), &containers, [(app, policy(&[], segments))]), ""),
    );
}

#[test]
fn the_salt_renames_only_content_named_chains() {
    let app = belongs("s1", Lifecycle::Running);
    let segments = vec![segment("g1", vec![permit("10.0.0.1", Service::All)])];
    let containers = [("c", "10.255.1.1", Assignment::Bound(app.clone()))];
    let ruleset = ruleset(settings(), &containers, [(app, policy(&[], segments))]);
    let (one, two) = (render(&ruleset, "1"), render(&ruleset, "2"));
    let others = |table: &Table| -> Vec<String> {
        table.chains.keys().filter(|name| !name.starts_with("rules-")).cloned().collect()
    };
    assert_eq!(others(&one), others(&two));
    assert_eq!(one.maps, two.maps);
    assert!(
        one.chains
            .keys()
            .filter(|name| name.starts_with("rules-"))
            .all(|name| !two.chains.contains_key(name))
    );
    assert_eq!(render(&ruleset, "1"), one);
}

#[test]
fn a_log_prefix_is_cut_and_cannot_break_out() {
    let log = |kind, handle: &str| log(kind, &ContainerHandle::parse(handle).unwrap());
    assert_eq!(
        log("DENY_ORL_", "00000001-aaaa-bbbb-cccc-0123456789ab"),
        "counter log prefix \"DENY_ORL_00000001-aaaa-bbbb- \""
    );
    assert_eq!(log("OK_", "a\"b$c\\ü"), "counter log prefix \"OK_a?b?c?? \"");
}

#[test]
fn no_table_holds_two_chains_for_one_thing() {
    let names: BTreeMap<String, u8> =
        [("policy", "a"), ("ok", "a"), ("deny", "a"), ("policy", "b")]
            .map(|(kind, text)| (name(kind, &[text]), 0))
            .into();
    assert_eq!(names.len(), 4);
    assert_ne!(name("policy", &["ab", "c"]), name("policy", &["a", "bc"]));
}
