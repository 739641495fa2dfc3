//! The stored history of the generations.

mod groups;
pub(super) mod queries;
mod rows;
mod sql;

use std::sync::Arc;

use model::generation::Generation;

use super::Answer;
use crate::groups::archive::{Bounds, Numbered, OperatorDecision, Query, Reached, Undo};

/// The history of a store; see [`crate::groups::archive`].
///
/// Contract:
/// - [`Store::replace`](super::Store::replace) adds the entry of a new generation, and the
///   previous contents of the changed groups, in its own transaction. The import of a set into
///   an empty store, and the first set after rows were lost, have an entry without groups:
///   [`Archive::undo`] does not reach beyond them.
/// - Entries are never changed. [`Archive::prune`] drops the oldest.
/// - A lost or incomplete history never fails a Replace, and never leads to a wrong set:
///   [`Archive::undo`] then has no answer.
pub trait Archive: Send + Sync {
    /// The selected entries, the newest first.
    fn entries(&self, query: Query) -> Answer<'_, Vec<Numbered>>;

    /// What leads from the set of generation `from` to that of the older generation `to`.
    /// `None`: the store does not remember all generations in between.
    fn undo(&self, from: Generation, to: Generation) -> Answer<'_, Option<Undo>>;

    /// Adds the entry of a decision.
    fn record(&self, decision: Arc<OperatorDecision>) -> Answer<'_, ()>;

    /// Stores how the cells of one instance got these generations; `instance` is unique. What
    /// the instance stored before stays.
    fn save_progress(
        &self,
        instance: Arc<str>,
        progress: Arc<[(Generation, Reached)]>,
    ) -> Answer<'_, ()>;

    /// Drops some of the oldest entries and contents beyond the limits, in a transaction that is
    /// short. Returns whether there may be more.
    fn prune(&self, bounds: Bounds) -> Answer<'_, bool>;
}
