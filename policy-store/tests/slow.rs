//! Stalled watchers cost the store bounded memory, and finally get the newest state
//! instead of a backlog.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::support::{
    client::{Cell, replace},
    process::Program,
    sets::{Set, fenced, named},
    site::Site,
};

const WATCHERS: usize = 20;
/// Minimum number of changes; the environment can set a duration.
const CHANGES: usize = 150;

fn at_least() -> Duration {
    let seconds = std::env::var("PORTCULLIS_STALL_SECONDS");
    Duration::from_secs(seconds.map_or(0, |text| text.parse().expect("a number of seconds")))
}

/// One mebibyte for all spaces.
fn large(round: usize) -> Set {
    let mut set = named(20, &format!("{round} {}", "x".repeat(25_000)));
    for group in set.values_mut() {
        Arc::make_mut(group).running.everywhere = true;
    }
    set
}

#[tokio::test]
async fn memory_stays_flat() {
    let site = Site::new();
    let program = Program::start(&site);
    let writer = site.client(&program.address, "syncer", None);
    replace(&writer, &fenced(&large(0), "syncer-a", 1)).await.unwrap();
    let mut stalled = Vec::new();
    for index in 0..WATCHERS {
        let id = format!("cell-{index}");
        let client = site.client(&program.address, &id, Some("cell"));
        // Opened, and then not read.
        stalled.push(Cell::hello(&client, &id, &[]).await);
    }
    let id = "prompt";
    let mut prompt = Cell::hello(&site.client(&program.address, id, Some("cell")), id, &[]).await;
    prompt.until(1).await;
    let mut highest = 0;
    let mut settled = 0;
    let began = Instant::now();
    let (mut told, mut round) = (0, 0);
    while round < CHANGES || began.elapsed() < at_least() {
        round += 1;
        let committed = replace(&writer, &fenced(&large(round), "syncer-a", 1)).await.unwrap();
        prompt.until(committed.generation).await;
        let memory = program.memory();
        match round {
            // Allocators and flow control windows have filled by then.
            30 => settled = memory,
            31.. => highest = highest.max(memory),
            _ => {}
        }
        let minute = began.elapsed().as_secs() / 60;
        if minute > told {
            told = minute;
            println!("minute {minute}: {round} changes, {memory} KiB");
        }
    }
    println!("{round} changes, settled at {settled} KiB, highest {highest} KiB");
    // A queue would hold 20 watchers x 120 changes x 1 MiB or more.
    assert!(highest < settled + 60 * 1024, "{settled} KiB grew to {highest} KiB");
    let newest = prompt.mirror.generation;
    for cell in &mut stalled {
        let mut states = 0;
        while cell.mirror.generation < newest {
            let whole = tokio::time::timeout(Duration::from_secs(30), cell.whole()).await;
            whole.expect("it is told").unwrap();
            states += 1;
        }
        assert_eq!(cell.mirror.groups, prompt.mirror.groups);
        assert!(states < 8, "{states} states: a backlog");
    }
}
