//! Conformance suite of the store contract, run on each store.

use std::{path::PathBuf, sync::Arc};

use jiff::Timestamp;
use model::{
    generation::{Generation, Point, Stamp, Watermark},
    group::{Scope, SecurityGroup},
    ids::CellId,
    lock::FencingToken,
    rule::RuleSpec,
};
use policy_store::{
    groups::{
        decide::{Refusal, Replacement},
        snapshot::Snapshot,
    },
    reports::{Report, Unsaved},
    store::{
        Contents, Error, News, Store,
        server::{CHECK, Server},
        sqlite::Sqlite,
        testing::Memory,
    },
};
use storage::{
    server::{Dialect, Options},
    testing::TestServer,
};
use tempfile::TempDir;

use crate::support::sets::{
    Set, bound, fenced, group, guid, named, owner, replacement, set, space,
};

/// Location of a store, so that it can be reopened.
pub(crate) enum Place {
    Memory(Memory),
    Sqlite(TempDir),
    Server(Options),
}

impl Place {
    pub(crate) fn all() -> [Self; 4] {
        let [postgres, mariadb] = Self::servers();
        let sqlite = Self::Sqlite(tempfile::tempdir().unwrap());
        [Self::Memory(Memory::default()), sqlite, postgres, mariadb]
    }

    pub(crate) fn servers() -> [Self; 2] {
        let new = |dialect| Self::Server(TestServer::shared(dialect).database());
        [new(Dialect::Postgres), new(Dialect::MySql)]
    }

    /// Stores that several instances can open concurrently.
    pub(crate) fn shared() -> [Self; 3] {
        let [postgres, mariadb] = Self::servers();
        [Self::Memory(Memory::default()), postgres, mariadb]
    }

    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(memory) => Arc::new(memory.clone()),
            Self::Sqlite(directory) => Arc::new(Sqlite::open(&file(directory)).unwrap()),
            Self::Server(options) => Arc::new(Server::connect(options).await.unwrap()),
        }
    }
}

pub(crate) fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("store.db")
}

/// Runs a test of the suite on every store.
macro_rules! conformance {
    ($places:ident: $($(#[$doc:meta])* async fn $name:ident($place:ident: &Place) $body:block)*) => {$(
        $(#[$doc])*
        #[tokio::test]
        async fn $name() {
            async fn check($place: &Place) $body
            for place in Place::$places() {
                check(&place).await;
            }
        }
    )*};
}

pub(crate) async fn replace(store: &dyn Store, write: Replacement) -> Result<u64, Error> {
    Ok(store.replace(Arc::new(write)).await?.state.generation.0)
}

pub(crate) async fn load(store: &dyn Store) -> Contents {
    store.load(None).await.unwrap()
}

pub(crate) fn groups(contents: &Contents) -> Set {
    let pair = |stored: &policy_store::store::Stored| {
        let group = stored.group.group();
        assert_eq!(stored.hash, group.content_hash(), "the hash is the content's");
        (group.guid.clone(), Arc::new(group))
    };
    contents.groups.iter().map(pair).collect()
}

pub(crate) fn refusal(answer: Result<u64, Error>) -> Refusal {
    match answer {
        Err(Error::Refused(refused)) => refused.refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// A group with all fields set, and text that needs escaping.
fn full() -> SecurityGroup {
    let rule = |protocol: &str, icmp: i32| RuleSpec {
        protocol: protocol.to_owned(),
        destination: "10.0.0.0/8,192.168.0.1-192.168.0.9".to_owned(),
        ports: "1-65535".to_owned(),
        icmp_type: icmp,
        icmp_code: i32::MIN,
        description: "\"quotes\", \u{1F600}, \0 and '); DROP TABLE security_groups;--".to_owned(),
        log: true,
    };
    SecurityGroup {
        guid: guid("full"),
        name: "name with \u{FFFD} and \n".to_owned(),
        rules: vec![rule("icmp", -1), RuleSpec::default(), rule("all", i32::MAX)],
        running: Scope { everywhere: true, spaces: [space("s2"), space("s1")].into() },
        staging: Scope { everywhere: false, spaces: [space("s1")].into() },
    }
}

conformance! { all:
    async fn a_new_store_is_empty(place: &Place) {
        assert_eq!(load(&*place.open().await).await, Contents::default());
    }

    async fn everything_comes_back(place: &Place) {
        let store = place.open().await;
        let mut everything = named(100, "1");
        everything.extend(set([full(), bound("b", "1", &["s1", "s9"])]));
        let mut write = fenced(&everything, "syncer-a", 1 << 40);
        write.watermark = Watermark::try_new(-5, 999_999_999).unwrap();
        replace(&*store, write.clone()).await.unwrap();
        let before = load(&*store).await;
        assert_eq!(groups(&before), everything);
        assert_eq!(before.state.generation, Generation(1));
        assert_eq!(before.state.watermark, Some(write.watermark));
        assert_eq!(before.state.token, write.token);
        assert_eq!(before.state.writer, Some(write.owner));
        assert_eq!(before.state.synced_at, Some(write.at));
        assert_eq!(before.state.last_id, 102);
        let ids: Vec<u64> = before.groups.iter().map(|group| group.id.0).collect();
        assert_eq!(ids, (1..=102).collect::<Vec<_>>());
        store.close().await.unwrap();
        drop(store);
        assert_eq!(load(&*place.open().await).await, before, "after it was opened again");
    }

    async fn every_kind_of_change_is_stored(place: &Place) {
        let store = place.open().await;
        let first = set([group("stays", "1"), bound("changes", "1", &["s1"]), group("goes", "1")]);
        let second = set([group("stays", "1"), bound("changes", "2", &["s2"]), group("new", "1")]);
        replace(&*store, replacement(&first)).await.unwrap();
        let decision = store.replace(Arc::new(replacement(&second))).await.unwrap();
        assert_eq!((decision.added(), decision.changed()), (1, 1));
        assert_eq!((decision.removed.len(), decision.unchanged), (1, 1));
        assert_eq!(decision.before.generation, Generation(1));
        assert_eq!(groups(&load(&*store).await), second);
        replace(&*store, replacement(&Set::new())).await.unwrap();
        assert_eq!(groups(&load(&*store).await), Set::new());
    }

    async fn what_is_unchanged_leaves_the_generation(place: &Place) {
        let store = place.open().await;
        let one = named(3, "1");
        assert_eq!(replace(&*store, fenced(&one, "a", 3)).await.unwrap(), 1);
        assert_eq!(replace(&*store, fenced(&one, "b", 4)).await.unwrap(), 1);
        let state = load(&*store).await.state;
        assert_eq!((state.token, state.writer), (Some(FencingToken(4)), Some(owner("b"))));
    }

    async fn unchanged_content_need_not_be_supplied(place: &Place) {
        let store = place.open().await;
        let one = named(3, "1");
        replace(&*store, replacement(&one)).await.unwrap();
        let mut write = replacement(&one);
        write.supplied.groups.clear();
        replace(&*store, write.clone()).await.unwrap();
        replace(&*store, replacement(&named(3, "2"))).await.unwrap();
        let refused = refusal(replace(&*store, write).await);
        assert_eq!(refused, Refusal::Overtaken { lacking: 3 });
    }

    async fn what_is_refused_leaves_its_token_alone(place: &Place) {
        let store = place.open().await;
        replace(&*store, fenced(&named(60, "1"), "a", 5)).await.unwrap();
        let before = load(&*store).await;
        let guarded = refusal(replace(&*store, fenced(&named(29, "2"), "b", 6)).await);
        assert!(matches!(guarded, Refusal::MassRemoval { .. }), "{guarded}");
        store.close().await.unwrap();
        drop(store);
        let store = place.open().await;
        let mut expected = before;
        expected.state.token = Some(FencingToken(6));
        expected.state.writer = Some(owner("b"));
        assert_eq!(load(&*store).await, expected, "also after it was opened again");
        let fenced_off = refusal(replace(&*store, fenced(&named(60, "2"), "a", 5)).await);
        assert!(matches!(fenced_off, Refusal::OldToken { .. }), "{fenced_off}");
        assert_eq!(load(&*store).await, expected);
        replace(&*store, fenced(&named(60, "2"), "b", 6)).await.unwrap();
    }

    async fn who_is_fenced_leaves_no_trace(place: &Place) {
        let store = place.open().await;
        replace(&*store, fenced(&named(60, "1"), "a", 5)).await.unwrap();
        let before = load(&*store).await;
        for write in [
            fenced(&named(60, "2"), "b", 4),
            fenced(&named(60, "2"), "b", 5),
            fenced(&named(60, "2"), "a", 0),
            fenced(&named(29, "2"), "a", 5),
        ] {
            let newer = Watermark::try_new(1 << 40, 0).unwrap();
            refusal(replace(&*store, Replacement { watermark: newer, ..write }).await);
            assert_eq!(load(&*store).await, before);
        }
    }

    async fn reports_are_kept_apart(place: &Place) {
        let store = place.open().await;
        let cell = |text: &str| CellId::parse(text).unwrap();
        let report = |enforced| Report {
            enforced: Generation(enforced),
            containers: u32::MAX,
            isolated_rules: 7,
            at: Timestamp::from_millisecond(1_700_000_000_001).unwrap(),
        };
        let at = report(0).at;
        let unsaved = |reports: &[(&str, u64)], forgotten: &[(&str, Timestamp)]| {
            let reports = reports.iter().map(|(id, enforced)| (cell(id), report(*enforced)));
            let forgotten = forgotten.iter().map(|(id, at)| (cell(id), *at)).collect();
            Arc::new(Unsaved { reports: reports.collect(), forgotten })
        };
        store.save_reports(unsaved(&[("c2", 1), ("c1", 2)], &[])).await.unwrap();
        let gone = [("c1", at), ("unknown", at), ("c2", Timestamp::UNIX_EPOCH)];
        store.save_reports(unsaved(&[("c2", 3), ("c3", 4)], &gone)).await.unwrap();
        let contents = load(&*store).await;
        assert_eq!(contents.reports, [(cell("c2"), report(3)), (cell("c3"), report(4))]);
        assert_eq!(contents.state.generation, Generation(0));
        store.close().await.unwrap();
        drop(store);
        assert_eq!(load(&*place.open().await).await, contents);
    }

    /// Concurrent writers: the set of the newest token wins.
    async fn the_newest_of_racing_writers_wins(place: &Place) {
        let store = place.open().await;
        let mut racing = tokio::task::JoinSet::new();
        for round in 0..40u64 {
            let store = Arc::clone(&store);
            let token = round * 7 % 40 + 1;
            let name = format!("w{token}");
            racing.spawn(async move {
                let answer = replace(&*store, fenced(&named(20, &name), &name, token)).await;
                answer.is_ok().then_some(token)
            });
        }
        let accepted: Vec<_> = racing.join_all().await.into_iter().flatten().collect();
        assert!(accepted.contains(&40));
        let contents = load(&*store).await;
        assert_eq!(contents.state.token, Some(FencingToken(40)));
        assert_eq!(groups(&contents), named(20, "w40"));
        assert_eq!(contents.state.generation, Generation(accepted.len() as u64));
    }
}

/// Content that a snapshot serves.
fn served(snapshot: &Snapshot) -> Vec<(u64, &[u8])> {
    snapshot.entries().iter().map(|entry| (entry.id.0, &*entry.encoded)).collect()
}

conformance! { all:
    /// From each remembered generation the difference leads to the newest one, with the same
    /// history as a complete load.
    async fn a_difference_leads_to_the_newest(place: &Place) {
        let store = place.open().await;
        let mut seen = vec![Snapshot::from(load(&*store).await)];
        for round in 0..6 {
            let set = set([
                group("stays", "1"),
                bound("changes", &round.to_string(), &["s1"]),
                bound("moves", "1", &[["s1", "s2", "s3"][round % 3]]),
                bound(&format!("new-{round}"), "1", &["s2"]),
            ]);
            replace(&*store, replacement(&set)).await.unwrap();
            seen.push(Snapshot::from(load(&*store).await));
        }
        store.close().await.unwrap();
        drop(store);
        let store = place.open().await;
        let newest = Snapshot::from(load(&*store).await);
        for before in &seen[1..] {
            let difference = store.load(Some(before.point())).await.unwrap();
            assert_eq!(difference.since, Some(before.point()));
            assert!(difference.groups.len() < 4, "{difference:?}");
            let after = before.followed_by(difference);
            assert_eq!(served(&after), served(&newest));
            assert_eq!(after.state, newest.state);
            for point in seen[1..].iter().map(Snapshot::point) {
                let [one, other] = [&after, &newest].map(|snapshot| {
                    let changes = snapshot.history().since(point).map(|changes| changes.cloned());
                    changes.map(Vec::from_iter)
                });
                assert_eq!(one, other, "after {point:?}");
            }
        }
        let nothing = store.load(Some(newest.point())).await.unwrap();
        assert_eq!((nothing.since, nothing.groups.len()), (Some(newest.point()), 0));
        assert_eq!(nothing.state, newest.state);
    }

    async fn who_knows_another_life_gets_everything(place: &Place) {
        let store = place.open().await;
        for name in ["1", "2", "3"] {
            replace(&*store, replacement(&named(3, name))).await.unwrap();
        }
        let contents = load(&*store).await;
        let point = contents.state.point();
        for (generation, stamp) in [(0, 0), (2, 1), (3, point.stamp.0 + 1), (4, point.stamp.0)] {
            let other = Point { generation: Generation(generation), stamp: Stamp(stamp) };
            assert_eq!(store.load(Some(other)).await.unwrap(), contents, "{other:?}");
        }
    }

    /// The first set has no history, and changes that exceed the history's limits are
    /// dropped.
    async fn a_store_remembers_within_bounds(place: &Place) {
        let store = place.open().await;
        replace(&*store, replacement(&named(3, "0"))).await.unwrap();
        let first = load(&*store).await;
        assert_eq!((first.past.from, first.past.steps.len()), (first.state.point(), 0));
        for round in 1..=260 {
            replace(&*store, replacement(&named(1, &round.to_string()))).await.unwrap();
        }
        let contents = load(&*store).await;
        assert_eq!(contents.past.steps.len(), 256);
        assert_eq!(contents.past.from.generation, Generation(261 - 256));
        assert_eq!(store.load(Some(first.state.point())).await.unwrap().since, None);
    }

    /// One group of 10,000 rules, and one rule of 6,000 destinations.
    async fn large_groups_come_back(place: &Place) {
        let store = place.open().await;
        let mut many = full();
        many.rules = vec![many.rules[0].clone(); 10_000];
        let mut wide = bound("wide", "1", &["s1"]);
        let destinations: Vec<String> =
            (0..6_000).map(|index| format!("10.{}.{}.0/24", index / 250, index % 250)).collect();
        wide.rules[0].destination = destinations.join(",");
        let everything = set([many, wide]);
        replace(&*store, replacement(&everything)).await.unwrap();
        assert_eq!(groups(&load(&*store).await), everything);
    }
}

conformance! { shared:
    /// Two instances with writers of their own (law 3): the token of every generation is at
    /// least that of the previous one.
    async fn an_old_token_never_gets_in_at_another_instance(place: &Place) {
        let instances = [place.open().await, place.open().await];
        let mut racing = tokio::task::JoinSet::new();
        for round in 0..40u64 {
            let store = Arc::clone(&instances[usize::try_from(round % 2).unwrap()]);
            let token = round * 7 % 40 + 1;
            racing.spawn(async move {
                let name = format!("w{token}");
                let answer = replace(&*store, fenced(&named(20, &name), &name, token)).await;
                match answer {
                    Ok(generation) => Some((generation, token)),
                    Err(Error::Refused(_)) => None,
                    Err(error) => panic!("{error:?}"),
                }
            });
        }
        let mut accepted: Vec<_> = racing.join_all().await.into_iter().flatten().collect();
        accepted.sort_unstable();
        assert!(accepted.is_sorted_by_key(|(_, token)| *token), "{accepted:?}");
        let generations: Vec<u64> = accepted.iter().map(|(generation, _)| *generation).collect();
        assert_eq!(generations, (1..=accepted.len() as u64).collect::<Vec<_>>());
        let [one, other] = [load(&*instances[0]).await, load(&*instances[1]).await];
        assert_eq!(one, other);
        assert_eq!(one.state.token, Some(FencingToken(40)));
        assert_eq!(groups(&one), named(20, "w40"));
    }

    async fn an_instance_learns_of_what_another_writes(place: &Place) {
        let (here, there) = (place.open().await, place.open().await);
        for name in ["1", "2"] {
            let before = load(&*here).await.state;
            replace(&*there, replacement(&named(3, name))).await.unwrap();
            let heard = async {
                while here.load(Some(before.point())).await.unwrap().state == before {
                    assert_eq!(here.news().await, News::Written);
                }
            };
            // Less than the poll interval on PostgreSQL, which applies without a notification.
            tokio::time::timeout(CHECK / 2, heard).await.expect("it is told");
        }
    }

    async fn instances_tell_each_other_of_cells(place: &Place) {
        let (here, there) = (place.open().await, place.open().await);
        let cell = CellId::parse("c1").unwrap();
        let report = |enforced, second: i64| Report {
            enforced: Generation(enforced),
            containers: 3,
            isolated_rules: 1,
            at: Timestamp::from_second(1_700_000_000 + second).unwrap(),
        };
        let save = |report| {
            let reports = vec![(cell.clone(), report)];
            Arc::new(Unsaved { reports, forgotten: Vec::new() })
        };
        there.save_reports(save(report(4, 10))).await.unwrap();
        let heard = here.save_reports(Arc::default()).await.unwrap();
        assert_eq!(heard, [(cell.clone(), report(4, 10))]);
        here.save_reports(save(report(5, 20))).await.unwrap();
        let heard = there.save_reports(Arc::default()).await.unwrap();
        assert_eq!(heard, [(cell.clone(), report(5, 20))]);
    }

    /// The tables are created once, whichever instance is first.
    async fn instances_may_begin_at_the_same_time(place: &Place) {
        let opened = futures_util::future::join_all((0..6).map(|_| place.open())).await;
        replace(&*opened[0], replacement(&named(3, "1"))).await.unwrap();
        for store in opened {
            assert_eq!(groups(&load(&*store).await), named(3, "1"));
        }
    }
}
