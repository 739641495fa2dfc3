//! The freeze on every store, and with several instances.

use std::sync::Arc;

use jiff::Timestamp;
use model::generation::Generation;
use policy_store::{
    committer::committer,
    groups::{
        archive::{Entry, Query},
        current::SnapshotPublisher,
        held::Hold,
        snapshot::Snapshot,
    },
    store::{Contents, Store, testing::Memory},
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    store::{Place, load, replace},
    support::sets::{global, replacement, set},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn freeze(until: Option<i64>) -> Hold {
    // Text that PostgreSQL does not take as text.
    let (reason, by) = ("\"release\" \0 \u{1F600}".into(), "cn=ann".into());
    Hold::Freeze { reason, by, at: at(5), until: until.map(at) }
}

async fn actions(store: &dyn Store) -> Vec<(String, u64)> {
    let query = Query { before: None, generation: None, group: None, size: 10 };
    let entries = store.history().entries(query).await.unwrap().into_iter();
    let decision = |entry| match entry {
        Entry::Decision(decision) => Some((decision.action.to_string(), decision.generation.0)),
        Entry::Change(_) => None,
    };
    entries.filter_map(|numbered| decision(numbered.entry)).collect()
}

#[tokio::test]
async fn a_freeze_is_stored_and_survives_replaces_and_restarts() {
    for place in Place::all() {
        let store = place.open().await;
        replace(&*store, replacement(&set([global("a", "1")]))).await.unwrap();
        let held = store.hold(Arc::new(freeze(Some(90)).into())).await.unwrap().held.unwrap();
        assert_eq!((held.point.generation, held.until), (Generation(1), Some(at(90))));
        replace(&*store, replacement(&set([global("a", "2")]))).await.unwrap();
        store.close().await.unwrap();
        let store = place.open().await;
        let state = load(&*store).await.state;
        assert_eq!((state.generation, state.held), (Generation(2), Some(held.clone())));
        let undo = store.history().undo(Generation(2), Generation(1)).await.unwrap().unwrap();
        assert_eq!(undo.to, held.point);
        assert_eq!(
            store.hold(Arc::new(Hold::Expire { at: at(89) }.into())).await.unwrap().held,
            Some(held)
        );
        assert_eq!(
            store.hold(Arc::new(Hold::Expire { at: at(90) }.into())).await.unwrap().held,
            None
        );
        assert_eq!(load(&*store).await.state.held, None);
        let expected = [("unfreeze".to_owned(), 2), ("freeze".to_owned(), 1)];
        assert_eq!(actions(&*store).await, expected);
        store.close().await.unwrap();
    }
}

/// Whichever instance freezes, watches of both keep the generation.
#[tokio::test]
async fn a_freeze_holds_on_all_instances() {
    let store = Memory::default();
    let mut tasks = JoinSet::new();
    let mut instance = || {
        let nothing = Snapshot::from(Contents::default());
        let board = Arc::new(SnapshotPublisher::new(nothing, Instant::now()));
        let (commits, committer) = committer(Arc::new(store.clone()), Arc::clone(&board));
        tasks.spawn(committer.run(CancellationToken::new()));
        (board, commits)
    };
    let ((first, at_first), (second, at_second)) = (instance(), instance());
    let write = |text: &str| replacement(&set([global("a", text)]));
    at_first.commit(write("1")).await.unwrap();
    at_first.hold(freeze(None)).await.unwrap();
    at_second.commit(write("2")).await.unwrap();
    at_first.catch_up().await.unwrap();
    let generations = |board: &SnapshotPublisher| {
        [board.current(), board.released_base()].map(|snapshot| snapshot.state.generation.0)
    };
    assert_eq!([generations(&first), generations(&second)], [[2, 1], [2, 1]]);
    let entries = second.released_base();
    assert_eq!(
        entries.entries()[0].group().rules,
        first.released_base().entries()[0].group().rules
    );
    let (reason, by) = ("done".into(), "cn=ann".into());
    at_second.hold(Hold::Unfreeze { reason, by, at: at(9) }).await.unwrap();
    at_first.catch_up().await.unwrap();
    assert_eq!([generations(&first), generations(&second)], [[2, 2], [2, 2]]);
}
