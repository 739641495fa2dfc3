//! A failover to an asynchronous replica of PostgreSQL, which lacks the newest commits: no fencing
//! token is issued twice.

use std::time::Duration;

use lock_server::store::{Claimed, Store};
use model::lock::Claim;
use storage::{
    server::{Dialect, Options},
    testing::TestServer,
};
use tokio::time::{Instant, interval};

use crate::support::{Instance, claim, key, owner, take};

/// The connections of the killed primary are replaced; the machine may be loaded.
const SOON: Duration = Duration::from_secs(20);

/// The name of one database on the primary, whichever of the two servers it is.
fn options(servers: [&TestServer; 2], database: &str) -> Options {
    let [first, second] = servers.map(TestServer::port);
    let hosts = format!("127.0.0.1:{first},127.0.0.1:{second}");
    let address =
        format!("postgres://tester:secret@{hosts}/{database}?target_session_attrs=read-write");
    Options::new(Dialect::Postgres, address)
}

/// The token of a claim, which is repeated until the store answers.
async fn token<S: Store>(store: &S, claim: Claim) -> u64 {
    let (began, mut beat) = (Instant::now(), interval(Duration::from_millis(50)));
    loop {
        beat.tick().await;
        match store.claim(claim.clone(), None).await {
            Ok(Claimed::LockVersion(held)) => return held.lock.token.0,
            Ok(Claimed::Collision(by)) => panic!("{by:?} has it"),
            Err(error) if began.elapsed() > SOON => panic!("no answer in time: {error:?}"),
            Err(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_commits_issues_no_token_twice() {
    let primary = TestServer::start(Dialect::Postgres);
    primary.sql("CREATE DATABASE locks");
    let replica = primary.replica();
    let options = options([&primary, &replica], "locks");
    let instances = [Instance::open(&options).await, Instance::open(&options).await];
    let store = &instances[0].store;

    let kept = take(store, claim("kept", "o")).await.lock.token.0;
    take(store, claim("taken", "o")).await;
    store.release(&key("taken"), &owner("o")).await.unwrap();
    let replicated = "SELECT pg_current_wal_lsn() <= replay_lsn FROM pg_stat_replication";
    while primary.sql(replicated) != "t" {}
    replica.stop_following();
    while primary.sql("SELECT count(*) FROM pg_stat_replication") != "0" {}
    // The replica does not know these.
    let taken = take(store, claim("taken", "p")).await.lock.token.0;
    let new = take(store, claim("new", "p")).await.lock.token.0;

    primary.kill();
    replica.promote();
    for instance in &instances {
        for (on, by, before) in [("kept", "o", kept), ("taken", "q", taken), ("new", "q", new)] {
            let after = token(&instance.store, claim(on, by)).await;
            assert!(after > before, "{on}: {after} after {before}");
        }
    }
    let [first, second] = instances;
    first.close().await;
    second.close().await;
}
