//! Laws 3 and 4 in every store, on random histories.

use std::sync::Arc;

use model::generation::{Generation, Watermark};
use policy_store::{
    groups::decide::{Refusal, Refused},
    store::{Contents, Error, Store, sqlite::Sqlite, testing::Memory},
};
use proptest::prelude::*;

use crate::{
    store::{Place, file, groups, load, replace},
    support::sets::{Set, fenced, replacement, sets},
};

/// One write of a random history: owner, token, set, and whether all announced content is
/// supplied.
type Write = (u8, u64, i64, Set, bool);

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let is_whole = prop::bool::weighted(0.7);
    prop::collection::vec((0u8..3, 0u64..6, 0i64..8, sets(), is_whole), 1..14)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Laws 3 and 4 on a random history, against a small model.
async fn laws_hold(store: &dyn Store, writes: &[Write]) {
    let mut newest: Option<(u64, u8)> = None;
    let mut expected = Contents::default();
    let mut content = Set::new();
    for (writer, token, seconds, set, is_whole) in writes {
        let mut write = fenced(set, &format!("w{writer}"), *token);
        write.watermark = Watermark::try_new(*seconds, 0).unwrap();
        if !is_whole {
            write.supplied.groups.clear();
        }
        let lacks = set.iter().any(|(guid, group)| content.get(guid) != Some(group));
        let overtaken = !is_whole && lacks;
        let may = match newest {
            None => true,
            Some((newest, by)) => *token > newest || (*token == newest && *writer == by),
        };
        let answer = replace(store, write.clone()).await;
        let is_fenced = matches!(
            &answer,
            Err(Error::Refused(Refused {
                refusal: Refusal::OldToken { .. } | Refusal::TokenOfAnother { .. },
                ..
            }))
        );
        assert_eq!(is_fenced, !may, "token {token} of w{writer} after {newest:?}: {answer:?}");
        assert_eq!(answer.is_ok(), may && !overtaken, "{answer:?}");
        if may && *token != 0 {
            newest = Some((*token, *writer));
            expected.state.token = write.token;
            expected.state.writer = Some(write.owner.clone());
        }
        if may && !overtaken {
            let is_new = content != *set || expected.state.generation == Generation(0);
            content.clone_from(set);
            let state = &mut expected.state;
            state.generation = Generation(state.generation.0 + u64::from(is_new));
            state.watermark = state.watermark.max(Some(write.watermark));
            state.writer = Some(write.owner);
        }
        let contents = load(store).await;
        assert_eq!(groups(&contents), content, "content is that of the last that was let in");
        assert_eq!(contents.state.generation, expected.state.generation);
        assert_eq!(contents.state.watermark, expected.state.watermark);
        assert_eq!(contents.state.token, expected.state.token);
        assert_eq!(contents.state.writer, expected.state.writer);
    }
}

proptest! {
    #[test]
    fn laws_hold_in_memory(writes in writes()) {
        run(laws_hold(&Memory::default(), &writes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn laws_hold_in_sqlite(writes in writes()) {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let store = Sqlite::open(&file(&directory)).unwrap();
            laws_hold(&store, &writes).await;
            store.close().await.unwrap();
        });
    }

    #[test]
    fn laws_hold_on_servers(writes in writes()) {
        run(async {
            for place in Place::servers() {
                laws_hold(&*place.open().await, &writes).await;
            }
        });
    }

    /// The stores agree on ids too, and SQLite also after a reopen.
    #[test]
    fn sqlite_is_the_twin_of_memory(sets in prop::collection::vec(sets(), 1..8)) {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let memory = Memory::default();
            for set in &sets {
                let sqlite = Sqlite::open(&file(&directory)).unwrap();
                let write = Arc::new(replacement(set));
                let one = memory.replace(Arc::clone(&write)).await.unwrap();
                let other = sqlite.replace(write).await.unwrap();
                assert_eq!(one, other);
                assert_eq!(load(&memory).await, load(&sqlite).await);
                sqlite.close().await.unwrap();
            }
        });
    }
}
