//! The uses of rules in SQLite.

use std::{collections::BTreeMap, sync::Arc};

use rusqlite::{Connection, Transaction};

use super::{
    super::{
        Answer, Error,
        uses::{
            CELL_MARKS, USE_MARKS, UseLog, UseSql, bounds, cell_values, read_cell, read_use,
            use_values,
        },
    },
    Sqlite,
    archive::{execute, number, query},
};
use crate::uses::{Batch, Recorded};

const SQL: UseSql = UseSql { prefix: "", groups: "security_groups" };
const UPSERT: &str = "ON CONFLICT (group_guid, permit) DO UPDATE SET
    first_day = MIN(first_day, excluded.first_day), last_day = MAX(last_day, excluded.last_day)";

impl UseLog for Sqlite {
    fn save(&self, batch: Arc<Batch>) -> Answer<'_, ()> {
        Box::pin(self.database.write(move |transaction: &Transaction<'_>| {
            let insert = format!("{} {USE_MARKS} {UPSERT}", SQL.insert_use());
            for row in use_values(&batch) {
                execute(transaction, &insert, row)?;
            }
            let mut cells = cells(transaction)?;
            let insert = format!("{} {CELL_MARKS}", SQL.insert_cell("INSERT OR REPLACE"));
            for cell in batch.cells() {
                let mut observed = cells.remove(cell).unwrap_or_default();
                batch.observe(cell, &mut observed);
                execute(transaction, &insert, cell_values(cell, &observed))?;
            }
            Ok::<_, Error>(())
        }))
    }

    fn recorded(&self) -> Answer<'_, Recorded> {
        Box::pin(self.database.read(|connection: &Connection| {
            // The cells first: their uses are then at least as new.
            let cells = cells(connection)?;
            let uses = query(connection, &SQL.uses(), [])?;
            let uses = uses.iter().map(|row| read_use(row)).collect::<Result<_, _>>()?;
            Ok(Recorded { uses, cells })
        }))
    }

    fn prune(&self, today: i64) -> Answer<'_, u64> {
        Box::pin(self.database.write(move |transaction: &Transaction<'_>| {
            let (uses, cells) = bounds(today);
            execute(transaction, &SQL.prune_uses(), uses)?;
            execute(transaction, &SQL.prune_cells(), cells)?;
            let left = number(transaction, &SQL.count(), [])?.unwrap_or(0);
            Ok::<_, Error>(u64::try_from(left).unwrap_or(0))
        }))
    }
}

fn cells(
    connection: &Connection,
) -> Result<BTreeMap<model::ids::CellId, model::uses::Observed>, Error> {
    query(connection, &SQL.cells(), [])?.iter().map(|row| read_cell(row)).collect()
}
