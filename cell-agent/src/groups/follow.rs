//! One watch of the policy store, purely: what to ask for, and what the answers
//! mean.
//!
//! - A state is passed on only when the store says that it is whole.
//! - A space counts as known when the store has confirmed the request that asked
//!   for it, not before.
//! - A new watch begins with everything that is known and wanted; until its first
//!   whole state the old one stands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{
    effective::ReadGroup,
    generation::Generation,
    group::StoredGroup,
    ids::{GroupGuid, SpaceGuid},
};
use proto::policy_v1::{WatchResponse, watch_request::Subscribe};

use crate::plan::Known;

/// What one watch has told so far.
#[derive(Debug)]
pub struct Follow {
    /// Each space that was asked for, with the request that did.
    asked: BTreeMap<SpaceGuid, u64>,
    sequence: u64,
    draft: BTreeMap<GroupGuid, Arc<ReadGroup>>,
}

/// What an answer led to.
#[derive(Debug, Default)]
pub struct Told {
    /// A whole new state.
    pub known: Option<Arc<Known>>,
    /// Groups that cannot be understood, each as a sentence; everything else of
    /// the answer counts.
    pub problems: Vec<String>,
}

impl Follow {
    /// A new watch, whose Hello asks for these spaces.
    #[must_use]
    pub fn hello(spaces: impl IntoIterator<Item = SpaceGuid>) -> Self {
        Self {
            asked: spaces.into_iter().map(|space| (space, 0)).collect(),
            sequence: 0,
            draft: BTreeMap::new(),
        }
    }

    /// The spaces that were asked for.
    pub fn asked(&self) -> impl Iterator<Item = &SpaceGuid> {
        self.asked.keys()
    }

    /// The request that brings the watch to these spaces; `None` when it is there.
    pub fn subscribe(&mut self, wanted: &BTreeSet<SpaceGuid>) -> Option<Subscribe> {
        let add: Vec<SpaceGuid> =
            wanted.iter().filter(|space| !self.asked.contains_key(*space)).cloned().collect();
        let drop: Vec<SpaceGuid> =
            self.asked.keys().filter(|space| !wanted.contains(*space)).cloned().collect();
        if add.is_empty() && drop.is_empty() {
            return None;
        }
        self.sequence += 1;
        let text = |spaces: &[SpaceGuid]| {
            spaces.iter().map(|space| space.as_str().to_owned()).collect::<Vec<_>>()
        };
        let request = Subscribe {
            sequence: self.sequence,
            add_space_guids: text(&add),
            drop_space_guids: text(&drop),
        };
        drop.iter().for_each(|space| _ = self.asked.remove(space));
        self.asked.extend(add.into_iter().map(|space| (space, self.sequence)));
        Some(request)
    }

    /// Takes in an answer.
    pub fn receive(&mut self, response: WatchResponse) -> Told {
        let WatchResponse {
            generation,
            reset,
            upserted,
            removed,
            complete,
            subscription_sequence,
            stamp: _,
        } = response;
        let mut told = Told::default();
        if reset {
            self.draft.clear();
        }
        for guid in removed {
            if let Ok(guid) = GroupGuid::parse(&guid) {
                self.draft.remove(&guid);
            }
        }
        for group in upserted {
            let name = group.group.as_ref().map(|group| group.guid.clone()).unwrap_or_default();
            match StoredGroup::try_from(group) {
                Ok(stored) => {
                    let guid = stored.group.guid.clone();
                    self.draft.insert(guid, Arc::new(ReadGroup::new(stored)));
                }
                Err(error) => told.problems.push(format!("group {name:?}: {error}")),
            }
        }
        if complete {
            told.known = Some(self.whole(Generation(generation), subscription_sequence));
        }
        told
    }

    fn whole(&self, generation: Generation, confirmed: u64) -> Arc<Known> {
        let confirmed = self.asked.iter().filter(|(_, sequence)| **sequence <= confirmed);
        let spaces = confirmed.map(|(space, _)| space.clone()).collect();
        Arc::new(Known { generation, spaces, groups: self.draft.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proto::policy_v1;

    use super::*;

    fn space(text: &str) -> SpaceGuid {
        SpaceGuid::parse(text).unwrap()
    }

    fn spaces(texts: &[&str]) -> BTreeSet<SpaceGuid> {
        texts.iter().map(|text| space(text)).collect()
    }

    fn group(id: u64, guid: &str) -> policy_v1::StoredGroup {
        let group = policy_v1::SecurityGroup { guid: guid.to_owned(), ..Default::default() };
        policy_v1::StoredGroup { id, group: Some(group) }
    }

    fn state(generation: u64, sequence: u64, guids: &[&str]) -> WatchResponse {
        WatchResponse {
            generation,
            upserted: guids.iter().map(|guid| group(1, guid)).collect(),
            complete: true,
            subscription_sequence: sequence,
            ..Default::default()
        }
    }

    fn names(known: &Known) -> Vec<&str> {
        known.groups.keys().map(GroupGuid::as_str).collect()
    }

    #[test]
    fn parts_are_passed_on_together() {
        let mut follow = Follow::hello([space("s1")]);
        let mut part = state(3, 0, &["a"]);
        (part.reset, part.complete) = (true, false);
        assert!(follow.receive(part).known.is_none());
        let known = follow.receive(state(3, 0, &["b"])).known.unwrap();
        assert_eq!((names(&known), known.generation), (vec!["a", "b"], Generation(3)));
        let mut change = state(4, 0, &[]);
        change.removed = vec!["a".to_owned()];
        assert_eq!(names(&follow.receive(change).known.unwrap()), ["b"]);
        let mut reset = state(5, 0, &["c"]);
        reset.reset = true;
        assert_eq!(names(&follow.receive(reset).known.unwrap()), ["c"]);
    }

    /// A group that was deleted and made again between two answers.
    #[test]
    fn a_guid_that_is_removed_and_upserted_is_there() {
        let mut follow = Follow::hello([]);
        let mut answer = state(3, 0, &["a"]);
        answer.removed = vec!["a".to_owned()];
        assert_eq!(names(&follow.receive(answer).known.unwrap()), ["a"]);
    }

    #[test]
    fn a_space_is_known_when_its_request_is_confirmed() {
        let mut follow = Follow::hello([space("s1")]);
        let request = follow.subscribe(&spaces(&["s1", "s2"])).unwrap();
        assert_eq!((request.sequence, request.add_space_guids), (1, vec!["s2".to_owned()]));
        assert!(follow.subscribe(&spaces(&["s1", "s2"])).is_none());
        let early = follow.receive(state(3, 0, &[])).known.unwrap();
        assert_eq!(early.spaces, spaces(&["s1"]));
        let confirmed = follow.receive(state(3, 1, &[])).known.unwrap();
        assert_eq!(confirmed.spaces, spaces(&["s1", "s2"]));
    }

    #[test]
    fn a_dropped_space_that_comes_back_is_unknown_until_confirmed_again() {
        let mut follow = Follow::hello([space("s1"), space("s2")]);
        let drop = follow.subscribe(&spaces(&["s2"])).unwrap();
        assert_eq!(drop.drop_space_guids, ["s1"]);
        assert_eq!(follow.receive(state(3, 0, &[])).known.unwrap().spaces, spaces(&["s2"]));
        let back = follow.subscribe(&spaces(&["s1", "s2"])).unwrap();
        assert_eq!(back.sequence, 2);
        assert_eq!(follow.receive(state(3, 1, &[])).known.unwrap().spaces, spaces(&["s2"]));
        assert_eq!(follow.receive(state(3, 2, &[])).known.unwrap().spaces, spaces(&["s1", "s2"]));
    }

    #[test]
    fn a_group_that_nobody_understands_costs_no_other() {
        let mut follow = Follow::hello([]);
        let mut answer = state(3, 0, &["a", "", "b"]);
        answer.upserted.push(policy_v1::StoredGroup::default());
        let told = follow.receive(answer);
        assert_eq!(told.problems.len(), 2, "{:?}", told.problems);
        assert_eq!(names(&told.known.unwrap()), ["a", "b"]);
    }
}
