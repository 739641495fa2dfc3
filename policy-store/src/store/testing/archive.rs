//! The history of the reference store.

use std::{
    collections::{BTreeMap, btree_map::Entry as Place},
    sync::Arc,
};

use model::{
    generation::{Generation, Point},
    group::GroupId,
};

use super::{
    super::{Answer, Stored, archive::Archive},
    Memory,
};
use crate::groups::{
    archive::{
        Bounds, Change, ChangedGroup, DROPPED_AT_ONCE, Entry, Kind, NAMED_GROUPS, Numbered,
        OperatorDecision, Query, Reached, Undo, Weighed, expired,
    },
    decide::{Decision, Replacement},
};

/// A changed group, and its content before the change.
type Changed = (ChangedGroup, Option<Stored>);

/// Tables of the history.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Ascending.
    entries: Vec<Numbered>,
    groups: BTreeMap<(Generation, GroupId), Changed>,
    /// Generations whose groups are all in `groups`.
    recorded: Vec<Generation>,
    progress: BTreeMap<(Generation, Arc<str>), Reached>,
}

impl Tables {
    /// Adds the entry of a Replace, before `groups` change.
    pub(super) fn add(
        &mut self,
        write: &Replacement,
        decision: &Decision,
        is_first: bool,
        groups: &BTreeMap<GroupId, Stored>,
    ) {
        if !decision.is_change() {
            return;
        }
        let point = decision.state.point();
        if !is_first {
            self.recorded.push(point.generation);
            self.add_groups(point.generation, decision, groups);
        }
        let change = Change {
            point,
            at: write.at,
            owner: Some(write.owner.clone()),
            watermark: Some(write.watermark),
            origin: write.origin,
            added: decision.added() as u64,
            changed: decision.changed() as u64,
            removed: decision.removed.len() as u64,
            groups: Vec::new(),
            reached: None,
        };
        self.push(Entry::Change(Box::new(change)));
    }

    fn add_groups(
        &mut self,
        generation: Generation,
        decision: &Decision,
        groups: &BTreeMap<GroupId, Stored>,
    ) {
        for upsert in &decision.upserts {
            let (guid, name) = (upsert.group.guid.clone(), upsert.group.name.as_str().into());
            let before = groups.get(&upsert.id).cloned();
            let kind = if before.is_some() { Kind::Changed } else { Kind::Added };
            let group = ChangedGroup { guid, name, kind };
            self.groups.insert((generation, upsert.id), (group, before));
        }
        for (id, guid) in &decision.removed {
            let before = groups.get(id).cloned();
            let name = before.as_ref().map_or("", |stored| stored.group.name.as_str()).into();
            let group = ChangedGroup { guid: guid.clone(), name, kind: Kind::Removed };
            self.groups.insert((generation, *id), (group, before));
        }
    }

    pub(super) fn record(&mut self, decision: &OperatorDecision) {
        self.push(Entry::Decision(Box::new(decision.clone())));
    }

    fn push(&mut self, entry: Entry) {
        let number = self.entries.last().map_or(0, |last| last.number) + 1;
        self.entries.push(Numbered { number, entry });
    }

    fn of(&self, generation: Generation) -> impl Iterator<Item = (&GroupId, &Changed)> {
        let range = (generation, GroupId(0))..=(generation, GroupId(u64::MAX));
        self.groups.range(range).map(|((_, id), changed)| (id, changed))
    }

    fn shown(&self, numbered: &Numbered) -> Numbered {
        let mut numbered = numbered.clone();
        if let Entry::Change(change) = &mut numbered.entry {
            let generation = change.point.generation;
            let groups = self.of(generation).take(NAMED_GROUPS);
            change.groups = groups.map(|(_, (group, _))| group.clone()).collect();
            let progress = self.progress.iter().filter(|((of, _), _)| *of == generation);
            change.reached =
                progress.map(|(_, reached)| *reached).reduce(|one, other| one.and(&other));
        }
        numbered
    }

    fn fits(&self, Numbered { number, entry }: &Numbered, query: &Query) -> bool {
        let Query { before, generation, group, size: _ } = query;
        let made = match entry {
            Entry::Change(change) => Some(change.point.generation),
            Entry::Decision(_) => None,
        };
        let changes = |group: &str| {
            made.is_some_and(|made| {
                self.of(made).any(|(_, (of, _))| of.guid.as_str() == group || *of.name == *group)
            })
        };
        before.is_none_or(|before| *number < before)
            && generation.is_none_or(|generation| made == Some(generation))
            && group.as_deref().is_none_or(changes)
    }

    fn undo(&self, from: Generation, to: Generation) -> Option<Undo> {
        let is_known = |number| self.recorded.contains(&Generation(number));
        if from < to || !(to.0 + 1..=from.0).all(is_known) {
            return None;
        }
        let mut groups = BTreeMap::new();
        let between = self.groups.range((to, GroupId(0))..=(from, GroupId(u64::MAX)));
        for ((generation, id), (_, before)) in between {
            if *generation > to
                && let Place::Vacant(place) = groups.entry(*id)
            {
                place.insert(before.clone());
            }
        }
        let mut points = self.entries.iter().filter_map(|numbered| match &numbered.entry {
            Entry::Change(change) => Some(change.point),
            Entry::Decision(_) => None,
        });
        let to: Point = points.find(|point| point.generation == to)?;
        Some(Undo { from, to, groups })
    }

    /// Each entry weighs a byte.
    fn prune(&mut self, bounds: &Bounds) -> bool {
        let weighed = |Numbered { number, entry }: &Numbered| {
            let (generation, at) = match entry {
                Entry::Change(change) => (change.point.generation, change.at),
                Entry::Decision(decision) => (decision.generation, decision.at),
            };
            Weighed { number: *number, generation, at, bytes: 1 }
        };
        let weighed: Vec<Weighed> = self.entries.iter().map(weighed).collect();
        let newest = weighed.iter().map(|entry| entry.generation).max().unwrap_or_default();
        let dropped = expired(&weighed, weighed.len() as u64, newest, bounds);
        self.entries.drain(..dropped);
        if let Some(oldest) = weighed.get(dropped) {
            self.groups.retain(|(generation, _), _| *generation >= oldest.generation);
            self.progress.retain(|(generation, _), _| *generation >= oldest.generation);
            self.recorded.retain(|generation| *generation >= oldest.generation);
        }
        dropped == DROPPED_AT_ONCE
    }
}

impl Archive for Memory {
    fn entries(&self, query: Query) -> Answer<'_, Vec<Numbered>> {
        Box::pin(async move {
            let archive = &self.lock().archive;
            let fitting = archive.entries.iter().rev().filter(|entry| archive.fits(entry, &query));
            Ok(fitting.take(query.size).map(|entry| archive.shown(entry)).collect())
        })
    }

    fn undo(&self, from: Generation, to: Generation) -> Answer<'_, Option<Undo>> {
        Box::pin(async move { Ok(self.lock().archive.undo(from, to)) })
    }

    fn record(&self, decision: Arc<OperatorDecision>) -> Answer<'_, ()> {
        Box::pin(async move {
            self.lock().archive.record(&decision);
            Ok(())
        })
    }

    fn save_progress(
        &self,
        instance: Arc<str>,
        progress: Arc<[(Generation, Reached)]>,
    ) -> Answer<'_, ()> {
        Box::pin(async move {
            let archive = &mut self.lock().archive;
            for (generation, reached) in progress.iter() {
                archive.progress.entry((*generation, Arc::clone(&instance))).or_insert(*reached);
            }
            Ok(())
        })
    }

    fn prune(&self, bounds: Bounds) -> Answer<'_, bool> {
        Box::pin(async move { Ok(self.lock().archive.prune(&bounds)) })
    }
}
