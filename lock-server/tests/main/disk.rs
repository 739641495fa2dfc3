//! A full or failing disk: errors for changes that need the disk, correct responses for
//! all others.

use std::{path::Path, time::Duration};

use lock_server::{
    feed::Feed,
    store::{Claimed, Error, Expired, Store},
};
use model::lock::{Claim, LockValue};
use rusqlite::Connection;
use storage::sqlite::Options;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{PATIENCE, Running, claim, find, key, owner, take};

fn big(on: &str, by: &str) -> Claim {
    Claim { value: LockValue::parse(&"x".repeat(4_000)).unwrap(), ..claim(on, by) }
}

#[tokio::test]
async fn a_full_database_refuses_changes_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("db");
    let options = Options { max_pages: Some(40), ..Options::default() };
    let running = Running::open_with(&path, &options, Feed::default()).await;
    let store = &running.store;

    let mut held = Vec::new();
    let refused = loop {
        let on = format!("k{:03}", held.len());
        match store.claim(big(&on, "o"), None).await {
            Ok(Claimed::LockVersion(lock)) => held.push(lock),
            Err(Error::Unavailable(cause)) => {
                assert!(cause.to_string().contains("the disk is full"), "{cause}");
                break on;
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(held.len() > 10, "{}", held.len());

    // Refused keys are free, and all other locks are unchanged.
    assert_eq!(find(store, &refused).await, None);
    assert_eq!(running.feed.deadline_count(), held.len());
    let colliding = store.claim(big("k000", "other"), None).await.unwrap();
    assert_eq!(colliding, Claimed::Collision(held[0].clone()));
    // A refresh needs no disk access.
    let refreshed = store.refresh(&big("k000", "o"), &None).expect("it waits for nobody");
    assert_eq!(refreshed.lock.token, held[0].lock.token);

    // With free space the same request succeeds.
    store.release(&key("k001"), &owner("o")).await.unwrap();
    store.release(&key("k002"), &owner("o")).await.unwrap();
    take(store, big(&refused, "o")).await;
    running.close().await;

    let running = Running::open(&path).await;
    for lock in &held {
        let on = lock.lock.key.as_str();
        let found = find(&running.store, on).await;
        assert_eq!(found.is_some(), !["k001", "k002"].contains(&on), "{on}");
    }
    assert!(find(&running.store, &refused).await.is_some());
    running.close().await;
}

/// Fails every commit while the returned guard lives: another connection has the lock
/// on the file.
fn failing(path: &Path) -> Connection {
    let other = Connection::open(path).unwrap();
    other.busy_timeout(PATIENCE).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

fn impatient() -> Options {
    Options { busy_timeout: Duration::from_millis(20), ..Options::default() }
}

#[tokio::test]
async fn a_disk_that_is_well_again_is_noticed_without_a_change() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("db");
    let running = Running::open_with(&path, &impatient(), Feed::default()).await;
    let store = &running.store;
    take(store, claim("k", "o")).await;
    assert!(running.health.is_ready());

    let other = failing(&path);
    let refused = store.claim(claim("l", "o"), None).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(!running.health.is_ready());
    let reason = "a transaction failed: the database is busy";
    assert!(running.health.reasons()[0].1.starts_with(reason), "{:?}", running.health.reasons());
    // Answered from memory; says nothing about the disk.
    take(store, claim("k", "o")).await;
    assert!(timeout(Duration::from_secs(2), running.health.wait_for(true)).await.is_err());

    drop(other);
    let ready = timeout(PATIENCE, running.health.wait_for(true)).await;
    assert!(ready.is_ok(), "{:?}", running.health.reasons());
    take(store, claim("l", "o")).await;
    running.close().await;
}

/// A commit that failed with a disk error may be present after a crash.
#[tokio::test]
async fn a_refresh_undoes_an_expiry_that_may_be_on_the_disk() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("db");
    let running = Running::open_with(&path, &impatient(), Feed::default()).await;
    let store = &running.store;
    let held = take(store, claim("k", "o")).await;
    let other = failing(&path);
    let failed = store.expire(&held).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    // The caller got an error, but the disk has the change.
    let deleted = other.execute("DELETE FROM locks WHERE path = 'k'", []).unwrap();
    assert_eq!(deleted, 1);
    other.execute_batch("COMMIT").unwrap();

    assert_eq!(store.refresh(&claim("k", "o"), &None), None, "it has to be written");
    let refreshed = take(store, claim("k", "o")).await;
    assert_eq!(refreshed.lock, held.lock);
    assert_eq!(store.expire(&held).await.unwrap(), Expired::Newer(refreshed.clone()));
    running.crash().await;
    let running = Running::open(&path).await;
    let found = find(&running.store, "k").await.expect("the owner was told that it has it");
    assert_eq!((&found.lock, found.index), (&refreshed.lock, refreshed.index));
    running.close().await;
}

/// After the next write, refreshes are in memory again.
#[tokio::test]
async fn a_key_is_in_doubt_only_until_it_is_written() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("db");
    let running = Running::open_with(&path, &impatient(), Feed::default()).await;
    let store = &running.store;
    let held = take(store, claim("k", "o")).await;
    let other = failing(&path);
    assert!(store.release(&held.lock.key, &held.lock.owner).await.is_err());
    let refused = store.claim(claim("k", "o"), None).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "it has to be written: {refused:?}");
    drop(other);
    take(store, claim("k", "o")).await;
    let _other = failing(&path);
    take(store, claim("k", "o")).await;
    running.crash().await;
}

/// A commit that failed but is on the disk: the next one reverts it.
#[tokio::test]
async fn what_a_failed_commit_left_is_gone_with_the_next() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("db");
    let running = Running::open_with(&path, &impatient(), Feed::default()).await;
    let store = &running.store;
    take(store, claim("k", "o")).await;
    let other = failing(&path);
    let refused = store.claim(claim("l", "o"), None).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    let row = "INSERT INTO locks (id, path, owner, value, type, modified_index, ttl, token)
        SELECT id + 1, 'l', owner, value, type, modified_index, ttl, token FROM locks";
    assert_eq!(other.execute(row, []).unwrap(), 1);
    other.execute_batch("COMMIT").unwrap();

    // The key is free; another owner acquires and releases it.
    let held = take(store, claim("l", "p")).await;
    assert_eq!(held.lock.token.0, 1);
    store.release(&held.lock.key, &held.lock.owner).await.unwrap();
    running.crash().await;
    let running = Running::open(&path).await;
    assert_eq!(find(&running.store, "l").await, None);
    assert!(find(&running.store, "k").await.is_some());
    assert_eq!(take(&running.store, claim("l", "o")).await.lock.token.0, 2);
    running.close().await;
}

/// It is uncertain whether the disk has the old value or the new one.
#[tokio::test]
async fn nothing_is_refreshed_at_once_while_a_change_is_on_its_way() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("db");
    let options = Options { busy_timeout: PATIENCE, ..Options::default() };
    let running = Running::open_with(&path, &options, Feed::default()).await;
    let (store, own) = (&running.store, claim("k", "o"));
    let mut held = take(store, own.clone()).await;

    let other = failing(&path);
    let meanwhile = async {
        let refused = async {
            while let Some(refreshed) = store.refresh(&own, &None) {
                held = refreshed;
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, refused).await.expect("the change is on its way");
        assert_eq!(store.known(&own.key), Some(held.clone()));
        drop(other);
    };
    let (changed, ()) = tokio::join!(take(store, big("k", "o")), meanwhile);
    assert_eq!(changed.index, held.index + 1);
    assert_eq!(store.refresh(&big("k", "o"), &None).unwrap().index, changed.index + 1);
    running.close().await;
}
