//! Two instances on one database, served in this process: a commit of one is visible at
//! the other at once, and no response is older than an earlier one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::policy_v1::StatusRequest;
use storage::{server::Dialect, testing::TestServer};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    client::{Cell, decoded, replace},
    http::Poller,
    sets::{Set, fenced, global, named, set},
    site::{Served, Site},
    until,
};

const BOTH: [Dialect; 2] = [Dialect::Postgres, Dialect::MySql];
const GROUPS: &str = "/networking/v1/internal/security_groups";
const STAMP: &str = "/networking/v1/internal/security_groups_last_updated";

async fn two(site: &Site) -> [Served; 2] {
    [Box::pin(Served::start_at(site.clone())).await, Box::pin(Served::start_at(site.clone())).await]
}

async fn stamp(poller: &Poller) -> i64 {
    poller.text(STAMP).await.parse().unwrap()
}

async fn name(poller: &Poller) -> String {
    poller.groups("").await.security_groups[0].name.clone()
}

/// A cell asks one instance for the stamp and the other for the groups. Without the
/// database query the other instance would lag by the notification delay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_as_new_as_a_stamp_that_another_instance_gave() {
    for dialect in BOTH {
        let site = Site::on(TestServer::shared(dialect));
        let served = two(&site).await;
        let pollers = served.each_ref().map(Served::poller);
        let mut last = 0;
        for round in 0..20usize {
            let (one, other) = (round % 2, (round + 1) % 2);
            let write = fenced(&set([global("a", &round.to_string())]), "syncer-a", 1);
            replace(&served[one].writer(), &write).await.unwrap();
            let (said, listed) = match round % 4 {
                // The stamp first, as agents do it; and the list alone.
                0 | 1 => (stamp(&pollers[one]).await, name(&pollers[other]).await),
                _ => (i64::MIN, name(&pollers[other]).await),
            };
            assert_eq!(listed, round.to_string(), "{dialect:?}");
            let again = stamp(&pollers[other]).await;
            assert!(again >= said && again > last, "{dialect:?}: {again}, {said}, {last}");
            assert_eq!(stamp(&pollers[one]).await, again, "the same on all instances");
            last = again;
        }
        for served in served {
            served.stop().await;
        }
    }
}

/// Many agents, while the groups change: a list is never older than a stamp received
/// before, and stamps never go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_crowd_nobody_gets_a_list_from_before_his_stamp() {
    let site = Site::on(TestServer::shared(Dialect::MySql));
    let served = two(&site).await;
    let first = fenced(&set([global("a", "0")]), "syncer-a", 1);
    replace(&served[0].writer(), &first).await.unwrap();
    // Minimum for a list that follows a stamp: the round of the stamp, or later.
    let rounds = Arc::new(std::sync::Mutex::new(BTreeMap::from([(i64::MIN, 0u64)])));
    let mut agents = JoinSet::new();
    for agent in 0..6usize {
        let pollers = served.each_ref().map(Served::poller);
        let rounds = Arc::clone(&rounds);
        agents.spawn(async move {
            let mut last = 0;
            for ask in 0..40 {
                let (one, other) = ((agent + ask) % 2, (agent + ask + 1) % 2);
                let said = stamp(&pollers[one]).await;
                let listed: u64 = name(&pollers[other]).await.parse().unwrap();
                assert!(said >= last, "the stamp went back from {last} to {said}");
                last = said;
                let least = *rounds.lock().unwrap().range(..=said).next_back().unwrap().1;
                assert!(listed >= least, "list {listed} after the stamp of {least}");
            }
        });
    }
    for round in 1.. {
        if agents.try_join_next().is_some_and(|ended| ended.is_ok()) {
            assert!(round > 3, "little changed");
            break;
        }
        let writer = &served[usize::try_from(round % 2).unwrap()];
        let write = fenced(&set([global("a", &round.to_string())]), "syncer-a", 1);
        replace(&writer.writer(), &write).await.unwrap();
        let made = stamp(&writer.poller()).await;
        rounds.lock().unwrap().insert(made, round);
    }
    agents.join_all().await;
}

/// Without the database it is unknown whether another instance has a newer generation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_database_there_is_no_list() {
    let server = TestServer::start(Dialect::Postgres);
    let site = Site::on(&server);
    let served = Box::pin(Served::start_at(site)).await;
    replace(&served.writer(), &fenced(&named(3, "x"), "syncer-a", 1)).await.unwrap();
    let poller = served.poller();
    assert_eq!(poller.get(GROUPS).await.status(), 200);
    server.kill();
    for path in [GROUPS, STAMP] {
        let answer = poller.get(path).await;
        assert_eq!(answer.status(), 500, "{path}");
        assert_eq!(answer.text().await.unwrap(), r#"{"error": "database read failed"}"#);
    }
    // Routes without groups are served, and watches stay open.
    assert_eq!(poller.get("/networking/v1/internal/policies").await.status(), 200);
    let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &[]).await;
    cell.until(1).await;
    tokio::task::block_in_place(|| server.restart());
    until("there is a list again", async || poller.get(GROUPS).await.status() == 200).await;
}

fn everybody(name: &str) -> Set {
    set((0..5).map(|index| global(&format!("g{index}"), name)))
}

/// Four writers with a token each write concurrently through both instances. In the
/// order of generations tokens only rise, and a cell at either instance sees complete
/// sets in that order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_token_never_gets_in_when_writers_race() {
    for dialect in BOTH {
        let site = Site::on(TestServer::shared(dialect));
        let served = two(&site).await;
        let mut cells = Vec::new();
        for (index, served) in served.iter().enumerate() {
            let id = format!("cell-{index}");
            cells.push(Cell::hello(&served.cell(&id), &id, &[]).await);
        }
        let mut racing = JoinSet::new();
        for token in 1..=4u64 {
            let writers = served.each_ref().map(Served::writer);
            racing.spawn(async move {
                let mut confirmed = Vec::new();
                for round in 0..10usize {
                    // Newer leaders start while older ones still write.
                    tokio::time::sleep(Duration::from_millis(token * 15)).await;
                    let write = everybody(&format!("{token}-{round}"));
                    let write = fenced(&write, &format!("syncer-{token}"), token);
                    match replace(&writers[round % 2], &write).await {
                        Ok(committed) => confirmed.push((committed.generation, token, round)),
                        Err(status) => assert!(
                            matches!(status.code(), Code::FailedPrecondition | Code::Aborted),
                            "{status:?}"
                        ),
                    }
                }
                confirmed
            });
        }
        let mut confirmed: Vec<_> = racing.join_all().await.into_iter().flatten().collect();
        confirmed.sort_unstable();
        println!("{dialect:?}: {} Replaces were confirmed", confirmed.len());
        let names: BTreeMap<u64, String> = confirmed
            .iter()
            .map(|(generation, token, round)| (*generation, format!("{token}-{round}")))
            .collect();
        assert_eq!(names.len(), confirmed.len(), "two Replaces made one generation");
        assert!(confirmed.iter().any(|(_, token, _)| *token < 4), "there was no race");
        assert!(confirmed.is_sorted_by_key(|(_, token, _)| *token), "{confirmed:?}");
        let newest = *names.last_key_value().unwrap().0;
        for cell in &mut cells {
            while cell.mirror.generation < newest {
                cell.whole().await.unwrap();
                let expected = &names[&cell.mirror.generation];
                for stored in cell.mirror.groups.values() {
                    assert_eq!(decoded(stored).name, *expected, "{dialect:?}");
                }
            }
        }
        for served in served {
            served.stop().await;
        }
    }
}

/// Which cells are behind, by how many generations and for how long: the same at each
/// instance, and after a restart of all instances.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_cell_is_behind_outlives_the_instances() {
    let site = Site::on(TestServer::shared(Dialect::Postgres));
    let served = two(&site).await;
    let writer = served[0].writer();
    let write = async |name: &str| {
        replace(&writer, &fenced(&named(3, name), "syncer-a", 1)).await.unwrap();
    };
    write("1").await;
    let mut cell = Cell::hello(&served[0].cell("cell-1"), "cell-1", &[]).await;
    cell.until(1).await;
    cell.report(1).await;
    write("2").await;
    cell.until(2).await;
    let second = cell.mirror.stamp;
    write("3").await;
    drop(cell);
    let told = async |served: &Served| {
        let mut operator = served.operator();
        until("the report and its lag are told", async || {
            let status = operator.status(StatusRequest {}).await.unwrap().into_inner();
            let mut cells = status.cells.into_iter();
            let Some(cell) = cells.find(|cell| cell.enforced_generation == 1) else {
                return false;
            };
            if status.generation != 3 {
                return false;
            }
            let since = cell.behind_since.expect("it lacks two generations");
            let nanoseconds = since.seconds * 1_000_000_000 + i64::from(since.nanos);
            assert_eq!(nanoseconds, second, "since the first that it lacks was made");
            let now = status.now.unwrap().seconds;
            assert!((since.seconds..since.seconds + 300).contains(&now), "{now}");
            cell.reported_at.is_some()
        })
        .await;
    };
    for served in &served {
        told(served).await;
    }
    for served in served {
        served.stop().await;
    }
    let served = Box::pin(Served::start_at(site)).await;
    told(&served).await;
    served.stop().await;
}
