//! Rows that a decision writes: pure, and the same for every SQL database.
//!
//! Only differences are written: a group bound to one more space is one row of
//! `security_groups` and one of `security_group_spaces`.

use std::sync::Arc;

use model::{
    generation::{Generation, Point},
    group::{GroupId, Lifecycle},
    ids::{GroupGuid, SpaceGuid},
};

use super::{
    Error,
    rows::{self, RUNNING, STAGING, Scopes, to_sql},
};
use crate::groups::{
    decide::{Decision, State, Upsert},
    history::{Change, Step, kept},
    reach::Reach,
    snapshot::Snapshot,
};

/// Size limit of a remembered reach in its column: 4 MiB.
const MAX_REACH_BYTES: usize = 4 << 20;

/// A row of `security_group_spaces`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Binding<'a> {
    pub(super) group_id: i64,
    pub(super) lifecycle: &'static str,
    pub(super) space: &'a SpaceGuid,
}

/// A row of `group_changes`, without its generation.
#[derive(Debug)]
pub(super) struct ChangeRow {
    pub(super) id: i64,
    pub(super) guid: GroupGuid,
    pub(super) reach_before: Option<String>,
}

/// Changes to `generations` and `group_changes`.
#[derive(Debug)]
pub(super) struct PastPlan {
    /// The new generation.
    pub(super) point: Point,
    pub(super) weight: i64,
    /// Its changes; empty if they are too many to remember.
    pub(super) changes: Vec<ChangeRow>,
    /// Earlier generations are deleted together with their changes.
    pub(super) from: Generation,
}

/// Lost rows of the set, and the repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// The rows exist, or no set was ever stored.
    None,
    /// `served` replaces them.
    Restore,
    /// The remaining rows are deleted.
    Forget,
}

/// Compares the rows with the served snapshot. `has_groups`: whether any group is stored.
pub(super) fn loss(state: &State, has_groups: bool, served: &Snapshot) -> Loss {
    if state.is_whole() {
        // Ids are never reused: a last id above 0 means that groups existed.
        let is_empty = state.last_id > 0 && !has_groups;
        return match served.state.is_whole() {
            _ if !is_empty => Loss::None,
            false => Loss::Forget,
            // Another instance committed a newer state and may have removed all groups.
            true if served.point() != state.point() => Loss::None,
            true if served.entries().is_empty() => Loss::None,
            true => Loss::Restore,
        };
    }
    if served.state.is_whole() && served.state.generation >= state.generation {
        return Loss::Restore;
    }
    if has_groups { Loss::Forget } else { Loss::None }
}

/// Writes a complete set into empty tables. The token does not go back.
pub(super) fn restoration(state: &State, served: &Snapshot) -> Decision {
    let newer = if state.token > served.state.token { state } else { &served.state };
    let upserts = served.entries().iter().map(|entry| {
        let (id, hash, group) = (entry.id, entry.hash, Arc::new(entry.content()));
        Upsert { id, group, hash, added: true }
    });
    Decision {
        before: Point::default(),
        state: State {
            token: newer.token,
            writer: newer.writer.clone(),
            last_id: served.state.last_id.max(state.last_id),
            ..served.state.clone()
        },
        upserts: upserts.collect(),
        removed: Vec::new(),
        unchanged: 0,
        watermark_went_back: false,
    }
}

/// State after the rows were lost: a complete set has to be replaced.
pub(super) fn forgotten(state: &State) -> State {
    State { synced_at: None, ..state.clone() }
}

/// Ids whose scopes a plan needs: those of changed and of removed groups.
pub(super) fn touched(decision: &Decision) -> Result<Vec<i64>, Error> {
    let changed = decision.upserts.iter().filter(|upsert| !upsert.added).map(|upsert| upsert.id);
    let ids = changed.chain(decision.removed.iter().map(|(id, _)| *id));
    ids.map(sql_id).collect()
}

pub(super) fn sql_id(id: GroupId) -> Result<i64, Error> {
    to_sql("security_groups.id", id.0)
}

/// Removed and added bindings of added and changed groups, each in the order of the
/// table's key. Removed groups lose all of their bindings.
pub(super) fn bindings<'a>(
    decision: &'a Decision,
    before: &'a Scopes,
) -> Result<(Vec<Binding<'a>>, impl Iterator<Item = Binding<'a>>), Error> {
    let (mut gone, mut scopes) = (Vec::new(), Vec::new());
    for upsert in &decision.upserts {
        let group_id = sql_id(upsert.id)?;
        for (lifecycle, name) in [(Lifecycle::Running, RUNNING), (Lifecycle::Staging, STAGING)] {
            let old = before.get(group_id, lifecycle).map(|scope| &scope.spaces);
            let now = &upsert.group.scope(lifecycle).spaces;
            let binding = move |space| Binding { group_id, lifecycle: name, space };
            gone.extend(old.iter().flat_map(|old| old.difference(now)).map(binding));
            scopes.push((binding, old, now));
        }
    }
    // An iterator: a large first set has hundreds of thousands of bindings.
    let new = scopes.into_iter().flat_map(|(binding, old, now)| {
        let is_new = move |space: &&SpaceGuid| old.is_none_or(|old| !old.contains(*space));
        now.iter().filter(is_new).map(binding)
    });
    Ok((gone, new))
}

/// `None`: no new generation. `newest_first`: the rows of `generations`.
pub(super) fn past(
    decision: &Decision,
    before: &Scopes,
    newest_first: &[(Generation, usize)],
) -> Result<Option<PastPlan>, Error> {
    if !decision.is_change() {
        return Ok(None);
    }
    let step = step(decision, before)?;
    let point = step.point;
    // No watcher ever gets generation 0, so differences from it are never needed.
    let is_first = decision.before.generation == Generation::default();
    let reaches: Vec<_> =
        step.changes.iter().map(|change| change.before.as_deref().map(rows::reach_text)).collect();
    let bytes: usize = reaches.iter().flatten().map(String::len).sum();
    let weight = step.weight();
    let mut all = vec![(point.generation, weight)];
    all.extend(newest_first);
    let kept = match is_first || bytes > MAX_REACH_BYTES {
        true => 0,
        false => kept(&all).min(all.len() - 1),
    };
    let (weight, changes) = match kept {
        0 => (0, Vec::new()),
        _ => {
            let rows = step.changes.into_iter().zip(reaches).map(|(change, reach_before)| {
                Ok(ChangeRow { id: sql_id(change.id)?, guid: change.guid, reach_before })
            });
            (weight, rows.collect::<Result<_, Error>>()?)
        }
    };
    let weight = to_sql("generations.weight", weight as u64)?;
    Ok(Some(PastPlan { point, weight, changes, from: all[kept].0 }))
}

fn step(decision: &Decision, before: &Scopes) -> Result<Step, Error> {
    let mut changes = Vec::with_capacity(decision.upserts.len() + decision.removed.len());
    for upsert in &decision.upserts {
        let guid = upsert.group.guid.clone();
        let before = if upsert.added { None } else { Some(reach(upsert.id, before)?) };
        changes.push(Change { id: upsert.id, guid, before });
    }
    for (id, guid) in &decision.removed {
        changes.push(Change { id: *id, guid: guid.clone(), before: Some(reach(*id, before)?) });
    }
    changes.sort_unstable_by_key(|change| change.id);
    Ok(Step { point: decision.state.point(), changes })
}

fn reach(id: GroupId, before: &Scopes) -> Result<Arc<Reach>, Error> {
    let id = sql_id(id)?;
    let scopes = [Lifecycle::Running, Lifecycle::Staging].map(|which| before.get(id, which));
    let scopes = scopes.into_iter().flatten();
    let is_global = scopes.clone().any(|scope| scope.everywhere);
    let spaces = scopes.flat_map(|scope| scope.spaces.iter().cloned()).collect();
    Ok(Arc::new(Reach::new(is_global, spaces)))
}
