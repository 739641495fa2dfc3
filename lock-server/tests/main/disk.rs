//! A disk that is full: errors for those who need it, right answers for all.

use lock_server::{
    feed::Feed,
    store::{Claimed, Error, Store},
};
use model::lock::{Claim, LockValue};
use storage::sqlite::Options;
use tempfile::TempDir;

use crate::support::{Running, claim, find, key, owner, take};

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
            Ok(Claimed::Held(lock)) => held.push(lock),
            Err(Error::Unavailable(cause)) => {
                assert!(cause.to_string().contains("the disk is full"), "{cause}");
                break on;
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(held.len() > 10, "{}", held.len());

    // Nobody has what was refused, and all others are as they were.
    assert_eq!(find(store, &refused).await, None);
    assert_eq!(running.feed.deadline_count(), held.len());
    let colliding = store.claim(big("k000", "other"), None).await.unwrap();
    assert_eq!(colliding, Claimed::Collision(held[0].clone()));
    // A refresh needs no disk.
    let refreshed = take(store, big("k000", "o")).await;
    assert_eq!(refreshed.lock.token, held[0].lock.token);

    // Room again: the same request is granted.
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
