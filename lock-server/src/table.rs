//! In-memory table of held locks.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use model::lock::{Lock, LockKey, Selector};

use crate::lock_version::{ByKind, LockList, LockVersion};

/// Locks and presences, each in the order of their keys; a key is in at most one of
/// the two.
#[derive(Debug, Default)]
pub struct Table {
    /// Locks of both kinds, by key.
    held: HashMap<LockKey, Arc<LockVersion>>,
    kinds: ByKind<Kind>,
}

/// The locks of one kind.
#[derive(Debug, Default)]
struct Kind {
    keys: BTreeSet<LockKey>,
    /// Cached list, from a read until the next change: repeated reads get the same list
    /// and need not compare it.
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

    /// List of the locks of this kind.
    fn all(&mut self, held: &HashMap<LockKey, Arc<LockVersion>>) -> LockList {
        let Self { keys, all } = self;
        let collect = || keys.iter().filter_map(|key| held.get(key)).cloned().collect();
        Arc::clone(all.get_or_insert_with(collect))
    }
}

impl Table {
    /// The lock with this key.
    pub fn get(&self, key: &LockKey) -> Option<&Arc<LockVersion>> {
        self.held.get(key)
    }

    /// All of both kinds, in no particular order.
    pub fn all(&self) -> Vec<Arc<LockVersion>> {
        self.held.values().cloned().collect()
    }

    /// Stores a version and returns the previous one.
    pub fn put(&mut self, held: Arc<LockVersion>) -> Option<Arc<LockVersion>> {
        let Lock { key, kind, .. } = &held.lock;
        let (key, kind) = (key.clone(), *kind);
        let before = self.held.insert(key.clone(), held);
        match before.as_ref().map(|before| before.lock.kind) {
            // Nearly always a refresh: the key stays in its kind.
            Some(same) if same == kind => self.kinds[kind].all = None,
            other => {
                if let Some(other) = other {
                    self.kinds[other].remove(&key);
                }
                self.kinds[kind].add(key);
            }
        }
        before
    }

    /// Frees a key.
    pub fn remove(&mut self, key: &LockKey) -> Option<Arc<LockVersion>> {
        let held = self.held.remove(key)?;
        self.kinds[held.lock.kind].remove(key);
        Some(held)
    }

    /// The locks that match a selector, in the order of their keys.
    pub fn select(&mut self, selector: &Selector) -> LockList {
        match selector {
            Selector::Key(key) => self.get(key).cloned().into_iter().collect(),
            Selector::Kind(kind) => self.kinds[*kind].all(&self.held),
        }
    }
}
