//! From a list with malformed groups to a manifest that removes no valid group.

use std::collections::BTreeSet;

use model::ids::GroupGuid;
use proptest::prelude::*;
use serde_json::{Value, json};
use syncer::manifest::{ListSnapshot, Manifest, StoreHashes};

fn guid(text: &str) -> GroupGuid {
    GroupGuid::parse(text).unwrap()
}

fn good(guid: &str, name: &str) -> Value {
    json!({"guid": guid, "name": name})
}

fn malformed(guid: &str) -> Value {
    json!({"guid": guid, "name": "bad", "rules": [{"ports": 80}]})
}

fn nameless() -> Value {
    json!({"name": "bad"})
}

fn read(groups: &[Value], held: &StoreHashes) -> ListSnapshot {
    let mut reading = ListSnapshot::new(false);
    reading.page(json!({ "resources": groups }).to_string().as_bytes(), held).unwrap();
    reading
}

fn manifest(groups: &[Value], held: &StoreHashes) -> Manifest {
    read(groups, held).into_manifest(held)
}

/// Content of a store after these groups were synced.
fn held(groups: &[Value]) -> StoreHashes {
    manifest(groups, &StoreHashes::new()).into_held()
}

fn guids(manifest: &Manifest) -> Vec<&str> {
    manifest.entries.iter().map(|(guid, _)| guid.as_str()).collect()
}

fn contents(manifest: &Manifest) -> BTreeSet<&str> {
    manifest.content.keys().map(GroupGuid::as_str).collect()
}

#[test]
fn only_content_that_the_store_lacks_is_kept() {
    let held = held(&[good("a", "one"), good("b", "one")]);
    let manifest = manifest(&[good("c", "one"), good("b", "two"), good("a", "one")], &held);
    assert_eq!(guids(&manifest), ["c", "b", "a"], "in the Cloud Controller's order");
    assert_eq!(contents(&manifest), BTreeSet::from(["b", "c"]));
}

#[test]
fn a_malformed_group_keeps_the_version_that_the_store_holds() {
    let held = held(&[good("a", "one"), good("b", "one")]);
    let reading = read(&[malformed("b"), good("a", "two")], &held);
    assert!(reading.needs_held());
    assert_eq!(reading.count(), 2);
    let manifest = reading.into_manifest(&held);
    assert_eq!(guids(&manifest), ["b", "a"]);
    assert_eq!(manifest.entries[0].1, held[&guid("b")]);
    assert_eq!(manifest.kept, 1);
    assert_eq!(contents(&manifest), BTreeSet::from(["a"]));
}

#[test]
fn a_malformed_group_that_the_store_never_had_is_left_out() {
    let manifest = manifest(&[malformed("b"), good("a", "one")], &StoreHashes::new());
    assert_eq!(guids(&manifest), ["a"]);
    assert_eq!(manifest.kept, 0);
}

#[test]
fn a_group_that_is_gone_is_removed_though_another_is_malformed() {
    let held = held(&[good("a", "one"), good("b", "one"), good("c", "one")]);
    assert_eq!(guids(&manifest(&[malformed("b"), good("a", "one")], &held)), ["b", "a"]);
}

#[test]
fn nothing_is_removed_while_a_group_without_a_guid_may_be_any_of_them() {
    let held = held(&[good("a", "one"), good("b", "one"), good("c", "one")]);
    let manifest = manifest(&[nameless(), good("c", "two"), good("d", "one")], &held);
    assert_eq!(guids(&manifest), ["c", "d", "a", "b"]);
    assert_eq!(manifest.kept, 2);
    assert_eq!(contents(&manifest), BTreeSet::from(["c", "d"]));
}

#[test]
fn of_the_same_guid_twice_the_last_counts() {
    let nothing = StoreHashes::new();
    let twice = manifest(&[good("a", "one"), good("b", "one"), good("a", "two")], &nothing);
    assert_eq!(twice, manifest(&[good("a", "two"), good("b", "one")], &nothing));
    // Back to the content of the store: nothing to send.
    let held = held(&[good("a", "one")]);
    let back = manifest(&[good("a", "two"), good("a", "one")], &held);
    assert!(back.content.is_empty());
    // One of the two is malformed: the other one counts, in either order.
    let before = manifest(&[malformed("a"), good("a", "one")], &nothing);
    let after = manifest(&[good("a", "one"), malformed("a")], &nothing);
    assert_eq!(before, after);
    assert_eq!(guids(&before), ["a"]);
}

#[test]
fn pages_add_up() {
    let nothing = StoreHashes::new();
    let mut reading = ListSnapshot::new(true);
    for group in [good("a", "one"), malformed("b"), good("c", "one")] {
        let page = json!({ "resources": [group] });
        reading.page(page.to_string().as_bytes(), &nothing).unwrap();
    }
    assert_eq!(reading.count(), 3);
    assert_eq!(reading.malformed_groups().len(), 1);
    assert_eq!(reading.echo(0).unwrap().len(), 2);
    assert_eq!(reading.echo(1).unwrap().len(), 1);
    assert_eq!(guids(&reading.into_manifest(&nothing)), ["a", "c"]);
}

#[test]
fn groups_are_shown_only_where_they_are_looked_at() {
    assert!(ListSnapshot::new(false).echo(0).is_none());
}

fn lists() -> impl Strategy<Value = Vec<Value>> {
    let one = prop_oneof![
        6 => ("[a-h]", "[xy]").prop_map(|(guid, name)| good(&guid, &name)),
        2 => "[a-h]".prop_map(|guid| malformed(&guid)),
        1 => Just(nameless()),
    ];
    prop::collection::vec(one, 0..12)
}

proptest! {
    /// Law 6, and no wrong removal: over any sequence of lists, a group in the store is removed
    /// only when the list neither contains it nor has a malformed group that might be it; and
    /// every well-formed group is in the manifest, with its content available.
    #[test]
    fn no_group_is_stripped_because_one_is_malformed(lists in prop::collection::vec(lists(), 1..6)) {
        let mut held = StoreHashes::new();
        for list in lists {
            let named = |guid: &str| list.iter().any(|group| group["guid"] == guid);
            let unknown = list.iter().any(|group| group.get("guid").is_none());
            let manifest = manifest(&list, &held);
            let entries: std::collections::HashMap<_, _> = manifest.entries.iter().cloned().collect();
            prop_assert_eq!(entries.len(), manifest.entries.len(), "a guid twice");
            for guid in held.keys() {
                let stays = named(guid.as_str()) || unknown;
                prop_assert_eq!(entries.contains_key(guid), stays, "{}", guid);
            }
            for (guid, hash) in &manifest.entries {
                let at_hand = manifest.content.contains_key(guid) || held.get(guid) == Some(hash);
                prop_assert!(at_hand, "{} is in no place", guid);
            }
            for group in list.iter().filter(|group| group.get("rules").is_none()) {
                if let Some(text) = group["guid"].as_str() {
                    prop_assert!(entries.contains_key(&guid(text)));
                }
            }
            held = manifest.into_held();
        }
    }
}
