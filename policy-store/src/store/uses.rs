//! The stored uses of rules.

use std::sync::Arc;

use model::{
    ids::{CellId, GroupGuid},
    uses::{Observed, PermitKey},
};
use storage::server::Value;

use super::{Answer, Error, archive::Columns, rows::corrupt};
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

/// Statements for the tables of a database, with `?` for parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct UseSql {
    /// Before the name of each table.
    pub(super) prefix: &'static str,
    /// Table of the groups.
    pub(super) groups: &'static str,
}

impl UseSql {
    /// Before the placeholders of the rows.
    pub(super) fn insert_use(self) -> String {
        let prefix = self.prefix;
        format!("INSERT INTO {prefix}rule_uses (group_guid, permit, first_day, last_day) VALUES")
    }

    pub(super) fn uses(self) -> String {
        format!("SELECT group_guid, permit, first_day, last_day FROM {}rule_uses", self.prefix)
    }

    pub(super) fn count(self) -> String {
        format!("SELECT COUNT(*) FROM {}rule_uses", self.prefix)
    }

    pub(super) fn cells(self) -> String {
        format!(
            "SELECT cell_id, first_seen, last_seen, known_since, known_until, missed, missed_until
             FROM {}rule_use_cells",
            self.prefix
        )
    }

    /// `replace`: the form of INSERT that replaces a row.
    pub(super) fn insert_cell(self, replace: &str) -> String {
        format!(
            "{replace} INTO {}rule_use_cells
             (cell_id, first_seen, last_seen, known_since, known_until, missed, missed_until)
             VALUES",
            self.prefix
        )
    }

    /// For the last days of use of groups that are deleted, and of any.
    pub(super) fn prune_uses(self) -> String {
        let Self { prefix, groups } = self;
        format!(
            "DELETE FROM {prefix}rule_uses WHERE last_day < ? AND (last_day < ?
                 OR group_guid NOT IN (SELECT guid FROM {groups}))"
        )
    }

    /// For the last time that a cell was seen.
    pub(super) fn prune_cells(self) -> String {
        format!("DELETE FROM {}rule_use_cells WHERE last_seen < ?", self.prefix)
    }
}

/// Placeholders of a row of each table.
pub(super) const USE_MARKS: &str = "(?,?,?,?)";
pub(super) const CELL_MARKS: &str = "(?,?,?,?,?,?,?)";

/// Parameters of the statements that prune.
pub(super) fn bounds(today: i64) -> ([Value; 2], [Value; 1]) {
    let oldest = today - DAYS_KEPT;
    let uses = [(today - DAYS_KEPT_DELETED).into(), oldest.into()];
    (uses, [(oldest * crate::uses::DAY).into()])
}

pub(super) fn use_values(batch: &Batch) -> Vec<Vec<Value>> {
    let day = batch.day();
    let row = |(group, permit): &Permitted| {
        vec![group.as_str().into(), permit.as_bytes().into(), day.into(), day.into()]
    };
    batch.used.iter().map(row).collect()
}

pub(super) fn read_use(row: &[Value]) -> Result<(Permitted, Used), Error> {
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

pub(super) fn cell_values(cell: &CellId, observed: &Observed) -> Vec<Value> {
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

pub(super) fn read_cell(row: &[Value]) -> Result<(CellId, Observed), Error> {
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
