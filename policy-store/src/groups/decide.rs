//! What a Replace does, or why it must not happen.
//!
//! [`decide`] is a pure function from what is stored and what is asked to what
//! is to be written. Every store calls it inside the transaction that writes,
//! on what that transaction reads, so it is the one place of these rules:
//!
//! - **Fencing (law 3).** A writer whose token is older than the newest that
//!   wrote is refused; so is another owner with the same token, since a token
//!   belongs to one owner. No token at all, as with a lock server that gives
//!   none, is older than any token: such writers are welcome only while no
//!   writer with a token was ever seen, and are not fenced from each other.
//!   A token counts from when it passed the fence, also when its Replace is
//!   then refused for another reason: see [`Refused::seen`].
//! - **Mass removal.** More than half of [`GUARDED_FROM`] or more groups are not
//!   removed unless the writer says that it means it: a Cloud Controller that
//!   answers with an empty list by mistake must not cut off a foundation.
//! - **Generation (law 4).** It rises by one when content changes and stays
//!   otherwise. The first Replace always raises it, also when it is empty:
//!   generation 0 means that nothing was ever synced. So does the first after rows
//!   were lost. Each has a stamp, which rises with it.
//! - **Watermark (law 4).** It never goes back. When the Cloud Controller's
//!   stamp does (its database was restored, say), the content is taken all the
//!   same, since it is what the Cloud Controller says now, and the higher
//!   watermark stays.
//! - **Ids** ascend from 1 in the order of first arrival, are kept while a group
//!   lives, and are never given again.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use model::{
    generation::{Generation, Point, Stamp, Watermark},
    group::{ContentHash, GroupId},
    ids::GroupGuid,
    lock::{FencingToken, Owner},
};

use super::{content::Content, manifest::Supplied};

/// The mass removal guard looks at sets of so many groups or more.
pub const GUARDED_FROM: usize = 50;

/// Everything that is stored beside the groups. Changed by a Replace only, all
/// of it by one that is confirmed, token and writer also by a refused one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// 0 before the first Replace.
    pub generation: Generation,
    /// When that was made: when content changed last, as far as cells care.
    pub stamp: Stamp,
    /// The highest one that came; absent before the first Replace.
    pub watermark: Option<Watermark>,
    /// The newest token that was seen, also when what it came with was refused;
    /// absent while all writers came without.
    pub token: Option<FencingToken>,
    /// Whose token that is; who wrote last while there is none.
    pub writer: Option<Owner>,
    /// When the last Replace was confirmed, also one that changed nothing; by
    /// this machine's clock. Absent before the first, and after rows were lost.
    pub synced_at: Option<Timestamp>,
    /// The highest [`GroupId`] that was ever given; 0 before the first.
    pub last_id: u64,
}

impl State {
    /// The generation, and which one of that number.
    #[must_use]
    pub fn point(&self) -> Point {
        Point { generation: self.generation, stamp: self.stamp }
    }

    /// Whether a whole set was stored and is there still. Before the first Replace, and
    /// after rows were lost, cells are told nothing (law 5).
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.synced_at.is_some()
    }
}

/// A stored group, as far as a decision needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its place.
    pub id: GroupId,
    /// Its content.
    pub hash: ContentHash,
}

/// A Replace that is complete and asks to be written.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// Who writes.
    pub owner: Owner,
    /// By which right; absent when the lock server gives none.
    pub token: Option<FencingToken>,
    /// What the Cloud Controller's stamp was.
    pub watermark: Watermark,
    /// Switches the mass removal guard off.
    pub allow_mass_removal: bool,
    /// The set, with the content that the store lacked.
    pub supplied: Supplied,
    /// The time of day.
    pub at: Timestamp,
}

/// Why a Replace does not happen. No group is changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A newer owner of the lock was here.
    #[error(
        "fencing token {} of {owner} is older than {newest} of {writer}, which came since",
        given.map_or(0, |token| token.0)
    )]
    OldToken {
        /// Who asks.
        owner: Owner,
        /// With which token.
        given: Option<FencingToken>,
        /// The newest token that was seen.
        newest: FencingToken,
        /// Whose it is.
        writer: Owner,
    },
    /// A token belongs to one owner.
    #[error("fencing token {token} is the one of {writer}, not of {owner}")]
    TokenOfAnother {
        /// Who asks.
        owner: Owner,
        /// With which token.
        token: FencingToken,
        /// Whose it is.
        writer: Owner,
    },
    /// A token that no lock server gave: tokens rise by one with each owner.
    #[error(
        "fencing token {given} of {owner} is more than {most} above the newest that was seen, \
         {}: no lock server gave it",
        newest.map_or(0, |token| token.0)
    )]
    TokenTooFar {
        /// Who asks.
        owner: Owner,
        /// With which token.
        given: FencingToken,
        /// The newest token that was seen.
        newest: Option<FencingToken>,
        /// The largest step that is believed.
        most: u64,
    },
    /// The guard; see the module.
    #[error(
        "this would remove {removed} of {stored} security groups at once, more than half: \
         refused unless the request allows mass removal"
    )]
    MassRemoval {
        /// How many would go.
        removed: usize,
        /// How many there are.
        stored: usize,
    },
    /// The set changed after the writer was told what is missing.
    #[error("another Replace came first: {lacking} groups are missing now, start again")]
    Overtaken {
        /// How many groups are neither stored as promised nor supplied.
        lacking: usize,
    },
}

/// A [`Refusal`], and what it leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}")]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The state to store all the same: the writer passed the fence and has a
    /// token that is new, so that no older one may write from now on. Absent
    /// when the state stays as it is.
    pub seen: Option<Box<State>>,
}

/// A group to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upsert {
    /// Its place; the one it has, if it is there.
    pub id: GroupId,
    /// Its content.
    pub group: Arc<Content>,
    /// The content's hash.
    pub hash: ContentHash,
    /// Not there before.
    pub added: bool,
}

/// What to write. After it, exactly the manifest's groups are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The generation that this follows.
    pub before: Point,
    /// The state afterwards.
    pub state: State,
    /// New and changed groups, ascending by id.
    pub upserts: Vec<Upsert>,
    /// Groups to remove, ascending by id.
    pub removed: Vec<(GroupId, GroupGuid)>,
    /// How many stay as they are.
    pub unchanged: usize,
    /// The stored watermark is higher than the one that came.
    pub watermark_went_back: bool,
}

impl Decision {
    /// Whether content changed.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.state.generation != self.before.generation
    }

    /// How many groups are new.
    #[must_use]
    pub fn added(&self) -> usize {
        self.upserts.iter().filter(|upsert| upsert.added).count()
    }

    /// How many groups have new content.
    #[must_use]
    pub fn changed(&self) -> usize {
        self.upserts.len() - self.added()
    }

    /// The groups behind the counts.
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

/// How many groups of each kind a log line names.
pub const NAMED_MOST: usize = 20;

/// The guids of the first groups that a Replace changed, ascending by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named {
    /// New groups.
    pub added: Vec<GroupGuid>,
    /// Groups with new content.
    pub changed: Vec<GroupGuid>,
    /// Groups that went.
    pub removed: Vec<GroupGuid>,
}

/// See the module.
///
/// # Errors
/// Refused: nothing may be written then but [`Refused::seen`].
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
    Ok(Decision {
        before: state.point(),
        state: State {
            generation: if is_new { state.generation.next() } else { state.generation },
            stamp: if is_new { state.stamp.next(stamp(write.at)) } else { state.stamp },
            watermark: state.watermark.max(Some(write.watermark)),
            token: state.token.max(write.token),
            writer: Some(write.owner.clone()),
            synced_at: Some(in_milliseconds(write.at)),
            last_id: state.last_id.max(last_id.unwrap_or(0)),
        },
        upserts,
        removed,
        unchanged,
        watermark_went_back: state.watermark > Some(write.watermark),
    })
}

/// Clocks that are centuries off stay at the end of what fits.
fn stamp(at: Timestamp) -> Stamp {
    Stamp(i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX))
}

/// As precise as every store keeps it.
fn in_milliseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at)
}

/// Whether a lock server can have given this token, as one that is at most `most` above
/// the newest token. One writer with a senseless token would fence all others for ever.
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

/// Whether this writer may write after the one before.
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

/// The state with a token that passed the fence and is new.
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
    if stored >= GUARDED_FROM && removed.len() * 2 > stored && !write.allow_mass_removal {
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
