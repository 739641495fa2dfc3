//! The uses of rules in the reference store.

use std::sync::Arc;

use super::{
    super::{Answer, uses::UseLog},
    Memory,
};
use crate::uses::{Batch, DAY, DAYS_KEPT, DAYS_KEPT_DELETED, Recorded, Used};

impl UseLog for Memory {
    fn save(&self, batch: Arc<Batch>) -> Answer<'_, ()> {
        Box::pin(async move {
            let mut tables = self.lock();
            let (recorded, day) = (&mut tables.uses, batch.day());
            for permit in &batch.used {
                let used = recorded.uses.entry(permit.clone());
                let used = used.or_insert(Used { first: day, last: day });
                *used = Used { first: used.first.min(day), last: used.last.max(day) };
            }
            for cell in batch.cells() {
                batch.observe(cell, recorded.cells.entry(cell.clone()).or_default());
            }
            Ok(())
        })
    }

    fn recorded(&self) -> Answer<'_, Recorded> {
        Box::pin(async { Ok(self.lock().uses.clone()) })
    }

    fn prune(&self, today: i64) -> Answer<'_, u64> {
        Box::pin(async move {
            let mut tables = self.lock();
            let groups: Vec<_> =
                tables.groups.values().map(|stored| stored.group.guid.clone()).collect();
            let recorded = &mut tables.uses;
            recorded.uses.retain(|(group, _), used| {
                let kept = if groups.contains(group) { DAYS_KEPT } else { DAYS_KEPT_DELETED };
                used.last >= today - kept
            });
            recorded.cells.retain(|_, cell| cell.last_seen >= (today - DAYS_KEPT) * DAY);
            Ok(recorded.uses.len() as u64)
        })
    }
}
