//! Stored content of a policy store.

use std::sync::Arc;

use model::{
    generation::Point,
    group::{ContentHash, GroupId},
    ids::CellId,
};

use super::{content::Content, decide::State, history::Past};
use crate::reports::Report;

/// A stored group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Id of the group.
    pub id: GroupId,
    /// Its content.
    pub group: Arc<Content>,
    /// Hash of the content.
    pub hash: ContentHash,
}

/// The complete stored content, or the changes since a generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// State stored beside the groups.
    pub state: State,
    /// Generation that the difference is based on; absent for the complete content.
    pub since: Option<Point>,
    /// Ascending by id. In a difference: groups that were added or changed and still exist.
    pub groups: Vec<Stored>,
    /// Changes of the last Replaces. In a difference: those after `since`.
    pub past: Past,
    /// Last report of each cell; empty in a difference.
    pub reports: Vec<(CellId, Report)>,
}
