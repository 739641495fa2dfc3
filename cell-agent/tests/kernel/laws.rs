//! Random groups and containers on a real kernel: whatever rules were in force before,
//! each packet has the model's verdict, on every plane. So the applied difference led
//! to the desired rules, and every container has a verdict.

use std::{env, net::Ipv4Addr, sync::Arc};

use model::{
    effective::{Probe, ProbeKind, ReadGroup, Verdict, effective_rules},
    group::{GroupId, Lifecycle, SecurityGroup as ModelGroup, StoredGroup},
    ids::SpaceGuid,
};
use proptest::{
    prelude::{Strategy, prop_oneof},
    sample::select,
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use proto::policy_v1::{Rule, SecurityGroup};
use serde_json::json;

use crate::{
    agent::{Cell, app},
    lab::Lab,
    packets::{Fate, Kind, Prober, connection},
    planes::{Plane, on_every_plane},
};

/// Number of consecutive sets of groups.
fn changes() -> u32 {
    env::var("PORTCULLIS_LAW_CHANGES").map_or(8, |text| text.parse().unwrap())
}

/// Destinations that overlap, are adjacent, or contain each other.
const DESTINATIONS: &[&str] = &[
    "10.1.0.1",
    "10.1.0.2",
    "10.1.0.0/30",
    "10.1.0.2-10.1.0.5",
    "10.1.0.4/31,10.1.0.9",
    "10.1.0.0/16",
    "10.1.0.255-10.1.1.0",
    "10.0.0.0-10.1.0.1",
    "0.0.0.0/0",
];
const PORTS: &[&str] = &["80", "79-81", "80,443", "1-79", "81-65535", "443", "1-65535"];

fn rule() -> impl Strategy<Value = Rule> {
    let to = || select(DESTINATIONS).prop_map(str::to_owned);
    let ported = (select(vec!["tcp", "udp"]), to(), select(PORTS));
    let ported = ported.prop_map(|(protocol, destination, ports)| Rule {
        protocol: protocol.to_owned(),
        destination,
        ports: ports.to_owned(),
        ..Rule::default()
    });
    let icmp = (to(), select(vec![(-1, -1), (8, 0), (8, -1), (13, 0), (255, 3)]));
    let icmp = icmp.prop_map(|(destination, (r#type, code))| Rule {
        protocol: "icmp".to_owned(),
        destination,
        r#type,
        code,
        ..Rule::default()
    });
    let all = to().prop_map(|destination| Rule {
        protocol: "all".to_owned(),
        destination,
        ..Rule::default()
    });
    let broken = select(vec!["nowhere", "10.1.0.9-10.1.0.1"]).prop_map(|destination| Rule {
        protocol: "all".to_owned(),
        destination: destination.to_owned(),
        ..Rule::default()
    });
    let rule = prop_oneof![6 => ported, 2 => icmp, 1 => all, 1 => broken];
    (rule, proptest::bool::weighted(0.2)).prop_map(|(rule, log)| Rule { log, ..rule })
}

pub(crate) fn groups() -> impl Strategy<Value = Vec<SecurityGroup>> {
    let spaces = || proptest::sample::subsequence(vec!["s1", "s2"], 0..=2);
    let rare = || proptest::bool::weighted(0.2);
    let rules = proptest::collection::vec(rule(), 0..6);
    let group = (rules, spaces(), spaces(), rare(), rare());
    proptest::collection::vec(group, 1..5).prop_map(|groups| {
        let texts = |spaces: Vec<&str>| spaces.into_iter().map(str::to_owned).collect();
        let group = |(number, (rules, running, staging, to_run, to_stage))| SecurityGroup {
            guid: format!("g{number}"),
            name: format!("g{number}"),
            rules,
            running_default: to_run,
            staging_default: to_stage,
            running_space_guids: texts(running),
            staging_space_guids: texts(staging),
        };
        (0..).zip(groups).map(group).collect()
    })
}

/// Space, workload and lifecycle of each container; the last has none.
const CONTAINERS: [(&str, &str, Option<Lifecycle>); 5] = [
    ("s1", "app", Some(Lifecycle::Running)),
    ("s2", "task", Some(Lifecycle::Running)),
    ("s1", "staging", Some(Lifecycle::Staging)),
    ("s2", "staging", Some(Lifecycle::Staging)),
    ("s1", "cron", None),
];

fn address(container: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 1, u8::try_from(container + 1).unwrap())
}

/// The packets to send, and the matching questions to the model.
fn probes() -> impl Strategy<Value = (Kind, Probe)> {
    let to = select(vec![
        "10.1.0.0",
        "10.1.0.1",
        "10.1.0.2",
        "10.1.0.3",
        "10.1.0.5",
        "10.1.0.6",
        "10.1.0.9",
        "10.1.0.255",
        "10.1.1.0",
        "10.1.1.1",
        "10.0.255.255",
        "10.2.0.0",
    ]);
    let port = || select(vec![79_u16, 80, 81, 443]);
    let kind = prop_oneof![
        port().prop_map(ProbeKind::Tcp),
        port().prop_map(ProbeKind::Udp),
        select(vec![(8_u8, 0_u8), (13, 0)])
            .prop_map(|(icmp_type, code)| ProbeKind::Icmp { icmp_type, code }),
    ];
    (to, kind).prop_map(|(to, kind)| {
        let probe = Probe { destination: to.parse().unwrap(), kind };
        (packet(kind), probe)
    })
}

/// The first packet of a new connection.
pub(crate) fn packet(kind: ProbeKind) -> Kind {
    match (kind, connection(0)) {
        (ProbeKind::Tcp(port), _) => connection(port),
        (ProbeKind::Udp(port), Kind::Tcp { source, .. }) => Kind::Udp { port, source },
        (ProbeKind::Icmp { icmp_type, code }, _) => Kind::Icmp { icmp_type, code },
        // For experiments (RFC 3692).
        (ProbeKind::Other, _) => Kind::Other(253),
        (ProbeKind::Udp(_), other) => panic!("{other:?} has no source port"),
    }
}

fn expected(groups: &[ReadGroup], container: usize, probe: Probe) -> Fate {
    let (space, _, lifecycle) = CONTAINERS[container];
    let Some(lifecycle) = lifecycle else { return Fate::Reject };
    let rules = effective_rules(groups, lifecycle, &SpaceGuid::parse(space).unwrap(), false);
    match rules.verdict(probe) {
        Verdict::Allowed(..) => Fate::Accept,
        Verdict::Denied => Fate::Reject,
    }
}

pub(crate) fn read(groups: &[SecurityGroup]) -> Vec<ReadGroup> {
    let stored = (1..).zip(groups).map(|(id, group)| {
        let group = Arc::new(ModelGroup::try_from(group.clone()).unwrap());
        ReadGroup::new(StoredGroup { id: GroupId(id), group })
    });
    stored.collect()
}

#[test]
fn every_packet_is_treated_as_the_model_says() {
    on_every_plane(as_the_model_says);
}

async fn as_the_model_says(plane: Plane, lab: Lab) {
    let mut cell = Cell::running(plane.config(json!({}))).await;
    for (container, (space, workload, _)) in CONTAINERS.iter().enumerate() {
        let (handle, ip) = (format!("c{container}"), address(container).to_string());
        lab.container(address(container));
        cell.plug(&handle, &ip);
        let mut metadata = app(space);
        metadata["container_workload"] = json!(workload);
        cell.add_entry(&handle, &ip, &metadata);
    }
    let prober = Prober::new(&lab);
    let mut runner = TestRunner::default();
    let (mut sent, mut accepted) = (0, 0);
    for change in 0..changes() {
        let groups = groups().new_tree(&mut runner).unwrap().current();
        cell.store.set(groups.clone());
        cell.caught_up().await;
        let read = read(&groups);
        for container in 0..CONTAINERS.len() {
            let probes = proptest::collection::vec(probes(), 12);
            for (kind, probe) in probes.new_tree(&mut runner).unwrap().current() {
                let to = match probe.destination {
                    std::net::IpAddr::V4(to) => to,
                    std::net::IpAddr::V6(to) => panic!("{to} is not sent to"),
                };
                let fate = prober.probe(address(container), to, kind).await;
                let should = expected(&read, container, probe);
                assert_eq!(fate, should, "{plane:?} {change}: c{container} {probe:?} {groups:#?}");
                sent += 1;
                accepted += u32::from(fate == Fate::Accept);
            }
        }
    }
    println!("{plane:?}: {accepted} of {sent} packets were accepted, all as expected");
    assert!(accepted > sent / 20 && accepted < sent, "{accepted} of {sent} tell little");
    cell.stop().await;
}
