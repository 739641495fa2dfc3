//! One reading of the Cloud Controller's list, and the manifest made of it.
//!
//! Pure. A reading keeps hashes rather than groups: of each group its guid and
//! content hash, and the encoded group only where the store is not known to
//! hold that content.
//!
//! # A group that cannot be read
//!
//! must not hold up the others and must not be stripped from the containers
//! that have it, so the store keeps its last good version: the manifest names
//! the guid with the hash that the store holds ([`StoreHashes`]). A group that the
//! store never had is left out. Two corners:
//!
//! - After a restart or a change of leader nobody here knows what the store
//!   holds. Then it is asked ([`ListSnapshot::needs_held`]), which costs one listing of
//!   the store, only when there is a malformed group, and once a term.
//! - A malformed group without a readable guid may be any group that is missing
//!   from the list. As long as there is one, nothing is removed at all: every
//!   group that the store holds and the list does not name stays.
//!
//! The price is that a group which was tightened and broken at once stays as
//! loose as it was until it can be read again; that is why each one is an error
//! line and a metric.

use std::{
    collections::{BTreeMap, HashMap},
    io,
};

use model::{
    group::{ContentHash, SecurityGroup},
    ids::GroupGuid,
};
use prost::Message as _;
use proto::policy_v1;
use serde_json::value::RawValue;

use crate::import::{Malformed, Page};

/// What the store is known to hold, by its own word.
pub type StoreHashes = BTreeMap<GroupGuid, ContentHash>;

/// The list as far as it has been read.
#[derive(Debug, Default)]
pub struct ListSnapshot {
    entries: Vec<(GroupGuid, Entry)>,
    places: HashMap<GroupGuid, usize>,
    content: HashMap<GroupGuid, Box<[u8]>>,
    malformed: Vec<Malformed>,
    nameless: bool,
    /// The groups as the log shows them, where the log is to show them.
    echo: Option<Vec<Box<RawValue>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Good(ContentHash),
    Malformed,
}

/// What is to be sent to the store.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Every group that is to be in the store, in the Cloud Controller's order.
    pub entries: Vec<(GroupGuid, ContentHash)>,
    /// The encoded groups that the store is not known to hold.
    pub content: HashMap<GroupGuid, Box<[u8]>>,
    /// How many entries keep the store's version instead of the list's.
    pub kept: usize,
}

impl ListSnapshot {
    /// Nothing read yet. `echo`: whether the log is to show the groups.
    #[must_use]
    pub fn new(echo: bool) -> Self {
        Self { echo: echo.then(Vec::new), ..Self::default() }
    }

    /// Reads one more page.
    ///
    /// # Errors
    /// The body is no page; the reading must be thrown away.
    pub fn page(
        &mut self,
        body: impl io::Read,
        held: &StoreHashes,
    ) -> Result<Page, crate::import::Error> {
        crate::import::page(body, &mut |group| match group {
            Ok(group) => self.good(&group, held),
            Err(malformed) => self.malformed(malformed),
        })
    }

    /// The same guid twice: the last one counts, as in the original.
    fn good(&mut self, group: &SecurityGroup, held: &StoreHashes) {
        let hash = group.content_hash();
        if let Some(echo) = &mut self.echo {
            echo.push(crate::log_format::group(group));
        }
        if held.get(&group.guid) == Some(&hash) {
            self.content.remove(&group.guid);
        } else {
            let encoded = policy_v1::SecurityGroup::from(group).encode_to_vec();
            self.content.insert(group.guid.clone(), encoded.into_boxed_slice());
        }
        self.enter(&group.guid, Entry::Good(hash));
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

    /// How many groups the list had, malformed ones included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len() + self.malformed.iter().filter(|group| group.guid.is_none()).count()
    }

    /// Whether there was not one group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The groups that could not be read.
    #[must_use]
    pub fn malformed_groups(&self) -> &[Malformed] {
        &self.malformed
    }

    /// The groups for the log, from `start` on, if it is to show them.
    #[must_use]
    pub fn echo(&self, start: usize) -> Option<&[Box<RawValue>]> {
        self.echo.as_ref().map(|echo| &echo[start.min(echo.len())..])
    }

    /// Whether the manifest cannot be made without knowing what the store
    /// holds.
    #[must_use]
    pub fn needs_held(&self) -> bool {
        self.nameless || self.entries.iter().any(|(_, entry)| *entry == Entry::Malformed)
    }

    /// What to send to a store that holds `held`.
    #[must_use]
    pub fn into_manifest(self, held: &StoreHashes) -> Manifest {
        let Self { entries, places, content, malformed: _, nameless, echo: _ } = self;
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
    /// What the store holds once it has committed this.
    #[must_use]
    pub fn into_held(self) -> StoreHashes {
        self.entries.into_iter().collect()
    }
}
