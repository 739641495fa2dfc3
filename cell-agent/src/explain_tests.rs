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

fn ruleset(change: impl Fn(&mut Settings)) -> Ruleset {
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
    plan(&Arc::new(settings), &snapshot, &known, &Refused::default())
}

fn ask<'a>(ruleset: &'a Ruleset, handle: &str, destination: &str, port: u16) -> Explanation<'a> {
    let probe = Probe { destination: destination.parse().unwrap(), kind: ProbeKind::Tcp(port) };
    explain(ruleset, &ContainerHandle::parse(handle).unwrap(), probe).unwrap()
}

fn reason(explanation: &Explanation<'_>) -> String {
    match explanation {
        Explanation::Allowed { reason, .. }
        | Explanation::AllowedAlways { reason }
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
        "rule 3 of security group g1 allows tcp port 80 to 20.0.0.0-20.255.255.255"
    );
}

#[test]
fn denied_says_why_and_what_comes_close() {
    let ruleset = ruleset(|_| {});
    let Explanation::Denied { reason, nearest } = ask(&ruleset, "c", "20.0.0.1", 81) else {
        panic!("allowed");
    };
    assert_eq!(reason, "none of the 4 rules of the container matches");
    assert_eq!((nearest[0].0.rule, nearest[0].1.as_str()), (3, "allows tcp port 80 only"));
    let Explanation::Denied { nearest, .. } = ask(&ruleset, "c", "21.0.0.1", 80) else {
        panic!("allowed");
    };
    assert_eq!(nearest[0].1, "allows 20.0.0.0-20.255.255.255 only", "the nearest network first");
    let denied = ask(&ruleset, "c", "10.11.0.1", 80);
    assert_eq!(self::reason(&denied), "10.11.0.1 is in the denied network 10.11.0.0/16");
    let early = ask(&ruleset, "early", "10.1.0.1", 80);
    assert!(self::reason(&early).contains("has not told the security groups of space s2"));
}

#[test]
fn what_comes_before_the_rules_is_told() {
    let open = ruleset(|settings| settings.disable_network_policy = true);
    assert!(matches!(ask(&open, "early", "10.255.9.9", 80), Explanation::AllowedAlways { .. }));
    let limited = ruleset(|settings| {
        let limit = ConnectionLimit { per_second: 7, burst: 9, log: false, destinations: 9 };
        settings.connection_limit = Some(limit);
    });
    let told = reason(&ask(&limited, "c", "20.0.0.1", 80));
    assert!(told.ends_with("at most 7 new connections a second to one port"), "{told}");
    let nobody = ContainerHandle::parse("nobody").unwrap();
    let probe = Probe { destination: "20.0.0.1".parse().unwrap(), kind: ProbeKind::Other };
    assert_eq!(explain(&open, &nobody, probe), None);
}
