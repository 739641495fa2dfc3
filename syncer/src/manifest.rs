//! Snapshot of the Cloud Controller's list, and the manifest derived from it.
//!
//! Pure. A snapshot keeps hashes rather than groups: guid and content hash of each group,
//! and the encoded group only if the store is not known to have that content.
//!
//! # Malformed groups
//!
//! A malformed group must neither delay the others nor be removed from the containers
//! that have it, so the store keeps its last good version: the manifest contains the
//! guid with the hash in the store ([`StoreHashes`]). A group that the store never had is
//! omitted. Two special cases:
//!
//! - After a restart or a change of leader the hashes in the store are unknown. Then they
//!   are listed ([`ListSnapshot::needs_held`]), only when there is a malformed group, and
//!   once per term.
//! - A malformed group without a readable guid may be any group that is missing from the
//!   list. As long as there is one, no group is removed: every group that is in the store
//!   and not in the list stays.
//!
//! The drawback: a group that was restricted and became malformed in one change keeps its
//! less restrictive version until it is well-formed again. Therefore each malformed group
//! is an error line and a metric.

use std::{
    collections::{BTreeMap, HashMap},
    io,
};

use bytes::Bytes;
use model::{
    group::{ContentHash, SecurityGroup},
    ids::GroupGuid,
};
use serde_json::value::RawValue;

use crate::import::{Malformed, Page};

/// Hashes in the store, as confirmed by the store.
pub type StoreHashes = BTreeMap<GroupGuid, ContentHash>;

/// The list as far as it has been read.
#[derive(Debug, Default)]
pub struct ListSnapshot {
    entries: Vec<(GroupGuid, Entry)>,
    places: HashMap<GroupGuid, usize>,
    content: HashMap<GroupGuid, Bytes>,
    malformed: Vec<Malformed>,
    nameless: bool,
    moved: bool,
    /// The groups in log format, if the log shows them.
    echo: Option<Vec<Box<RawValue>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Good(ContentHash),
    Malformed,
}

/// Manifest and content for the store.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// All groups of the new set, in the Cloud Controller's order.
    pub entries: Vec<(GroupGuid, ContentHash)>,
    /// Encoded groups that the store is not known to have.
    pub content: HashMap<GroupGuid, Bytes>,
    /// Number of entries that keep the store's version instead of the list's.
    pub kept: usize,
}

impl ListSnapshot {
    /// Empty snapshot. `echo`: whether the log shows the groups.
    #[must_use]
    pub fn new(echo: bool) -> Self {
        Self { echo: echo.then(Vec::new), ..Self::default() }
    }

    /// Parses one more page.
    ///
    /// # Errors
    /// The page is invalid; the snapshot must be discarded.
    pub fn page(
        &mut self,
        body: impl io::Read,
        held: &StoreHashes,
    ) -> Result<Page, crate::import::Error> {
        crate::import::page(body, &mut |group| match group {
            Ok(group) => self.good(group, held),
            Err(malformed) => self.malformed(malformed),
        })
    }

    /// Duplicate guid: the last one counts, as in the original.
    fn good(&mut self, group: SecurityGroup, held: &StoreHashes) {
        let hash = group.content_hash();
        if let Some(echo) = &mut self.echo {
            echo.push(crate::import::echo(&group));
        }
        self.enter(&group.guid, Entry::Good(hash));
        if held.get(&group.guid) == Some(&hash) {
            self.content.remove(&group.guid);
        } else {
            self.content.insert(group.guid.clone(), proto::encode_group(group));
        }
    }

    fn malformed(&mut self, malformed: Malformed) {
        match &malformed.guid {
            Some(guid) if !self.places.contains_key(guid) => {
                let guid = guid.clone();
                self.enter(&guid, Entry::Malformed);
            }
            Some(_) => {}
            None => self.nameless = true,
        }
        self.malformed.push(malformed);
    }

    fn enter(&mut self, guid: &GroupGuid, entry: Entry) {
        match self.places.get(guid) {
            Some(&place) => self.entries[place].1 = entry,
            None => {
                self.places.insert(guid.clone(), self.entries.len());
                self.entries.push((guid.clone(), entry));
            }
        }
    }

    /// Number of groups in the list, including malformed ones.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len() + self.malformed.iter().filter(|group| group.guid.is_none()).count()
    }

    /// Whether the list has no groups.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The list changed while it was read.
    pub fn set_moved(&mut self) {
        self.moved = true;
    }

    /// Whether the list changed while it was read.
    #[must_use]
    pub fn moved(&self) -> bool {
        self.moved
    }

    /// Groups of the store that the list lacks.
    #[must_use]
    pub fn missing(&self, held: &StoreHashes) -> Vec<GroupGuid> {
        held.keys().filter(|guid| !self.places.contains_key(*guid)).cloned().collect()
    }

    /// The malformed groups.
    #[must_use]
    pub fn malformed_groups(&self) -> &[Malformed] {
        &self.malformed
    }

    /// The groups in log format, from `start` on, if the log shows them.
    #[must_use]
    pub fn echo(&self, start: usize) -> Option<&[Box<RawValue>]> {
        self.echo.as_ref().map(|echo| &echo[start.min(echo.len())..])
    }

    /// Whether the manifest requires the hashes in the store.
    #[must_use]
    pub fn needs_held(&self) -> bool {
        self.moved
            || self.nameless
            || self.entries.iter().any(|(_, entry)| *entry == Entry::Malformed)
    }

    /// Manifest for a store with the hashes `held`.
    #[must_use]
    pub fn into_manifest(self, held: &StoreHashes) -> Manifest {
        let Self { entries, places, content, malformed: _, nameless, moved: _, echo: _ } = self;
        let mut manifest =
            Manifest { entries: Vec::with_capacity(entries.len()), content, kept: 0 };
        for (guid, entry) in entries {
            match entry {
                Entry::Good(hash) => manifest.entries.push((guid, hash)),
                Entry::Malformed => {
                    if let Some(hash) = held.get(&guid) {
                        manifest.kept += 1;
                        manifest.entries.push((guid, *hash));
                    }
                }
            }
        }
        if nameless {
            for (guid, hash) in held.iter().filter(|(guid, _)| !places.contains_key(*guid)) {
                manifest.kept += 1;
                manifest.entries.push((guid.clone(), *hash));
            }
        }
        manifest
    }
}

impl Manifest {
    /// Hashes in the store after it has committed this manifest.
    #[must_use]
    pub fn into_held(self) -> StoreHashes {
        self.entries.into_iter().collect()
    }
}
