//! Whom a group concerns.

use std::collections::BTreeSet;

use model::ids::SpaceGuid;

use super::content::Content;

/// Whom a group concerns.
#[derive(Debug, PartialEq, Eq)]
pub struct Reach {
    is_global: bool,
    /// Ascending, each once.
    spaces: Box<[SpaceGuid]>,
}

impl Reach {
    /// Everybody, or whoever has containers in one of these spaces.
    #[must_use]
    pub fn new(is_global: bool, spaces: BTreeSet<SpaceGuid>) -> Self {
        Self { is_global, spaces: spaces.into_iter().collect() }
    }

    pub(super) fn of(group: &Content, shared: impl Fn(&SpaceGuid) -> SpaceGuid) -> Self {
        Self { is_global: group.is_global(), spaces: group.bound_spaces().map(shared).collect() }
    }

    /// Whether it concerns everybody.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.is_global
    }

    /// The spaces it is bound to, in either lifecycle.
    #[must_use]
    pub fn spaces(&self) -> &[SpaceGuid] {
        &self.spaces
    }

    /// Whether it concerns somebody who has containers in the spaces that `has`
    /// says yes to.
    pub fn concerns(&self, has: impl Fn(&SpaceGuid) -> bool) -> bool {
        self.is_global || self.spaces.iter().any(has)
    }
}
