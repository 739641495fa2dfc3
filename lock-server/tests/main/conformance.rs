//! Conformance suite of the store contract, run on each store.

use std::sync::Arc;

use lock_server::{
    feed::{Event, Feed},
    lock_version::LockVersion,
    store::{Claimed, Error, Expired, Released, Store, testing::Memory},
};
use model::lock::{Claim, FencingToken, LockKind, LockValue, Selector, Ttl};
use storage::{server::Dialect, testing::TestServer};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};

use crate::support::{Instance, PATIENCE, Running, by_key, claim, find, key, owner, take};

/// Runs each test of the suite on each store.
macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod memory {
            use super::*;
            $(#[tokio::test]
            async fn $name() {
                let feed = Feed::default();
                super::$name(Memory::new(feed.clone()), feed).await;
            })*
        }
        mod embedded {
            use super::*;
            $(#[tokio::test]
            async fn $name() {
                let directory = TempDir::new().unwrap();
                let running = Running::open(&directory.path().join("db")).await;
                super::$name(running.store.clone(), running.feed.clone()).await;
                running.close().await;
            })*
        }
        mod postgres {
            use super::*;
            $(#[tokio::test]
            async fn $name() {
                let instance = Instance::open(&TestServer::shared(Dialect::Postgres).database()).await;
                super::$name(instance.store.clone(), instance.feed.clone()).await;
                instance.close().await;
            })*
        }
        mod mariadb {
            use super::*;
            $(#[tokio::test]
            async fn $name() {
                let instance = Instance::open(&TestServer::shared(Dialect::MySql).database()).await;
                super::$name(instance.store.clone(), instance.feed.clone()).await;
                instance.close().await;
            })*
        }
    };
}

conformance!(
    a_free_key_is_taken,
    the_owner_keeps_it_and_may_change_everything_else,
    another_owner_collides_and_changes_nothing,
    only_the_owner_gives_it_back,
    a_token_rises_with_each_owner,
    keys_are_exact_texts,
    a_deadline_deletes_only_the_version_it_belongs_to,
    a_selector_finds_its_kind_in_order,
    one_of_many_owners_wins_a_new_key,
    many_refreshes_of_one_owner_all_succeed,
    changes_of_one_key_take_effect_one_after_the_other,
    a_watcher_gets_what_is_held_and_then_every_change,
    a_change_of_kind_reaches_the_watchers_of_both,
    a_slow_watcher_is_cut_off_alone,
    every_version_gets_a_deadline_and_every_end_takes_it_away,
    a_claim_whose_caller_gave_up_is_whole_or_nothing,
    what_is_answered_at_once_is_what_a_claim_would_answer,
);

/// A store may have no fast path; if it answers there, the answer must be right.
async fn what_is_answered_at_once_is_what_a_claim_would_answer<S: Store>(store: S, feed: Feed) {
    let own = claim("k", "o");
    let nothing = |store: &S| (store.refresh(&own, &None), store.known(&own.key));
    assert_eq!(nothing(&store), (None, None));
    let held = take(&store, own.clone()).await;
    assert!(store.known(&own.key).is_none_or(|known| known == held));
    for other in [
        claim("k", "other"),
        Claim { value: value("other"), ..own.clone() },
        Claim { ttl: Ttl::try_from_seconds(own.ttl.seconds() + 1).unwrap(), ..own.clone() },
        Claim {
            kind: match own.kind {
                LockKind::Lock => LockKind::Presence,
                LockKind::Presence => LockKind::Lock,
            },
            ..own.clone()
        },
    ] {
        assert_eq!(store.refresh(&other, &None), None, "{other:?}");
    }
    if let Some(refreshed) = store.refresh(&own, &None) {
        assert_eq!((&refreshed.lock, refreshed.index), (&held.lock, held.index + 1));
        assert_eq!(find(&store, "k").await, Some(refreshed.clone()));
        assert_eq!(store.known(&own.key), Some(refreshed.clone()));
        assert_eq!(store.expire(&held).await.unwrap(), Expired::Newer(refreshed));
    }
    assert_eq!(feed.deadline_count(), 1);
    store.release(&own.key, &own.owner).await.unwrap();
    assert_eq!(nothing(&store), (None, None));
}

fn value(text: &str) -> LockValue {
    LockValue::parse(text).unwrap()
}

fn ttl(seconds: i64) -> Ttl {
    Ttl::try_from_seconds(seconds).unwrap()
}

async fn a_free_key_is_taken<S: Store>(store: S, _feed: Feed) {
    assert_eq!(find(&store, "k").await, None);
    let request = Some(Arc::from("a-request"));
    let Claimed::LockVersion(held) = store.claim(claim("k", "o"), request.clone()).await.unwrap()
    else {
        panic!("it is free");
    };
    assert_eq!((held.index, held.lock.token), (1, FencingToken(1)));
    assert_eq!(held.request, request);
    assert!(!held.id.is_empty());
    let Claim { key, owner, value, kind, ttl } = claim("k", "o");
    assert_eq!(
        (&held.lock.key, &held.lock.owner, &held.lock.value, held.lock.kind, held.lock.ttl),
        (&key, &owner, &value, kind, ttl)
    );
    assert_eq!(find(&store, "k").await, Some(held));
}

async fn the_owner_keeps_it_and_may_change_everything_else<S: Store>(store: S, _feed: Feed) {
    let first = take(&store, claim("k", "o")).await;
    let changes = [
        claim("k", "o"),
        Claim { value: value("w"), ..claim("k", "o") },
        Claim { kind: LockKind::Presence, ..claim("k", "o") },
        Claim { ttl: ttl(60), ..claim("k", "o") },
        Claim { value: value(""), kind: LockKind::Presence, ..claim("k", "o") },
    ];
    for (index, change) in (2..).zip(changes) {
        let held = take(&store, change.clone()).await;
        assert_eq!(held.index, index);
        assert_eq!((&held.id, held.lock.token), (&first.id, first.lock.token));
        assert_eq!(
            (&held.lock.value, held.lock.kind, held.lock.ttl),
            (&change.value, change.kind, change.ttl)
        );
        assert_eq!(find(&store, "k").await, Some(held));
    }
}

async fn another_owner_collides_and_changes_nothing<S: Store>(store: S, _feed: Feed) {
    let held = take(&store, claim("k", "o")).await;
    for by in ["p", "O", "o ", "oo"] {
        let other = Claim { value: value("w"), kind: LockKind::Presence, ..claim("k", by) };
        let claimed = store.claim(other, None).await.unwrap();
        assert_eq!(claimed, Claimed::Collision(Arc::clone(&held)));
    }
    assert_eq!(find(&store, "k").await, Some(held));
}

async fn only_the_owner_gives_it_back<S: Store>(store: S, _feed: Feed) {
    let release = async |by| store.release(&key("k"), &owner(by)).await.unwrap();
    assert_eq!(release("o").await, Released::Absent);
    let held = take(&store, claim("k", "o")).await;
    assert_eq!(release("p").await, Released::Collision(Arc::clone(&held)));
    assert_eq!(release("o").await, Released::Deleted(held));
    assert_eq!(find(&store, "k").await, None);
    assert_eq!(release("o").await, Released::Absent);
    assert_eq!(release("p").await, Released::Absent);
}

async fn a_token_rises_with_each_owner<S: Store>(store: S, _feed: Feed) {
    let mut last = None;
    for by in ["a", "b", "b", "a"] {
        let held = take(&store, claim("k", by)).await;
        assert!(Some(held.lock.token) > last);
        assert_eq!(take(&store, claim("k", by)).await.lock.token, held.lock.token);
        last = Some(held.lock.token);
        store.release(&key("k"), &owner(by)).await.unwrap();
    }
    let held = take(&store, claim("k", "a")).await;
    assert!(matches!(store.expire(&held).await.unwrap(), Expired::Deleted(_)));
    assert!(take(&store, claim("k", "a")).await.lock.token > held.lock.token);
    assert_eq!(take(&store, claim("other", "a")).await.lock.token, FencingToken(1));
}

async fn keys_are_exact_texts<S: Store>(store: S, _feed: Feed) {
    let long = "ü".repeat(255);
    let keys = ["", " ", "k", "K", "k ", "k\0", "k\0x", "日本", "e\u{301}", "\u{e9}", &long];
    let mut stored = 0;
    for on in keys {
        match store.claim(claim(on, "o"), None).await {
            Ok(Claimed::LockVersion(held)) => {
                assert_eq!((held.lock.key.as_str(), held.lock.token), (on, FencingToken(1)));
                stored += 1;
            }
            // PostgreSQL cannot store this character and returns an error.
            Err(Error::Unstorable(_)) => assert!(on.contains('\0')),
            other => panic!("{on:?}: {other:?}"),
        }
    }
    assert!(stored >= keys.len() - 2);
    let all = store.select(&Selector::Kind(LockKind::Lock)).await.unwrap();
    assert_eq!(all.len(), stored);
    store.release(&key("k"), &owner("o")).await.unwrap();
    assert_eq!(find(&store, "k").await, None);
    assert!(find(&store, "K").await.is_some());
}

async fn a_deadline_deletes_only_the_version_it_belongs_to<S: Store>(store: S, _feed: Feed) {
    let old = take(&store, claim("k", "o")).await;
    let refreshed = take(&store, claim("k", "o")).await;
    assert_eq!(store.expire(&old).await.unwrap(), Expired::Newer(Arc::clone(&refreshed)));
    assert_eq!(store.expire(&refreshed).await.unwrap(), Expired::Deleted(Arc::clone(&refreshed)));
    assert_eq!(store.expire(&refreshed).await.unwrap(), Expired::Absent);
    // Another life of the row with the same index.
    take(&store, claim("k", "o")).await;
    let newer = take(&store, claim("k", "o")).await;
    assert_eq!(newer.index, refreshed.index);
    assert_eq!(store.expire(&refreshed).await.unwrap(), Expired::Newer(newer));
}

async fn a_selector_finds_its_kind_in_order<S: Store>(store: S, _feed: Feed) {
    for (on, kind) in [("c", LockKind::Lock), ("a", LockKind::Presence), ("b", LockKind::Lock)] {
        take(&store, Claim { kind, ..claim(on, "o") }).await;
    }
    let keys = async |kind| {
        let found = store.select(&Selector::Kind(kind)).await.unwrap();
        found.iter().map(|held| held.lock.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(keys(LockKind::Lock).await, ["b", "c"]);
    assert_eq!(keys(LockKind::Presence).await, ["a"]);
    take(&store, Claim { kind: LockKind::Presence, ..claim("b", "o") }).await;
    assert_eq!(keys(LockKind::Lock).await, ["c"]);
    assert_eq!(keys(LockKind::Presence).await, ["a", "b"]);
}

async fn one_of_many_owners_wins_a_new_key<S: Store>(store: S, _feed: Feed) {
    for round in 0..20 {
        let on = format!("k{round}");
        let mut claims = JoinSet::new();
        for by in 0..8 {
            let (store, claim) = (store.clone(), claim(&on, &format!("o{by}")));
            claims.spawn(async move { store.claim(claim, None).await.unwrap() });
        }
        let claimed = claims.join_all().await;
        let winners: Vec<_> =
            claimed.iter().filter(|claimed| matches!(claimed, Claimed::LockVersion(_))).collect();
        assert_eq!(winners.len(), 1, "{claimed:?}");
        let held = find(&store, &on).await.unwrap();
        assert_eq!(*winners[0], Claimed::LockVersion(Arc::clone(&held)));
        for loser in claimed {
            assert!(matches!(loser, Claimed::LockVersion(h) | Claimed::Collision(h) if h == held));
        }
    }
}

async fn many_refreshes_of_one_owner_all_succeed<S: Store>(store: S, _feed: Feed) {
    let mut claims = JoinSet::new();
    for _ in 0..64 {
        let store = store.clone();
        claims.spawn(async move { take(&store, claim("k", "o")).await });
    }
    let mut indexes: Vec<i64> = claims.join_all().await.iter().map(|held| held.index).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, (1..=64).collect::<Vec<_>>());
}

async fn changes_of_one_key_take_effect_one_after_the_other<S: Store>(store: S, _feed: Feed) {
    let mut claims = JoinSet::new();
    for number in 0..32 {
        let store = store.clone();
        let claim = Claim { value: value(&number.to_string()), ..claim("k", "o") };
        claims.spawn(async move { take(&store, claim).await });
    }
    let all = claims.join_all().await;
    let last = all.iter().max_by_key(|held| held.index).unwrap();
    assert_eq!(last.index, 32);
    assert_eq!(find(&store, "k").await.as_ref(), Some(last));
}

async fn a_watcher_gets_what_is_held_and_then_every_change<S: Store>(store: S, _feed: Feed) {
    let existing = take(&store, claim("k", "o")).await;
    take(&store, claim("other", "o")).await;
    let (held, mut one) = store.watch(&by_key("k")).await.unwrap();
    let (all, mut kind) = store.watch(&Selector::Kind(LockKind::Lock)).await.unwrap();
    assert_eq!(*held, [Arc::clone(&existing)]);
    assert_eq!(all.len(), 2);

    take(&store, claim("k", "o")).await;
    take(&store, Claim { ttl: ttl(99), ..claim("k", "o") }).await;
    let updated = take(&store, Claim { value: value("w"), ..claim("k", "o") }).await;
    store.claim(claim("k", "p"), None).await.unwrap();
    store.release(&key("k"), &owner("o")).await.unwrap();
    store.release(&key("k"), &owner("o")).await.unwrap();
    let again = take(&store, claim("k", "p")).await;
    store.expire(&again).await.unwrap();

    let before =
        Event::Updated { before: find_before(&existing, 3, 99), held: Arc::clone(&updated) };
    let expected = [
        before,
        Event::Released(updated),
        Event::Acquired(Arc::clone(&again)),
        Event::Expired(again),
    ];
    for event in expected {
        assert_eq!(timeout(PATIENCE, one.next()).await.unwrap(), Ok(event.clone()));
        assert_eq!(timeout(PATIENCE, kind.next()).await.unwrap(), Ok(event));
    }
}

fn find_before(held: &LockVersion, index: i64, seconds: i64) -> Arc<LockVersion> {
    let mut held = held.clone();
    held.index = index;
    held.lock.ttl = ttl(seconds);
    Arc::new(held)
}

async fn a_change_of_kind_reaches_the_watchers_of_both<S: Store>(store: S, _feed: Feed) {
    take(&store, claim("k", "o")).await;
    let (_, mut locks) = store.watch(&Selector::Kind(LockKind::Lock)).await.unwrap();
    let (_, mut presences) = store.watch(&Selector::Kind(LockKind::Presence)).await.unwrap();
    let held = take(&store, Claim { kind: LockKind::Presence, ..claim("k", "o") }).await;
    for watcher in [&mut locks, &mut presences] {
        let event = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
        assert!(matches!(event, Event::Updated { .. }));
        assert_eq!(event.held(), &held);
    }
}

async fn a_slow_watcher_is_cut_off_alone<S: Store>(store: S, _feed: Feed) {
    let room = lock_server::feed::WATCHER_ROOM;
    let (_, mut slow) = store.watch(&Selector::Kind(LockKind::Lock)).await.unwrap();
    let (_, mut quick) = store.watch(&Selector::Kind(LockKind::Lock)).await.unwrap();
    for number in 0..=room {
        let claim = Claim { value: value(&number.to_string()), ..claim("k", "o") };
        take(&store, claim).await;
        assert!(timeout(PATIENCE, quick.next()).await.unwrap().is_ok());
    }
    for number in 0..room {
        let event = timeout(PATIENCE, slow.next()).await.unwrap().unwrap();
        assert_eq!(event.held().lock.value, value(&number.to_string()));
    }
    assert!(timeout(PATIENCE, slow.next()).await.unwrap().is_err());
    store.release(&key("k"), &owner("o")).await.unwrap();
    assert!(matches!(quick.next().await, Ok(Event::Released(_))));
    assert!(slow.next().await.is_err());
}

async fn every_version_gets_a_deadline_and_every_end_takes_it_away<S: Store>(store: S, feed: Feed) {
    take(&store, claim("a", "o")).await;
    let b = take(&store, claim("b", "o")).await;
    take(&store, claim("a", "o")).await;
    take(&store, Claim { value: value("w"), ..claim("a", "o") }).await;
    assert_eq!(feed.deadline_count(), 2);
    store.release(&key("a"), &owner("o")).await.unwrap();
    assert_eq!(feed.deadline_count(), 1);
    store.expire(&b).await.unwrap();
    assert_eq!(feed.deadline_count(), 0);
}

async fn a_claim_whose_caller_gave_up_is_whole_or_nothing<S: Store>(store: S, feed: Feed) {
    for number in 0..50 {
        let on = format!("k{number}");
        let mut attempt = Box::pin(store.claim(claim(&on, "gone"), None));
        // A single poll, then the future is dropped.
        let _first_look = timeout(std::time::Duration::ZERO, &mut attempt).await;
        drop(attempt);
        // Either the key has a lock with a deadline, or it is free.
        match store.claim(claim(&on, "next"), None).await.unwrap() {
            Claimed::LockVersion(held) => assert_eq!(held.lock.owner, owner("next")),
            Claimed::Collision(held) => assert_eq!(held.lock.owner, owner("gone")),
        }
        assert_eq!(feed.deadline_count(), number + 1);
    }
}
