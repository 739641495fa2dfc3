use std::sync::Arc;

use model::{
    effective::ReadGroup,
    generation::{Generation, Stamp},
    group::{GroupId, Scope, SecurityGroup, StoredGroup},
    ids::{GroupGuid, SpaceGuid},
    rule::RuleSpec,
};

use super::*;
use crate::{
    containers::Snapshot,
    plan::{ConnectionLimit, DenyNetworks, Known, Refused, Settings, plan},
};

/// Groups, and the ruleset made from them.
fn ruleset(change: impl Fn(&mut Settings)) -> (Ruleset, Known) {
    let mut settings = Settings {
        by_address: true,
        overlay: "10.255.0.0/16".parse().unwrap(),
        underlay: Vec::new(),
        disable_network_policy: false,
        deny_networks: DenyNetworks {
            always: vec!["10.11.0.0/16".parse().unwrap()],
            ..DenyNetworks::default()
        },
        log_all: false,
        denied_logs_per_second: 1,
        udp_logs_per_second: 1,
        connection_limit: None,
        record_denied: None,
        count_use: false,
    };
    change(&mut settings);
    let rule = |protocol: &str, destination: &str, ports: &str, log| RuleSpec {
        protocol: protocol.to_owned(),
        destination: destination.to_owned(),
        ports: ports.to_owned(),
        log,
        ..RuleSpec::default()
    };
    let rules = vec![
        rule("tcp", "10.1.0.0/16", "80", false),
        rule("tcp", "10.2.0.0-10.2.0.9", "443", true),
        rule("all", "10.0.0.0/8", "", false),
        rule("tcp", "20.0.0.0/8", "80", false),
        rule("tcp", "30.0.0.0/255.255.255.0", "80,81", false),
        rule("tcp", "0.0.0.0/0", "53", false),
        rule("udp", "20.0.0.1", "53", false),
        rule("tcp", "20.0.0.1", "8080,90", false),
    ];
    let guid = GroupGuid::parse("g1").unwrap();
    let running = Scope { everywhere: true, ..Scope::default() };
    let group = SecurityGroup {
        guid: guid.clone(),
        name: "one".to_owned(),
        rules,
        running,
        staging: Scope::default(),
    };
    let read = ReadGroup::new(StoredGroup { id: GroupId(1), group: Arc::new(group) });
    let known = Known {
        revision: 1,
        arrived: None,
        trace: None,
        generation: Generation(1),
        stamp: Stamp(0),
        spaces: [SpaceGuid::parse("s1").unwrap()].into(),
        groups: [(guid, Arc::new(read))].into(),
    };
    let entry = |handle: &str, ip: &str, space: &str| {
        format!(
            r#""{handle}":{{"ip":"{ip}","metadata":{{"policy_group_id":"p","space_id":"{space}","container_workload":"app"}}}}"#
        )
    };
    let store =
        format!("{{{},{}}}", entry("c", "10.255.1.1", "s1"), entry("early", "10.255.1.2", "s2"));
    let snapshot = Snapshot::parse(store.as_bytes()).unwrap();
    (plan(&Arc::new(settings), &snapshot, &known, &Refused::default()), known)
}

fn leaves(name: &str) -> Way {
    Way::Known(Route::Leaves(name.to_owned()))
}

fn ask<'a>(
    (ruleset, known): &'a (Ruleset, Known),
    handle: &str,
    destination: &str,
    port: u16,
) -> Explanation<'a> {
    let handle = ContainerHandle::parse(handle).unwrap();
    let probe = Probe { destination: destination.parse().unwrap(), kind: ProbeKind::Tcp(port) };
    explain(ruleset, known, &handle, probe, &leaves("eth0")).unwrap()
}

fn reason(explanation: &Explanation<'_>) -> String {
    match explanation {
        Explanation::Allowed { reason, .. }
        | Explanation::AllowedAlways { reason }
        | Explanation::NotDecided { reason }
        | Explanation::Untold { reason }
        | Explanation::Denied { reason, .. } => reason.clone(),
    }
}

#[test]
fn the_rule_that_decides_is_named() {
    let ruleset = ruleset(|_| {});
    let Explanation::Allowed { source, permit, .. } = ask(&ruleset, "c", "10.2.0.5", 443) else {
        panic!("denied");
    };
    assert_eq!((source.rule, permit.log), (2, false), "the lowest rule stands first");
    assert_eq!(
        reason(&ask(&ruleset, "c", "20.0.0.1", 80)),
        "rule 3 of security group one (g1) allows tcp port 80 to 20.0.0.0-20.255.255.255"
    );
}

#[test]
fn a_denial_names_the_reason_and_near_rules() {
    let ruleset = ruleset(|_| {});
    let near = |destination, port| {
        let Explanation::Denied { reason, nearest, .. } = ask(&ruleset, "c", destination, port)
        else {
            panic!("allowed");
        };
        let nearest = nearest.into_iter().map(|(source, reason)| (source.rule, reason));
        (reason, nearest.collect::<Vec<_>>())
    };
    let miss = |rule, reason: &str| (rule, reason.to_owned());
    let (reason, nearest) = near("20.0.0.1", 81);
    assert_eq!(reason, "none of the 7 rules of the container matches");
    assert_eq!(
        nearest,
        [
            miss(3, "port 81 is not 80"),
            miss(7, "port 81 is not 90"),
            miss(2, "20.0.0.1 is not in 10.0.0.0-10.255.255.255"),
            miss(5, "port 81 is not 53"),
            miss(6, "tcp is not udp"),
        ],
        "the same address and protocol, then the same service, then any address"
    );
    let (_, nearest) = near("21.0.0.1", 80);
    assert_eq!(nearest[0], miss(3, "21.0.0.1 is not in 20.0.0.0-20.255.255.255"));
    let denied = ask(&ruleset, "c", "10.11.0.1", 80);
    assert!(self::reason(&denied).starts_with("10.11.0.1 is in 10.11.0.0/16 of deny_networks"));
    let early = ask(&ruleset, "early", "10.1.0.1", 80);
    assert!(self::reason(&early).contains("has not sent the security groups of space s2"));
}

#[test]
fn a_rule_that_is_not_enforced_is_the_reason() {
    let ruleset = ruleset(|_| {});
    let told = ask(&ruleset, "c", "30.0.0.5", 81);
    let Explanation::Denied { reason, isolated, .. } = told else { panic!("{told:?}") };
    assert_eq!(
        reason,
        "rule 4 of security group one (g1) would allow it, but is not enforced: \
         destination \"30.0.0.0/255.255.255.0\" is not a CIDR with a prefix length"
    );
    assert_eq!(isolated.len(), 1);
    for (to, port) in [("30.0.1.5", 80), ("30.0.0.5", 82)] {
        let told = ask(&ruleset, "c", to, port);
        let Explanation::Denied { reason, isolated, .. } = told else { panic!("{told:?}") };
        assert_eq!((reason.starts_with("none of the 7"), isolated), (true, vec![]), "{to}:{port}");
    }
}

#[test]
fn decisions_before_the_rules_are_explained() {
    let open = ruleset(|settings| {
        settings.disable_network_policy = true;
        settings.underlay = vec!["eth0".to_owned()];
    });
    assert!(matches!(ask(&open, "early", "10.255.9.9", 80), Explanation::AllowedAlways { .. }));
    let limited = ruleset(|settings| {
        let limit = ConnectionLimit { per_second: 7, burst: 9, log: false, destinations: 9 };
        settings.connection_limit = Some(limit);
    });
    let told = reason(&ask(&limited, "c", "20.0.0.1", 80));
    assert!(told.ends_with("at most 7 new connections a second to one port"), "{told}");
    let nobody = ContainerHandle::parse("nobody").unwrap();
    let probe = Probe { destination: "20.0.0.1".parse().unwrap(), kind: ProbeKind::Other };
    assert_eq!(explain(&open.0, &open.1, &nobody, probe, &leaves("eth0")), None);
}

/// Packets that the settings of either plane exclude.
#[test]
fn packets_that_do_not_pass_the_chains_are_not_decided() {
    type Change = fn(&mut Settings);
    let ours: Change = |_| {};
    let underlay: Change = |settings| settings.underlay = vec!["eth0".to_owned()];
    let silk: Change = |settings| settings.by_address = false;
    let overlay6: Change = |settings| settings.overlay = "fd00:255::/32".parse().unwrap();
    let cell = || Way::Known(Route::Local);
    let cases: [(Change, &str, Way, Option<&str>); 19] = [
        (ours, "127.0.0.1", leaves("eth0"), Some("do not leave the container")),
        (ours, "::1", Way::Unknown, Some("do not leave the container")),
        (ours, "10.255.1.1", cell(), Some("do not leave the container")),
        (ours, "224.0.0.1", leaves("eth0"), Some("multicast")),
        (ours, "fe80::1", cell(), Some("link-local")),
        (ours, "169.254.0.1", cell(), Some("an address of this cell")),
        (ours, "10.255.1.2", leaves("s-010255001002"), Some("is the container early of this cell")),
        (ours, "10.255.9.9", leaves("silk-vtep"), Some("overlay network 10.255.0.0/16")),
        (ours, "10.255.9.9", Way::Unknown, Some("overlay network 10.255.0.0/16")),
        (ours, "10.1.0.1", Way::Unknown, None),
        (ours, "10.1.0.1", leaves("docker0"), None),
        (underlay, "10.1.0.1", leaves("docker0"), Some("leave by docker0, and only packets")),
        (underlay, "10.1.0.1", leaves("eth0"), None),
        (underlay, "10.255.9.9", leaves("eth0"), None),
        (silk, "10.1.0.1", leaves("s-010001000001"), Some("leave by s-010001000001")),
        (silk, "10.1.0.1", leaves("eth0"), None),
        (silk, "fd00::1", leaves("docker0"), None),
        (overlay6, "fd00:255::1", leaves("silk-vtep"), Some("overlay network fd00:255::/32")),
        (underlay, "fd00::1", leaves("docker0"), None),
    ];
    for (change, to, way, expected) in cases {
        let (ruleset, known) = ruleset(change);
        let handle = ContainerHandle::parse("c").unwrap();
        let probe = Probe { destination: to.parse().unwrap(), kind: ProbeKind::Tcp(80) };
        let told = explain(&ruleset, &known, &handle, probe, &way).unwrap();
        match (expected, &told) {
            (Some(expected), Explanation::NotDecided { reason }) => {
                assert!(reason.contains(expected), "{to}: {reason}");
            }
            (None, Explanation::Allowed { .. } | Explanation::AllowedAlways { .. }) => {}
            (None, Explanation::Denied { .. }) if to.contains(':') || to == "10.255.9.9" => {}
            _ => panic!("{to} by {way:?}: {told:?}"),
        }
    }
}
