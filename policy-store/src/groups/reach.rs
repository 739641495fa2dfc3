//! Spaces that a group applies to.

use std::collections::BTreeSet;

use model::ids::SpaceGuid;

use super::content::Content;

/// Spaces that a group applies to.
#[derive(Debug, PartialEq, Eq)]
pub struct Reach {
    is_global: bool,
    /// Ascending and unique.
    spaces: Box<[SpaceGuid]>,
}

impl Reach {
    /// All spaces, or only these.
    #[must_use]
    pub fn new(is_global: bool, spaces: BTreeSet<SpaceGuid>) -> Self {
        Self { is_global, spaces: spaces.into_iter().collect() }
    }

    pub(crate) fn of(group: &Content, shared: impl Fn(&SpaceGuid) -> SpaceGuid) -> Self {
        Self { is_global: group.is_global(), spaces: group.bound_spaces().map(shared).collect() }
    }

    /// Whether the group applies to all spaces.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.is_global
    }

    /// The spaces that the group is bound to, in either lifecycle.
    #[must_use]
    pub fn spaces(&self) -> &[SpaceGuid] {
        &self.spaces
    }

    /// Whether the group applies to any space for which `has` returns true.
    pub fn concerns(&self, has: impl Fn(&SpaceGuid) -> bool) -> bool {
        self.is_global || self.spaces.iter().any(has)
    }
}
