//! An instance that shuts down hands its cells over to another one.

use std::time::Duration;

use nix::sys::signal::Signal;
use runtime::server::GOAWAY_INTERVAL;
use serde_json::json;
use storage::{server::Dialect, testing::TestServer};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tonic::Code;

use crate::support::{
    PATIENCE,
    client::{Cell, Talk, replace},
    process::Program,
    sets::{bound, fenced, set},
    site::Site,
};

const CELLS: u32 = 150;

/// Cells are disconnected one after another and reconnect to the other instance with
/// their state; no cell gets a complete state again. A running Replace is confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_come_to_the_other_instance_one_after_another() {
    let site = Site::on(TestServer::shared(Dialect::Postgres));
    let mut config = site.config();
    config["drain_timeout_seconds"] = json!(20);
    config["drain_spread_seconds"] = json!(10);
    let [mut leaving, staying] = tokio::task::block_in_place(|| {
        [Program::start_with(&site, &config), Program::start_with(&site, &config)]
    });
    let groups = |name: &str| set([bound("a", name, &["s1"]), bound("b", "1", &["s1"])]);
    let writer = site.client(&leaving.address, "syncer", None);
    replace(&writer, &fenced(&groups("1"), "a", 1)).await.unwrap();

    let (sent_away, mut first) = watch::channel(0);
    let mut cells = JoinSet::new();
    for number in 0..CELLS {
        let id = format!("cell-{number}");
        let client = site.client(&leaving.address, &id, Some("cell"));
        let mut cell = Cell::hello(&client, &id, &["s1"]).await;
        cell.until(1).await;
        let other = site.client(&staying.address, &id, Some("cell"));
        let sent_away = sent_away.clone();
        cells.spawn(async move {
            let status = cell.end().await;
            let ended = Instant::now();
            sent_away.send_modify(|count| *count += 1);
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            let mut cell = Cell::back(&other, &id, &["s1"], cell.mirror).await.unwrap();
            while cell.mirror.generation < 2 {
                let answer = cell.answers.message().await.unwrap().expect("it goes on");
                assert!(!answer.reset, "it is told what it missed");
                cell.mirror.apply(answer);
            }
            ended
        });
    }
    let mut talk = Talk::open(&writer).await.unwrap();
    let write = fenced(&groups("2"), "a", 1);
    let missing = talk.promise(&write).await.unwrap();
    leaving.signal(Signal::SIGTERM);
    first.wait_for(|count| *count > 0).await.unwrap();
    talk.deliver(&write, &missing).await;
    assert_eq!(talk.commit().await.unwrap().generation, 2, "what is under way may end");

    let ended = tokio::time::timeout(PATIENCE, cells.join_all()).await;
    let ended = ended.expect("all cells come over");
    let (first, last) = (ended.iter().min().unwrap(), ended.iter().max().unwrap());
    let took = *last - *first;
    println!("{CELLS} cells were sent away within {took:?}");
    assert!(took >= GOAWAY_INTERVAL * CELLS / 2, "all at once: {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(tokio::task::block_in_place(|| leaving.wait()).success());
    leaving.line("exited", 0);
}

/// The drain timeout delays only instances with open calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_nobody_uses_ends_at_once() {
    let site = Site::new();
    let mut config = site.config();
    config["drain_timeout_seconds"] = json!(60);
    config["drain_spread_seconds"] = json!(60);
    let mut program = tokio::task::block_in_place(|| Program::start_with(&site, &config));
    let began = Instant::now();
    program.signal(Signal::SIGTERM);
    assert!(tokio::task::block_in_place(|| program.wait()).success());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
