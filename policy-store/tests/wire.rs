//! Responses share the bytes of encoded groups.

use std::{collections::HashSet, sync::Arc};

use model::{
    generation::{Generation, Point, Stamp},
    group::GroupId,
};
use policy_store::{
    feed::{
        cursor::{Cursor, Update},
        parts::{PART_BYTES, Part, Parts},
    },
    groups::{
        page::{Filter, page},
        snapshot::Snapshot,
    },
    store::{Store as _, testing::Memory},
};
use prost::Message as _;
use proto::policy_v1::{ListResponse, StoredGroup, WatchResponse};

use crate::support::sets::{Set, bound, global, guid, named, replacement, set};

async fn snapshot(set: &Set) -> Snapshot {
    let store = Memory::default();
    store.replace(Arc::new(replacement(set))).await.unwrap();
    Snapshot::from(store.load(None).await.unwrap())
}

fn stored(set: &Set) -> Vec<StoredGroup> {
    let groups = set.values().map(|group| proto::encode_group((**group).clone()));
    (1..).zip(groups).map(|(id, group)| StoredGroup { id, group }).collect()
}

#[tokio::test]
async fn an_answer_to_watch() {
    let set = set([global("a", "one"), bound("b", "two", &["s1"])]);
    let snapshot = snapshot(&set).await;
    let part = Part {
        point: Point { generation: Generation(300), stamp: Stamp(-1) },
        sequence: 7,
        reset: true,
        upserted: snapshot.entries().to_vec(),
        removed: vec![guid("gone-1"), guid("gone-2")],
        complete: true,
    };
    let expected = WatchResponse {
        generation: 300,
        reset: true,
        upserted: stored(&set),
        removed: vec!["gone-1".to_owned(), "gone-2".to_owned()],
        complete: true,
        subscription_sequence: 7,
        stamp: -1,
        ..WatchResponse::default()
    };
    let answer = WatchResponse::from(part);
    assert_eq!(answer, expected);
    for (sent, entry) in answer.upserted.iter().zip(snapshot.entries()) {
        assert_eq!(sent.group.as_ptr(), entry.encoded.as_ptr(), "a response copies no group");
    }
    let empty = Part {
        point: Point::default(),
        sequence: 0,
        reset: false,
        upserted: Vec::new(),
        removed: Vec::new(),
        complete: false,
    };
    assert_eq!(WatchResponse::from(empty), WatchResponse::default());
}

#[tokio::test]
async fn an_answer_to_list() {
    let set = named(3, "x");
    let snapshot = snapshot(&set).await;
    let page = page(&snapshot, &Filter::All, GroupId(0), 2);
    let mut groups = stored(&set);
    groups.truncate(2);
    let expected = ListResponse { groups, next_page_token: 3, generation: 1 };
    assert_eq!(ListResponse::from(page), expected);
}

/// Messages stay small, the first has `reset`, the last `complete`, and all groups are
/// included.
#[tokio::test]
async fn a_large_state_comes_in_parts() {
    let mut groups = named(600, &"x".repeat(1000));
    groups.extend(set([global("large", &"x".repeat(PART_BYTES))]));
    for group in groups.values_mut() {
        Arc::make_mut(group).running.everywhere = true;
    }
    let snapshot = snapshot(&groups).await;
    let update = Cursor::new(HashSet::new(), None).unwrap().advance(&snapshot).unwrap();
    let parts: Vec<WatchResponse> = Parts::from(update).map(Into::into).collect();
    assert!(parts.len() > 5, "{} parts", parts.len());
    for (index, part) in parts.iter().enumerate() {
        assert_eq!(part.reset, index == 0);
        assert_eq!(part.complete, index == parts.len() - 1);
        assert_eq!(part.generation, 1);
        assert!(part.encoded_len() <= PART_BYTES + 64 || part.upserted.len() == 1);
    }
    let all: Vec<_> = parts.into_iter().flat_map(|part| part.upserted).collect();
    assert_eq!(all, stored(&groups));
}

#[test]
fn an_update_without_content_is_one_message() {
    let update = Update {
        point: Point { generation: Generation(4), stamp: Stamp(0) },
        sequence: 2,
        reset: false,
        upserted: Vec::new(),
        removed: Vec::new(),
    };
    let parts: Vec<Part> = Parts::from(update).collect();
    assert_eq!(parts.len(), 1);
    assert!(parts[0].complete && !parts[0].reset);
}

#[test]
fn many_removals_come_in_parts_too() {
    let removed = (0..20_000).map(|index| guid(&format!("{index:036}"))).collect();
    let update = Update {
        point: Point { generation: Generation(4), stamp: Stamp(0) },
        sequence: 0,
        reset: false,
        upserted: Vec::new(),
        removed,
    };
    let parts: Vec<Part> = Parts::from(update).collect();
    assert!(parts.len() > 2);
    assert_eq!(parts.iter().map(|part| part.removed.len()).sum::<usize>(), 20_000);
    let answers = parts.into_iter().map(WatchResponse::from);
    assert!(answers.into_iter().all(|answer| answer.encoded_len() <= PART_BYTES));
}
