//! The twin of the databases for tests: a few maps behind a mutex.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{
    group::{GroupId, StoredGroup},
    ids::{CellId, GroupGuid},
};

use super::{Answer, Contents, Error, Hashed, Store};
use crate::{
    feed::cells::{Report, Unsaved},
    groups::decide::{self, Decision, Known, Replacement, State},
};

#[derive(Debug, Default)]
struct Tables {
    state: State,
    groups: BTreeMap<GroupId, Hashed>,
    reports: BTreeMap<CellId, Report>,
}

/// Forgets everything when the last clone is dropped.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Tables>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn known(&self) -> HashMap<GroupGuid, Known> {
        let known = |(id, group): (&GroupId, &Hashed)| {
            (group.stored.group.guid.clone(), Known { id: *id, hash: group.hash })
        };
        self.groups.iter().map(known).collect()
    }

    fn replace(&mut self, write: &Replacement) -> Result<Decision, Error> {
        let decision =
            decide::decide(&self.state, &self.known(), write).inspect_err(|refused| {
                if let Some(state) = &refused.seen {
                    self.state = State::clone(state);
                }
            })?;
        for (id, _) in &decision.removed {
            self.groups.remove(id);
        }
        for upsert in &decision.upserts {
            let stored = StoredGroup { id: upsert.id, group: Arc::clone(&upsert.group) };
            self.groups.insert(upsert.id, Hashed { stored, hash: upsert.hash });
        }
        self.state = decision.state.clone();
        Ok(decision)
    }
}

impl Store for Memory {
    fn load(&self) -> Answer<'_, Contents> {
        Box::pin(async {
            let tables = self.lock();
            Ok(Contents {
                state: tables.state.clone(),
                groups: tables.groups.values().cloned().collect(),
                reports: tables.reports.iter().map(|(id, report)| (id.clone(), *report)).collect(),
            })
        })
    }

    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision> {
        Box::pin(async move { self.lock().replace(&write) })
    }

    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, ()> {
        Box::pin(async move {
            let mut tables = self.lock();
            for (id, report) in &unsaved.reports {
                tables.reports.insert(id.clone(), *report);
            }
            for id in &unsaved.forgotten {
                tables.reports.remove(id);
            }
            Ok(())
        })
    }

    /// Never: whoever opens this store again has another clone of it.
    fn closed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
