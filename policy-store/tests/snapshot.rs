//! Consecutive snapshots equal those loaded from a store.

use std::{collections::BTreeSet, sync::Arc};

use model::{
    group::{GroupId, SecurityGroup, StoredGroup},
    ids::SpaceGuid,
};
use policy_store::{
    groups::{
        page::{Filter, page},
        snapshot::{Entry, Snapshot},
    },
    store::{Store as _, Stored, testing::Memory},
};
use proptest::prelude::*;
use prost::Message as _;

use crate::support::sets::{SPACES, Set, bound, group, named, replacement, set, sets, space};

fn decode(entry: &Entry) -> StoredGroup {
    let group = proto::policy_v1::SecurityGroup::decode(&*entry.encoded).unwrap();
    StoredGroup { id: entry.id, group: Arc::new(group.try_into().unwrap()) }
}

fn groups(snapshot: &Snapshot) -> Vec<StoredGroup> {
    snapshot.entries().iter().map(|entry| decode(entry)).collect()
}

/// Reach of a group, recomputed.
pub(crate) fn concerns(group: &SecurityGroup, spaces: &BTreeSet<SpaceGuid>) -> bool {
    group.is_global() || group.bound_spaces().any(|space| spaces.contains(space))
}

fn spaces_of(bits: u8) -> BTreeSet<SpaceGuid> {
    let has = |index: &u8| bits & (1 << index) != 0;
    (0..SPACES).filter(has).map(|index| space(&format!("s{index}"))).collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn a_snapshot_after_a_decision_is_that_of_the_store(
        sets in prop::collection::vec(sets(), 1..6),
    ) {
        block_on(async {
            let store = Memory::default();
            let mut snapshot = Snapshot::from(store.load(None).await.unwrap());
            for set in &sets {
                let decision = store.replace(Arc::new(replacement(set))).await.unwrap();
                snapshot = snapshot.after(&decision);
                let contents = store.load(None).await.unwrap();
                let model = |stored: &Stored| StoredGroup {
                    id: stored.id,
                    group: Arc::new(stored.group.group()),
                };
                let stored: Vec<_> = contents.groups.iter().map(model).collect();
                assert_eq!(groups(&snapshot), stored);
                assert_eq!(snapshot.state, contents.state);
                let fresh = Snapshot::from(contents);
                for bits in 0..1 << SPACES {
                    let spaces = spaces_of(bits);
                    let ids = |snapshot: &Snapshot| -> Vec<u64> {
                        let found = snapshot.concerning(&spaces, GroupId(0));
                        found.iter().map(|entry| entry.id.0).collect()
                    };
                    let expected: Vec<u64> = stored
                        .iter()
                        .filter(|stored| concerns(&stored.group, &spaces))
                        .map(|stored| stored.id.0)
                        .collect();
                    assert_eq!(ids(&snapshot), expected);
                    assert_eq!(ids(&fresh), expected);
                }
                for (guid, group) in set {
                    assert_eq!(snapshot.hash(guid), Some(group.content_hash()));
                }
            }
        });
    }

    #[test]
    fn pages_together_are_the_whole(
        set in sets(), bits in prop::option::of(0..1u8 << SPACES), size in 1usize..4,
    ) {
        let snapshot = block_on(snapshot_of(&set));
        let filter = bits.map_or(Filter::All, |bits| {
            Filter::Spaces(spaces_of(bits).into_iter().collect())
        });
        let mut seen = Vec::new();
        let mut from = GroupId(0);
        loop {
            let page = page(&snapshot, &filter, from, size);
            prop_assert!(page.entries.len() <= size);
            seen.extend(page.entries.iter().map(|entry| decode(entry)));
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        let expected: Vec<_> = groups(&snapshot)
            .into_iter()
            .filter(|stored| bits.is_none_or(|bits| concerns(&stored.group, &spaces_of(bits))))
            .collect();
        prop_assert_eq!(seen, expected);
    }
}

async fn snapshot_of(set: &Set) -> Snapshot {
    let store = Memory::default();
    store.replace(Arc::new(replacement(set))).await.unwrap();
    Snapshot::from(store.load(None).await.unwrap())
}

#[test]
fn a_page_full_of_bytes_ends_early_and_a_large_group_goes_alone() {
    let mut large = named(5, &"x".repeat(1 << 20));
    large.extend(set([group("g9", &"x".repeat(5 << 20))]));
    let snapshot = block_on(snapshot_of(&large));
    let first = page(&snapshot, &Filter::All, GroupId(0), 500);
    // A name is encoded twice: two mebibytes per group.
    assert_eq!(first.entries.len(), 1);
    let last = page(&snapshot, &Filter::All, GroupId(6), 500);
    assert_eq!((last.entries.len(), last.next), (1, None));
}

/// Unchanged parts and their bytes are shared with the previous snapshot.
#[test]
fn what_stays_is_shared() {
    block_on(async {
        let store = Memory::default();
        let one = set([bound("a", "1", &["s1"]), bound("b", "1", &["s2"])]);
        let two = set([bound("a", "1", &["s1"]), bound("b", "2", &["s2"])]);
        store.replace(Arc::new(replacement(&one))).await.unwrap();
        let before = Snapshot::from(store.load(None).await.unwrap());
        let decision = store.replace(Arc::new(replacement(&two))).await.unwrap();
        let after = before.after(&decision);
        assert!(Arc::ptr_eq(&before.entries()[0], &after.entries()[0]));
        assert!(!Arc::ptr_eq(&before.entries()[1], &after.entries()[1]));
        assert!(Arc::ptr_eq(&before.entries()[1].reach, &after.entries()[1].reach));
    });
}
