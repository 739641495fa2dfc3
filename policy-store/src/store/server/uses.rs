//! The uses of rules on a database server.

use std::{collections::BTreeMap, sync::Arc};

use model::{ids::CellId, uses::Observed};
use storage::server::{Dialect, Row, Transaction};

use super::{
    super::{
        Answer, Error,
        uses::{
            CELL_MARKS, USE_MARKS, UseLog, UseSql, bounds, cell_values, read_cell, read_use,
            use_values,
        },
    },
    Server,
    batch::Batch as Statement,
};
use crate::uses::{Batch, Recorded};

const SQL: UseSql = UseSql { prefix: "portcullis_", groups: "portcullis_security_groups" };
const POSTGRES_UPSERT: &str = "ON CONFLICT (group_guid, permit) DO UPDATE SET
    first_day = LEAST(portcullis_rule_uses.first_day, EXCLUDED.first_day),
    last_day = GREATEST(portcullis_rule_uses.last_day, EXCLUDED.last_day)";
const MYSQL_UPSERT: &str = "ON DUPLICATE KEY UPDATE
    first_day = LEAST(first_day, VALUES(first_day)),
    last_day = GREATEST(last_day, VALUES(last_day))";
const POSTGRES_REPLACE: &str = "ON CONFLICT (cell_id) DO UPDATE SET
    first_seen = EXCLUDED.first_seen, last_seen = EXCLUDED.last_seen,
    known_since = EXCLUDED.known_since, known_until = EXCLUDED.known_until,
    missed = EXCLUDED.missed, missed_until = EXCLUDED.missed_until";

impl UseLog for Server {
    fn save(&self, batch: Arc<Batch>) -> Answer<'_, ()> {
        let (upsert, insert, replace) = match self.server.dialect() {
            Dialect::Postgres => (POSTGRES_UPSERT, "INSERT", POSTGRES_REPLACE),
            Dialect::MySql => (MYSQL_UPSERT, "REPLACE", ""),
        };
        Box::pin(async move {
            let (of_uses, of_cells) = (SQL.insert_use(), SQL.insert_cell(insert));
            let of_uses = Statement { before: &of_uses, marks: USE_MARKS, after: upsert };
            let of_cells = Statement { before: &of_cells, marks: CELL_MARKS, after: replace };
            self.server
                .transaction(async |transaction: Transaction| {
                    let locked = format!("{} FOR UPDATE", SQL.cells());
                    let mut cells = cells(transaction.query(&locked, &[]).await?)?;
                    of_uses.run(&transaction, use_values(&batch)).await?;
                    let rows = batch.cells().into_iter().map(|cell| {
                        let mut observed = cells.remove(cell).unwrap_or_default();
                        batch.observe(cell, &mut observed);
                        cell_values(cell, &observed)
                    });
                    of_cells.run(&transaction, rows.collect()).await
                })
                .await
        })
    }

    fn recorded(&self) -> Answer<'_, Recorded> {
        Box::pin(async {
            // The cells first: their uses are then at least as new.
            let cells = cells(self.server.query(&SQL.cells(), &[]).await?)?;
            let uses = self.server.query(&SQL.uses(), &[]).await?.into_iter();
            let uses = uses.map(|row| read_use(&row.into_values())).collect::<Result<_, _>>()?;
            Ok(Recorded { uses, cells })
        })
    }

    fn prune(&self, today: i64) -> Answer<'_, u64> {
        Box::pin(async move {
            let (uses, cells) = bounds(today);
            self.server.execute(&SQL.prune_uses(), &uses).await?;
            self.server.execute(&SQL.prune_cells(), &cells).await?;
            let rows = self.server.query(&SQL.count(), &[]).await?;
            let left: i64 = super::only(&rows)?.get(0)?;
            Ok(u64::try_from(left).unwrap_or(0))
        })
    }
}

fn cells(rows: Vec<Row>) -> Result<BTreeMap<CellId, Observed>, Error> {
    rows.into_iter().map(|row| read_cell(&row.into_values())).collect()
}
