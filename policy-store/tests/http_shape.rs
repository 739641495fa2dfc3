//! The JSON text of any group can be read back by Go.

use std::sync::Arc;

use policy_store::{
    groups::{decide::Replacement, fragment::Texts, json, snapshot::Snapshot},
    http::frames::{Coding, Frames},
    store::{Store as _, testing::Memory},
};
use proptest::prelude::*;

use crate::support::{
    http::{Answer, Group, expected},
    sets::{replacement, set, sets},
};

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[\\x00-\\x7f<>&\"\\\\/\u{2028}\u{1f600}é]{0,20}"]
}

proptest! {
    #[test]
    fn a_group_is_read_as_it_was_written(
        name in texts(), description in texts(), destination in texts(), code in any::<i32>()
    ) {
        let mut group = crate::support::sets::bound("g1", &name, &["s1"]);
        group.rules[0].description = description;
        group.rules[0].destination = destination;
        group.rules[0].icmp_code = code;
        let write = replacement(&set([group.clone()]));
        let text = json::to_text(&group.clone().into());
        let read: Group = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&[read][..], &expected(&write)[..]);
        prop_assert!(!text.bytes().any(|byte| byte < b' '), "control characters are escaped");
    }

    #[test]
    fn an_answer_is_read_as_its_groups(set in sets()) {
        let write = replacement(&set);
        let mut groups = expected(&write);
        let snapshot = snapshot(write);
        let text: Vec<u8> =
            Frames::new(Coding::Identity, 7, snapshot.entries().to_vec(), Texts::new(64)).flatten().collect();
        let answer: Answer = serde_json::from_slice(&text).unwrap();
        // Ids follow the manifest, which is ascending by guid.
        groups.sort_by(|a, b| a.guid.cmp(&b.guid));
        prop_assert_eq!(answer, Answer { next: 7, security_groups: groups });
    }
}

fn snapshot(write: Replacement) -> Snapshot {
    let store = Memory::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        store.replace(Arc::new(write)).await.unwrap();
        Snapshot::from(store.load(None).await.unwrap())
    })
}
