//! The server dies, hangs and returns during work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use storage::{Error, Kind, server::Dialect, testing::TestServer};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{GIVE, balances, connect, give, on_both};
use crate::PATIENCE;

on_both! {
    confirmed_writes_survive_a_power_failure
    a_server_that_stands_still_is_given_up_in_time
    without_a_server_nothing_is_sent
}

/// Each confirmed write is counted once, each rejected one not at all; only writes of unknown
/// outcome may be either.
async fn confirmed_writes_survive_a_power_failure(dialect: Dialect) {
    let process = TestServer::start(dialect);
    let mut options = process.database();
    options.operation_timeout = Duration::from_secs(15);
    let server = connect(&options).await;
    let (written, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut workers = JoinSet::new();
    for account in [1, 2] {
        for alone in [true, false] {
            let (server, written, ended) =
                (server.clone(), Arc::clone(&written), Arc::clone(&ended));
            workers.spawn(async move {
                let (mut stored, mut unknown) = (0, 0);
                while !ended.load(Ordering::SeqCst) {
                    let done = if alone {
                        give(&server, account, 1).await
                    } else {
                        let work = server.transaction(|transaction| async move {
                            transaction.execute(GIVE, &[1.into(), account.into()]).await
                        });
                        work.await
                    };
                    match done {
                        Ok(_) => {
                            stored += 1;
                            written.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(Error::OutcomeUnknown { .. }) => unknown += 1,
                        Err(error) => assert!(error.is_retryable(), "{error:?}"),
                    }
                }
                (account, stored, unknown)
            });
        }
    }
    let more = async |count| {
        let goal = written.load(Ordering::SeqCst) + count;
        let reached = async {
            while written.load(Ordering::SeqCst) < goal {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, reached).await.expect("the writes go on");
    };
    more(50).await;
    let again = tokio::task::spawn_blocking(move || {
        process.kill();
        process.restart();
        process
    });
    let process = again.await.unwrap();
    more(50).await;
    ended.store(true, Ordering::SeqCst);
    let done = timeout(PATIENCE, workers.join_all()).await.unwrap();
    assert!(server.stats().failed > 0, "it died while nobody wrote");
    let found = balances(&server).await;
    for (account, found) in [1, 2].into_iter().zip(found) {
        let of: Vec<_> = done.iter().filter(|(of, ..)| *of == account).collect();
        let stored: i64 = of.iter().map(|(_, stored, _)| stored).sum();
        let unknown: i64 = of.iter().map(|(.., unknown)| unknown).sum();
        assert!(stored > 0, "{done:?}");
        let least = 100 + stored;
        assert!((least..=least + unknown).contains(&found), "{found} of {done:?}");
    }
    drop(process);
}

async fn a_server_that_stands_still_is_given_up_in_time(dialect: Dialect) {
    let process = TestServer::start(dialect);
    let mut options = process.database();
    options.operation_timeout = Duration::from_secs(1);
    options.connect_timeout = Duration::from_secs(1);
    let server = connect(&options).await;
    process.pause();
    let begun = Instant::now();
    let written = timeout(PATIENCE, give(&server, 1, 1)).await.unwrap();
    let read = timeout(PATIENCE, server.query("SELECT 1", &[])).await.unwrap();
    process.resume();
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert!(written.unwrap_err().is_retryable());
    assert!(read.unwrap_err().is_retryable());
    assert_eq!(timeout(PATIENCE, give(&server, 2, 1)).await.unwrap().unwrap(), 1);
}

async fn without_a_server_nothing_is_sent(dialect: Dialect) {
    let process = TestServer::start(dialect);
    let mut options = process.database();
    options.operation_timeout = Duration::from_secs(1);
    let server = connect(&options).await;
    process.stop();
    // The first may have been sent over a connection that was closing.
    let _first = give(&server, 1, 1).await;
    let error = give(&server, 1, 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(matches!(error, Error::Connect { .. }), "known not to be stored: {error:?}");
    process.restart();
    assert_eq!(balances(&server).await, [100, 100]);
}

/// As after a failover to a server that is not promoted yet: the write waits, and is executed once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_for_a_read_only_server() {
    let process = TestServer::start(Dialect::Postgres);
    let server = connect(&process.database()).await;
    let reload = || process.sql("SELECT pg_reload_conf()");
    process.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    reload();
    let read_only = async || {
        let setting = server.query("SHOW default_transaction_read_only", &[]).await.unwrap();
        setting[0].get::<String>(0).unwrap() == "on"
    };
    let seen = timeout(PATIENCE, async { while !read_only().await {} });
    seen.await.unwrap();
    let before = server.stats().failed;
    let waiting = {
        let server = server.clone();
        let mut task = JoinSet::new();
        task.spawn(async move { give(&server, 1, 1).await });
        task
    };
    let refused = timeout(PATIENCE, async {
        while server.stats().failed == before {
            tokio::task::yield_now().await;
        }
    });
    refused.await.unwrap();
    process.sql("ALTER SYSTEM RESET default_transaction_read_only");
    reload();
    let done = timeout(PATIENCE, waiting.join_all()).await.unwrap();
    assert!(matches!(done[..], [Ok(1)]), "{done:?}");
    assert_eq!(balances(&server).await, [101, 100]);
}
