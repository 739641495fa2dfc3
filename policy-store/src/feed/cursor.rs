//! Where one watcher stands, and what it has to be told next.
//!
//! A watcher is a cursor: the generation it was told and the spaces it has.
//! Nothing queues up for it. Whenever it can take more, [`Cursor::advance`]
//! compares what it was told with the newest snapshot; what happened in
//! between is skipped. The difference is exact: applying each [`Update`] in
//! turn gives the same groups as asking for all of them anew.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use model::{
    generation::Point,
    group::GroupId,
    ids::{GroupGuid, SpaceGuid},
};

use crate::groups::{
    reach::Reach,
    snapshot::{Entry, Snapshot},
};

/// How many spaces one cell may have: far more than containers fit on one.
pub const MAX_SPACES: usize = 10_000;

/// Why a subscription is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Sequences rise, so that an answer says what it includes.
    #[error("subscription sequence {sequence} does not rise above {before}")]
    SequenceDoesNotRise {
        /// What came.
        sequence: u64,
        /// What came before; 0 at first.
        before: u64,
    },
    /// Beyond [`MAX_SPACES`].
    #[error("more than {MAX_SPACES} spaces")]
    TooManySpaces,
}

/// What a watcher has to be told, to be at `generation` with its spaces.
#[derive(Debug)]
pub struct Update {
    /// The generation that it is at afterwards.
    pub point: Point,
    /// The newest Subscribe that is included; 0 when only Hello.
    pub sequence: u64,
    /// Forget everything: this is all there is.
    pub reset: bool,
    /// New and changed groups, ascending by id.
    pub upserted: Vec<Arc<Entry>>,
    /// Groups that are gone or do not concern it any longer.
    pub removed: Vec<GroupGuid>,
}

/// See the module.
#[derive(Debug)]
pub struct Cursor {
    /// The spaces it has.
    spaces: HashSet<SpaceGuid>,
    /// Those that came since it was told anything.
    added: HashSet<SpaceGuid>,
    /// Those that went since.
    dropped: HashSet<SpaceGuid>,
    /// What it was told; `None` before the first state.
    told: Option<Point>,
    /// The newest Subscribe, and the newest that it was told of.
    sequence: u64,
    acknowledged: u64,
    /// It got an answer: one is due to each Hello.
    is_greeted: bool,
}

impl Cursor {
    /// A watcher that has the groups of these spaces as they were at `known`, if
    /// anything. It is told what it missed, or everything where that is not
    /// remembered any more.
    ///
    /// # Errors
    /// Too many spaces.
    pub fn new(spaces: HashSet<SpaceGuid>, known: Option<Point>) -> Result<Self, Error> {
        let cursor = Self {
            spaces,
            added: HashSet::new(),
            dropped: HashSet::new(),
            told: known,
            sequence: 0,
            acknowledged: 0,
            is_greeted: false,
        };
        cursor.check()
    }

    fn check(self) -> Result<Self, Error> {
        match self.spaces.len() > MAX_SPACES {
            true => Err(Error::TooManySpaces),
            false => Ok(self),
        }
    }

    /// Its spaces change. A space that is both dropped and added stays.
    ///
    /// # Errors
    /// Too many spaces, or a sequence that does not rise: the watcher is
    /// broken, nothing more should be told to it.
    pub fn subscribe(
        &mut self,
        sequence: u64,
        add: Vec<SpaceGuid>,
        drop: &[SpaceGuid],
    ) -> Result<(), Error> {
        if sequence <= self.sequence {
            return Err(Error::SequenceDoesNotRise { sequence, before: self.sequence });
        }
        self.sequence = sequence;
        for space in drop {
            if let Some(space) = self.spaces.take(space)
                && !self.added.remove(&space)
            {
                self.dropped.insert(space);
            }
        }
        for space in add {
            if self.spaces.insert(space.clone()) && !self.dropped.remove(&space) {
                self.added.insert(space);
            }
        }
        match self.spaces.len() > MAX_SPACES {
            true => Err(Error::TooManySpaces),
            false => Ok(()),
        }
    }

    /// What has to be told, given the newest snapshot; the watcher counts as
    /// told then. `None`: nothing, since it knows everything, or since the store
    /// itself knows nothing: before the first Replace, and after it lost its rows, an
    /// empty answer would strip the cell of rules that are still good (law 5).
    pub fn advance(&mut self, snapshot: &Snapshot) -> Option<Update> {
        let point = snapshot.point();
        let is_current =
            self.is_greeted && self.told == Some(point) && self.acknowledged == self.sequence;
        if is_current || !snapshot.state.is_whole() {
            return None;
        }
        let difference = self.told.and_then(|told| self.difference(told, snapshot));
        let (reset, upserted, removed) = match difference {
            Some((upserted, removed)) => (false, upserted, removed),
            None => (true, self.everything(snapshot), Vec::new()),
        };
        self.told = Some(point);
        self.is_greeted = true;
        self.acknowledged = self.sequence;
        self.added = HashSet::new();
        self.dropped = HashSet::new();
        Some(Update { point, sequence: self.sequence, reset, upserted, removed })
    }

    fn everything(&self, snapshot: &Snapshot) -> Vec<Arc<Entry>> {
        snapshot.concerning(&self.spaces, GroupId(0)).into_iter().cloned().collect()
    }

    /// `None`: the snapshot does not know that far back.
    fn difference(
        &self,
        told: Point,
        snapshot: &Snapshot,
    ) -> Option<(Vec<Arc<Entry>>, Vec<GroupGuid>)> {
        // Where a group changed more than once, the first change knows whom it
        // concerned when the watcher was told last.
        let mut candidates: BTreeMap<GroupId, Candidate<'_>> = BTreeMap::new();
        for change in snapshot.history().since(told)? {
            candidates.entry(change.id).or_insert_with(|| Candidate {
                guid: &change.guid,
                before: change.before.as_deref(),
                has_changed: true,
            });
        }
        for space in self.added.iter().chain(&self.dropped) {
            for entry in snapshot.bound_to(space) {
                candidates.entry(entry.id).or_insert_with(|| Candidate {
                    guid: &entry.guid,
                    before: Some(&entry.reach),
                    has_changed: false,
                });
            }
        }
        let (mut upserted, mut removed) = (Vec::<Arc<Entry>>::new(), Vec::new());
        for (id, Candidate { guid, before, has_changed }) in candidates {
            let did_concern = before.is_some_and(|reach| reach.concerns(|space| self.had(space)));
            let entry = snapshot
                .get(id)
                .filter(|entry| entry.reach.concerns(|space| self.spaces.contains(space)));
            match entry {
                Some(entry) if has_changed || !did_concern => upserted.push(Arc::clone(entry)),
                None if did_concern => removed.push(guid.clone()),
                Some(_) | None => {}
            }
        }
        // A group that was deleted and made again has a new id and its old guid.
        let again: HashSet<&GroupGuid> = upserted.iter().map(|entry| &entry.guid).collect();
        removed.retain(|guid| !again.contains(guid));
        Some((upserted, removed))
    }

    /// Whether the watcher had this space when it was told last.
    fn had(&self, space: &SpaceGuid) -> bool {
        self.dropped.contains(space) || (self.spaces.contains(space) && !self.added.contains(space))
    }
}

/// A group whose standing with the watcher may differ from what it was told.
struct Candidate<'a> {
    guid: &'a GroupGuid,
    before: Option<&'a Reach>,
    has_changed: bool,
}
