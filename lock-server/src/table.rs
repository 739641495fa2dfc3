//! The locks that are held, in memory.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
};

use model::lock::{Lock, LockKey, LockKind, Selector};

use crate::held::{Held, Selected};

/// Locks and presences, each in the order of their keys; a key is in one of
/// the two at most.
#[derive(Debug, Default)]
pub struct Table {
    /// All of both: who asks for a key finds it here.
    held: HashMap<LockKey, Arc<Held>>,
    locks: Kind,
    presences: Kind,
}

/// Those of a kind.
#[derive(Debug, Default)]
struct Kind {
    held: BTreeMap<LockKey, Arc<Held>>,
    /// All of them, kept from when they were asked for until one changes: who asks
    /// again gets the very same, and does not have to compare it.
    all: Option<Selected>,
}

impl Kind {
    fn put(&mut self, held: Arc<Held>) {
        self.all = None;
        match self.held.get_mut(&held.lock.key) {
            Some(before) => *before = held,
            None => drop(self.held.insert(held.lock.key.clone(), held)),
        }
    }

    fn remove(&mut self, key: &LockKey) {
        self.all = None;
        self.held.remove(key);
    }

    fn all(&mut self) -> Selected {
        let Self { held, all } = self;
        Arc::clone(all.get_or_insert_with(|| held.values().cloned().collect()))
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
    pub fn get(&self, key: &LockKey) -> Option<&Arc<Held>> {
        self.held.get(key)
    }

    /// Stores a version in the place of the one before, which is returned.
    pub fn put(&mut self, held: Arc<Held>) -> Option<Arc<Held>> {
        let Lock { key, kind, .. } = &held.lock;
        let before = match self.held.get_mut(key) {
            Some(before) => Some(mem::replace(before, Arc::clone(&held))),
            None => self.held.insert(key.clone(), Arc::clone(&held)),
        };
        if let Some(before) = before.as_ref().filter(|before| before.lock.kind != *kind) {
            self.of_mut(before.lock.kind).remove(key);
        }
        self.of_mut(*kind).put(held);
        before
    }

    /// Frees a key.
    pub fn remove(&mut self, key: &LockKey) -> Option<Arc<Held>> {
        let held = self.held.remove(key)?;
        self.of_mut(held.lock.kind).remove(key);
        Some(held)
    }

    /// All that a selector names, in the order of their keys.
    pub fn select(&mut self, selector: &Selector) -> Selected {
        match selector {
            Selector::Key(key) => self.get(key).cloned().into_iter().collect(),
            Selector::Kind(kind) => self.of_mut(*kind).all(),
        }
    }
}
