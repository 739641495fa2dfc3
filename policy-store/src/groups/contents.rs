//! Everything that a store keeps of the groups.

use model::{
    generation::Point,
    group::{ContentHash, StoredGroup},
    ids::CellId,
};

use super::{decide::State, history::Past};
use crate::reports::Report;

/// A stored group and the hash of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed {
    /// The group.
    pub stored: StoredGroup,
    /// Its content's hash.
    pub hash: ContentHash,
}

/// Everything that is stored, or what changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// What is stored beside the groups.
    pub state: State,
    /// The generation that this is the difference to; absent when this is
    /// everything.
    pub since: Option<Point>,
    /// Ascending by id. Of a difference, those that were added or changed and
    /// are there still.
    pub groups: Vec<Hashed>,
    /// What the last Replaces changed. Of a difference, those after `since`.
    pub past: Past,
    /// What each cell said last, by cell; of a difference, nothing.
    pub reports: Vec<(CellId, Report)>,
}
