//! WhatIf: the sets against verdicts by brute force, and the call over gRPC.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use model::{
    effective::{Probe, ProbeKind, ReadGroup, Verdict, effective_rules},
    group::{GroupId, Lifecycle, Scope, SecurityGroup, StoredGroup},
    ids::SpaceGuid,
    rule::RuleSpec,
};
use policy_store::groups::{
    content::Content,
    decide::State,
    history::Past,
    snapshot::{Entry, Snapshot},
    what_if::{Change, Difference, Finding, WhatIf, Width, what_if},
};
use proptest::prelude::*;
use proto::{
    cell_v1::{self, Container},
    policy_v1::{
        self, Area, Binding, ContainersRequest, Rule, WhatIfRequest, WhatIfResponse,
        watch_request::{Hello, Inventory, Step},
        what_if_request::Rules,
    },
};
use tonic::{Code, Status};

use crate::{
    grpc::assert_status,
    support::{
        client::{Cell, replace},
        sets::{bound, fenced, global, group, set, space},
        site::{Foundation, Served},
        until,
    },
};

const LIFECYCLES: [Lifecycle; 2] = [Lifecycle::Running, Lifecycle::Staging];
/// The last space has no group.
const SPACES: [&str; 4] = ["s0", "s1", "s2", "s9"];
const PROTOCOLS: [&str; 5] = ["tcp", "tcp", "udp", "all", "icmp"];
const DESTINATIONS: [&str; 6] =
    ["10.0.0.1", "10.0.0.0/30", "10.0.0.2-10.0.0.5", "0.0.0.0/0", "fd00::/8", "bad,10.0.0.3"];
const PORTS: [&str; 4] = ["80", "80-82", "81,443", "1-65535"];

fn rule_of(seed: usize) -> RuleSpec {
    let protocol = PROTOCOLS[seed % 5];
    let has_ports = matches!(protocol, "tcp" | "udp");
    RuleSpec {
        protocol: protocol.to_owned(),
        destination: DESTINATIONS[seed / 5 % 6].to_owned(),
        ports: if has_ports { PORTS[seed / 30 % 4] } else { "" }.to_owned(),
        icmp_type: [-1, 8][seed / 120 % 2],
        ..RuleSpec::default()
    }
}

fn rules() -> impl Strategy<Value = Vec<RuleSpec>> {
    prop::collection::vec((0..240_usize).prop_map(rule_of), 0..4)
}

fn scopes() -> impl Strategy<Value = Scope> {
    let spaces = prop::collection::btree_set(0..3_usize, 0..3);
    (prop::bool::weighted(0.3), spaces).prop_map(|(everywhere, spaces)| Scope {
        everywhere,
        spaces: spaces.into_iter().map(|index| space(SPACES[index])).collect(),
    })
}

fn content() -> impl Strategy<Value = (Vec<RuleSpec>, Scope, Scope)> {
    (rules(), scopes(), scopes())
}

fn made(id: usize, (rules, running, staging): (Vec<RuleSpec>, Scope, Scope)) -> StoredGroup {
    let name = format!("g{id}");
    let group = SecurityGroup { rules, running, staging, ..group(&name, &name) };
    StoredGroup { id: GroupId(id as u64), group: Arc::new(group) }
}

fn snapshot(groups: &[StoredGroup]) -> Snapshot {
    let entry = |stored: &StoredGroup| {
        let content = Content::from(SecurityGroup::clone(&stored.group));
        let hash = stored.group.content_hash();
        Arc::new(Entry::new(stored.id, &content, hash, None, SpaceGuid::clone))
    };
    Snapshot::new(State::default(), groups.iter().map(entry).collect(), Past::default())
}

fn probes() -> Vec<Probe> {
    let to = ["10.0.0.0", "10.0.0.1", "10.0.0.3", "10.0.0.5", "192.0.2.1", "fd00::1"];
    let kinds = [
        ProbeKind::Tcp(80),
        ProbeKind::Tcp(82),
        ProbeKind::Tcp(443),
        ProbeKind::Udp(81),
        ProbeKind::Icmp { icmp_type: 8, code: 0 },
        ProbeKind::Icmp { icmp_type: 0, code: 0 },
        ProbeKind::Other,
    ];
    let to = to.map(|address| address.parse::<IpAddr>().unwrap());
    let probe = |destination| kinds.map(|kind| Probe { destination, kind });
    to.into_iter().flat_map(probe).collect()
}

/// The verdict on each probe.
fn verdicts(groups: &[StoredGroup], lifecycle: Lifecycle, of: &SpaceGuid) -> Vec<bool> {
    let read: Vec<ReadGroup> = groups.iter().cloned().map(ReadGroup::new).collect();
    let rules = effective_rules(&read, lifecycle, of, false);
    let allowed = |probe| matches!(rules.verdict(probe), Verdict::Allowed(..));
    probes().into_iter().map(allowed).collect()
}

fn is_bound(groups: &[StoredGroup], space: &SpaceGuid) -> bool {
    groups.iter().any(|stored| stored.group.bound_spaces().any(|bound| bound == space))
}

/// The only difference of the space.
fn of_space<'a>(
    found: &'a WhatIf,
    lifecycle: Lifecycle,
    space: &SpaceGuid,
    is_named: bool,
) -> Option<&'a Difference> {
    let of = found.differences.iter().filter(|difference| {
        let named = difference.spaces.contains(space);
        assert!(is_named || !named, "{space} has no group");
        difference.lifecycle == lifecycle
            && if is_named { named } else { difference.all_other_spaces }
    });
    let of: Vec<_> = of.collect();
    assert!(of.len() <= 1, "{space} is in one difference");
    of.first().copied()
}

proptest! {
    #[test]
    fn the_difference_of_each_space_equals_brute_force(
        contents in prop::collection::vec(content(), 1..5),
        after in prop::option::weighted(0.8, content()),
        is_new in prop::bool::weighted(0.2),
    ) {
        let groups: Vec<_> =
            contents.into_iter().enumerate().map(|(id, content)| made(id + 1, content)).collect();
        let id = if is_new { groups.len() + 1 } else { 1 };
        let after = after.map(|content| made(id, content));
        let before = groups.iter().find(|stored| stored.id.0 == id as u64).cloned();
        let mut changed: Vec<_> = groups.iter().filter(|group| group.id.0 != id as u64).cloned().collect();
        changed.extend(after.clone());
        let change = Change { before, after: after.map(|stored| stored.group) };
        let found = what_if(&snapshot(&groups), change, Width::default());

        let kept = without_covered(&changed, &found, id);
        for lifecycle in LIFECYCLES {
            for space in SPACES.map(space) {
                let was = verdicts(&groups, lifecycle, &space);
                let is = verdicts(&changed, lifecycle, &space);
                let is_named = is_bound(&groups, &space) || is_bound(&changed, &space);
                let difference = of_space(&found, lifecycle, &space, is_named);
                let difference = difference.map(|of| (of.opens(), of.closes()));
                let is_empty = difference.as_ref().is_some_and(|(a, b)| a.is_empty() && b.is_empty());
                prop_assert!(!is_empty, "no empty difference");
                for ((probe, was), is) in probes().into_iter().zip(&was).zip(&is) {
                    let (opens, closes) = difference
                        .as_ref()
                        .map_or((false, false), |(a, b)| (a.contains(probe), b.contains(probe)));
                    prop_assert_eq!(opens, !was && *is, "{:?} {} {:?}", lifecycle, &space, probe);
                    prop_assert_eq!(closes, *was && !is, "{:?} {} {:?}", lifecycle, &space, probe);
                }
                prop_assert_eq!(verdicts(&kept, lifecycle, &space), is, "covered rules can go");
            }
        }
    }
}

/// The groups after the change, without the rules that the remarks say are covered.
fn without_covered(changed: &[StoredGroup], found: &WhatIf, id: usize) -> Vec<StoredGroup> {
    let covered = found.remarks.iter().filter(|remark| remark.finding == Finding::Covered);
    let covered: BTreeSet<usize> = covered.map(|remark| remark.rule.index).collect();
    let mut kept = changed.to_vec();
    for stored in kept.iter_mut().filter(|stored| stored.id.0 == id as u64) {
        let group = Arc::make_mut(&mut stored.group);
        let mut index = 0;
        group.rules.retain(|_| {
            index += 1;
            !covered.contains(&(index - 1))
        });
    }
    kept
}

fn rule(protocol: &str, destination: &str, ports: &str) -> RuleSpec {
    RuleSpec {
        protocol: protocol.to_owned(),
        destination: destination.to_owned(),
        ports: ports.to_owned(),
        ..RuleSpec::default()
    }
}

fn with(group: SecurityGroup, rules: &[RuleSpec]) -> SecurityGroup {
    SecurityGroup { rules: rules.to_vec(), ..group }
}

fn container(handle: &str, app: &str, space: &str) -> Container {
    Container {
        handle: handle.to_owned(),
        space_guid: space.to_owned(),
        app_guid: app.to_owned(),
        workload: "app".to_owned(),
        lifecycle: cell_v1::Lifecycle::Running.into(),
        ..Container::default()
    }
}

/// `web` in all spaces, `db` in s1 and s2, `wide` in s2, which allows what `db` does.
async fn served() -> (Served, Cell) {
    let served = Served::start().await;
    let groups = set([
        with(global("web", "web"), &[rule("tcp", "0.0.0.0/0", "443")]),
        with(bound("db", "db", &["s1", "s2"]), &[rule("tcp", "10.0.0.0/24", "5432")]),
        with(bound("wide", "wide", &["s2"]), &[rule("tcp", "10.0.0.0/8", "1-65535")]),
        with(bound("one", "same", &[]), &[]),
        with(bound("two", "same", &[]), &[]),
    ]);
    replace(&served.writer(), &fenced(&groups, "syncer-a", 1)).await.unwrap();
    let hello = Hello { cell_id: "cell-1".to_owned(), ..Hello::default() };
    let cell = Cell::open(&served.cell("cell-1"), Some(Step::Hello(hello))).await;
    let upserted = vec![
        container("a", "app-1", "s1"),
        container("b", "app-1", "s1"),
        container("c", "app-2", "s2"),
        container("d", "app-3", "s3"),
    ];
    cell.say(Step::Inventory(Inventory { reset: true, upserted, ..Inventory::default() })).await;
    let operator = served.foundation("operator", None);
    until("the containers are known", async || {
        let request = ContainersRequest::default();
        operator.clone().containers(request).await.unwrap().into_inner().total == 4
    })
    .await;
    (served, cell)
}

fn request(group: &str, rules: Option<&[RuleSpec]>) -> WhatIfRequest {
    let rules = rules.map(|rules| Rules { rules: rules.iter().cloned().map(Rule::from).collect() });
    WhatIfRequest { group: group.to_owned(), rules, ..WhatIfRequest::default() }
}

fn binding(space: &str) -> Binding {
    Binding { lifecycle: policy_v1::Lifecycle::Running.into(), space_guid: space.to_owned() }
}

async fn ask(client: &Foundation, request: WhatIfRequest) -> Result<WhatIfResponse, Status> {
    client.clone().what_if(request).await.map(tonic::Response::into_inner)
}

fn shown(areas: &[Area]) -> Vec<String> {
    let area = |area: &Area| {
        let Area { protocol, first_address, last_address, first_port, last_port, .. } = area;
        let [first, last] = [first_port, last_port].map(|port| port.unwrap_or_default());
        format!("{protocol} {first_address}-{last_address} {first}-{last}")
    };
    areas.iter().map(area).collect()
}

#[tokio::test]
async fn operators_see_what_a_change_opens_and_closes() {
    let (served, _cell) = served().await;
    let operator = served.foundation("operator", None);

    let rules = [rule("tcp", "10.0.0.0/25", "5432"), rule("tcp", "192.0.2.0/24", "5432")];
    let found = ask(&operator, request("db", Some(&rules))).await.unwrap();
    assert_eq!((found.generation, found.new_group, found.differences_total), (1, false, 2));
    assert_eq!((found.spaces, found.apps, found.containers), (2, 2, 3));
    let [s1, s2] = found.differences.as_slice() else { panic!("{found:?}") };
    assert_eq!((s1.space_guids.as_slice(), s1.apps, s1.containers), (&["s1".to_owned()][..], 1, 2));
    assert_eq!(shown(&s1.opens), ["tcp 192.0.2.0-192.0.2.255 5432-5432"]);
    assert_eq!(shown(&s1.closes), ["tcp 10.0.0.128-10.0.0.255 5432-5432"]);
    assert_eq!(s2.space_guids, ["s2"]);
    assert_eq!((shown(&s2.opens).len(), shown(&s2.closes).len()), (1, 0), "`wide` allows it too");

    let all = WhatIfRequest { bind: vec![binding("")], ..request("db", None) };
    let found = ask(&operator, all).await.unwrap();
    let [others] = found.differences.as_slice() else { panic!("{found:?}") };
    assert_eq!((others.all_other_spaces, others.spaces_total), (true, 0));
    assert_eq!((others.apps, others.containers), (1, 1), "of the space without a group");
    assert_eq!(shown(&others.opens), ["tcp 10.0.0.0-10.0.0.255 5432-5432"]);

    let gone = WhatIfRequest { delete: true, ..request("wide", None) };
    let found = ask(&operator, gone).await.unwrap();
    let [s2] = found.differences.as_slice() else { panic!("{found:?}") };
    assert_eq!((s2.closes_total, s2.opens_total), (4, 0), "{s2:?}");

    let unbound = WhatIfRequest { unbind: vec![binding("s2")], ..request("db", None) };
    let found = ask(&operator, unbound).await.unwrap();
    assert_eq!(found.differences_total, 0, "`wide` allows it");
    assert_eq!(found.remarks, []);
    served.stop().await;
}

#[tokio::test]
async fn rules_of_a_new_group_get_remarks_and_bad_requests_name_the_field() {
    let (served, _cell) = served().await;
    let operator = served.foundation("operator", None);
    let rules = [
        rule("tcp", "0.0.0.0/0", "80"),
        rule("tcp", "10.1.0.0/16", "70-80"),
        rule("tcp", "10.1.2.3", "80"),
        rule("tcp", "10.0.0.7,nonsense", "443"),
    ];
    let new = WhatIfRequest { bind: vec![binding("s1")], ..request("new-one", Some(&rules)) };
    let found = ask(&operator, new.clone()).await.unwrap();
    assert!(found.new_group);
    let remarks = found.remarks.iter().map(|remark| {
        let others =
            remark.others.iter().map(|other| format!("{}.{}", other.group_name, other.rule_index));
        let rule = remark.rule.as_ref().unwrap();
        assert_eq!((rule.group_guid.as_str(), rule.group_name.as_str()), ("", "new-one"));
        let others = others.collect::<Vec<_>>().join(" ");
        format!("{} {:?} {others}: {}", rule.rule_index, remark.finding(), remark.reason)
    });
    assert_eq!(
        remarks.collect::<Vec<_>>(),
        [
            "0 Wide : it allows 4294967296 IPv4 addresses, more than a /8 has",
            "1 Overlaps new-one.0: other rules of the group allow a part of it",
            "2 Covered new-one.0 new-one.1: other rules of the group allow all of it",
            "3 Covered web.0: the other groups of every space of the group allow all of it",
            "3 NotEnforceable : destination \"nonsense\" is not an IP address: cells do not enforce \
             this",
        ]
    );
    let narrow = WhatIfRequest { wide_prefix: 32, ..new };
    let wide = ask(&operator, narrow).await.unwrap().remarks.into_iter();
    assert_eq!(wide.filter(|remark| remark.finding == 3).count(), 2);

    let bad = async |request, code, message: &str| {
        assert_status(&ask(&operator, request).await.unwrap_err(), code, message);
    };
    bad(request("", None), Code::InvalidArgument, "group: is empty").await;
    bad(request("none", None), Code::NotFound, "no security group has the guid or name \"none\"")
        .await;
    bad(request("same", None), Code::InvalidArgument, "group: 2 groups have the name \"same\"")
        .await;
    let both = WhatIfRequest { delete: true, bind: vec![binding("s1")], ..request("db", None) };
    bad(both, Code::InvalidArgument, "delete: rules, bind and unbind must be absent").await;
    let unbind = WhatIfRequest { unbind: vec![binding("s7")], ..request("db", None) };
    bad(unbind, Code::InvalidArgument, "unbind: group \"db\" is not bound to space s7 (running)")
        .await;
    let nowhere = WhatIfRequest { bind: vec![Binding::default()], ..request("db", None) };
    bad(nowhere, Code::InvalidArgument, "bind[0].lifecycle: must be running or staging").await;
    let wide = WhatIfRequest { wide_prefix: 33, ..request("db", None) };
    bad(wide, Code::InvalidArgument, "wide_prefix: 33 is not a prefix length of IPv4").await;
    let cell = served.foundation("cell-1", Some("cell"));
    let error = ask(&cell, request("db", None)).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    served.stop().await;
}
