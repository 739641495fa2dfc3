//! State machine of one watch of the policy store: which spaces to request, and how to
//! apply responses. Pure.
//!
//! - A state is published only when the store marks it as complete.
//! - A space counts as known when the store has confirmed the request for that space,
//!   not before.
//! - A new watch sends the known state, if that is exactly one of the store's, and
//!   receives the changes since then; otherwise it receives everything. The old state
//!   stays until the first complete one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{
    effective::ReadGroup,
    generation::{Generation, Stamp},
    group::StoredGroup,
    ids::{GroupGuid, SpaceGuid},
    trace::TraceContext,
};
use proto::policy_v1::{
    WatchResponse,
    watch_request::{Hello, Subscribe},
};

use crate::plan::Known;

/// State of one watch.
#[derive(Debug)]
pub struct WatchSession {
    /// Each requested space, with the sequence number of the request.
    asked: BTreeMap<SpaceGuid, u64>,
    sequence: u64,
    draft: BTreeMap<GroupGuid, Arc<ReadGroup>>,
    /// Whether a received group is missing in the draft.
    lacks: bool,
}

/// Result of a response.
#[derive(Debug, Default)]
pub struct Update {
    /// A new complete state.
    pub known: Option<Arc<Known>>,
    /// Groups that cannot be parsed, each as a sentence; the rest of the response is
    /// used.
    pub problems: Vec<String>,
}

impl WatchSession {
    /// A new watch, with a Hello for these spaces.
    #[must_use]
    pub fn hello(spaces: impl IntoIterator<Item = SpaceGuid>) -> Self {
        Self {
            asked: spaces.into_iter().map(|space| (space, 0)).collect(),
            sequence: 0,
            draft: BTreeMap::new(),
            lacks: false,
        }
    }

    /// A new watch that resumes from the known state, with its Hello for exactly the
    /// known spaces; [`WatchSession::subscribe`] changes the spaces. `None` if the
    /// known state is not one of the store's states.
    #[must_use]
    pub fn resume(known: &Known) -> Option<(Self, Hello)> {
        let Known { revision: _, arrived: _, trace: _, generation, stamp, spaces, groups } = known;
        if *stamp == Stamp::default() || *generation == Generation::default() {
            return None;
        }
        let follow = Self { draft: groups.clone(), ..Self::hello(spaces.iter().cloned()) };
        let hello = Hello {
            cell_id: String::new(),
            space_guids: spaces.iter().map(|space| space.as_str().to_owned()).collect(),
            generation: generation.0,
            stamp: stamp.0,
            ..Hello::default()
        };
        Some((follow, hello))
    }

    /// The requested spaces.
    pub fn asked(&self) -> impl Iterator<Item = &SpaceGuid> {
        self.asked.keys()
    }

    /// The request that subscribes to these spaces; `None` if nothing changes.
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

    /// Applies a response.
    pub fn receive(&mut self, response: WatchResponse) -> Update {
        let WatchResponse {
            generation,
            reset,
            upserted,
            removed,
            complete,
            subscription_sequence,
            stamp,
            question: _,
            traceparent,
        } = response;
        let mut update = Update::default();
        if reset {
            self.draft.clear();
            self.lacks = false;
        }
        for guid in removed {
            if let Ok(guid) = GroupGuid::parse(&guid) {
                self.draft.remove(&guid);
            }
        }
        for group in upserted {
            let encoded = group.group.clone();
            match StoredGroup::try_from(group) {
                Ok(stored) => {
                    let guid = stored.group.guid.clone();
                    self.draft.insert(guid, Arc::new(ReadGroup::new(stored)));
                }
                Err(error) => {
                    self.lacks = true;
                    let name = proto::decode_group(encoded).map(|group| group.guid);
                    let name = name.unwrap_or_default();
                    update.problems.push(format!("group {name:?}: {error}"));
                }
            }
        }
        if complete {
            // The draft has groups of dropped spaces until the store has confirmed the
            // subscription.
            let exact = !self.lacks && subscription_sequence == self.sequence;
            let stamp = if exact { Stamp(stamp) } else { Stamp::default() };
            let mut known = self.whole(Generation(generation), stamp, subscription_sequence);
            known.trace = TraceContext::parse(&traceparent);
            update.known = Some(Arc::new(known));
        }
        update
    }

    fn whole(&self, generation: Generation, stamp: Stamp, confirmed: u64) -> Known {
        let confirmed = self.asked.iter().filter(|(_, sequence)| **sequence <= confirmed);
        let spaces = confirmed.map(|(space, _)| space.clone()).collect();
        Known { generation, stamp, spaces, groups: self.draft.clone(), ..Known::default() }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
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
        policy_v1::StoredGroup { id, group: group.encode_to_vec().into() }
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
        let mut follow = WatchSession::hello([space("s1")]);
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

    #[test]
    fn only_an_exact_state_is_resumed() {
        let mut follow = WatchSession::hello([space("s1"), space("s2")]);
        let update = |follow: &mut WatchSession, sequence| {
            let mut answer = state(3, sequence, &["a"]);
            answer.stamp = 77;
            follow.receive(answer).known.unwrap()
        };
        let known = update(&mut follow, 0);
        let (mut resumed, hello) = WatchSession::resume(&known).unwrap();
        assert_eq!((hello.generation, hello.stamp), (3, 77));
        assert_eq!(hello.space_guids, ["s1", "s2"]);
        let mut missed = state(4, 0, &["b"]);
        missed.stamp = 78;
        let known = resumed.receive(missed).known.unwrap();
        assert_eq!((names(&known), known.stamp), (vec!["a", "b"], Stamp(78)));
        assert_eq!(known.spaces, spaces(&["s1", "s2"]));
        // Groups of only a dropped space stay until the store removes them.
        follow.subscribe(&spaces(&["s1"])).unwrap();
        assert!(WatchSession::resume(&update(&mut follow, 0)).is_none());
        let known = update(&mut follow, 1);
        assert_eq!(WatchSession::resume(&known).unwrap().1.space_guids, ["s1"]);
    }

    #[test]
    fn an_incomplete_state_is_not_resumed() {
        let mut follow = WatchSession::hello([]);
        let mut answer = state(3, 0, &["a", ""]);
        answer.stamp = 77;
        assert!(WatchSession::resume(&follow.receive(answer.clone()).known.unwrap()).is_none());
        answer.upserted.pop();
        assert!(WatchSession::resume(&follow.receive(answer.clone()).known.unwrap()).is_none());
        answer.reset = true;
        assert!(WatchSession::resume(&follow.receive(answer).known.unwrap()).is_some());
        assert!(WatchSession::resume(&Known::default()).is_none());
    }

    /// A group that was deleted and created again between two responses.
    #[test]
    fn a_guid_that_is_removed_and_upserted_is_there() {
        let mut follow = WatchSession::hello([]);
        let mut answer = state(3, 0, &["a"]);
        answer.removed = vec!["a".to_owned()];
        assert_eq!(names(&follow.receive(answer).known.unwrap()), ["a"]);
    }

    #[test]
    fn a_space_is_known_when_its_request_is_confirmed() {
        let mut follow = WatchSession::hello([space("s1")]);
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
        let mut follow = WatchSession::hello([space("s1"), space("s2")]);
        let drop = follow.subscribe(&spaces(&["s2"])).unwrap();
        assert_eq!(drop.drop_space_guids, ["s1"]);
        assert_eq!(follow.receive(state(3, 0, &[])).known.unwrap().spaces, spaces(&["s2"]));
        let back = follow.subscribe(&spaces(&["s1", "s2"])).unwrap();
        assert_eq!(back.sequence, 2);
        assert_eq!(follow.receive(state(3, 1, &[])).known.unwrap().spaces, spaces(&["s2"]));
        assert_eq!(follow.receive(state(3, 2, &[])).known.unwrap().spaces, spaces(&["s1", "s2"]));
    }

    #[test]
    fn an_unreadable_group_does_not_affect_others() {
        let mut follow = WatchSession::hello([]);
        let mut answer = state(3, 0, &["a", "", "b"]);
        answer.upserted.push(policy_v1::StoredGroup::default());
        let update = follow.receive(answer);
        assert_eq!(update.problems.len(), 2, "{:?}", update.problems);
        assert_eq!(names(&update.known.unwrap()), ["a", "b"]);
    }
}
