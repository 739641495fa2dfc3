//! Immutable snapshot of one generation of all security groups, encoded for serving.
//! Each Replace creates the next snapshot, which shares all unchanged parts.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use model::{
    generation::Point,
    group::{ContentHash, GroupId, SecurityGroup},
    ids::{GroupGuid, SpaceGuid},
};

use super::{
    archive::Undo,
    content::Content,
    contents::{Contents, Stored},
    decide::{Decision, State},
    fragment::Fragment,
    history::{Change, History, Past, Step},
    json,
    reach::Reach,
};

/// A stored group, encoded once for all readers.
#[derive(Debug)]
pub struct Entry {
    /// Id of the group.
    pub id: GroupId,
    /// Guid of the group.
    pub guid: GroupGuid,
    /// Hash of the content.
    pub hash: ContentHash,
    /// Spaces that the group applies to.
    pub reach: Arc<Reach>,
    /// The message `SecurityGroup` in wire format.
    pub encoded: Bytes,
    /// Created at the first request: a store whose cells all watch needs none.
    fragment: OnceLock<Fragment>,
}

impl Entry {
    /// Creates an entry that shares the bytes of a group, and the previous reach if it is
    /// unchanged. `shared` interns a space.
    #[must_use]
    pub fn new(
        id: GroupId,
        group: &Content,
        hash: ContentHash,
        before: Option<&Arc<Reach>>,
        shared: impl Fn(&SpaceGuid) -> SpaceGuid,
    ) -> Self {
        let reach = Reach::of(group, shared);
        let reach = match before {
            Some(before) if **before == reach => Arc::clone(before),
            Some(_) | None => Arc::new(reach),
        };
        let (guid, encoded) = (group.guid.clone(), group.encoded().clone());
        let fragment = OnceLock::new();
        Self { id, guid, hash, reach, encoded, fragment }
    }

    /// The decoded group.
    ///
    /// # Panics
    /// Never: an encoded group can be decoded.
    #[must_use]
    pub fn group(&self) -> SecurityGroup {
        let group = proto::decode_group(self.encoded.clone()).expect("we encoded it");
        SecurityGroup::try_from(group).expect("it was a group before")
    }

    /// The group as the store keeps it.
    #[must_use]
    pub fn content(&self) -> Content {
        Content::from(self.group())
    }

    /// The group's part of HTTP responses.
    pub fn fragment(&self) -> &Fragment {
        self.fragment.get_or_init(|| {
            let group = proto::decode_group(self.encoded.clone()).expect("we encoded it");
            Fragment::new(json::to_text(&group).as_bytes())
        })
    }
}

type Index<K, V> = Arc<HashMap<K, V>>;

/// Snapshot of one generation; see the module.
#[derive(Debug)]
pub struct Snapshot {
    /// State stored beside the groups.
    pub state: State,
    /// Ascending by id.
    entries: Vec<Arc<Entry>>,
    by_guid: Index<GroupGuid, GroupId>,
    by_space: Index<SpaceGuid, Vec<GroupId>>,
    global: Arc<BTreeSet<GroupId>>,
    history: History,
}

impl Snapshot {
    /// Creates a snapshot from entries and their history.
    #[must_use]
    pub fn new(state: State, mut entries: Vec<Arc<Entry>>, past: Past) -> Self {
        entries.sort_unstable_by_key(|entry| entry.id);
        let mut index = Indexes::default();
        entries.iter().for_each(|entry| index.add(entry));
        index.into_snapshot(state, entries, past.into())
    }

    /// The snapshot after `decision`, which must be based on this snapshot.
    #[must_use]
    pub fn after(&self, decision: &Decision) -> Self {
        let Decision { state, upserts, removed, .. } = decision;
        let before = |id: GroupId| self.get(id).map(|entry| Arc::clone(&entry.reach));
        let upserted = upserts.iter().map(|upsert| (upsert.id, upsert.group.guid.clone()));
        let changes = upserted.chain(removed.iter().cloned());
        let mut changes: Vec<Change> =
            changes.map(|(id, guid)| Change { id, guid, before: before(id) }).collect();
        changes.sort_unstable_by_key(|change| change.id);
        let step = decision.is_change().then(|| Step { point: state.point(), changes });
        let contents =
            upserts.iter().map(|upsert| (upsert.id, upsert.hash, Arc::clone(&upsert.group)));
        let removed = removed.iter().map(|(id, _)| *id).collect();
        self.changed(state.clone(), contents, &removed, self.history.followed_by(step))
    }

    /// The snapshot after the changes read from the store.
    #[must_use]
    pub fn followed_by(&self, difference: Contents) -> Self {
        let Contents { state, groups, past, .. } = difference;
        let there: HashSet<GroupId> = groups.iter().map(|stored| stored.id).collect();
        let changed = past.steps.iter().flat_map(|step| &step.changes).map(|change| change.id);
        let removed = changed.filter(|id| !there.contains(id)).collect();
        let contents = groups.into_iter().map(|Stored { id, group, hash }| (id, hash, group));
        self.changed(state, contents, &removed, self.history.followed_by(past.steps))
    }

    /// The snapshot of an older generation; `undo` must begin at this one's. Token, writer and
    /// last id stay: they are not those of a generation.
    #[must_use]
    pub fn undone(&self, undo: Undo) -> Self {
        let Undo { from: _, to, groups } = undo;
        let added_later = groups.iter().filter(|(_, before)| before.is_none());
        let added_later = added_later.map(|(id, _)| *id).collect();
        let contents = groups.into_values().flatten();
        let contents = contents.map(|Stored { id, group, hash }| (id, hash, group));
        let Point { generation, stamp } = to;
        let state = State { generation, stamp, ..self.state.clone() };
        self.changed(state, contents, &added_later, self.history.until(to))
    }

    fn changed(
        &self,
        state: State,
        upserts: impl Iterator<Item = (GroupId, ContentHash, Arc<Content>)>,
        removed: &HashSet<GroupId>,
        history: History,
    ) -> Self {
        let mut index = Indexes::of(self);
        // First: a guid may have left with one id and come back with another.
        for entry in removed.iter().filter_map(|id| self.get(*id)) {
            index.remove(entry);
        }
        let mut replaced: HashMap<GroupId, Arc<Entry>> = HashMap::new();
        let mut added = Vec::new();
        for (id, hash, content) in upserts {
            let before = self.get(id);
            let reach = before.map(|entry| &entry.reach);
            let entry = Entry::new(id, &content, hash, reach, |space| index.shared(space));
            let entry = Arc::new(entry);
            index.replace(before, &entry);
            match before {
                Some(_) => _ = replaced.insert(entry.id, entry),
                None => added.push(entry),
            }
        }
        let kept = self.entries.iter().filter(|entry| !removed.contains(&entry.id));
        let mut entries: Vec<Arc<Entry>> = kept
            .map(|entry| replaced.get(&entry.id).unwrap_or(entry))
            .chain(&added)
            .cloned()
            .collect();
        // A group that was removed comes back to its place; otherwise they are sorted.
        entries.sort_by_key(|entry| entry.id);
        index.into_snapshot(state, entries, history)
    }

    /// All groups, ascending by id.
    #[must_use]
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The group with this id.
    #[must_use]
    pub fn get(&self, id: GroupId) -> Option<&Arc<Entry>> {
        let place = self.entries.binary_search_by_key(&id, |entry| entry.id);
        place.ok().map(|place| &self.entries[place])
    }

    /// The content of the group with this guid.
    #[must_use]
    pub fn hash(&self, guid: &GroupGuid) -> Option<ContentHash> {
        let id = self.by_guid.get(guid)?;
        self.get(*id).map(|entry| entry.hash)
    }

    /// The spaces to which groups are bound, in no particular order.
    pub fn spaces(&self) -> impl Iterator<Item = &SpaceGuid> {
        self.by_space.keys()
    }

    /// The groups bound to a space, global or not, in no particular order.
    pub fn bound_to(&self, space: &SpaceGuid) -> impl Iterator<Item = &Arc<Entry>> {
        let ids = self.by_space.get(space).into_iter().flatten();
        ids.filter_map(|id| self.get(*id))
    }

    /// The groups that apply to `spaces`, from the id `from` on, ascending by id.
    #[must_use]
    pub fn concerning<'a>(
        &self,
        spaces: impl IntoIterator<Item = &'a SpaceGuid>,
        from: GroupId,
    ) -> Vec<&Arc<Entry>> {
        let bound = spaces.into_iter().filter_map(|space| self.by_space.get(space)).flatten();
        let bound = bound.filter(|id| **id >= from);
        let mut ids: Vec<GroupId> = self.global.range(from..).chain(bound).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.get(id)).collect()
    }

    /// Generation of the snapshot.
    #[must_use]
    pub fn point(&self) -> Point {
        self.state.point()
    }

    /// Changes of the last generations.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Interns a space guid, so that thousands of watchers of one space share it.
    #[must_use]
    pub fn shared(&self, space: SpaceGuid) -> SpaceGuid {
        known(&self.by_space, &space).unwrap_or(space)
    }
}

fn known(by_space: &HashMap<SpaceGuid, Vec<GroupId>>, space: &SpaceGuid) -> Option<SpaceGuid> {
    by_space.get_key_value(space).map(|(known, _)| known.clone())
}

/// Builder of the indexes, which are shared with the previous snapshot until they
/// change.
#[derive(Default)]
struct Indexes {
    by_guid: Index<GroupGuid, GroupId>,
    by_space: Index<SpaceGuid, Vec<GroupId>>,
    global: Arc<BTreeSet<GroupId>>,
}

impl Indexes {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            by_guid: Arc::clone(&snapshot.by_guid),
            by_space: Arc::clone(&snapshot.by_space),
            global: Arc::clone(&snapshot.global),
        }
    }

    /// Interns a space guid: one space is bound to many groups.
    fn shared(&self, space: &SpaceGuid) -> SpaceGuid {
        known(&self.by_space, space).unwrap_or_else(|| space.clone())
    }

    fn add(&mut self, entry: &Entry) {
        Arc::make_mut(&mut self.by_guid).insert(entry.guid.clone(), entry.id);
        self.add_reach(entry.id, &entry.reach);
    }

    fn remove(&mut self, entry: &Entry) {
        Arc::make_mut(&mut self.by_guid).remove(&entry.guid);
        self.remove_reach(entry.id, &entry.reach);
    }

    fn replace(&mut self, before: Option<&Arc<Entry>>, after: &Entry) {
        match before {
            None => self.add(after),
            Some(before) if Arc::ptr_eq(&before.reach, &after.reach) => {}
            Some(before) => {
                self.remove_reach(before.id, &before.reach);
                self.add_reach(after.id, &after.reach);
            }
        }
    }

    fn add_reach(&mut self, id: GroupId, reach: &Reach) {
        if reach.is_global() {
            Arc::make_mut(&mut self.global).insert(id);
        }
        for space in reach.spaces() {
            Arc::make_mut(&mut self.by_space).entry(space.clone()).or_default().push(id);
        }
    }

    fn remove_reach(&mut self, id: GroupId, reach: &Reach) {
        if reach.is_global() {
            Arc::make_mut(&mut self.global).remove(&id);
        }
        for space in reach.spaces() {
            let by_space = Arc::make_mut(&mut self.by_space);
            if let Some(ids) = by_space.get_mut(space) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    by_space.remove(space);
                }
            }
        }
    }

    fn into_snapshot(self, state: State, entries: Vec<Arc<Entry>>, history: History) -> Snapshot {
        let Self { by_guid, by_space, global } = self;
        Snapshot { state, entries, by_guid, by_space, global, history }
    }
}
