//! Lost tables and columns: recreated at the start and within seconds while the server
//! runs, with the locks that it knows; fencing tokens only rise.

use std::time::Duration;

use lock_server::store::{Claimed, Error, Store};
use model::lock::{Claim, FencingToken};
use storage::{
    server::{Dialect, Options},
    testing::TestServer,
};
use tempfile::TempDir;
use tokio::time::{Instant, interval};

use crate::support::{Instance, Running, by_key, claim, find, key, owner, take};

const BOTH: [Dialect; 2] = [Dialect::Postgres, Dialect::MySql];

/// The documented limit is 10 s; the machine may be loaded.
const SOON: Duration = Duration::from_secs(20);

fn name(options: &Options) -> &str {
    options.connection_string.rsplit('/').next().unwrap()
}

/// Repeats the claim until the store answers.
async fn answered<S: Store>(store: &S, claim: Claim) -> Claimed {
    let (began, mut beat) = (Instant::now(), interval(Duration::from_millis(50)));
    loop {
        beat.tick().await;
        match store.claim(claim.clone(), None).await {
            Ok(claimed) => return claimed,
            Err(error) if began.elapsed() > SOON => panic!("no answer in time: {error:?}"),
            Err(_) => {}
        }
    }
}

fn token(claimed: Claimed) -> FencingToken {
    match claimed {
        Claimed::LockVersion(held) => held.lock.token,
        Claimed::Collision(held) => panic!("{held:?} has it"),
    }
}

/// A free key that had `count` owners.
async fn used<S: Store>(store: &S, on: &str, count: u64) {
    for _ in 0..count {
        take(store, claim(on, "o")).await;
        store.release(&key(on), &owner("o")).await.unwrap();
    }
}

/// The server restores the locks from memory before another client can take one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_makes_its_tables_again() {
    for dialect in BOTH {
        let server = TestServer::shared(dialect);
        let options = server.database();
        let ours = Instance::open(&options).await;
        used(&ours.store, "free", 3).await;
        let held = take(&ours.store, claim("held", "o")).await;

        server.sql_in(name(&options), "DROP TABLE locks");
        let claimed = answered(&ours.store, claim("held", "p")).await;
        assert!(matches!(&claimed, Claimed::Collision(by) if by.lock == held.lock), "{claimed:?}");
        assert_eq!(take(&ours.store, claim("held", "o")).await.lock.token, held.lock.token);
        assert_eq!(token(answered(&ours.store, claim("free", "p")).await), FencingToken(4));

        // Including the tokens: no server knows the free keys.
        server.sql_in(name(&options), "DROP TABLE fencing_tokens");
        assert_eq!(token(answered(&ours.store, claim("held", "o")).await), held.lock.token);
        ours.store.release(&key("free"), &owner("p")).await.unwrap();
        let next = take(&ours.store, claim("free", "q")).await.lock.token;
        assert!(next > FencingToken(4), "{dialect:?}: {next}");
        let new = take(&ours.store, claim("never seen", "q")).await.lock.token;
        assert!(new > FencingToken(1_000_000), "it may have been held before: {new}");

        // A column, the tokens' key, and everything.
        for sql in [
            "ALTER TABLE locks DROP COLUMN value CASCADE",
            "ALTER TABLE fencing_tokens DROP COLUMN token",
            "DROP TABLE locks, fencing_tokens, lock_server_migrations",
        ] {
            server.sql_in(name(&options), sql);
            let claimed = answered(&ours.store, claim("held", "p")).await;
            assert!(
                matches!(&claimed, Claimed::Collision(by) if by.lock == held.lock),
                "{sql}: {claimed:?}"
            );
            assert_eq!(token(answered(&ours.store, claim("held", "o")).await), held.lock.token);
        }
        ours.close().await;
    }
}

/// No server knows the locks then; their tokens rise all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_makes_lost_tables_again() {
    for dialect in BOTH {
        let server = TestServer::shared(dialect);
        let options = server.database();
        let mut before = FencingToken(0);
        for sql in [
            "SELECT 1",
            "DROP TABLE locks",
            "DROP TABLE fencing_tokens",
            "DROP TABLE lock_server_migrations",
            "ALTER TABLE locks DROP COLUMN ttl CASCADE, DROP COLUMN type CASCADE",
            "ALTER TABLE locks DROP COLUMN path CASCADE",
        ] {
            server.sql_in(name(&options), sql);
            let ours = Instance::open(&options).await;
            ours.store.release(&key("k"), &owner("o")).await.unwrap();
            let token = take(&ours.store, claim("k", "p")).await.lock.token;
            assert!(token > before, "{dialect:?}, {sql}: {token} after {before}");
            ours.store.release(&key("k"), &owner("p")).await.unwrap();
            before = take(&ours.store, claim("k", "o")).await.lock.token;
            ours.close().await;
        }
    }
}

/// Two releases on one database during a rolling update.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_schema_is_refused_at_the_start_and_left_alone_after_it() {
    for dialect in BOTH {
        let server = TestServer::shared(dialect);
        let options = server.database();
        let ours = Instance::open(&options).await;
        take(&ours.store, claim("k", "o")).await;
        server.sql_in(
            name(&options),
            "INSERT INTO lock_server_migrations VALUES (1000, 'newer', '', 1);
             ALTER TABLE locks RENAME TO locks_of_tomorrow",
        );
        let other = lock_server::store::shared::Shared::open(&options, Default::default()).await;
        let error = other.err().unwrap().to_string();
        assert!(error.contains("schema version 1000"), "{error}");
        // Longer than the detection takes.
        let mut beat = interval(Duration::from_secs(1));
        for _ in 0..12 {
            beat.tick().await;
            assert!(ours.store.claim(claim("k", "o"), None).await.is_err());
        }
        ours.close().await;
    }
}

#[tokio::test]
async fn a_read_that_fails_says_so() {
    let server = TestServer::shared(Dialect::Postgres);
    let options = server.database();
    let ours = Instance::open(&options).await;
    server.sql_in(name(&options), "DROP TABLE locks");
    let read = ours.store.select(&by_key("k")).await.unwrap_err();
    assert_eq!(read.to_string(), "the store cannot be read");
    let written = ours.store.claim(claim("k", "o"), None).await.unwrap_err();
    assert_eq!(written.to_string(), "the store does not take the change");
    assert!(matches!(written, Error::Unavailable(_)));
    ours.close().await;
}

#[tokio::test]
async fn tables_of_a_file_are_made_again() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("db");
    let running = Running::open(&path).await;
    used(&running.store, "free", 3).await;
    let held = take(&running.store, claim("held", "o")).await;
    let sql = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    sql("DROP TABLE locks");
    assert_eq!(token(answered(&running.store, claim("free", "p")).await), FencingToken(4));
    sql("DROP TABLE fencing_tokens");
    let new = token(answered(&running.store, claim("never seen", "p")).await);
    sql("DROP TABLE locks; DROP TABLE fencing_tokens; DROP TABLE schema_migrations");
    answered(&running.store, claim("another", "p")).await;
    running.close().await;

    // Held locks are still held, as after any restart.
    let running = Running::open(&path).await;
    assert_eq!(find(&running.store, "held").await.unwrap().lock, held.lock);
    assert!(find(&running.store, "never seen").await.is_some());
    running.close().await;

    // At the start: tokens rise.
    sql("DROP TABLE fencing_tokens; ALTER TABLE locks DROP COLUMN token");
    let running = Running::open(&path).await;
    let claimed = running.store.claim(claim("held", "p"), None).await.unwrap();
    assert!(matches!(claimed, Claimed::Collision(_)), "{claimed:?}");
    running.store.release(&key("held"), &owner("o")).await.unwrap();
    let token = take(&running.store, claim("held", "p")).await.lock.token;
    assert!(token > new && token > held.lock.token, "{token}");
    running.close().await;
}
