//! The original's tables on the store's database: what policy-server-internal reads there is
//! what our HTTP API returns, at each moment and for each space.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use model::{group::Scope, rule::RuleSpec};
use nix::sys::signal::Signal;
use policy_store::store::{Store, server::Server};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use serde_json::{Value as Json, json};
use storage::{server::Dialect, testing::TestServer};
use tokio::time::Instant;

use crate::{
    store::{groups, load, replace as store},
    support::{
        client::replace,
        http::Poller,
        original::{Original, TABLES, Version},
        process::Program,
        sets::{Set, bound, fenced, global, group, named, replacement, set, sets, space},
        site::{Served, Site},
        until,
    },
};

const SPACES: [&str; 6] = ["s0", "s1", "s2", "s3", "s4", "s<3>&"];

/// A change of a set, with its name.
type Change = (&'static str, fn(&mut Set));

fn places() -> [(Dialect, Version); 4] {
    [Version::Lists, Version::Tables]
        .map(|version| [(Dialect::Postgres, version), (Dialect::MySql, version)])
        .concat()
        .try_into()
        .unwrap()
}

/// A served store that writes the original's tables.
struct Beside {
    served: Served,
    original: Original,
    poller: Poller,
}

impl Beside {
    /// `prepare` runs before the store starts.
    async fn start(
        (dialect, version): (Dialect, Version),
        prepare: impl FnOnce(&Original),
    ) -> Self {
        let server = TestServer::shared(dialect);
        let site = Site::on(server).writing_original_tables();
        let original = Original::at(server, site.database_name(), version).await;
        prepare(&original);
        Self::on(site, original).await
    }

    async fn on(site: Site, original: Original) -> Self {
        let served = Box::pin(Served::start_at(site)).await;
        let poller = served.poller();
        Self { served, original, poller }
    }

    async fn replace(&self, set: &Set) {
        replace(&self.served.writer(), &fenced(set, "syncer-a", 1)).await.unwrap();
    }

    /// The list of our HTTP API.
    async fn ours(&self, spaces: &[&str]) -> Vec<Json> {
        let encode = |space: &&str| space.replace('<', "%3C").replace('&', "%26");
        let guids = spaces.iter().map(encode).collect::<Vec<_>>().join(",");
        let query = if spaces.is_empty() { String::new() } else { format!("?space_guids={guids}") };
        let path = format!("/networking/v1/internal/security_groups{query}");
        let answer: Json = serde_json::from_str(&self.poller.text(&path).await).unwrap();
        answer["security_groups"].as_array().unwrap().clone()
    }

    /// Compares all reads of the original with ours; `ordered`: ids ascend alike.
    async fn assert_equal(&self, context: &str) {
        let all: Vec<&[&str]> =
            [&[], &SPACES[..]].into_iter().chain(SPACES.iter().map(std::slice::from_ref)).collect();
        for spaces in all {
            let sorted = |mut list: Vec<Json>| {
                list.sort_by_key(|group| group["guid"].to_string());
                list
            };
            let (ours, theirs) = (self.ours(spaces).await, self.original.list(spaces).await);
            assert_eq!(sorted(theirs), sorted(ours), "{context}, spaces {spaces:?}");
        }
        if self.original.version == Version::Tables {
            self.assert_bindings(context).await;
        }
    }

    /// The tables of spaces have what the lists have.
    async fn assert_bindings(&self, context: &str) {
        let mut lists = [const { BTreeSet::new() }; 2];
        for group in self.original.list(&SPACES).await {
            for (bindings, key) in
                lists.iter_mut().zip(["staging_space_guids", "running_space_guids"])
            {
                for space in group[key].as_array().unwrap() {
                    let text = |value: &Json| value.as_str().unwrap().to_owned();
                    bindings.insert((text(&group["guid"]), text(space)));
                }
            }
        }
        assert_eq!(self.original.bindings().await, lists, "{context}");
    }
}

/// Every kind of escape, in rules, name and guids.
fn tricky() -> Set {
    let description = "<a> & \"b\" \\ \u{1F600} é \u{2028}\u{2029} \u{8}\u{c}\n\t\u{1} ')--";
    let rule = RuleSpec { description: description.to_owned(), log: true, ..RuleSpec::default() };
    let mut one = bound("a<&>", "<name> & \"é\" \u{1F600} \u{1}", &["s1", "s<3>&"]);
    one.rules.push(rule);
    one.staging = Scope { everywhere: false, spaces: [space("s2"), space("s1")].into() };
    let mut none = global("b", "");
    none.rules.clear();
    set([one, none, bound("c", "three", &["s4"]), group("nowhere", "four")])
}

#[tokio::test(flavor = "multi_thread")]
async fn both_lists_are_equal_after_each_change() {
    for place in places() {
        let beside = Beside::start(place, Original::create).await;
        let mut set = tricky();
        beside.replace(&set).await;
        beside.assert_equal(&format!("{place:?}: first")).await;
        assert_eq!(beside.original.list(&SPACES).await, beside.ours(&SPACES).await, "in order");
        let mut ids = beside.original.ids().await;
        let mut stamp = None;
        let changes: [Change; 7] = [
            ("rules", |set| change(set, "a<&>", |group| group.rules[0].ports = "80".to_owned())),
            ("rename", |set| change(set, "c", |group| group.name = "renamed".to_owned())),
            ("bind", |set| change(set, "c", |group| _ = group.running.spaces.insert(space("s2")))),
            ("unbind", |set| change(set, "a<&>", |group| group.staging.spaces.clear())),
            ("global", |set| change(set, "nowhere", |group| group.staging.everywhere = true)),
            ("remove and add", |set| {
                set.retain(|guid, _| guid.as_str() != "b");
                set.extend(self::set([bound("new", "new", &["s4"])]));
            }),
            ("empty", Set::clear),
        ];
        for (name, apply) in changes {
            apply(&mut set);
            beside.replace(&set).await;
            let context = format!("{place:?}: {name}");
            beside.assert_equal(&context).await;
            let now = beside.original.ids().await;
            ids.retain(|guid, _| now.contains_key(guid));
            assert!(ids.iter().all(|(guid, id)| now[guid] == *id), "{context}: {ids:?}, {now:?}");
            ids = now;
            if place.1 == Version::Tables {
                let moved = beside.original.stamp().await;
                assert!(stamp.is_none_or(|before| moved > before), "{context}");
                beside.replace(&set).await;
                assert_eq!(beside.original.stamp().await, moved, "{context}: unchanged");
                stamp = Some(moved);
            }
        }
        assert!(ids.is_empty());
        beside.served.stop().await;
    }
}

fn change(set: &mut Set, guid: &str, change: impl FnOnce(&mut model::group::SecurityGroup)) {
    let group = set.iter_mut().find(|(its, _)| its.as_str() == guid).unwrap().1;
    change(Arc::make_mut(group));
}

/// Unchanged Replaces repair what somebody else wrote: the original's syncer, or a person.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_writer_are_corrected() {
    for place in places() {
        let beside = Beside::start(place, Original::create).await;
        let set = tricky();
        beside.replace(&set).await;
        let mut damages = vec![
            "UPDATE security_groups SET rules = '[]'",
            "UPDATE security_groups SET rules = NULL",
            "UPDATE security_groups SET staging_default = NULL WHERE guid = 'c'",
            "UPDATE security_groups SET running_default = true",
            "UPDATE security_groups SET running_spaces = NULL, staging_spaces = '[\"s4\"]'",
            "UPDATE security_groups SET name = 'other' WHERE guid = 'b'",
            "DELETE FROM security_groups WHERE guid = 'a<&>'",
            "INSERT INTO security_groups (guid, name, rules, running_default, staging_spaces, running_spaces)
             VALUES ('theirs', 'theirs', '[]', true, '[]', '[]')",
            "DELETE FROM security_groups",
        ];
        if place.1 == Version::Tables {
            damages.extend([
                "UPDATE security_groups SET hash = ''",
                "DELETE FROM running_security_groups_spaces",
                "INSERT INTO staging_security_groups_spaces (space_guid, security_group_guid)
                 VALUES ('s9', 'c')",
            ]);
        }
        for sql in damages {
            beside.original.sql(sql);
            beside.replace(&set).await;
            beside.assert_equal(&format!("{place:?}: {sql}")).await;
        }
        beside.served.stop().await;
    }
}

/// Our groups are stored and served without the original's tables; the first Replace after
/// their repair fills them.
#[tokio::test(flavor = "multi_thread")]
async fn missing_and_broken_tables_do_not_stop_ours() {
    for place in places() {
        let beside = Beside::start(place, |_| {}).await;
        beside.replace(&tricky()).await;
        beside.original.create();
        beside.replace(&tricky()).await;
        beside.assert_equal(&format!("{place:?}: created")).await;
        let mut broken = "security_groups";
        for round in 0..2 {
            // In the second round the groups are written before their spaces fail.
            beside.original.sql(&format!("ALTER TABLE {broken} ADD COLUMN extra int"));
            beside.original.sql(&format!("UPDATE {broken} SET extra = 1"));
            let not_null = match place.0 {
                Dialect::Postgres => "ALTER COLUMN extra SET NOT NULL",
                Dialect::MySql => "MODIFY COLUMN extra int NOT NULL",
            };
            beside.original.sql(&format!("ALTER TABLE {broken} {not_null}"));
            let before = beside.original.list(&SPACES).await;
            let mut set = tricky();
            set.extend(self::set([bound("new", &format!("round {round}"), &["s1"])]));
            change(&mut set, "c", |group| group.name = format!("round {round}"));
            beside.replace(&set).await;
            let ours = beside.ours(&SPACES).await;
            assert!(ours.iter().any(|group| group["guid"] == "new"), "{place:?}: ours");
            assert_eq!(beside.original.list(&SPACES).await, before, "{place:?}: all or nothing");
            beside.original.sql(&format!("ALTER TABLE {broken} DROP COLUMN extra"));
            beside.replace(&set).await;
            beside.assert_equal(&format!("{place:?}: {broken} repaired")).await;
            beside.replace(&tricky()).await;
            if place.1 == Version::Lists {
                break;
            }
            broken = TABLES[1];
        }
        beside.served.stop().await;
    }
}

/// The database gets a later version's tables while the store runs.
#[tokio::test(flavor = "multi_thread")]
async fn migrated_tables_are_filled() {
    for dialect in [Dialect::Postgres, Dialect::MySql] {
        let mut beside = Beside::start((dialect, Version::Lists), Original::create).await;
        beside.replace(&tricky()).await;
        beside.original.migrate();
        beside.original.version = Version::Tables;
        beside.replace(&tricky()).await;
        beside.assert_equal(&format!("{dialect:?}")).await;
        beside.served.stop().await;
    }
}

/// Random sets, each by another instance.
#[tokio::test(flavor = "multi_thread")]
async fn instances_write_the_same_tables() {
    for place in places() {
        let one = Beside::start(place, Original::create).await;
        let site = one.served.site.clone();
        let original = Original::at(one.original.server, &one.original.database, place.1).await;
        let other = Beside::on(site, original).await;
        let mut runner = TestRunner::deterministic();
        for round in 0..10 {
            let set = sets().new_tree(&mut runner).unwrap().current();
            let (writer, reader) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
            writer.replace(&set).await;
            reader.assert_equal(&format!("{place:?}: {set:?}")).await;
        }
        one.served.stop().await;
        other.served.stop().await;
    }
}

/// Rows of another writer stay until a Replace comes: without one, an original syncer may lead
/// and have newer groups than ours. Neither the first start nor a later one writes.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_replace_writes() {
    for place in places() {
        let theirs = "INSERT INTO security_groups
                 (guid, name, rules, running_default, staging_spaces, running_spaces)
             VALUES ('theirs', 'theirs', '[]', true, '[]', '[]')";
        let beside = Beside::start(place, |original| {
            original.create();
            original.sql(theirs);
        })
        .await;
        let database = beside.original.server.options(&beside.original.database);
        let mend = async |context: &str, rows: usize| {
            let store = Server::connect(&database)
                .await
                .unwrap()
                .write_original_tables(Duration::from_millis(1));
            let served = load(&store).await.into();
            store.mend(Arc::new(served)).await.unwrap();
            assert_eq!(beside.original.ids().await.len(), rows, "{place:?}: {context}");
            store.close().await.unwrap();
        };
        mend("theirs alone", 1).await;
        beside.replace(&tricky()).await;
        beside.assert_equal(&format!("{place:?}: first")).await;
        beside.original.sql(theirs);
        mend("theirs came back", tricky().len() + 1).await;
        let Beside { served, original, .. } = beside;
        let beside = Beside::on(served.stop().await, original).await;
        let rows = beside.original.ids().await.len();
        assert_eq!(rows, tricky().len() + 1, "{place:?}: restarted");
        beside.replace(&tricky()).await;
        beside.assert_equal(&format!("{place:?}: the next Replace")).await;
        beside.served.stop().await;
    }
}

/// Another writer that holds its locks delays a Replace for seconds only; the tables follow
/// with a later Replace, also one without changes.
#[tokio::test(flavor = "multi_thread")]
async fn locked_tables_delay_a_replace_for_seconds() {
    for place in places() {
        let options = TestServer::shared(place.0).database();
        let (_, name) = options.connection_string.rsplit_once('/').unwrap();
        let original = Original::at(TestServer::shared(place.0), name, place.1).await;
        original.create();
        let server = Server::connect(&options).await.unwrap();
        let server = server.write_original_tables(Duration::from_millis(100));
        store(&server, replacement(&named(3, "1"))).await.unwrap();
        original
            .while_locked(async {
                let began = Instant::now();
                store(&server, replacement(&named(3, "2"))).await.unwrap();
                assert!(
                    began.elapsed() < Duration::from_secs(8),
                    "{place:?}: {:?}",
                    began.elapsed()
                );
                assert_eq!(groups(&load(&server).await), named(3, "2"));
            })
            .await;
        until("the tables follow", async || {
            store(&server, replacement(&named(3, "2"))).await.unwrap();
            let sql = "SELECT COUNT(*) FROM security_groups WHERE name = '2'";
            original.query(sql, &[]).await[0].get::<i64>(0).unwrap() == 3
        })
        .await;
        server.close().await.unwrap();
    }
}

/// A group that the original's columns cannot hold is left out; the others are written.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_does_not_fit_is_left_out() {
    for place in places() {
        let beside = Beside::start(place, Original::create).await;
        beside.replace(&tricky()).await;
        let mut set = tricky();
        change(&mut set, "c", |group| group.name = "x".repeat(256));
        set.extend(self::set([bound(&"g".repeat(37), "1", &["s1"]), bound("fits", "1", &["s1"])]));
        beside.replace(&set).await;
        let names: Vec<Json> =
            beside.original.list(&SPACES).await.iter().map(|group| group["name"].clone()).collect();
        assert!(names.contains(&json!("three")), "{place:?}: the row stays as it was: {names:?}");
        assert_eq!(names.len(), 4, "{place:?}: {names:?}");
        beside.replace(&tricky()).await;
        beside.assert_equal(&format!("{place:?}")).await;
        beside.served.stop().await;
    }
}

/// The clock of the database went back, or another writer's is ahead.
#[tokio::test(flavor = "multi_thread")]
async fn the_stamp_never_goes_back() {
    for dialect in [Dialect::Postgres, Dialect::MySql] {
        let beside = Beside::start((dialect, Version::Tables), Original::create).await;
        beside.original.sql("UPDATE security_groups_info SET last_updated = '2037-01-01 00:00:00'");
        let before = beside.original.stamp().await;
        beside.replace(&tricky()).await;
        assert_eq!(beside.original.stamp().await, before + 1, "{dialect:?}");
        beside.served.stop().await;
    }
}

/// The log, once a minute, and the metrics.
#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_and_counted() {
    let server = TestServer::shared(Dialect::Postgres);
    let site = Site::on(server).writing_original_tables();
    let original = Original::at(server, site.database_name(), Version::Tables).await;
    let mut program = tokio::task::block_in_place(|| Program::start(&site));
    let writer = site.client(&program.address, "syncer", None);
    let metrics = async || {
        let text = reqwest::get(format!("http://{}/metrics", program.admin())).await.unwrap();
        let text = text.text().await.unwrap();
        let of = |name: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name));
            lines.map(|value| value.trim().to_owned()).next()
        };
        ["current", "writes_total{outcome=\"failed\"}", "writes_total{outcome=\"changed\"}"]
            .map(|name| of(&format!("policy_store_original_tables_{name} ")).unwrap())
    };
    for name in ["1", "2"] {
        replace(&writer, &fenced(&named(3, name), "syncer-a", 1)).await.unwrap();
    }
    let line = program.line("failed-writing-original-tables", 0);
    let error = "the database has no table security_groups of the original";
    assert_eq!((&line["level"], &line["data"]["error"]), (&json!("error"), &json!(error)));
    assert_eq!(metrics().await, ["0", "2", "0"]);
    original.create();
    replace(&writer, &fenced(&named(3, "2"), "syncer-a", 1)).await.unwrap();
    let line = program.line("wrote-original-tables", 0);
    assert_eq!((&line["data"]["changed"], &line["data"]["removed"]), (&json!(3), &json!(0)));
    assert_eq!(metrics().await, ["1", "2", "1"]);
    program.signal(Signal::SIGTERM);
    tokio::task::block_in_place(|| program.wait());
    assert_eq!(program.count("failed-writing-original-tables"), 1);
}
