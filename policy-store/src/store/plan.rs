//! What a decision writes, row by row: pure, and the same for every SQL
//! database.
//!
//! Only what differs: a group that is bound to one more space is one row of
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

/// Reaches that are larger than this in their column are not remembered: 4 MiB.
const MAX_REACH_BYTES: usize = 4 << 20;

/// A row of `security_group_spaces`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Binding<'a> {
    pub(super) group_id: i64,
    pub(super) lifecycle: &'static str,
    pub(super) space: &'a SpaceGuid,
}

/// A row of `group_changes`, less its generation.
#[derive(Debug)]
pub(super) struct ChangeRow {
    pub(super) id: i64,
    pub(super) guid: GroupGuid,
    pub(super) reach_before: Option<String>,
}

/// What becomes of `generations` and `group_changes`.
#[derive(Debug)]
pub(super) struct PastPlan {
    /// The generation that is made.
    pub(super) point: Point,
    pub(super) weight: i64,
    /// What it changed; nothing if that is too much to remember.
    pub(super) changes: Vec<ChangeRow>,
    /// Generations before this one are forgotten, and what made it, too.
    pub(super) from: Generation,
}

/// What became of the rows of the set, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// They are there, or there never were any.
    None,
    /// `served` takes their place.
    Restore,
    /// What is left is forgotten.
    Forget,
}

/// Compares the rows with what this instance serves. `has_groups`: whether any group is
/// stored.
pub(super) fn loss(state: &State, has_groups: bool, served: &Snapshot) -> Loss {
    if state.is_whole() {
        // Ids are given once: groups were there.
        let is_empty = state.last_id > 0 && !has_groups;
        return match served.state.is_whole() {
            _ if !is_empty => Loss::None,
            false => Loss::Forget,
            // Something newer was committed elsewhere, and may have removed them all.
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

/// Writes a whole set into tables without rows. The token does not go back.
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

/// The state after the rows were lost: a whole set has to come.
pub(super) fn forgotten(state: &State) -> State {
    State { synced_at: None, ..state.clone() }
}

/// The ids whose scopes a plan has to know: of changed and of removed groups.
pub(super) fn touched(decision: &Decision) -> Result<Vec<i64>, Error> {
    let changed = decision.upserts.iter().filter(|upsert| !upsert.added).map(|upsert| upsert.id);
    let ids = changed.chain(decision.removed.iter().map(|(id, _)| *id));
    ids.map(sql_id).collect()
}

pub(super) fn sql_id(id: GroupId) -> Result<i64, Error> {
    to_sql("security_groups.id", id.0)
}

/// Bindings that go and bindings that come, of added and changed groups, each in the
/// order of the table's key. Removed groups lose all of theirs.
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
    // Made as they are written: of a large first set they are hundreds of thousands.
    let new = scopes.into_iter().flat_map(|(binding, old, now)| {
        let is_new = move |space: &&SpaceGuid| old.is_none_or(|old| !old.contains(*space));
        now.iter().filter(is_new).map(binding)
    });
    Ok((gone, new))
}

/// `None`: no generation is made. `newest_first`: the rows of `generations`.
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
    // Generation 0 was told to nobody: nobody has to be told what followed it.
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
