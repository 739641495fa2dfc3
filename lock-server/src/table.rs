//! The locks that are held, in memory.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use model::lock::{Lock, LockKey, LockKind, Selector};

use crate::lock_version::{LockList, LockVersion};

/// Locks and presences, each in the order of their keys; a key is in one of
/// the two at most.
#[derive(Debug, Default)]
pub struct Table {
    /// All of both: who asks for a key finds it here.
    held: HashMap<LockKey, Arc<LockVersion>>,
    locks: Kind,
    presences: Kind,
}

/// Those of a kind.
#[derive(Debug, Default)]
struct Kind {
    keys: BTreeSet<LockKey>,
    /// All of them, kept from when they were asked for until one changes: who asks
    /// again gets the very same, and does not have to compare it.
    all: Option<LockList>,
}

impl Kind {
    fn add(&mut self, key: LockKey) {
        self.all = None;
        self.keys.insert(key);
    }

    fn remove(&mut self, key: &LockKey) {
        self.all = None;
        self.keys.remove(key);
    }

    /// All of them, out of those of both kinds.
    fn all(&mut self, held: &HashMap<LockKey, Arc<LockVersion>>) -> LockList {
        let Self { keys, all } = self;
        let collect = || keys.iter().filter_map(|key| held.get(key)).cloned().collect();
        Arc::clone(all.get_or_insert_with(collect))
    }
}

impl Table {
    fn of_mut(&mut self, kind: LockKind) -> &mut Kind {
        match kind {
            LockKind::Lock => &mut self.locks,
            LockKind::Presence => &mut self.presences,
        }
    }

    /// The lock with this key.
    pub fn get(&self, key: &LockKey) -> Option<&Arc<LockVersion>> {
        self.held.get(key)
    }

    /// All of both kinds, in no particular order.
    pub fn all(&self) -> Vec<Arc<LockVersion>> {
        self.held.values().cloned().collect()
    }

    /// Stores a version in the place of the one before, which is returned.
    pub fn put(&mut self, held: Arc<LockVersion>) -> Option<Arc<LockVersion>> {
        let Lock { key, kind, .. } = &held.lock;
        let (key, kind) = (key.clone(), *kind);
        let before = self.held.insert(key.clone(), held);
        match before.as_ref().map(|before| before.lock.kind) {
            // A refresh, as nearly all are: the key is where it belongs.
            Some(same) if same == kind => self.of_mut(kind).all = None,
            other => {
                if let Some(other) = other {
                    self.of_mut(other).remove(&key);
                }
                self.of_mut(kind).add(key);
            }
        }
        before
    }

    /// Frees a key.
    pub fn remove(&mut self, key: &LockKey) -> Option<Arc<LockVersion>> {
        let held = self.held.remove(key)?;
        self.of_mut(held.lock.kind).remove(key);
        Some(held)
    }

    /// All that a selector names, in the order of their keys.
    pub fn select(&mut self, selector: &Selector) -> LockList {
        match selector {
            Selector::Key(key) => self.get(key).cloned().into_iter().collect(),
            Selector::Kind(kind) => {
                let Self { held, locks, presences } = self;
                match kind {
                    LockKind::Lock => locks.all(held),
                    LockKind::Presence => presences.all(held),
                }
            }
        }
    }
}
