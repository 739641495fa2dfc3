//! State of one watcher, and the next update to send.
//!
//! A watcher is a cursor: the last sent generation and the watched spaces. It has no
//! queue. When the stream can send, [`Cursor::advance`] compares the last sent state
//! with the newest snapshot and skips the generations in between. The difference is
//! exact: applying all [`Update`]s in order gives the same groups as a new list of all
//! groups.

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

/// Limit of spaces per cell: far more than containers fit on one.
pub const MAX_SPACES: usize = 10_000;

/// Reason why a subscription is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Sequence numbers rise, so that an update can name the last included one.
    #[error("subscription sequence {sequence} does not rise above {before}")]
    SequenceDoesNotRise {
        /// Received sequence number.
        sequence: u64,
        /// Previous sequence number; 0 at first.
        before: u64,
    },
    /// Beyond [`MAX_SPACES`].
    #[error("more than {MAX_SPACES} spaces")]
    TooManySpaces,
}

/// Update that brings a watcher with its spaces to `point`.
#[derive(Debug)]
pub struct Update {
    /// Generation after the update.
    pub point: Point,
    /// Newest included Subscribe; 0 when only Hello is included.
    pub sequence: u64,
    /// Discard all groups first: the update is the complete state.
    pub reset: bool,
    /// New and changed groups, ascending by id.
    pub upserted: Vec<Arc<Entry>>,
    /// Groups that were deleted or no longer apply to the watched spaces.
    pub removed: Vec<GroupGuid>,
}

/// State of one watcher; see the module.
#[derive(Debug)]
pub struct Cursor {
    /// Watched spaces.
    spaces: HashSet<SpaceGuid>,
    /// Spaces added since the last update.
    added: HashSet<SpaceGuid>,
    /// Spaces dropped since the last update.
    dropped: HashSet<SpaceGuid>,
    /// Last sent generation; `None` before the first update.
    sent: Option<Point>,
    /// Newest received Subscribe, and the newest included in an update.
    sequence: u64,
    acknowledged: u64,
    /// Hello was answered: every Hello gets a response.
    is_greeted: bool,
}

impl Cursor {
    /// Creates a watcher that has the groups of these spaces as of `known`, if present. The
    /// first update is the difference, or the complete state where the history does not
    /// reach back to `known`.
    ///
    /// # Errors
    /// Too many spaces.
    pub fn new(spaces: HashSet<SpaceGuid>, known: Option<Point>) -> Result<Self, Error> {
        let cursor = Self {
            spaces,
            added: HashSet::new(),
            dropped: HashSet::new(),
            sent: known,
            sequence: 0,
            acknowledged: 0,
            is_greeted: false,
        };
        cursor.check()
    }

    /// The last sent generation, or the one that the cell came with.
    #[must_use]
    pub fn sent(&self) -> Option<Point> {
        self.sent
    }

    fn check(self) -> Result<Self, Error> {
        match self.spaces.len() > MAX_SPACES {
            true => Err(Error::TooManySpaces),
            false => Ok(self),
        }
    }

    /// Changes the watched spaces. A space that is both dropped and added stays.
    ///
    /// # Errors
    /// Too many spaces, or a sequence number that does not rise: the watcher is invalid
    /// and must not get further updates.
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

    /// The next update for the newest snapshot; marks it as sent. `None`: the watcher is up
    /// to date, or the store is empty. Before the first Replace, and after the store lost
    /// its rows, an empty update would remove valid rules from the cell (law 5).
    pub fn advance(&mut self, snapshot: &Snapshot) -> Option<Update> {
        let point = snapshot.point();
        let is_current =
            self.is_greeted && self.sent == Some(point) && self.acknowledged == self.sequence;
        if is_current || !snapshot.state.is_whole() {
            return None;
        }
        let difference = self.sent.and_then(|sent| self.difference(sent, snapshot));
        let (reset, upserted, removed) = match difference {
            Some((upserted, removed)) => (false, upserted, removed),
            None => (true, self.everything(snapshot), Vec::new()),
        };
        self.sent = Some(point);
        self.is_greeted = true;
        self.acknowledged = self.sequence;
        self.added = HashSet::new();
        self.dropped = HashSet::new();
        Some(Update { point, sequence: self.sequence, reset, upserted, removed })
    }

    fn everything(&self, snapshot: &Snapshot) -> Vec<Arc<Entry>> {
        snapshot.concerning(&self.spaces, GroupId(0)).into_iter().cloned().collect()
    }

    /// `None`: the history of the snapshot does not reach back that far.
    fn difference(
        &self,
        sent: Point,
        snapshot: &Snapshot,
    ) -> Option<(Vec<Arc<Entry>>, Vec<GroupGuid>)> {
        // Where a group changed more than once, the first change has the spaces that applied
        // at the last update.
        let mut candidates: BTreeMap<GroupId, Candidate<'_>> = BTreeMap::new();
        for change in snapshot.history().since(sent)? {
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
        // A group that was deleted and recreated has a new id and its old guid.
        let again: HashSet<&GroupGuid> = upserted.iter().map(|entry| &entry.guid).collect();
        removed.retain(|guid| !again.contains(guid));
        Some((upserted, removed))
    }

    /// Whether the watcher had this space at the last update.
    fn had(&self, space: &SpaceGuid) -> bool {
        self.dropped.contains(space) || (self.spaces.contains(space) && !self.added.contains(space))
    }
}

/// A group that may differ from the last sent state of the watcher.
struct Candidate<'a> {
    guid: &'a GroupGuid,
    before: Option<&'a Reach>,
    has_changed: bool,
}
