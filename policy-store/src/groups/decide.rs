//! Decides what a Replace writes, or why it is refused.
//!
//! [`decide`] is a pure function from the stored state and the request to the rows to
//! write. Every store calls it inside the write transaction, on the state that the
//! transaction reads, so it is the only place of these rules:
//!
//! - **Fencing (law 3).** A writer whose token is older than the newest seen token is
//!   refused; so is another owner with the same token, since a token belongs to one
//!   owner. A missing token, as with a lock server without fencing tokens, is older than
//!   any token: such writers are accepted only while no token was ever seen, and are
//!   not fenced from each other. A token counts once it passed the fence, even if its
//!   Replace is then refused for another reason: see [`Refused::seen`].
//! - **Mass removal.** A Replace must not remove more than half of [`GUARDED_FROM`] or
//!   more groups unless the writer allows it, or an operator accepted the removal of
//!   exactly these groups: a Cloud Controller that returns an empty list by mistake must
//!   not cut off a foundation.
//! - **Generation (law 4).** Rises by one when content changes and stays otherwise. The
//!   first Replace always raises it, even when it is empty: generation 0 means that no
//!   set was ever synced. So does the first after rows were lost. Each generation has a
//!   stamp, which rises with it.
//! - **Watermark (law 4).** Never goes back. When the Cloud Controller's stamp goes back
//!   (after a restored database, for example), the content is accepted, since it is the
//!   current content of the Cloud Controller, and the higher watermark stays.
//! - **Ids** ascend from 1 in the order of first arrival, are kept while a group lives,
//!   and are never reused.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    generation::{Generation, Point, Stamp, Watermark},
    group::{ContentHash, GroupId},
    ids::GroupGuid,
    lock::{FencingToken, Owner},
    trace::TraceContext,
};

use super::{
    content::Content,
    in_milliseconds,
    manifest::Supplied,
    rollout::{Plan, Rollout, after_change},
};

/// The mass removal guard applies to sets of at least this many groups.
pub const GUARDED_FROM: usize = 50;

/// State stored beside the groups. A confirmed Replace changes all fields but `held`, a refused one
/// only token and writer, and freezes and steps of a roll-out only `held` and `rollout`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// 0 before the first Replace.
    pub generation: Generation,
    /// Time of the generation: when content relevant to cells changed last.
    pub stamp: Stamp,
    /// Highest received watermark; absent before the first Replace.
    pub watermark: Option<Watermark>,
    /// Newest seen token, including those of refused Replaces; absent while all writers
    /// came without a token.
    pub token: Option<FencingToken>,
    /// Owner of that token; the last writer while there is no token.
    pub writer: Option<Owner>,
    /// Time of the last confirmed Replace, including those without changes, by this
    /// machine's clock. Absent before the first, and after rows were lost.
    pub synced_at: Option<Timestamp>,
    /// Highest issued [`GroupId`]; 0 before the first.
    pub last_id: u64,
    /// What cells get instead of the newest generation.
    pub held: Option<Held>,
    /// A generation that only some cells get.
    pub rollout: Option<Rollout>,
}

/// A freeze in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What cells get.
    pub point: Point,
    /// Why, in the words of the operator.
    pub reason: Box<str>,
    /// Subject of the client certificate of who froze.
    pub by: Box<str>,
    /// When cells were frozen, by the clock of the instance that received the request.
    pub since: Timestamp,
    /// End; absent: until somebody unfreezes.
    pub until: Option<Timestamp>,
}

impl State {
    /// The generation number and its stamp.
    #[must_use]
    pub fn point(&self) -> Point {
        Point { generation: self.generation, stamp: self.stamp }
    }

    /// Whether a complete set is stored. Otherwise (before the first Replace, and after rows
    /// were lost) cells get no updates (law 5).
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.synced_at.is_some()
    }
}

/// Fields of a stored group that a decision needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Id of the group.
    pub id: GroupId,
    /// Hash of the content.
    pub hash: ContentHash,
}

/// A complete Replace, ready to be written.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// Owner of the lock.
    pub owner: Owner,
    /// Fencing token; absent with a lock server that issues none.
    pub token: Option<FencingToken>,
    /// Stamp of the Cloud Controller.
    pub watermark: Watermark,
    /// Disables the mass removal guard.
    pub allow_mass_removal: bool,
    /// Groups that an operator accepts to be removed: these, and no others.
    pub accepted_removal: Option<Arc<BTreeSet<GroupGuid>>>,
    /// The set, with the content that the store lacked.
    pub supplied: Supplied,
    /// Current time.
    pub at: Timestamp,
    /// The sync behind it.
    pub origin: Origin,
    /// Steps in which a new generation reaches the cells; absent: all at once.
    pub rollout: Option<Arc<Plan>>,
}

/// Times and trace of a sync, as far as its writer knows them; no decision depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// When the writer noticed that the Cloud Controller's stamp had moved, by its clock.
    pub noticed_at: Option<Timestamp>,
    /// When the writer had read the whole list, by its clock.
    pub read_at: Option<Timestamp>,
    /// Trace context.
    pub trace: Option<TraceContext>,
}

/// Reason why a Replace is refused. No group is changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A newer owner of the lock has written.
    #[error(
        "fencing token {} of {owner} is older than {newest} of {writer}, which came since",
        given.map_or(0, |token| token.0)
    )]
    OldToken {
        /// Requesting owner.
        owner: Owner,
        /// Token of the request.
        given: Option<FencingToken>,
        /// Newest seen token.
        newest: FencingToken,
        /// Owner of the newest token.
        writer: Owner,
    },
    /// The token belongs to another owner.
    #[error("fencing token {token} is the one of {writer}, not of {owner}")]
    TokenOfAnother {
        /// Requesting owner.
        owner: Owner,
        /// Token of the request.
        token: FencingToken,
        /// Owner of the token.
        writer: Owner,
    },
    /// Implausible token: tokens rise by one with each owner.
    #[error(
        "fencing token {given} of {owner} is more than {most} above the newest that was seen, \
         {}: no lock server gave it",
        newest.map_or(0, |token| token.0)
    )]
    TokenTooFar {
        /// Requesting owner.
        owner: Owner,
        /// Token of the request.
        given: FencingToken,
        /// Newest seen token.
        newest: Option<FencingToken>,
        /// Largest accepted step.
        most: u64,
    },
    /// Mass removal guard; see the module.
    #[error(
        "this would remove {removed} of {stored} security groups at once, more than half: \
         refused unless the request allows mass removal"
    )]
    MassRemoval {
        /// Number of groups to remove.
        removed: usize,
        /// Number of stored groups.
        stored: usize,
    },
    /// The set changed after the writer got the list of missing groups.
    #[error("another Replace came first: {lacking} groups are missing now, start again")]
    Overtaken {
        /// Number of groups that are neither stored as announced nor supplied.
        lacking: usize,
    },
}

/// A [`Refusal`] and the state to store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}")]
pub struct Refused {
    /// Reason.
    pub refusal: Refusal,
    /// State to store despite the refusal: the writer passed the fence with a new token, so
    /// that no older token may write from now on. Absent when the state is unchanged.
    pub seen: Option<Box<State>>,
}

/// A group to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upsert {
    /// Id of the group; an existing group keeps its id.
    pub id: GroupId,
    /// Its content.
    pub group: Arc<Content>,
    /// The content's hash.
    pub hash: ContentHash,
    /// Whether the group is new.
    pub added: bool,
}

/// Changes to write. Afterwards exactly the groups of the manifest are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Previous generation.
    pub before: Point,
    /// The state afterwards.
    pub state: State,
    /// New and changed groups, ascending by id.
    pub upserts: Vec<Upsert>,
    /// Groups to remove, ascending by id.
    pub removed: Vec<(GroupId, GroupGuid)>,
    /// Number of unchanged groups.
    pub unchanged: usize,
    /// The stored watermark is higher than the received one.
    pub watermark_went_back: bool,
}

impl Decision {
    /// Whether content changed.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.state.generation != self.before.generation
    }

    /// Number of new groups.
    #[must_use]
    pub fn added(&self) -> usize {
        self.upserts.iter().filter(|upsert| upsert.added).count()
    }

    /// Number of groups with new content.
    #[must_use]
    pub fn changed(&self) -> usize {
        self.upserts.len() - self.added()
    }

    /// Guids of the groups behind the counts.
    #[must_use]
    pub fn named(&self) -> Named {
        let upserted = |added| {
            let upserts = self.upserts.iter().filter(move |upsert| upsert.added == added);
            upserts.map(|upsert| &upsert.group.guid).take(NAMED_MOST).cloned().collect()
        };
        let removed = self.removed.iter().map(|(_, guid)| guid);
        Named {
            added: upserted(true),
            changed: upserted(false),
            removed: removed.take(NAMED_MOST).cloned().collect(),
        }
    }
}

/// Limit of guids per kind in a log line.
pub const NAMED_MOST: usize = 20;

/// The guids of the first groups that a Replace changed, ascending by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named {
    /// New groups.
    pub added: Vec<GroupGuid>,
    /// Groups with new content.
    pub changed: Vec<GroupGuid>,
    /// Removed groups.
    pub removed: Vec<GroupGuid>,
}

/// Decides what a Replace writes; see the module.
///
/// # Errors
/// Refused: only [`Refused::seen`] may be written.
pub fn decide(
    state: &State,
    known: &HashMap<GroupGuid, Known>,
    write: &Replacement,
) -> Result<Decision, Refused> {
    fence(state, write).map_err(|refusal| Refused { refusal, seen: None })?;
    let refused = |refusal| Refused { refusal, seen: seen(state, write).map(Box::new) };
    let removed = removals(known, write).map_err(refused)?;
    let (upserts, unchanged) = upserts(state, known, write).map_err(refused)?;
    let is_new = !upserts.is_empty() || !removed.is_empty() || !state.is_whole();
    let last_id = upserts.iter().map(|upsert| upsert.id.0).max();
    let before = state.point();
    let (point, rollout) = if is_new {
        let (generation, stamp) = (before.generation.next(), before.stamp.next(stamp(write.at)));
        let point = Point { generation, stamp };
        (point, rolled_out(state, point, write))
    } else {
        (before, state.rollout.clone())
    };
    Ok(Decision {
        before,
        state: State {
            generation: point.generation,
            stamp: point.stamp,
            watermark: state.watermark.max(Some(write.watermark)),
            token: state.token.max(write.token),
            writer: Some(write.owner.clone()),
            synced_at: Some(in_milliseconds(write.at)),
            last_id: state.last_id.max(last_id.unwrap_or(0)),
            held: state.held.clone(),
            rollout,
        },
        upserts,
        removed,
        unchanged,
        watermark_went_back: state.watermark > Some(write.watermark),
    })
}

/// The roll-out after a new generation.
fn rolled_out(before: &State, newest: Point, write: &Replacement) -> Option<Rollout> {
    let current = before.rollout.as_ref();
    if before.held.is_some() {
        return current.cloned();
    }
    // Cells of a store without a complete set have nothing to keep.
    let plan = write.rollout.as_ref().filter(|_| before.is_whole());
    after_change(current, (before.point(), newest), plan, write.at)
}

/// Times out of range are clamped.
fn stamp(at: Timestamp) -> Stamp {
    Stamp(i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX))
}

/// Checks that the token is plausible: at most `most` above the newest token. A single
/// writer with an invalid token would fence all others forever.
///
/// # Errors
/// [`Refusal::TokenTooFar`].
pub fn plausible(
    state: &State,
    owner: &Owner,
    token: Option<FencingToken>,
    most: Option<u64>,
) -> Result<(), Refusal> {
    let (Some(given), Some(most)) = (token, most) else { return Ok(()) };
    let newest = state.token;
    let highest = newest.map_or(0, |token| token.0).saturating_add(most);
    if given.0 <= highest {
        return Ok(());
    }
    Err(Refusal::TokenTooFar { owner: owner.clone(), given, newest, most })
}

/// Checks that this writer may write after the previous one.
fn fence(state: &State, write: &Replacement) -> Result<(), Refusal> {
    let (Some(newest), Some(writer)) = (state.token, &state.writer) else {
        return Ok(());
    };
    let owner = &write.owner;
    match write.token {
        Some(token) if token > newest => Ok(()),
        Some(token) if token == newest && owner == writer => Ok(()),
        Some(token) if token == newest => {
            Err(Refusal::TokenOfAnother { owner: owner.clone(), token, writer: writer.clone() })
        }
        given => {
            Err(Refusal::OldToken { owner: owner.clone(), given, newest, writer: writer.clone() })
        }
    }
}

/// State with a new token that passed the fence.
fn seen(state: &State, write: &Replacement) -> Option<State> {
    let is_new = write.token > state.token;
    is_new.then(|| State { token: write.token, writer: Some(write.owner.clone()), ..state.clone() })
}

fn removals(
    known: &HashMap<GroupGuid, Known>,
    write: &Replacement,
) -> Result<Vec<(GroupId, GroupGuid)>, Refusal> {
    let manifest = &write.supplied.manifest;
    let mut removed: Vec<_> = known
        .iter()
        .filter(|(guid, _)| !manifest.names(guid))
        .map(|(guid, known)| (known.id, guid.clone()))
        .collect();
    let stored = known.len();
    let is_accepted = write.accepted_removal.as_deref().is_some_and(|accepted| {
        accepted.len() == removed.len() && removed.iter().all(|(_, guid)| accepted.contains(guid))
    });
    let is_allowed = write.allow_mass_removal || is_accepted;
    if stored >= GUARDED_FROM && removed.len() * 2 > stored && !is_allowed {
        return Err(Refusal::MassRemoval { removed: removed.len(), stored });
    }
    removed.sort_unstable();
    Ok(removed)
}

fn upserts(
    state: &State,
    known: &HashMap<GroupGuid, Known>,
    write: &Replacement,
) -> Result<(Vec<Upsert>, usize), Refusal> {
    let Supplied { manifest, groups } = &write.supplied;
    let (mut upserts, mut unchanged, mut lacking) = (Vec::new(), 0, 0);
    let mut last_id = state.last_id;
    for (guid, hash) in manifest.entries() {
        let stored = known.get(guid);
        if stored.is_some_and(|stored| stored.hash == *hash) {
            unchanged += 1;
            continue;
        }
        let Some(group) = groups.get(guid) else {
            lacking += 1;
            continue;
        };
        let id = stored.map_or_else(
            || {
                last_id += 1;
                GroupId(last_id)
            },
            |stored| stored.id,
        );
        let (group, added) = (Arc::clone(group), stored.is_none());
        upserts.push(Upsert { id, group, hash: *hash, added });
    }
    if lacking > 0 {
        return Err(Refusal::Overtaken { lacking });
    }
    upserts.sort_unstable_by_key(|upsert| upsert.id);
    Ok((upserts, unchanged))
}
