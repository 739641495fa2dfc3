use model::{
    group::{GroupId, Scope, SecurityGroup, StoredGroup},
    rule::RuleSpec,
};
use proptest::prelude::*;

use super::*;

fn space(text: &str) -> SpaceGuid {
    SpaceGuid::parse(text).unwrap()
}

fn handle(text: &str) -> ContainerHandle {
    ContainerHandle::parse(text).unwrap()
}

fn settings() -> Arc<Settings> {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Arc::new(Settings {
        by_address: true,
        overlay: "10.255.0.0/16".parse().unwrap(),
        underlay: Vec::new(),
        disable_network_policy: false,
        deny_networks: DenyNetworks {
            always: nets(&["10.11.0.0/16", "10.12.0.0/16"]),
            running: nets(&["10.13.0.0/16", "10.14.0.0/16"]),
            staging: nets(&["10.15.0.0/16"]),
        },
        log_all: false,
        denied_logs_per_second: 1,
        udp_logs_per_second: 100,
        connection_limit: None,
        record_denied: None,
        count_use: false,
    })
}

fn spec(destination: &str) -> RuleSpec {
    let (protocol, destination) = ("all".to_owned(), destination.to_owned());
    RuleSpec { protocol, destination, ..RuleSpec::default() }
}

/// Global when no spaces are given.
fn group(id: u64, spaces: &[&str], rules: Vec<RuleSpec>) -> Arc<ReadGroup> {
    let running = Scope {
        everywhere: spaces.is_empty(),
        spaces: spaces.iter().map(|text| space(text)).collect(),
    };
    let guid = GroupGuid::parse(&format!("g{id}")).unwrap();
    let name = format!("g{id}");
    let staging = Scope::default();
    let group = Arc::new(SecurityGroup { guid, name, rules, running, staging });
    Arc::new(ReadGroup::new(StoredGroup { id: GroupId(id), group }))
}

fn known(spaces: &[&str], groups: impl IntoIterator<Item = Arc<ReadGroup>>) -> Known {
    let guid = |group: &Arc<ReadGroup>| group.stored.group.guid.clone();
    Known {
        revision: 0,
        arrived: None,
        trace: None,
        generation: Generation(1),
        stamp: Stamp(0),
        spaces: spaces.iter().map(|text| space(text)).collect(),
        groups: groups.into_iter().map(|group| (guid(&group), group)).collect(),
    }
}

fn snapshot(entries: &[(&str, &str, &str, &str)]) -> Snapshot {
    let entry = |(handle, ip, space, workload): &(&str, &str, &str, &str)| {
        let text = format!(
            r#""{handle}":{{"ip":"{ip}","metadata":{{"policy_group_id":"p","space_id":"{space}",
            "container_workload":"{workload}"}}}}"#
        );
        text
    };
    let entries: Vec<String> = entries.iter().map(entry).collect();
    Snapshot::parse(format!("{{{}}}", entries.join(",")).as_bytes()).unwrap()
}

fn shown(policy: &Policy) -> Vec<String> {
    let segments = policy.segments.iter();
    segments
        .map(|segment| {
            let permits: Vec<String> =
                segment.permits.iter().map(|permit| permit.destination.to_string()).collect();
            format!("{}: {}", segment.group, permits.join(" "))
        })
        .collect()
}

#[test]
fn the_filter_holds_the_operators_order_reversed() {
    let known = known(
        &["s1"],
        [
            group(1, &[], vec![spec("1.0.0.1"), spec("1.0.0.2")]),
            group(2, &["s1"], vec![spec("2.0.0.1,2.0.0.2"), spec("1.0.0.1")]),
            group(3, &["s1"], vec![spec("3.0.0.1")]),
        ],
    );
    let snapshot = snapshot(&[("c", "10.255.1.1", "s1", "app")]);
    let ruleset = plan(&settings(), &snapshot, &known, &Refused::default());
    let belongs = Belongs { space: space("s1"), lifecycle: Lifecycle::Running };
    assert_eq!(ruleset.containers[&handle("c")].assignment, Assignment::Bound(belongs.clone()));
    let policy = &ruleset.policies[&belongs];
    assert_eq!(shown(policy), ["g3: 3.0.0.1", "g2: 2.0.0.2 2.0.0.1", "g1: 1.0.0.2 1.0.0.1"]);
    let deny: Vec<String> = policy.deny.iter().map(ToString::to_string).collect();
    assert_eq!(deny, ["10.14.0.0/16", "10.13.0.0/16", "10.12.0.0/16", "10.11.0.0/16"]);
}

#[test]
fn a_container_without_policy_is_denied_with_a_reason() {
    let snapshot = snapshot(&[
        ("bound", "10.255.1.1", "s1", "task"),
        ("early", "10.255.1.2", "s2", "app"),
        ("odd", "10.255.1.3", "s1", "cron"),
        ("lost", "nowhere", "s1", "app"),
    ]);
    let ruleset = plan(&settings(), &snapshot, &known(&["s1"], []), &Refused::default());
    let assignment = |name| &ruleset.containers[&handle(name)].assignment;
    assert!(matches!(assignment("bound"), Assignment::Bound(_)));
    assert_eq!(assignment("early"), &Assignment::Unknown(space("s2")));
    assert!(matches!(assignment("odd"), Assignment::Ungrouped(reason) if reason.contains("cron")));
    assert!(
        matches!(assignment("lost"), Assignment::Isolated(reason) if reason.contains("nowhere"))
    );
    assert_eq!(ruleset.containers[&handle("lost")].address, None);
    assert!(ruleset.containers[&handle("odd")].address.is_some(), "its denials are logged");
    assert_eq!(ruleset.policies.len(), 1);
}

#[test]
fn policies_share_equal_segments() {
    let groups = [
        group(1, &[], vec![spec("1.0.0.1"), spec("1.0.0.2")]),
        group(2, &["s1"], vec![spec("2.0.0.1")]),
    ];
    let snapshot = snapshot(&[("a", "10.255.1.1", "s1", "app"), ("b", "10.255.1.2", "s2", "app")]);
    let known = known(&["s1", "s2"], groups);
    let ruleset = plan(&settings(), &snapshot, &known, &Refused::default());
    let last = |space_guid: &str| {
        let belongs = Belongs { space: space(space_guid), lifecycle: Lifecycle::Running };
        Arc::clone(ruleset.policies[&belongs].segments.last().unwrap())
    };
    assert!(Arc::ptr_eq(&last("s1"), &last("s2")));
}

/// A second plan recomputes only the changes, with the same result.
#[test]
fn a_second_plan_is_the_same_in_memory() {
    let groups =
        |first: &str| [group(1, &[], vec![spec(first)]), group(2, &["s1"], vec![spec("2.0.0.1")])];
    let of = |groups| Arc::new(known(&["s1", "s2"], groups));
    let one = snapshot(&[("a", "10.255.1.1", "s1", "app")]);
    let two = snapshot(&[("a", "10.255.1.1", "s1", "app"), ("b", "10.255.1.2", "s2", "app")]);
    let (before, after) = (of(groups("1.0.0.1")), of(groups("1.0.0.2")));
    let mut planner = Planner::new(settings());
    let belongs = Belongs { space: space("s1"), lifecycle: Lifecycle::Running };
    let mut last: Option<Arc<Policy>> = None;
    let guid = GroupGuid::parse("g2").unwrap();
    let rules = BTreeMap::from([((guid, 0), (spec("2.0.0.1"), "no".to_owned()))]);
    let refusing = Refused { rules, containers: BTreeMap::new() };
    let none = Refused::default();
    for (snapshot, known, refused, policy_is_same, segment_is_same) in [
        (&one, &before, &none, false, false),
        (&two, &before, &none, true, true),
        (&two, &after, &none, false, true),
        (&one, &after, &none, true, true),
        (&one, &after, &refusing, false, false),
    ] {
        let ruleset = planner.plan(snapshot, known, refused);
        assert_eq!(ruleset, plan(&settings(), snapshot, known, refused));
        let policy = Arc::clone(&ruleset.policies[&belongs]);
        let segment = |policy: &Policy| policy.segments.first().map(Arc::as_ptr);
        let last = last.replace(policy);
        let (policy, last) = (&ruleset.policies[&belongs], last.as_ref());
        assert_eq!(last.is_some_and(|last| Arc::ptr_eq(last, policy)), policy_is_same);
        assert_eq!(last.is_some_and(|last| segment(last) == segment(policy)), segment_is_same);
    }
}

#[test]
fn refused_rules_are_left_out_while_unchanged() {
    let snapshot = snapshot(&[("c", "10.255.1.1", "s1", "app")]);
    let guid = GroupGuid::parse("g1").unwrap();
    let rules = BTreeMap::from([((guid.clone(), 1), (spec("1.0.0.2"), "no".to_owned()))]);
    let container = snapshot.containers[&handle("c")].clone();
    let refused = Refused { rules, containers: BTreeMap::new() };
    let policy_with = |rules| {
        let known = known(&["s1"], [group(1, &[], rules)]);
        let ruleset = plan(&settings(), &snapshot, &known, &refused);
        ruleset.policies.into_values().next().unwrap()
    };
    let policy = policy_with(vec![spec("1.0.0.1"), spec("1.0.0.2"), spec("1.0.0.3")]);
    assert_eq!(shown(&policy), ["g1: 1.0.0.3 1.0.0.1"]);
    assert_eq!(policy.refused, [(guid, 1, "no".to_owned())]);
    let mended = policy_with(vec![spec("1.0.0.1"), spec("1.0.0.9"), spec("1.0.0.3")]);
    assert_eq!(shown(&mended), ["g1: 1.0.0.3 1.0.0.9 1.0.0.1"]);
    assert!(mended.refused.is_empty());

    let refused = Refused {
        containers: BTreeMap::from([(handle("c"), (container, "no".to_owned()))]),
        ..Refused::default()
    };
    let ruleset = plan(&settings(), &snapshot, &known(&["s1"], []), &refused);
    let planned = &ruleset.containers[&handle("c")];
    assert_eq!(
        (planned.address, &planned.assignment),
        (None, &Assignment::Isolated("no".to_owned()))
    );
    let moved = self::snapshot(&[("c", "10.255.1.2", "s1", "app")]);
    let ruleset = plan(&settings(), &moved, &known(&["s1"], []), &refused);
    assert!(matches!(ruleset.containers[&handle("c")].assignment, Assignment::Bound(_)));
}

#[test]
fn isolated_rules_count_once_however_many_policies_have_them() {
    let bad = group(1, &[], vec![spec("nowhere"), spec("1.0.0.1")]);
    let snapshot = snapshot(&[("a", "10.255.1.1", "s1", "app"), ("b", "10.255.1.2", "s2", "app")]);
    let known = known(&["s1", "s2"], [bad]);
    let ruleset = plan(&settings(), &snapshot, &known, &Refused::default());
    assert_eq!(ruleset.isolated_rules(), 1);
}

proptest! {
    /// The order of groups and containers does not change the plan, and each container
    /// has a verdict: bound to an existing policy, or denied.
    #[test]
    fn the_plan_does_not_depend_on_order_and_knows_every_container(
        containers in proptest::collection::vec((0_u8..6, "s[1-3]", "app|task|staging|x"), 0..12),
        groups in proptest::collection::vec(
            (proptest::option::of("s[1-3]"), proptest::collection::vec("1.0.0.[1-6]|bad", 0..5)), 0..6),
        turn in any::<prop::sample::Index>(),
    ) {
        let entries: Vec<_> = containers.iter().enumerate()
            .map(|(n, (ip, space, workload))| (format!("c{n}"), format!("10.255.1.{ip}"), space.clone(), workload.clone()))
            .collect();
        let mut entries: Vec<_> = entries.iter()
            .map(|(a, b, c, d)| (a.as_str(), b.as_str(), c.as_str(), d.as_str())).collect();
        let mut groups: Vec<_> = groups.iter().zip(1..).map(|((space, rules), id)| {
            let spaces: Vec<&str> = space.iter().map(String::as_str).collect();
            group(id, &spaces, rules.iter().map(|rule| spec(rule)).collect())
        }).collect();
        let settings = settings();
        let make = |entries: &[_], groups: &[Arc<ReadGroup>]| plan(
            &settings, &snapshot(entries), &known(&["s1", "s2"], groups.iter().cloned()), &Refused::default());
        let one = make(&entries, &groups);
        if !entries.is_empty() { let n = turn.index(entries.len()); entries.rotate_left(n); }
        if !groups.is_empty() { let n = turn.index(groups.len()); groups.rotate_left(n); }
        prop_assert_eq!(&one, &make(&entries, &groups));
        prop_assert_eq!(one.containers.len(), entries.len());
        for planned in one.containers.values() {
            if let Assignment::Bound(belongs) = &planned.assignment {
                prop_assert!(one.policies.contains_key(belongs) && planned.address.is_some());
            }
        }
    }
}

/// Law 7: an address outside the overlay that two entries name belongs to no container,
/// and so is denied; it must not bypass the table.
#[test]
fn an_unassigned_outside_address_is_denied() {
    let entries = [("a", "192.168.5.5", "s1", "app"), ("b", "192.168.5.5", "s1", "app")];
    let known = known(&["s1"], []);
    let ruleset = plan(&settings(), &snapshot(&entries), &known, &Refused::default());
    assert!(ruleset.containers.values().all(|planned| planned.address.is_none()));
    let table = crate::plane::nftables::render::render(&ruleset, "");
    let decided = &table.maps["outsiders"].jumps;
    assert_eq!(decided.keys().map(ToString::to_string).collect::<Vec<_>>(), ["192.168.5.5"]);
    assert!(table.maps["policies"].jumps.is_empty(), "{table:?}");
}

/// The owner of such packets is known only if something else than the address
/// identifies the container.
#[test]
fn an_address_that_two_claim_closes_both_where_the_address_counts() {
    let entries = [
        ("a", "10.255.0.1", "s1", "app"),
        ("b", "10.255.0.1", "s1", "app"),
        ("c", "x", "s1", "app"),
    ];
    let (snapshot, known) = (snapshot(&entries), known(&["s1"], []));
    for by_address in [true, false] {
        let settings = Arc::new(Settings { by_address, ..(*settings()).clone() });
        let ruleset = plan(&settings, &snapshot, &known, &Refused::default());
        for (name, closed) in [("a", by_address), ("b", by_address), ("c", true)] {
            let Planned { address, more: _, assignment } = &ruleset.containers[&handle(name)];
            assert_eq!(
                matches!(assignment, Assignment::Isolated(_)),
                closed,
                "{name} {assignment:?}"
            );
            assert_eq!(address.is_none(), closed, "{name}");
        }
        assert_eq!(ruleset.claimed.len(), 1);
    }
}
