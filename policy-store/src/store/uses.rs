//! The stored uses of rules.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    ids::{CellId, GroupGuid},
    uses::{Observed, PermitKey},
};
use storage::server::{Dialect, Value};

use super::{
    Answer, Error,
    batch::Batch as Statement,
    rows::corrupt,
    session::{Columns, Kind, Session, number},
};
use crate::uses::{Batch, DAYS_KEPT, DAYS_KEPT_DELETED, Permitted, Recorded, Used};

/// The uses of rules; see [`crate::uses`].
///
/// Contract:
/// - [`UseLog::save`] writes a batch all or nothing: what a cell is known to have reported is
///   stored with its uses. First and last use of a permit never get closer.
/// - When the uses are lost, the coverage of all cells is lost with them.
pub trait UseLog: Send + Sync {
    /// Adds a batch.
    fn save(&self, batch: Arc<Batch>) -> Answer<'_, ()>;

    /// Reads everything.
    fn recorded(&self) -> Answer<'_, Recorded>;

    /// Drops old records; returns the number of permits that are left.
    fn prune(&self, today: i64) -> Answer<'_, u64>;
}

/// Adds a batch; in a transaction.
pub(super) async fn save(session: &impl Session, batch: &Batch) -> Result<(), Error> {
    let kind = session.kind();
    let mut cells = cells(session, kind.for_update()).await?;
    let table = format!("{}rule_uses", kind.prefix());
    let widen = |least: &str, greatest: &str| {
        format!(
            "ON CONFLICT (group_guid, permit) DO UPDATE SET
                 first_day = {least}({table}.first_day, excluded.first_day),
                 last_day = {greatest}({table}.last_day, excluded.last_day)"
        )
    };
    let after = match kind {
        Kind::Sqlite => widen("MIN", "MAX"),
        Kind::Server(Dialect::Postgres) => widen("LEAST", "GREATEST"),
        Kind::Server(Dialect::MySql) => "ON DUPLICATE KEY UPDATE
             first_day = LEAST(first_day, VALUES(first_day)),
             last_day = GREATEST(last_day, VALUES(last_day))"
            .to_owned(),
    };
    let before = format!("INSERT INTO {table} (group_guid, permit, first_day, last_day) VALUES");
    let insert = Statement { before: &before, marks: "(?,?,?,?)", after: &after };
    insert.run(session, use_values(batch)).await?;
    let (replace, after) = match kind {
        Kind::Sqlite => ("INSERT OR REPLACE", ""),
        Kind::Server(Dialect::Postgres) => (
            "INSERT",
            "ON CONFLICT (cell_id) DO UPDATE SET
                 first_seen = EXCLUDED.first_seen, last_seen = EXCLUDED.last_seen,
                 known_since = EXCLUDED.known_since, known_until = EXCLUDED.known_until,
                 missed = EXCLUDED.missed, missed_until = EXCLUDED.missed_until",
        ),
        Kind::Server(Dialect::MySql) => ("REPLACE", ""),
    };
    let before = format!("{replace} INTO {}rule_use_cells ({CELL}) VALUES", kind.prefix());
    let replace = Statement { before: &before, marks: "(?,?,?,?,?,?,?)", after };
    let rows = batch.cells().into_iter().map(|cell| {
        let mut observed = cells.remove(cell).unwrap_or_default();
        batch.observe(cell, &mut observed);
        cell_values(cell, &observed)
    });
    replace.run(session, rows.collect()).await
}

/// Columns of `rule_use_cells`.
const CELL: &str = "cell_id, first_seen, last_seen, known_since, known_until, missed, missed_until";

/// Reads everything.
pub(super) async fn recorded(session: &impl Session) -> Result<Recorded, Error> {
    // The cells first: their uses are then at least as new.
    let cells = cells(session, "").await?;
    let prefix = session.kind().prefix();
    let sql = format!("SELECT group_guid, permit, first_day, last_day FROM {prefix}rule_uses");
    let uses = session.query(&sql, &[]).await?;
    let uses = uses.iter().map(|row| read_use(row.values())).collect::<Result<_, _>>()?;
    Ok(Recorded { uses, cells })
}

async fn cells(session: &impl Session, lock: &str) -> Result<BTreeMap<CellId, Observed>, Error> {
    let sql = format!("SELECT {CELL} FROM {}rule_use_cells {lock}", session.kind().prefix());
    session.query(&sql, &[]).await?.iter().map(|row| read_cell(row.values())).collect()
}

/// Drops old records; returns the number of permits that are left.
pub(super) async fn prune(session: &impl Session, today: i64) -> Result<u64, Error> {
    let prefix = session.kind().prefix();
    let oldest = today - DAYS_KEPT;
    let sql = format!(
        "DELETE FROM {prefix}rule_uses WHERE last_day < ? AND (last_day < ?
             OR group_guid NOT IN (SELECT guid FROM {prefix}security_groups))"
    );
    session.execute(&sql, &[(today - DAYS_KEPT_DELETED).into(), oldest.into()]).await?;
    let sql = format!("DELETE FROM {prefix}rule_use_cells WHERE last_seen < ?");
    session.execute(&sql, &[(oldest * crate::uses::DAY).into()]).await?;
    let count = format!("SELECT COUNT(*) FROM {prefix}rule_uses");
    let left = number(&session.query(&count, &[]).await?)?.unwrap_or(0);
    Ok(u64::try_from(left).unwrap_or(0))
}

fn use_values(batch: &Batch) -> Vec<Vec<Value>> {
    let day = batch.day();
    let row = |(group, permit): &Permitted| {
        vec![group.as_str().into(), permit.as_bytes().into(), day.into(), day.into()]
    };
    batch.used.iter().map(row).collect()
}

fn read_use(row: &[Value]) -> Result<(Permitted, Used), Error> {
    let mut columns = Columns(row.iter());
    let field = "rule_uses.group_guid";
    let group = columns.text(field)?.ok_or_else(|| corrupt(field)("NULL"))?;
    let group = GroupGuid::parse(&group).map_err(corrupt(field))?;
    let field = "rule_uses.permit";
    let permit = columns.bytes(field)?.ok_or_else(|| corrupt(field)("NULL"))?;
    let permit = PermitKey::from_bytes(&permit);
    let permit = permit.ok_or_else(|| corrupt(field)("not 16 bytes"))?;
    let first = columns.int("rule_uses.first_day")?;
    let last = columns.int("rule_uses.last_day")?;
    Ok(((group, permit), Used { first, last }))
}

fn cell_values(cell: &CellId, observed: &Observed) -> Vec<Value> {
    let Observed { first_seen, last_seen, since, until, missed, missed_until } = *observed;
    vec![
        cell.as_str().into(),
        first_seen.into(),
        last_seen.into(),
        since.into(),
        until.into(),
        missed.into(),
        missed_until.into(),
    ]
}

fn read_cell(row: &[Value]) -> Result<(CellId, Observed), Error> {
    let mut columns = Columns(row.iter());
    let field = "rule_use_cells.cell_id";
    let cell = columns.text(field)?.ok_or_else(|| corrupt(field)("NULL"))?;
    let observed = Observed {
        first_seen: columns.int("rule_use_cells.first_seen")?,
        last_seen: columns.int("rule_use_cells.last_seen")?,
        since: columns.optional("rule_use_cells.known_since")?,
        until: columns.int("rule_use_cells.known_until")?,
        missed: columns.int("rule_use_cells.missed")?,
        missed_until: columns.int("rule_use_cells.missed_until")?,
    };
    Ok((CellId::parse(&cell).map_err(corrupt(field))?, observed))
}
