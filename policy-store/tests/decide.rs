//! The rules of a Replace, one by one. `store.rs` tests the same through stores.

use std::{collections::HashMap, sync::Arc};

use model::{
    generation::{Generation, Watermark},
    group::GroupId,
    ids::GroupGuid,
    lock::FencingToken,
};
use policy_store::groups::{
    decide::{Decision, Known, Refusal, Replacement, State, decide},
    manifest::Supplied,
};

use crate::support::sets::{Set, fenced, group, guid, named, owner, replacement, set};

/// A minimal store: the state and the groups after each decision.
#[derive(Default)]
struct Stored {
    state: State,
    known: HashMap<GroupGuid, Known>,
}

impl Stored {
    fn replace(&mut self, write: &Replacement) -> Result<Decision, Refusal> {
        let decision = decide(&self.state, &self.known, write).map_err(|refused| {
            if let Some(seen) = refused.seen {
                self.state = *seen;
            }
            refused.refusal
        })?;
        self.state = decision.state.clone();
        for (_, guid) in &decision.removed {
            self.known.remove(guid);
        }
        for upsert in &decision.upserts {
            let known = Known { id: upsert.id, hash: upsert.hash };
            self.known.insert(upsert.group.guid.clone(), known);
        }
        Ok(decision)
    }

    fn with(set: &Set) -> Self {
        let mut stored = Self::default();
        stored.replace(&replacement(set)).unwrap();
        stored
    }
}

fn ids(decision: &Decision) -> Vec<(&str, u64)> {
    let pair = |upsert: &policy_store::groups::decide::Upsert| upsert.id.0;
    let guids = decision.upserts.iter().map(|upsert| upsert.group.guid.as_str());
    guids.zip(decision.upserts.iter().map(pair)).collect()
}

#[test]
fn ids_ascend_from_one_are_kept_and_never_given_again() {
    let mut stored = Stored::default();
    let first = stored.replace(&replacement(&set([group("b", "1"), group("a", "1")]))).unwrap();
    assert_eq!(ids(&first), [("a", 1), ("b", 2)], "in the manifest's order");
    let changed = set([group("a", "2"), group("b", "1"), group("0", "1")]);
    let second = stored.replace(&replacement(&changed)).unwrap();
    assert_eq!(ids(&second), [("a", 1), ("0", 3)]);
    assert_eq!((second.added(), second.changed(), second.unchanged), (1, 1, 1));
    let third = stored.replace(&replacement(&set([group("a", "2")]))).unwrap();
    assert_eq!(third.removed, [(GroupId(2), guid("b")), (GroupId(3), guid("0"))]);
    let fourth = stored.replace(&replacement(&set([group("a", "2"), group("b", "1")]))).unwrap();
    assert_eq!(ids(&fourth), [("b", 4)]);
}

#[test]
fn the_generation_rises_with_content_only_and_with_the_first() {
    let mut stored = Stored::default();
    let mut generation = |set: &Set| {
        stored.replace(&replacement(set)).unwrap();
        stored.state.generation.0
    };
    assert_eq!(generation(&Set::new()), 1, "the first, though it is empty");
    assert_eq!(generation(&Set::new()), 1);
    assert_eq!(generation(&set([group("a", "1")])), 2);
    assert_eq!(generation(&set([group("a", "1")])), 2);
    assert_eq!(generation(&set([group("a", "2")])), 3);
    assert_eq!(generation(&Set::new()), 4);
}

#[test]
fn what_is_confirmed_is_noted_though_nothing_changed() {
    let one = set([group("a", "1")]);
    let mut stored = Stored::with(&one);
    let mut write = fenced(&one, "syncer-b", 7);
    write.watermark = Watermark::try_new(9, 9).unwrap();
    let decision = stored.replace(&write).unwrap();
    assert_eq!((decision.upserts.len(), decision.removed.len()), (0, 0));
    assert_eq!(stored.state.watermark, Some(write.watermark));
    assert_eq!(stored.state.token, Some(FencingToken(7)));
    assert_eq!(stored.state.writer, Some(owner("syncer-b")));
    assert_eq!(stored.state.synced_at, Some(write.at));
}

#[test]
fn an_older_stamp_brings_its_content_and_leaves_the_watermark() {
    let mut stored = Stored::with(&set([group("a", "1")]));
    let newest = stored.state.watermark;
    let mut write = replacement(&set([group("a", "2")]));
    write.watermark = Watermark::try_new(0, 5).unwrap();
    let decision = stored.replace(&write).unwrap();
    assert!(decision.watermark_went_back);
    assert_eq!(decision.changed(), 1);
    assert_eq!(stored.state.watermark, newest);
    assert_eq!(stored.state.generation, Generation(2));
}

#[test]
fn tokens_fence() {
    let one = set([group("a", "1")]);
    let mut stored = Stored::default();
    // While no token was seen, every writer is accepted.
    stored.replace(&fenced(&one, "syncer-a", 0)).unwrap();
    stored.replace(&fenced(&one, "syncer-b", 0)).unwrap();
    stored.replace(&fenced(&one, "syncer-a", 5)).unwrap();
    stored.replace(&fenced(&one, "syncer-a", 5)).unwrap();

    let refused = stored.replace(&fenced(&one, "syncer-b", 4)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "fencing token 4 of syncer-b is older than 5 of syncer-a, which came since"
    );
    let refused = stored.replace(&fenced(&one, "syncer-a", 4)).unwrap_err();
    assert!(matches!(refused, Refusal::OldToken { .. }), "its own older one: {refused}");
    let refused = stored.replace(&fenced(&one, "syncer-b", 5)).unwrap_err();
    assert_eq!(refused.to_string(), "fencing token 5 is the one of syncer-a, not of syncer-b");
    let refused = stored.replace(&fenced(&one, "syncer-a", 0)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "fencing token 0 of syncer-a is older than 5 of syncer-a, which came since"
    );
    stored.replace(&fenced(&one, "syncer-b", 6)).unwrap();
    assert!(stored.replace(&fenced(&one, "syncer-a", 5)).is_err());
}

/// Another instance may have written since the operator accepted: then other groups would go.
#[test]
fn an_accepted_removal_is_for_exactly_its_groups() {
    let mut stored = Stored::default();
    stored.replace(&fenced(&named(60, "1"), "syncer-a", 1)).unwrap();
    let accepted = |range: std::ops::Range<usize>| {
        let guids = range.map(|index| guid(&format!("g{index:05}"))).collect();
        let write = fenced(&named(10, "1"), "syncer-a", 1);
        Replacement { accepted_removal: Some(Arc::new(guids)), ..write }
    };
    for others in [10..59, 9..60, 9..59, 0..0] {
        let refused = stored.replace(&accepted(others.clone())).unwrap_err();
        let removal = Refusal::MassRemoval { removed: 50, stored: 60 };
        assert_eq!(refused, removal, "{others:?}");
    }
    stored.replace(&accepted(10..60)).unwrap();
    assert_eq!(stored.known.len(), 10);
}

/// Law 3 is about seen tokens: the mass removal guard comes after the fence.
#[test]
fn a_token_counts_though_its_replace_is_refused() {
    let sixty = named(60, "1");
    let mut stored = Stored::default();
    stored.replace(&fenced(&sixty, "syncer-a", 3)).unwrap();
    let before = stored.state.clone();
    let refused = stored.replace(&fenced(&Set::new(), "syncer-b", 9)).unwrap_err();
    assert!(matches!(refused, Refusal::MassRemoval { .. }), "{refused}");
    let seen = State { token: Some(FencingToken(9)), writer: Some(owner("syncer-b")), ..before };
    assert_eq!(stored.state, seen, "nothing but token and writer");
    let refused = stored.replace(&fenced(&sixty, "syncer-a", 3)).unwrap_err();
    assert!(matches!(refused, Refusal::OldToken { .. }), "{refused}");
    // The guard refuses again, with the same owner.
    let refused = stored.replace(&fenced(&Set::new(), "syncer-b", 9)).unwrap_err();
    assert!(matches!(refused, Refusal::MassRemoval { .. }), "{refused}");
    let mut lacking = fenced(&named(60, "2"), "syncer-c", 10);
    lacking.supplied.groups.clear();
    let refused = stored.replace(&lacking).unwrap_err();
    assert_eq!(refused, Refusal::Overtaken { lacking: 60 });
    let refused = stored.replace(&fenced(&sixty, "syncer-b", 9)).unwrap_err();
    assert!(matches!(refused, Refusal::OldToken { .. }), "{refused}");
}

#[test]
fn a_refused_write_without_a_token_leaves_no_trace() {
    let mut stored = Stored::with(&named(60, "1"));
    let before = stored.state.clone();
    let refused = stored.replace(&fenced(&Set::new(), "syncer-b", 0)).unwrap_err();
    assert!(matches!(refused, Refusal::MassRemoval { .. }), "{refused}");
    assert_eq!(stored.state, before);
}

#[test]
fn more_than_half_of_fifty_is_not_removed_by_mistake() {
    for (before, after, may) in
        [(49, 0, true), (50, 25, true), (50, 24, false), (50, 0, false), (1000, 499, false)]
    {
        let mut stored = Stored::with(&named(before, "1"));
        let answer = stored.replace(&replacement(&named(after, "1")));
        assert_eq!(answer.is_ok(), may, "{before} -> {after}");
        if let Err(refused) = answer {
            assert_eq!(
                refused.to_string(),
                format!(
                    "this would remove {} of {before} security groups at once, more than half: \
                     refused unless the request allows mass removal",
                    before - after
                )
            );
            let mut write = replacement(&named(after, "1"));
            write.allow_mass_removal = true;
            assert_eq!(stored.replace(&write).unwrap().removed.len(), before - after);
        }
    }
}

#[test]
fn a_replace_that_was_overtaken_is_refused() {
    let (one, two) = (set([group("a", "1")]), set([group("a", "2")]));
    let mut stored = Stored::with(&one);
    // The writer was told that nothing is missing, and then another write came first.
    let mut write = replacement(&one);
    write.supplied = Supplied { groups: HashMap::new(), ..write.supplied };
    stored.replace(&replacement(&two)).unwrap();
    assert_eq!(stored.replace(&write).unwrap_err(), Refusal::Overtaken { lacking: 1 });
}
