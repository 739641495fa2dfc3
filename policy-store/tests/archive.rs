//! The history of the generations, in every store: from the newest set back to each older one.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use model::{
    generation::{Generation, Point},
    group::GroupId,
    trace::TraceContext,
};
use policy_store::{
    groups::{
        archive::{
            Bounds, Change, Entry, Kind, Numbered, OperatorDecision, Query, Reached, action,
        },
        decide::{Origin, Replacement},
        snapshot::Snapshot,
    },
    store::{Store, sqlite::Sqlite, testing::Memory},
};
use proptest::prelude::*;
use storage::{server::Dialect, testing::TestServer};

use crate::{
    store::{Place, file, load, replace},
    support::sets::{SPACES, Set, bound, global, group, named, replacement, set, sets, space},
};

const ALL: Query = Query { before: None, generation: None, group: None, size: 1_000 };
const EVERYTHING: Bounds = Bounds { since: Timestamp::MAX, bytes: 0, keep_from: None };

async fn entries(store: &dyn Store, query: Query) -> Vec<Numbered> {
    store.history().entries(query).await.unwrap()
}

fn changes(entries: &[Numbered]) -> Vec<&Change> {
    fn change(numbered: &Numbered) -> Option<&Change> {
        match &numbered.entry {
            Entry::Change(change) => Some(change),
            Entry::Decision(_) => None,
        }
    }
    entries.iter().filter_map(change).collect()
}

fn generations(entries: &[Numbered]) -> Vec<u64> {
    changes(entries).iter().map(|change| change.point.generation.0).collect()
}

async fn undone(store: &dyn Store, newest: &Snapshot, to: Generation) -> Option<Snapshot> {
    let undo = store.history().undo(newest.state.generation, to).await.unwrap()?;
    Some(newest.undone(undo))
}

/// All that a snapshot serves of its generation.
fn served(snapshot: &Snapshot) -> impl PartialEq + std::fmt::Debug {
    let entries = snapshot.entries().iter();
    let entries = entries.map(|entry| (entry.id, entry.encoded.clone(), entry.hash));
    let entries: Vec<_> = entries.collect();
    let spaces = (0..SPACES).map(|index| space(&format!("s{index}")));
    let by_space: Vec<Vec<GroupId>> = spaces
        .map(|space| {
            let found = snapshot.concerning([&space], GroupId(0));
            found.iter().map(|entry| entry.id).collect()
        })
        .collect();
    let guids = snapshot.entries().iter().map(|entry| snapshot.hash(&entry.guid));
    (entries, by_space, guids.collect::<Vec<_>>(), snapshot.point())
}

fn since(snapshot: &Snapshot, point: Point) -> Option<Vec<(u64, Option<bool>)>> {
    let changes = snapshot.history().since(point)?;
    let is_global = |change: &policy_store::groups::history::Change| {
        change.before.as_ref().map(|reach| reach.is_global())
    };
    Some(changes.map(|change| (change.id.0, is_global(change))).collect())
}

/// Every remembered generation is reconstructed as it was served.
async fn every_generation_comes_back(store: &dyn Store, sets: &[Set]) {
    let mut seen: Vec<Snapshot> = Vec::new();
    for set in sets {
        replace(store, replacement(set)).await.unwrap();
        let now = Snapshot::from(load(store).await);
        if seen.last().is_none_or(|last| last.point() != now.point()) {
            seen.push(now);
        }
    }
    let newest = seen.last().unwrap();
    for before in &seen {
        let back = undone(store, newest, before.state.generation).await.unwrap();
        assert_eq!(served(&back), served(before));
        for older in &seen {
            assert_eq!(since(&back, older.point()), since(before, older.point()));
        }
        // And from a generation in between.
        let between = &seen[seen.len() / 2];
        let back = undone(store, between, before.state.generation).await;
        let is_older = before.state.generation <= between.state.generation;
        assert_eq!(back.is_some(), is_older);
        if let Some(back) = back {
            assert_eq!(served(&back), served(before));
        }
    }
    assert!(undone(store, newest, Generation(0)).await.is_none(), "no set was there");
    assert!(store.history().undo(Generation(9_999), Generation(1)).await.unwrap().is_none());
    let listed = entries(store, ALL).await;
    let expected: Vec<u64> = seen.iter().rev().map(|seen| seen.state.generation.0).collect();
    assert_eq!(generations(&listed), expected);
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn histories() -> impl Strategy<Value = Vec<Set>> {
    prop::collection::vec(sets(), 1..10)
}

proptest! {
    #[test]
    fn every_generation_comes_back_in_memory(sets in histories()) {
        run(every_generation_comes_back(&Memory::default(), &sets));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn every_generation_comes_back_in_sqlite(sets in histories()) {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let store = Sqlite::open(&file(&directory)).unwrap();
            every_generation_comes_back(&store, &sets).await;
            store.close().await.unwrap();
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn every_generation_comes_back_on_servers(sets in histories()) {
        run(async {
            for place in Place::servers() {
                every_generation_comes_back(&*place.open().await, &sets).await;
            }
        });
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn later(set: &Set, second: i64) -> Replacement {
    Replacement { at: at(second), ..replacement(set) }
}

/// Text that operators may write, and databases must keep.
const REASON: &str = "maintenance \0 '); DROP TABLE archive_entries;-- \u{1F600}";

/// Four generations: an import, changes of all kinds, a rename, and one to an empty set; and a
/// decision before the last.
async fn written(store: &dyn Store) -> OperatorDecision {
    let first =
        set([bound("stays", "1", &["s1"]), bound("changes", "old", &["s1"]), group("goes", "1")]);
    replace(store, later(&first, 0)).await.unwrap();
    let second = set([bound("stays", "1", &["s1"]), global("changes", "new"), group("comes", "1")]);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let origin = Origin {
        noticed_at: Some(at(58)),
        read_at: Some(at(59)),
        trace: TraceContext::parse(trace),
    };
    replace(store, Replacement { origin, ..later(&second, 60) }).await.unwrap();
    // Nothing changes: no entry.
    replace(store, later(&second, 61)).await.unwrap();
    let third = set([group("comes", "another name")]);
    replace(store, later(&third, 120)).await.unwrap();
    let decision = OperatorDecision {
        at: at(130),
        action: action::FREEZE.into(),
        by: "cn=operator".into(),
        reason: REASON.into(),
        generation: Generation(3),
    };
    store.history().record(Arc::new(decision.clone())).await.unwrap();
    replace(store, later(&Set::new(), 180)).await.unwrap();
    decision
}

#[tokio::test]
async fn an_entry_has_times_writer_and_groups() {
    for place in Place::all() {
        let store = place.open().await;
        let decision = written(&*store).await;
        let all = entries(&*store, ALL).await;
        store.close().await.unwrap();
        drop(store);
        let store = place.open().await;
        assert_eq!(entries(&*store, ALL).await, all, "after it was opened again");
        assert_eq!(generations(&all), [4, 3, 2, 1]);
        assert_eq!(all[1].entry, Entry::Decision(Box::new(decision)));
        let newest = Snapshot::from(load(&*store).await);
        let [fourth, third, second, first] = changes(&all).try_into().unwrap();
        let counts = |change: &Change| (change.added, change.changed, change.removed);
        assert_eq!(counts(first), (3, 0, 0));
        assert_eq!(first.groups, [], "an import has no groups");
        assert_eq!(counts(second), (1, 1, 1));
        assert_eq!((second.at, fourth.point), (at(60), newest.point()));
        let written = replacement(&Set::new());
        assert_eq!(
            (&second.owner, second.watermark),
            (&Some(written.owner), Some(written.watermark))
        );
        assert_eq!(second.origin.noticed_at, Some(at(58)));
        assert_eq!(second.origin.trace.unwrap().trace_id().to_string().len(), 32);
        let groups = |change: &Change| -> Vec<(String, String, Kind)> {
            let group = |group: &policy_store::groups::archive::ChangedGroup| {
                (group.guid.as_str().to_owned(), group.name.to_string(), group.kind)
            };
            change.groups.iter().map(group).collect()
        };
        let row = |guid: &str, name: &str, kind| (guid.to_owned(), name.to_owned(), kind);
        let expected = [
            row("changes", "new", Kind::Changed),
            row("goes", "1", Kind::Removed),
            row("comes", "1", Kind::Added),
        ];
        assert_eq!(groups(second), expected);
        let expected = [
            row("changes", "new", Kind::Removed),
            row("stays", "1", Kind::Removed),
            row("comes", "another name", Kind::Changed),
        ];
        let mut found = groups(third);
        found.sort_by_key(|(guid, ..)| guid != "changes");
        assert_eq!(found.len(), 3);
        assert!(expected.iter().all(|row| found.contains(row)), "{found:?}");
        assert_eq!(groups(fourth), [row("comes", "another name", Kind::Removed)]);
    }
}

#[tokio::test]
async fn entries_are_selected_and_paged() {
    for place in Place::all() {
        let store = place.open().await;
        written(&*store).await;
        let of = async |group: &str| {
            generations(&entries(&*store, Query { group: Some(group.to_owned()), ..ALL }).await)
        };
        assert_eq!(of("changes").await, [3, 2]);
        assert_eq!(of("new").await, [3, 2], "by its name after the change");
        assert_eq!(of("another name").await, [4, 3]);
        assert_eq!(of("nothing").await, [] as [u64; 0]);
        let one = entries(&*store, Query { generation: Some(Generation(3)), ..ALL }).await;
        assert_eq!((generations(&one), one.len()), (vec![3], 1), "without the decision");
        let (mut pages, mut before) = (Vec::new(), None);
        loop {
            let page = entries(&*store, Query { before, size: 2, ..ALL }).await;
            let Some(last) = page.last() else { break };
            before = Some(last.number);
            assert!(page.len() <= 2);
            pages.extend(page);
        }
        assert_eq!(pages, entries(&*store, ALL).await);
    }
}

/// An instance reports a generation once; several instances add up.
#[tokio::test]
async fn cells_of_all_instances_add_up() {
    for place in Place::all() {
        let store = place.open().await;
        written(&*store).await;
        let reached = |times: &[u64]| {
            Reached::of(times.iter().map(|millis| Some(Duration::from_millis(*millis))))
        };
        let save = async |instance: &str, times: &[u64]| {
            let progress = [(Generation(2), reached(times)), (Generation(3), reached(&[1]))];
            store.history().save_progress(instance.into(), progress.into()).await.unwrap();
        };
        save("one", &[50, 500]).await;
        save("one", &[1, 1, 1, 1]).await;
        save("two", &[5_000]).await;
        let all = entries(&*store, ALL).await;
        let of = |generation| {
            let all = changes(&all);
            all.iter().find(|change| change.point.generation.0 == generation).unwrap().reached
        };
        assert_eq!(of(2), Some(reached(&[50, 500, 5_000])));
        assert_eq!(of(2).unwrap().until, [1, 2, 3, 3, 3]);
        assert_eq!(of(3).unwrap().cells, 2);
        assert_eq!(of(4), None);
    }
}

#[tokio::test]
async fn the_oldest_entries_are_dropped_and_what_is_frozen_is_kept() {
    for place in Place::all() {
        let store = place.open().await;
        for round in 0..6 {
            replace(&*store, later(&named(600, &round.to_string()), round * 60)).await.unwrap();
        }
        let newest = Snapshot::from(load(&*store).await);
        let left = async |bounds| {
            while store.history().prune(bounds).await.unwrap() {}
            let mut left = generations(&entries(&*store, ALL).await);
            left.reverse();
            left
        };
        let young = Bounds { since: Timestamp::MIN, bytes: u64::MAX, keep_from: None };
        assert_eq!(left(young).await, [1, 2, 3, 4, 5, 6]);
        let since = at(60);
        assert_eq!(left(Bounds { since, ..young }).await, [2, 3, 4, 5, 6]);
        let kept = Bounds { keep_from: Some(Generation(4)), ..EVERYTHING };
        assert_eq!(left(kept).await, [4, 5, 6]);
        let back = undone(&*store, &newest, Generation(4)).await.unwrap();
        assert_eq!((back.entries().len(), back.state.generation), (600, Generation(4)));
        assert_eq!(back.entries()[0].group().name, "3");
        assert!(undone(&*store, &newest, Generation(3)).await.is_none());
        assert_eq!(left(EVERYTHING).await, [6], "never the newest");
        let size = Bounds { bytes: 0, since: Timestamp::MIN, keep_from: None };
        replace(&*store, later(&named(600, "more"), 600)).await.unwrap();
        assert_eq!(left(size).await, [7]);
    }
}

/// Two instances write; each leads back to what the other wrote.
#[tokio::test]
async fn instances_share_the_history() {
    for place in Place::shared() {
        let (here, there) = (place.open().await, place.open().await);
        for round in 0..6 {
            let store = if round % 2 == 0 { &here } else { &there };
            replace(&**store, later(&named(3, &round.to_string()), round)).await.unwrap();
        }
        let newest = Snapshot::from(load(&*here).await);
        let back = undone(&*there, &newest, Generation(2)).await.unwrap();
        assert_eq!(back.entries()[0].group().name, "1");
        // Both prune at once.
        let prune = async |store: &dyn Store| {
            let since = at(3);
            let bounds = Bounds { since, bytes: u64::MAX, keep_from: None };
            store.history().prune(bounds).await.unwrap()
        };
        tokio::join!(prune(&*here), prune(&*there));
        assert_eq!(generations(&entries(&*here, ALL).await), [6, 5, 4]);
    }
}

/// A database with tables that a test changes.
struct Changed {
    place: Place,
    server: Option<(&'static TestServer, String)>,
}

impl Changed {
    fn all() -> [Self; 3] {
        let on = |dialect| {
            let server = TestServer::shared(dialect);
            let options = server.database();
            let name = options.connection_string.rsplit('/').next().unwrap().to_owned();
            Self { place: Place::Server(options), server: Some((server, name)) }
        };
        let sqlite = Self { place: Place::Sqlite(tempfile::tempdir().unwrap()), server: None };
        [sqlite, on(Dialect::Postgres), on(Dialect::MySql)]
    }

    /// Runs statements written with the servers' table names.
    fn sql(&self, sql: &str) {
        match (&self.place, &self.server) {
            (Place::Sqlite(directory), _) => {
                let sql = sql.replace("portcullis_policy_store_migrations", "schema_migrations");
                let sql = sql.replace("portcullis_", "");
                rusqlite::Connection::open(file(directory)).unwrap().execute_batch(&sql).unwrap();
            }
            (_, Some((server, name))) => _ = server.sql_in(name, sql),
            (Place::Memory(_) | Place::Server(_), None) => panic!("not a database"),
        }
    }
}

/// A database of the release before the history: it begins at the stored generation.
#[tokio::test]
async fn the_history_of_an_older_database_begins_with_its_set() {
    for database in Changed::all() {
        let store = database.place.open().await;
        replace(&*store, later(&named(3, "1"), 0)).await.unwrap();
        replace(&*store, later(&named(3, "2"), 1)).await.unwrap();
        let before = Snapshot::from(load(&*store).await);
        store.close().await.unwrap();
        drop(store);
        database.sql(
            "DROP TABLE portcullis_archive_entries; DROP TABLE portcullis_archive_groups;
             DROP TABLE portcullis_archive_progress; DROP TABLE portcullis_rule_uses;
             DROP TABLE portcullis_rule_use_cells;
             ALTER TABLE portcullis_store_state DROP COLUMN held",
        );
        let first = match &database.server {
            Some((server, _)) if server.dialect() == Dialect::MySql => 2,
            Some(_) | None => 4,
        };
        let forget =
            format!("DELETE FROM portcullis_policy_store_migrations WHERE version >= {first}");
        database.sql(&forget);
        let store = database.place.open().await;
        assert_eq!(generations(&entries(&*store, ALL).await), [2]);
        replace(&*store, later(&named(3, "3"), 2)).await.unwrap();
        let newest = Snapshot::from(load(&*store).await);
        let back = undone(&*store, &newest, Generation(2)).await.unwrap();
        assert_eq!(served(&back), served(&before));
        assert!(undone(&*store, &newest, Generation(1)).await.is_none());
        store.close().await.unwrap();
    }
}

/// Without its tables, or with generations that an older release wrote, the history leads to no
/// wrong set, and Replaces go on.
#[tokio::test]
async fn a_damaged_history_never_leads_to_a_wrong_set() {
    for database in Changed::all() {
        let store = database.place.open().await;
        let mut generation = 0;
        let mut next = async || {
            generation += 1;
            let write = later(&named(3, &generation.to_string()), generation);
            assert_eq!(replace(&*store, write).await.unwrap(), generation.cast_unsigned());
            Snapshot::from(load(&*store).await)
        };
        let (_, _) = (next().await, next().await);
        for (sql, is_listed) in [
            ("DROP TABLE portcullis_archive_groups", true),
            ("DROP TABLE portcullis_archive_entries", false),
            ("DELETE FROM portcullis_archive_entries", false),
            ("DROP TABLE portcullis_archive_progress", false),
        ] {
            let newest = next().await;
            database.sql(sql);
            store.mend(Arc::new(newest)).await.unwrap();
            let (one, newest) = (next().await, next().await);
            let back = undone(&*store, &newest, one.state.generation).await.unwrap();
            assert_eq!(served(&back), served(&one), "{sql}");
            let to_second = undone(&*store, &newest, Generation(2)).await;
            assert!(to_second.is_none(), "{sql}");
            let listed = generations(&entries(&*store, ALL).await);
            assert_eq!(listed.contains(&1), is_listed, "{sql}: {listed:?}");
        }
    }
}
