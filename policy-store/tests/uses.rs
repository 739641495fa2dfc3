//! The record of uses of rules, in every store, and the answers from the record.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    effective::ReadGroup,
    group::{GroupId, SecurityGroup, StoredGroup},
    ids::{CellId, GroupGuid},
    rule::RuleSpec,
    uses::{Observed, PermitKey, Window},
};
use policy_store::{
    groups::{
        snapshot::Snapshot,
        unused::{Period, UnusedGroup, coverage, unused},
    },
    store::{Store, testing::Memory},
    uses::{Batch, DAY, Recorded, Used},
};
use proto::policy_v1::{
    StatusRequest, UnusedRequest, UnusedResponse,
    watch_request::{Report, RuleUses, Step, rule_uses::Group},
};
use tonic::Code;

use crate::{
    store::{Place, file, load, replace},
    support::{
        client::{self, Cell},
        sets::{bound, group, replacement, set},
        site::Served,
        until,
    },
};

const TODAY: i64 = 20_000;

fn permit(number: u8) -> PermitKey {
    PermitKey::from_bytes(&[number; 16]).unwrap()
}

fn cell() -> CellId {
    CellId::parse("cell-1").unwrap()
}

fn batch(day: i64, used: &[(&str, u8)], windows: &[(i64, i64)]) -> Batch {
    let used =
        used.iter().map(|(group, number)| (GroupGuid::parse(group).unwrap(), permit(*number)));
    let window = |(from, until): &(i64, i64)| Window { from: *from, until: *until };
    let windows = BTreeMap::from([(cell(), windows.iter().map(window).collect())]);
    Batch { used: used.collect(), windows, seen: [cell()].into(), at: day * DAY }
}

async fn recorded(store: &dyn Store) -> Recorded {
    store.uses().recorded().await.unwrap()
}

#[tokio::test]
async fn uses_get_first_and_last_days_and_old_ones_go() {
    for place in Place::all() {
        let store = place.open().await;
        let set = set([group("g1", "name")]);
        replace(&*store, replacement(&set)).await.unwrap();
        let save = async |batch: Batch| store.uses().save(Arc::new(batch)).await.unwrap();
        let end = TODAY * DAY;
        let many: Vec<(String, u8)> = (10..100).map(|number| ("g1".to_owned(), number)).collect();
        let many: Vec<(&str, u8)> = many.iter().map(|(group, n)| (group.as_str(), *n)).collect();
        save(batch(TODAY, &many, &[(end - 500, end - 400)])).await;
        save(batch(TODAY + 1, &[("g1", 1), ("gone", 2)], &[(end - 400, end - 300)])).await;
        save(batch(TODAY + 3, &[("g1", 1)], &[(end - 200, end)])).await;
        // A late batch of another instance.
        save(batch(TODAY, &[("g1", 1)], &[(end - 400, end - 300)])).await;
        store.close().await.unwrap();
        let store = place.open().await;
        let Recorded { uses, cells } = recorded(&*store).await;
        let used = |group: &str, number| {
            uses.get(&(GroupGuid::parse(group).unwrap(), permit(number))).copied()
        };
        assert_eq!(used("g1", 1), Some(Used { first: TODAY, last: TODAY + 3 }));
        assert_eq!(used("gone", 2), Some(Used { first: TODAY + 1, last: TODAY + 1 }));
        assert_eq!(uses.len(), 92);
        let wanted = Observed {
            first_seen: TODAY * DAY,
            last_seen: (TODAY + 3) * DAY,
            since: Some(end - 500),
            until: end,
            missed: 100,
            missed_until: end - 200,
        };
        assert_eq!(cells, BTreeMap::from([(cell(), wanted)]));
        assert_eq!(store.uses().prune(TODAY + 92).await.unwrap(), 91, "the deleted group's");
        assert_eq!(store.uses().prune(TODAY + 402).await.unwrap(), 1);
        assert_eq!(recorded(&*store).await.cells.len(), 1);
        assert_eq!(store.uses().prune(TODAY + 404).await.unwrap(), 0);
        assert!(recorded(&*store).await.cells.is_empty());
    }
}

/// Otherwise each rule would look unused.
#[tokio::test]
async fn when_the_uses_are_lost_nothing_is_known() {
    let place = Place::Sqlite(tempfile::tempdir().unwrap());
    let store = place.open().await;
    let uses = batch(TODAY, &[("g1", 1)], &[(1, 2)]);
    store.uses().save(Arc::new(uses)).await.unwrap();
    store.close().await.unwrap();
    let Place::Sqlite(directory) = &place else { unreachable!("made above") };
    let database = rusqlite::Connection::open(file(directory)).unwrap();
    database.execute_batch("DROP TABLE rule_uses").unwrap();
    drop(database);
    assert_eq!(recorded(&*place.open().await).await, Recorded::default());
}

fn spec(destination: &str, ports: &str) -> RuleSpec {
    RuleSpec {
        protocol: "tcp".to_owned(),
        destination: destination.to_owned(),
        ports: ports.to_owned(),
        ..RuleSpec::default()
    }
}

/// The keys of the permits of a group.
fn read(group: &SecurityGroup) -> Vec<PermitKey> {
    let stored = StoredGroup { id: GroupId(1), group: Arc::new(group.clone()) };
    ReadGroup::new(stored).permits().map(|(_, permit)| PermitKey::of(permit)).collect()
}

/// The unused parts of the only group, with these permits used today, by index.
async fn answer(rules: &[(&str, &str)], used: &[usize]) -> Option<UnusedGroup> {
    let place = Place::Memory(Memory::default());
    let store = place.open().await;
    let mut of = group("g1", "name");
    of.rules = rules.iter().map(|(destination, ports)| spec(destination, ports)).collect();
    replace(&*store, replacement(&set([of.clone()]))).await.unwrap();
    let snapshot = Snapshot::from(load(&*store).await);
    let keys = read(&of);
    let guid = GroupGuid::parse("g1").unwrap();
    let today = Used { first: TODAY, last: TODAY };
    let uses = used.iter().map(|index| ((guid.clone(), keys[*index]), today)).collect();
    let recorded = Recorded { uses, ..Recorded::default() };
    let period = Period { start: (TODAY - 30) * DAY, now: TODAY * DAY, ..Period::default() };
    unused(&snapshot.entries()[0], &recorded, &period)
}

#[tokio::test]
async fn groups_rules_and_ports_are_unused() {
    let rules = [("10.0.0.0/8,11.0.0.0/8", "80,443"), ("12.0.0.1", "22"), ("nowhere", "1")];
    let all = answer(&rules, &[]).await.unwrap();
    assert!(all.whole && all.last.is_none());
    assert_eq!(all.rules.iter().map(|rule| rule.index).collect::<Vec<_>>(), [0, 1]);
    // One port of one destination.
    let some = answer(&rules, &[0]).await.unwrap();
    assert_eq!((some.whole, some.last), (false, Some(TODAY)));
    let shown: Vec<_> =
        some.rules.iter().map(|rule| (rule.index, rule.whole, rule.ports.join(","))).collect();
    assert_eq!(shown, [(0, false, "443".to_owned()), (1, true, String::new())]);
    // Both ports, each to one destination.
    assert_eq!(answer(&rules, &[0, 3, 4]).await, None);
}

#[test]
fn coverage_names_each_cell_whose_uses_are_not_known() {
    let (start, now) = (1_000_000, 2_000_000);
    let period = |ignored: &[&str], tolerated| Period {
        start,
        now,
        tolerated,
        ignored: ignored.iter().map(|cell| CellId::parse(cell).unwrap()).collect(),
    };
    let id = |name: &str| CellId::parse(name).unwrap();
    let good = Observed {
        first_seen: 500,
        last_seen: now,
        since: Some(600),
        until: now,
        ..Observed::default()
    };
    let late = Observed { since: Some(start + 400), ..good };
    let gone = Observed { last_seen: start - 1, until: start - 1, ..good };
    let cells = BTreeMap::from([(id("good"), good), (id("late"), late), (id("gone"), gone)]);
    let recorded = Recorded { cells, ..Recorded::default() };
    let connected = || vec![id("good"), id("old-agent")];
    let found = coverage(&recorded, connected(), &period(&[], 0));
    let named: Vec<&str> = found.problems.iter().map(|(cell, _)| cell.as_str()).collect();
    assert_eq!((found.cells, named, found.complete), (3, vec!["late", "old-agent"], false));
    assert!(coverage(&recorded, connected(), &period(&["old-agent"], 400)).complete);
    assert!(!coverage(&recorded, connected(), &period(&["old-agent"], 399)).complete);
    assert!(!coverage(&Recorded::default(), Vec::new(), &period(&[], 0)).complete, "no records");
}

/// Through the wire and a restart of the store; the cell counts, and another one does not.
#[tokio::test]
async fn what_a_cell_reports_is_not_unused() {
    let served = Served::start().await;
    let mut db = bound("db", "db", &["s1"]);
    db.rules = ["1", "2"].map(|ports| spec("10.0.0.0/8", ports)).into();
    client::replace(&served.writer(), &replacement(&set([db.clone()]))).await.unwrap();
    let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &["s1"]).await;
    cell.until(1).await;
    let mut keys = read(&db).into_iter();
    let now = jiff::Timestamp::now().as_second();
    let used = |group: &str, permit: PermitKey| RuleUses {
        groups: vec![Group { guid: group.to_owned(), permits: vec![permit.as_bytes().to_vec()] }],
        from: Some(now),
        until: Some(now),
    };
    cell.say(Step::RuleUses(used("db", keys.next().unwrap()))).await;
    let report = Report { enforced_generation: 1, ..Report::default() };
    cell.say(Step::Report(report)).await;
    let operator = served.operator();
    until("the report has arrived", async || {
        let status = operator.clone().status(StatusRequest {}).await.unwrap().into_inner();
        status.cells.iter().any(|cell| cell.enforced_generation == 1)
    })
    .await;
    let served = Served::start_at(served.stop().await).await;
    drop(cell);
    let mut other = Cell::hello(&served.cell("cell-2"), "cell-2", &["s1"]).await;
    other.until(1).await;
    let mut foundation = served.foundation("operator", None);
    let ask = |days, group: &str| UnusedRequest {
        days,
        group: group.to_owned(),
        ..UnusedRequest::default()
    };
    let UnusedResponse { groups, coverage, groups_total, .. } =
        foundation.unused(ask(30, "db")).await.unwrap().into_inner();
    assert_eq!((groups.len(), groups_total), (1, 1));
    let rules: Vec<_> = groups[0].rules.iter().map(|rule| (rule.index, rule.whole)).collect();
    assert_eq!((groups[0].whole, rules), (false, vec![(1, true)]));
    let coverage = coverage.unwrap();
    assert!(!coverage.complete && coverage.since.is_some(), "{coverage:?}");
    let problems: Vec<_> = coverage.problems.iter().map(|of| of.cell_id.as_str()).collect();
    assert_eq!(problems, ["cell-2"]);
    for (request, code, text) in [
        (ask(0, ""), Code::InvalidArgument, "days: 0 is not from 1 to 365"),
        (ask(366, ""), Code::InvalidArgument, "days: 366"),
        (ask(30, "nothing"), Code::NotFound, "GUID or name nothing"),
    ] {
        let error = foundation.unused(request).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.message().contains(text), "{error}");
    }
    served.stop().await;
}
