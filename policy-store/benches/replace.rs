//! Duration of a Replace as seen by its writer: the store is a separate process, on each
//! database, over mutual TLS. Prints a table; see
//! docs/performance.md.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, for people")]

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::{sync::Arc, time::Duration};

use model::{
    group::{Scope, SecurityGroup},
    rule::RuleSpec,
};
use proto::policy_v1::{StatusRequest, replace_response::Committed};
use storage::{server::Dialect, testing::TestServer};
use tokio::time::Instant;

use self::support::{
    client::{Cell, Talk, parts, replace},
    original::{Original, Version},
    process::Program,
    sets::{Set, fenced, group, set, space},
    site::{Client, Site},
};

/// Number of measurements of each case, each on a new database.
const RUNS: usize = 3;

struct Data {
    name: &'static str,
    set: Set,
}

fn space_guid(number: usize) -> String {
    format!("5f0e8a3c-6b1d-4f27-9a52-{number:012}")
}

/// A group with this number of rules and of spaces in either lifecycle.
fn large_group(index: usize, rules: usize, running: usize, staging: usize) -> SecurityGroup {
    let rule = |nth: usize| RuleSpec {
        protocol: "tcp".to_owned(),
        destination: format!(
            "10.{}.{}.{nth}-10.{}.{}.254",
            index / 250,
            index % 250,
            index / 250,
            index % 250
        ),
        ports: "443,8080-8090".to_owned(),
        description: format!("rule {nth} of group {index}"),
        ..RuleSpec::default()
    };
    let scope = |count: usize, seed: usize| Scope {
        everywhere: false,
        spaces: (0..count)
            .map(|nth| space(&space_guid((index * 7 + nth * 131 + seed) % 8000)))
            .collect(),
    };
    let guid = format!("0d9c7b52-3e1a-4c60-8f44-{index:012}");
    SecurityGroup {
        rules: (0..rules).map(rule).collect(),
        running: scope(running, 0),
        staging: scope(staging, 3),
        ..group(&guid, &format!("security-group-{index}"))
    }
}

fn data() -> [Data; 3] {
    [
        Data {
            name: "5,000 x 50 rules x 20 + 20 spaces",
            set: set((0..5_000).map(|index| large_group(index, 50, 20, 20))),
        },
        Data {
            name: "5,000 x 50 rules x 20 spaces",
            set: set((0..5_000).map(|index| large_group(index, 50, 20, 0))),
        },
        Data {
            name: "13,500 x 20 rules, 40,000 bindings",
            // Two and one, less one here and there.
            set: set((0..13_500)
                .map(|index| large_group(index, 20, 2, 1 - usize::from(index % 27 == 0)))),
        },
    ]
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let milliseconds = |time: Duration| time.as_millis();
    let middle = times[times.len() / 2];
    format!("{} (at most {})", milliseconds(middle), milliseconds(times[times.len() - 1]))
}

/// The first Replace: its writer is connected and has its messages ready.
async fn timed_first(writer: &Client, set: &Set) -> (Duration, Committed) {
    // Any response: the connection is established then.
    let _denied = writer.clone().status(StatusRequest {}).await;
    let write = fenced(set, "syncer-a", 1);
    let all: Vec<String> = set.keys().map(|guid| guid.as_str().to_owned()).collect();
    let parts = parts(&write, &all);
    let began = Instant::now();
    let mut talk = Talk::open(writer).await.unwrap();
    assert_eq!(talk.promise(&write).await.unwrap(), all);
    for part in parts {
        talk.say(part).await;
    }
    let committed = talk.commit().await.unwrap();
    (began.elapsed(), committed)
}

async fn timed(writer: &Client, set: &Set) -> (Duration, Committed) {
    let write = fenced(set, "syncer-a", 1);
    let began = Instant::now();
    let committed = replace(writer, &write).await.unwrap();
    (began.elapsed(), committed)
}

/// The first Replace and the duration of its commit, one with one change, one without changes;
/// and the memory of the store after each.
async fn measure(site: &Site, set: &Set) -> ([Duration; 4], [u64; 2]) {
    let mut program = Program::start(site);
    let writer = site.client(&program.address, "syncer", None);
    let (first, committed) = timed_first(&writer, set).await;
    assert_eq!(committed.added, set.len() as u64);
    let commit =
        program.line("replaced-security-groups", 0)["data"]["milliseconds"].as_u64().unwrap();
    let after_first = program.memory();
    let mut changed = set.clone();
    let one = changed.values_mut().nth(set.len() / 2).unwrap();
    Arc::make_mut(one).rules[0].ports.push_str(",9090");
    let (one, committed) = timed(&writer, &changed).await;
    assert_eq!((committed.changed, committed.added), (1, 0));
    let (none, committed) = timed(&writer, &changed).await;
    assert_eq!(committed.unchanged, set.len() as u64);
    program.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(program.wait().success());
    // After a restart, with a watcher.
    let program = Program::start(site);
    let spaces: Vec<String> = (0..200).map(|number| space_guid(number * 40)).collect();
    let spaces: Vec<&str> = spaces.iter().map(String::as_str).collect();
    let client = site.client(&program.address, "cell-1", Some("cell"));
    let mut cell = Cell::hello(&client, "cell-1", &spaces).await;
    cell.until(2).await;
    let commit = Duration::from_millis(commit);
    ([first, commit, one, none], [after_first, program.memory()])
}

/// A site on a new database, which has the original's tables if they are to be written.
async fn site(dialect: Dialect, original: Option<Version>) -> Site {
    let server = TestServer::shared(dialect);
    let site = Site::on(server);
    let Some(version) = original else { return site };
    Original::at(server, site.database_name(), version).await.create();
    site.writing_original_tables()
}

#[tokio::main]
async fn main() {
    let only = std::env::var("PORTCULLIS_BENCH_DATABASE").ok();
    let data_only = std::env::var("PORTCULLIS_BENCH_DATA").ok();
    let original = std::env::var("PORTCULLIS_BENCH_ORIGINAL").ok().map(|version| match &*version {
        "3.53" => Version::Lists,
        "later" => Version::Tables,
        other => panic!("{other} is neither 3.53 nor later"),
    });
    println!(
        "| data | database | first | from Commit on | one change | none | RSS after first | RSS of the next life |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for Data { name, set } in data() {
        if data_only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        for database in ["SQLite", "PostgreSQL", "MariaDB"] {
            if only.as_deref().is_some_and(|only| only != database) {
                continue;
            }
            let mut times = [const { Vec::new() }; 4];
            let mut memory = [0; 2];
            for _ in 0..RUNS {
                let site = match database {
                    "SQLite" => Site::new(),
                    "PostgreSQL" => site(Dialect::Postgres, original).await,
                    _ => site(Dialect::MySql, original).await,
                };
                let (took, used) = measure(&site, &set).await;
                for (times, took) in times.iter_mut().zip(took) {
                    times.push(took);
                }
                memory = used;
            }
            let [first, commit, one, none] = times.map(median);
            let [after_first, next_life] = memory.map(|kib| kib / 1024);
            println!(
                "| {name} | {database} | {first} ms | {commit} ms | {one} ms | {none} ms | {after_first} MiB | {next_life} MiB |"
            );
        }
    }
}
