//! The locks that are held, in memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use model::lock::{LockKey, LockKind, Selector};

use crate::held::Held;

/// Locks and presences, each in the order of their keys; a key is in one of
/// the two at most.
#[derive(Debug, Default)]
pub struct Table {
    kinds: HashMap<LockKey, LockKind>,
    locks: BTreeMap<LockKey, Arc<Held>>,
    presences: BTreeMap<LockKey, Arc<Held>>,
}

impl Table {
    fn of(&self, kind: LockKind) -> &BTreeMap<LockKey, Arc<Held>> {
        match kind {
            LockKind::Lock => &self.locks,
            LockKind::Presence => &self.presences,
        }
    }

    fn of_mut(&mut self, kind: LockKind) -> &mut BTreeMap<LockKey, Arc<Held>> {
        match kind {
            LockKind::Lock => &mut self.locks,
            LockKind::Presence => &mut self.presences,
        }
    }

    /// The lock with this key.
    pub fn get(&self, key: &LockKey) -> Option<&Arc<Held>> {
        self.of(*self.kinds.get(key)?).get(key)
    }

    /// Stores a version in the place of the one before, which is returned.
    pub fn put(&mut self, held: Arc<Held>) -> Option<Arc<Held>> {
        let (key, kind) = (held.lock.key.clone(), held.lock.kind);
        let before = match self.kinds.insert(key.clone(), kind) {
            Some(before) if before != kind => self.of_mut(before).remove(&key),
            Some(_) | None => None,
        };
        self.of_mut(kind).insert(key, held).or(before)
    }

    /// Frees a key.
    pub fn remove(&mut self, key: &LockKey) -> Option<Arc<Held>> {
        let kind = self.kinds.remove(key)?;
        self.of_mut(kind).remove(key)
    }

    /// All that a selector names, in the order of their keys.
    pub fn select(&self, selector: &Selector) -> Vec<Arc<Held>> {
        match selector {
            Selector::Key(key) => self.get(key).cloned().into_iter().collect(),
            Selector::Kind(kind) => self.of(*kind).values().cloned().collect(),
        }
    }
}
