//! In-memory reference of the databases for tests: a few maps behind a mutex. A clone is
//! another instance on the same database.

mod archive;
mod uses;

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{
    generation::{Generation, Point},
    group::GroupId,
    ids::{CellId, GroupGuid, SpaceGuid},
};
use tokio::sync::watch;

use super::{Answer, Archive, Contents, Error, Mended, News, Store, Stored, UseLog};
use crate::{
    groups::{
        decide::{self, Decision, Known, Replacement, State, Upsert},
        held::{self, Order},
        history::{Change, Past, Step, kept},
        reach::Reach,
        snapshot::Snapshot,
    },
    reports::{Report, Unsaved},
    uses::Recorded,
};

#[derive(Debug, Default)]
struct Tables {
    state: State,
    groups: BTreeMap<GroupId, Stored>,
    past: Past,
    archive: archive::Tables,
    uses: Recorded,
    reports: BTreeMap<CellId, Report>,
}

/// In-memory store; loses everything when the last clone is dropped.
#[derive(Debug)]
pub struct Memory {
    tables: Arc<Mutex<Tables>>,
    /// Notifies every instance of every Replace.
    written: watch::Sender<()>,
    heard: tokio::sync::Mutex<watch::Receiver<()>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::on(Arc::default(), watch::Sender::new(()))
    }
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        Self::on(Arc::clone(&self.tables), self.written.clone())
    }
}

impl Memory {
    fn on(tables: Arc<Mutex<Tables>>, written: watch::Sender<()>) -> Self {
        let heard = tokio::sync::Mutex::new(written.subscribe());
        Self { tables, written, heard }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn known(&self) -> HashMap<GroupGuid, Known> {
        let known = |(id, group): (&GroupId, &Stored)| {
            (group.group.guid.clone(), Known { id: *id, hash: group.hash })
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
        if decision.is_change() {
            self.remember(&decision);
            let is_first = !self.state.is_whole();
            self.archive.add(write, &decision, is_first, &self.groups);
        }
        for (id, _) in &decision.removed {
            self.groups.remove(id);
        }
        for upsert in &decision.upserts {
            let Upsert { id, group, hash, added: _ } = upsert.clone();
            self.groups.insert(id, Stored { id, group, hash });
        }
        self.state = decision.state.clone();
        Ok(decision)
    }

    /// Records the history; called before the groups change.
    fn remember(&mut self, decision: &Decision) {
        let upserts = decision.upserts.iter();
        let ids = upserts.map(|upsert| (upsert.id, upsert.group.guid.clone()));
        let ids: BTreeMap<GroupId, GroupGuid> =
            ids.chain(decision.removed.iter().cloned()).collect();
        let change = |(id, guid)| {
            let before = self
                .groups
                .get(&id)
                .map(|stored| Arc::new(Reach::of(&stored.group, SpaceGuid::clone)));
            Change { id, guid, before }
        };
        let changes = ids.into_iter().map(change).collect();
        let Past { from, steps } = &mut self.past;
        steps.push(Step { point: decision.state.point(), changes });
        let weights: Vec<(Generation, usize)> =
            steps.iter().rev().map(|step| (step.point.generation, step.weight())).collect();
        // The history of the first generation is never needed.
        let kept = match decision.before.generation == Generation::default() {
            true => 0,
            false => kept(&weights),
        };
        if let Some(oldest) = steps.drain(..weights.len() - kept).next_back() {
            *from = oldest.point;
        }
    }

    /// `None`: the history does not reach back that far.
    fn difference(&self, since: Point) -> Option<Contents> {
        let first = match since == self.past.from {
            true => 0,
            false => self.past.steps.iter().position(|step| step.point == since)? + 1,
        };
        let steps = self.past.steps[first..].to_vec();
        let mut changed: Vec<GroupId> =
            steps.iter().flat_map(|step| &step.changes).map(|change| change.id).collect();
        changed.sort_unstable();
        changed.dedup();
        Some(Contents {
            state: self.state.clone(),
            since: Some(since),
            groups: changed.iter().filter_map(|id| self.groups.get(id)).cloned().collect(),
            past: Past { from: since, steps },
            reports: Vec::new(),
        })
    }

    fn everything(&self) -> Contents {
        Contents {
            state: self.state.clone(),
            since: None,
            groups: self.groups.values().cloned().collect(),
            past: self.past.clone(),
            reports: self.reports.iter().map(|(id, report)| (id.clone(), *report)).collect(),
        }
    }
}

impl Store for Memory {
    fn load(&self, since: Option<Point>) -> Answer<'_, Contents> {
        Box::pin(async move {
            let tables = self.lock();
            let difference = since.and_then(|since| tables.difference(since));
            Ok(difference.unwrap_or_else(|| tables.everything()))
        })
    }

    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision> {
        Box::pin(async move {
            let outcome = self.lock().replace(&write);
            self.written.send_replace(());
            outcome
        })
    }

    fn hold(&self, change: Arc<Order>) -> Answer<'_, State> {
        Box::pin(async move {
            let mut tables = self.lock();
            if let Some((state, decision)) = held::hold(&tables.state, &change) {
                tables.state = state;
                tables.archive.record(&decision);
            }
            self.written.send_replace(());
            Ok(tables.state.clone())
        })
    }

    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, Vec<(CellId, Report)>> {
        Box::pin(async move {
            let mut tables = self.lock();
            for (id, report) in &unsaved.reports {
                tables.reports.insert(id.clone(), *report);
            }
            for (id, at) in &unsaved.forgotten {
                let is_same = tables.reports.get(id).is_some_and(|report| report.at == *at);
                if is_same {
                    tables.reports.remove(id);
                }
            }
            Ok(tables.reports.iter().map(|(id, report)| (id.clone(), *report)).collect())
        })
    }

    /// Rows are never lost in memory.
    fn mend(&self, _: Arc<Snapshot>) -> Answer<'_, Mended> {
        Box::pin(async { Ok(Mended::Nothing) })
    }

    fn history(&self) -> &dyn Archive {
        self
    }

    fn uses(&self) -> &dyn UseLog {
        self
    }

    /// Never closed: a test that reopens this store has another clone of it.
    fn news(&self) -> Pin<Box<dyn Future<Output = News> + Send + '_>> {
        Box::pin(async {
            // `self` owns the sender, too.
            let _written = self.heard.lock().await.changed().await;
            News::Written
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
