//! Manifest of a Replace and the groups supplied for it, before any write.
//!
//! A Replace collects a [`Manifest`], determines which of its groups the store lacks
//! ([`Expected`]), and receives exactly those, each with the announced content. The
//! store is not modified: a disconnected writer leaves no trace.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use model::{
    group::{ContentHash, SecurityGroup},
    ids::GroupGuid,
};

use super::content::{Content, SharedSpaces};

/// Limit of groups in a set; more than six times the largest known landscape.
pub const MAX_GROUPS: usize = 100_000;
/// Size limit of an encoded group, in bytes: more than the Cloud Controller's column for
/// the rules of a group can hold.
pub const MAX_GROUP_BYTES: usize = 16 << 20;
/// Limit of encoded bytes that one Replace may supply.
pub const MAX_SUPPLIED_BYTES: usize = 512 << 20;

/// Reason why the input is not a valid set of groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More than [`MAX_GROUPS`].
    #[error("the manifest names more than {MAX_GROUPS} groups")]
    TooManyGroups,
    /// Duplicate guid in the manifest.
    #[error("the manifest names group {0} twice")]
    Duplicate(GroupGuid),
    /// A group that was not requested, or was received already.
    #[error("group {0} was not asked for")]
    NotAskedFor(GroupGuid),
    /// A group whose content does not match the manifest.
    #[error("group {guid} has content {actual:?}, the manifest promised {promised:?}")]
    NotAsPromised {
        /// Guid of the group.
        guid: GroupGuid,
        /// Its hash in the manifest.
        promised: ContentHash,
        /// Hash of the received content.
        actual: ContentHash,
    },
    /// A group larger than [`MAX_GROUP_BYTES`].
    #[error("group {guid} has {bytes} bytes, at most {MAX_GROUP_BYTES} are allowed")]
    TooLarge {
        /// Guid of the group.
        guid: GroupGuid,
        /// Its encoded size.
        bytes: usize,
    },
    /// All groups together exceed [`MAX_SUPPLIED_BYTES`].
    #[error("more than {MAX_SUPPLIED_BYTES} bytes of groups in one request")]
    TooMuch,
    /// Commit before all missing groups were received.
    #[error("commit before {missing} of the missing groups came, such as {example}")]
    Incomplete {
        /// Number of groups not received.
        missing: usize,
        /// First of them.
        example: GroupGuid,
    },
}

/// Groups of the new set, in the writer's order, and their hashes. Guids are unique.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    entries: Vec<(GroupGuid, ContentHash)>,
    guids: HashSet<GroupGuid>,
}

impl Manifest {
    /// Adds the next entry.
    ///
    /// # Errors
    /// Duplicate guid, or too many groups.
    pub fn push(&mut self, guid: GroupGuid, hash: ContentHash) -> Result<(), Error> {
        if self.entries.len() >= MAX_GROUPS {
            return Err(Error::TooManyGroups);
        }
        if !self.guids.insert(guid.clone()) {
            return Err(Error::Duplicate(guid));
        }
        self.entries.push((guid, hash));
        Ok(())
    }

    /// The entries in the writer's order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &(GroupGuid, ContentHash)> {
        self.entries.iter()
    }

    /// Whether the set has this group.
    #[must_use]
    pub fn names(&self, guid: &GroupGuid) -> bool {
        self.guids.contains(guid)
    }

    /// Ends the manifest; returns the groups to supply, given the stored groups.
    #[must_use]
    pub fn expect(self, stored: impl Fn(&GroupGuid) -> Option<ContentHash>) -> Expected {
        let missing = self
            .entries
            .iter()
            .filter(|(guid, hash)| stored(guid) != Some(*hash))
            .cloned()
            .collect();
        Expected { manifest: self, missing, ..Expected::default() }
    }
}

/// A complete manifest and its missing groups.
#[derive(Debug, Default)]
pub struct Expected {
    manifest: Manifest,
    missing: HashMap<GroupGuid, ContentHash>,
    supplied: HashMap<GroupGuid, Arc<Content>>,
    spaces: SharedSpaces,
    bytes: usize,
}

/// A manifest with the groups that the store lacked.
#[derive(Debug, Clone, Default)]
pub struct Supplied {
    /// The set.
    pub manifest: Manifest,
    /// The supplied content, as announced.
    pub groups: HashMap<GroupGuid, Arc<Content>>,
}

impl Expected {
    /// The missing groups, in the writer's order.
    #[must_use]
    pub fn missing(&self) -> Vec<GroupGuid> {
        let entries = self.manifest.entries.iter().map(|(guid, _)| guid);
        entries.filter(|guid| self.missing.contains_key(guid)).cloned().collect()
    }

    /// Adds a supplied group. `bytes` is its encoded size.
    ///
    /// # Errors
    /// Not requested, not as announced, or beyond a limit.
    pub fn supply(&mut self, mut group: SecurityGroup, bytes: usize) -> Result<(), Error> {
        let guid = group.guid.clone();
        if bytes > MAX_GROUP_BYTES {
            return Err(Error::TooLarge { guid, bytes });
        }
        self.bytes += bytes;
        if self.bytes > MAX_SUPPLIED_BYTES {
            return Err(Error::TooMuch);
        }
        let Some(promised) = self.missing.remove(&guid) else {
            return Err(Error::NotAskedFor(guid));
        };
        let actual = group.content_hash();
        if actual != promised {
            return Err(Error::NotAsPromised { guid, promised, actual });
        }
        self.spaces.share_all(&mut group);
        self.supplied.insert(guid, Arc::new(group.into()));
        Ok(())
    }

    /// Ends the supply.
    ///
    /// # Errors
    /// A group is missing.
    pub fn complete(self) -> Result<Supplied, Error> {
        if let Some(example) = self.missing().into_iter().next() {
            return Err(Error::Incomplete { missing: self.missing.len(), example });
        }
        Ok(Supplied { manifest: self.manifest, groups: self.supplied })
    }
}

#[cfg(test)]
mod tests {
    use model::group::Scope;

    use super::*;

    fn guid(text: &str) -> GroupGuid {
        GroupGuid::parse(text).unwrap()
    }

    fn group(text: &str) -> SecurityGroup {
        SecurityGroup {
            guid: guid(text),
            name: text.to_owned(),
            rules: Vec::new(),
            running: Scope::default(),
            staging: Scope::default(),
        }
    }

    fn manifest(groups: &[SecurityGroup]) -> Manifest {
        let mut manifest = Manifest::default();
        for group in groups {
            manifest.push(group.guid.clone(), group.content_hash()).unwrap();
        }
        manifest
    }

    #[test]
    fn a_guid_stands_once() {
        let mut manifest = manifest(&[group("a")]);
        let again = manifest.push(guid("a"), ContentHash([0; 32]));
        assert_eq!(again.unwrap_err().to_string(), "the manifest names group a twice");
    }

    #[test]
    fn too_many_groups_are_refused() {
        let mut manifest = Manifest::default();
        for index in 0..MAX_GROUPS {
            manifest.push(guid(&index.to_string()), ContentHash([0; 32])).unwrap();
        }
        assert_eq!(manifest.push(guid("x"), ContentHash([0; 32])), Err(Error::TooManyGroups));
    }

    #[test]
    fn only_what_differs_is_missing_in_the_writers_order() {
        let (a, b, c) = (group("a"), group("b"), group("c"));
        let stored = HashMap::from([
            (b.guid.clone(), b.content_hash()),
            (a.guid.clone(), ContentHash([0; 32])),
        ]);
        let expected = manifest(&[c, b, a]).expect(|guid| stored.get(guid).copied());
        assert_eq!(expected.missing(), [guid("c"), guid("a")]);
    }

    #[test]
    fn what_was_not_asked_for_or_promised_is_refused() {
        let (a, b) = (group("a"), group("b"));
        let mut expected = manifest(&[a.clone(), b.clone()])
            .expect(|guid| (guid == &b.guid).then(|| b.content_hash()));
        let stored = expected.supply(b.clone(), 10).unwrap_err();
        assert_eq!(stored.to_string(), "group b was not asked for");
        let mut other = a.clone();
        other.name.push('x');
        let error = expected.supply(other, 10).unwrap_err();
        assert!(matches!(error, Error::NotAsPromised { .. }), "{error}");

        let mut expected = manifest(std::slice::from_ref(&a)).expect(|_| None);
        assert!(matches!(
            expected.supply(a.clone(), MAX_GROUP_BYTES + 1),
            Err(Error::TooLarge { .. })
        ));
        expected.supply(a.clone(), MAX_GROUP_BYTES).unwrap();
        assert_eq!(expected.supply(a.clone(), 10), Err(Error::NotAskedFor(a.guid.clone())));
        let supplied = expected.complete().unwrap();
        assert_eq!(supplied.groups[&a.guid].group(), a);
    }

    #[test]
    fn a_commit_before_everything_came_is_refused() {
        let (a, b) = (group("a"), group("b"));
        let mut expected = manifest(&[a.clone(), b]).expect(|_| None);
        expected.supply(a, 10).unwrap();
        assert_eq!(
            expected.complete().unwrap_err().to_string(),
            "commit before 1 of the missing groups came, such as b"
        );
    }
}
