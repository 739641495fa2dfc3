//! Size and cost of the history on SQLite: 90 days with one change a minute, written by the store
//! itself, and the duration of a Replace that changes one group of a large set. Prints a table;
//! see docs/performance.md.
//!
//! `PORTCULLIS_BENCH_GENERATIONS`: another number of generations; 0 leaves that part out.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, for people")]

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use model::{
    generation::Generation,
    group::{ContentHash, Scope, SecurityGroup},
    ids::GroupGuid,
    rule::RuleSpec,
};
use policy_store::{
    groups::{
        archive::{Bounds, Query},
        decide::Replacement,
        manifest::Manifest,
        snapshot::Snapshot,
    },
    store::{Store, sqlite::Sqlite},
};
use tokio::time::Instant;

use self::support::sets::{Set, group, replacement, set, space};

/// 90 days of minutes.
const GENERATIONS: usize = 129_600;
/// Replaces that wait for the writer at the same time: they share a disk sync.
const TOGETHER: usize = 64;
/// Measured Replaces of a large set.
const REPLACES: usize = 40;

/// A group of 20 rules, bound to two spaces for running and to one for staging.
fn typical(index: usize, change: usize) -> SecurityGroup {
    let rule = |nth: usize| RuleSpec {
        protocol: "tcp".to_owned(),
        destination: format!("10.{}.{}.{nth}", index / 250, (index + change * 7 + nth) % 250),
        ports: format!("443,{}", 8_000 + (change + nth) % 1_000),
        description: format!("rule {nth} of group {index}"),
        ..RuleSpec::default()
    };
    let scope = |spaces: &[usize]| Scope {
        everywhere: false,
        spaces: spaces
            .iter()
            .map(|nth| space(&format!("5f0e8a3c-6b1d-4f27-9a52-{:012}", index * 3 + nth)))
            .collect(),
    };
    SecurityGroup {
        rules: (0..20).map(rule).collect(),
        running: scope(&[0, 1]),
        staging: scope(&[2]),
        ..group(&format!("0d9c7b52-3e1a-4c60-8f44-{index:012}"), &format!("security-group-{index}"))
    }
}

/// The hashes of a set of typical groups.
struct Announced(BTreeMap<GroupGuid, ContentHash>);

impl Announced {
    fn of(groups: &Set) -> Self {
        Self(groups.iter().map(|(guid, group)| (guid.clone(), group.content_hash())).collect())
    }

    /// A Replace that changes one group; like a syncer, it supplies only that one.
    fn one_change(&mut self, number: usize) -> Arc<Replacement> {
        let changed = set([typical(number % self.0.len(), number)]);
        let mut write = replacement(&changed);
        self.0.extend(changed.iter().map(|(guid, group)| (guid.clone(), group.content_hash())));
        let mut manifest = Manifest::default();
        for (guid, hash) in &self.0 {
            manifest.push(guid.clone(), *hash).unwrap();
        }
        write.supplied.manifest = manifest;
        let minutes = SignedDuration::from_mins(i64::try_from(number).unwrap());
        write.at = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * 365 * 55) + minutes;
        Arc::new(write)
    }
}

fn groups(count: usize, change: usize) -> Set {
    set((0..count).map(|index| typical(index, change)))
}

fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// Resident memory of this process in bytes: now, and at most so far.
fn memory() -> [u64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    ["VmRSS:", "VmHWM:"].map(|key| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    })
}

fn row(what: &str, value: &str) {
    println!("| {what} | {value} |");
}

/// 100 groups: the size of a set has no influence on what a change costs in the database.
async fn ninety_days(generations: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = Sqlite::open(&path).unwrap();
    let all = groups(100, 0);
    store.replace(Arc::new(replacement(&all))).await.unwrap();
    let mut announced = Announced::of(&all);
    let began = Instant::now();
    let mut number = 1;
    while number < generations {
        let writes = (number..generations.min(number + TOGETHER))
            .map(|number| store.replace(announced.one_change(number)));
        for outcome in futures_util::future::join_all(writes.collect::<Vec<_>>()).await {
            outcome.unwrap();
        }
        number += TOGETHER;
    }
    let took = began.elapsed();
    store.close().await.unwrap();
    drop(store);
    row("generations", &generations.to_string());
    row("written in", &format!("{took:.0?}"));
    row("database", &mebibytes(size(&path)));
    let per = size(&path) / generations as u64;
    row("a generation", &format!("{per} bytes"));
    questions(&path, generations as u64).await;
}

/// What an operator asks, after a restart.
async fn questions(path: &Path, newest: u64) {
    let [before, _] = memory();
    let store = Sqlite::open(path).unwrap();
    let snapshot = Snapshot::from(store.load(None).await.unwrap());
    let [after, _] = memory();
    row("memory of an open store", &mebibytes(after.saturating_sub(before)));
    let timed = async |what: &str, query: Query| {
        let began = Instant::now();
        let found = store.history().entries(query).await.unwrap().len();
        row(what, &format!("{:.1?} ({found} entries)", began.elapsed()));
    };
    let all = Query { before: None, generation: None, group: None, size: 100 };
    timed("history, first page", all.clone()).await;
    let group = Some("security-group-7".to_owned());
    timed("history of a group, first page", Query { group, ..all.clone() }).await;
    let group = Some("no such group".to_owned());
    timed("history of a group that never changed", Query { group, ..all }).await;
    for back in [newest - 1, newest / 2, 1] {
        let began = Instant::now();
        let undo = store.history().undo(snapshot.state.generation, Generation(back)).await;
        let undo = undo.unwrap().expect("it is remembered");
        let back_there = snapshot.undone(undo);
        assert_eq!(back_there.entries().len(), 100);
        row(&format!("back to generation {back}"), &format!("{:.1?}", began.elapsed()));
    }
    row("memory afterwards", &mebibytes(memory()[0].saturating_sub(before)));
    let began = Instant::now();
    let since = Timestamp::UNIX_EPOCH;
    let bounds = Bounds { since, bytes: u64::MAX, keep_from: None };
    assert!(!store.history().prune(bounds).await.unwrap());
    row("a check of the limits", &format!("{:.1?}", began.elapsed()));
    let bounds = Bounds { since: Timestamp::MAX, ..bounds };
    let began = Instant::now();
    assert!(store.history().prune(bounds).await.unwrap());
    row("a step that drops 64 entries", &format!("{:.1?}", began.elapsed()));
    store.close().await.unwrap();
}

/// 13,500 groups of 20 rules.
async fn large_set() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = Sqlite::open(&path).unwrap();
    let all = groups(13_500, 0);
    let began = Instant::now();
    store.replace(Arc::new(replacement(&all))).await.unwrap();
    row("13,500 groups: import", &format!("{:.0?}", began.elapsed()));
    store.close().await.unwrap();
    row("13,500 groups: database after the import", &mebibytes(size(&path)));
    drop(store);
    let store = Sqlite::open(&path).unwrap();
    let mut announced = Announced::of(&all);
    let mut times: Vec<Duration> = Vec::new();
    for number in 1..=REPLACES {
        let write = announced.one_change(number);
        let began = Instant::now();
        store.replace(write).await.unwrap();
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    row("13,500 groups: one change", &format!("{median:.1?} (at most {most:.1?})"));
    let write = Arc::new(replacement(&groups(13_500, 9_999)));
    let began = Instant::now();
    store.replace(write).await.unwrap();
    row("13,500 groups: all change", &format!("{:.0?}", began.elapsed()));
    store.close().await.unwrap();
    row("13,500 groups: database afterwards", &mebibytes(size(&path)));
}

#[tokio::main]
async fn main() {
    let generations = std::env::var("PORTCULLIS_BENCH_GENERATIONS").ok();
    let generations = generations.map_or(GENERATIONS, |number| number.parse().unwrap());
    println!("| what | measured |");
    println!("|---|---|");
    large_set().await;
    if generations > 0 {
        ninety_days(generations).await;
    }
}
