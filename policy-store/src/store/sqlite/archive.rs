//! The history in SQLite.

use std::sync::Arc;

use model::generation::Generation;
use rusqlite::{Connection, Transaction, params_from_iter, types};
use storage::server::Value;

use super::{
    super::{
        Answer, Error,
        archive::{
            Archive, Columns, EntryRow, GroupBefore, GroupRows, ProgressRow, Sql, UndoRows,
            changed_group, reached, weighed,
        },
        plan,
        rows::{Scopes, to_sql},
    },
    IDS_AT_ONCE, Sqlite,
};
use crate::groups::{
    archive::{Bounds, DROPPED_AT_ONCE, Numbered, OperatorDecision, Query, Reached, Undo, expired},
    decide::{Decision, Replacement},
};

const SQL: Sql = Sql { prefix: "", integer: "INTEGER" };

impl Archive for Sqlite {
    fn entries(&self, query: Query) -> Answer<'_, Vec<Numbered>> {
        Box::pin(self.database.read(move |connection| entries(connection, &query)))
    }

    fn undo(&self, from: Generation, to: Generation) -> Answer<'_, Option<Undo>> {
        Box::pin(self.database.read(move |connection| undo(connection, from, to)))
    }

    fn record(&self, decision: Arc<OperatorDecision>) -> Answer<'_, ()> {
        let work = move |transaction: &Transaction<'_>| record(transaction, &decision);
        Box::pin(self.database.write(work))
    }

    fn save_progress(
        &self,
        instance: Arc<str>,
        progress: Arc<[(Generation, Reached)]>,
    ) -> Answer<'_, ()> {
        let work = move |transaction: &Transaction<'_>| {
            let sql = SQL.insert_progress("INSERT OR IGNORE") + " (?,?,?,?,?,?,?,?,?)";
            progress.iter().try_for_each(|(generation, reached)| {
                let row = ProgressRow::values(&instance, *generation, reached)?;
                execute(transaction, &sql, row)
            })
        };
        Box::pin(self.database.write(work))
    }

    fn prune(&self, bounds: Bounds) -> Answer<'_, bool> {
        Box::pin(async move {
            // The search takes longer than the work, and a Replace does not wait for it.
            let look = move |connection: &Connection| Excess::of(connection, &bounds);
            let Some(excess) = self.database.read(look).await? else { return Ok(false) };
            let work = move |transaction: &Transaction<'_>| prune(transaction, &excess);
            self.database.write(work).await
        })
    }
}

/// Adds the entry of a decision.
pub(super) fn record(
    transaction: &Transaction<'_>,
    decision: &OperatorDecision,
) -> Result<(), Error> {
    let mut entry = EntryRow::of_decision(decision)?;
    entry.number = newest(transaction)?.0 + 1;
    execute(transaction, &SQL.insert_entry(), entry.values())
}

/// Adds the entry of a Replace; called before its changes are written.
pub(super) fn add(
    transaction: &Transaction<'_>,
    write: &Replacement,
    decision: &Decision,
    is_first: bool,
    before: &Scopes,
) -> Result<(), Error> {
    let Some(mut entry) = EntryRow::of_change(decision, write, is_first)? else { return Ok(()) };
    let (number, newest) = newest(transaction)?;
    if newest >= entry.generation {
        for sql in SQL.forget_from() {
            execute(transaction, &sql, [entry.generation.into()])?;
        }
    }
    entry.number = number + 1;
    if entry.is_recorded {
        let mut rows = GroupRows::new(entry.generation, decision)?;
        let insert = SQL.insert_groups() + " (?,?,?,?,?,?)";
        for row in rows.added()? {
            execute(transaction, &insert, row)?;
        }
        for ids in plan::touched(decision)?.chunks(IDS_AT_ONCE) {
            let marks = vec!["?"; ids.len()].join(",");
            let sql =
                format!("SELECT id, guid, name, rules FROM security_groups WHERE id IN ({marks})");
            let ids = ids.iter().map(|id| Value::from(*id));
            for row in query(transaction, &sql, ids)? {
                let row = rows.touched(&GroupBefore::read(&row)?, before);
                execute(transaction, &insert, row)?;
            }
        }
        entry.bytes = rows.bytes;
    }
    execute(transaction, &SQL.insert_entry(), entry.values())
}

fn entries(connection: &Connection, wanted: &Query) -> Result<Vec<Numbered>, Error> {
    let (sql, values) = SQL.entries(wanted)?;
    let rows = query(connection, &sql, values)?;
    let rows = rows.iter().map(|row| EntryRow::read(row)).collect::<Result<Vec<_>, _>>()?;
    let range = rows.last().zip(rows.first());
    let Some((oldest, newest)) = range else { return Ok(Vec::new()) };
    let range = [oldest.generation.into(), newest.generation.into()];
    let reached = reached(query(connection, &SQL.progress(), range)?)?;
    let entry = |row: EntryRow| {
        let groups = match row.has_groups() {
            true => query(connection, &SQL.named_groups(), [row.generation.into()])?,
            false => Vec::new(),
        };
        let groups = groups.iter().map(|group| changed_group(group)).collect::<Result<_, _>>()?;
        let reached = reached.get(&row.generation).copied();
        row.entry(groups, reached)
    };
    rows.into_iter().map(entry).collect()
}

fn undo(connection: &Connection, from: Generation, to: Generation) -> Result<Option<Undo>, Error> {
    let [older, newer] = [to, from]
        .map(|generation| to_sql("archive_entries.generation", generation.0).map(Value::from));
    let (older, newer) = (older?, newer?);
    let mut groups = UndoRows::default();
    for row in query(connection, &SQL.undo(), [older.clone(), newer.clone()])? {
        groups.group(&row)?;
    }
    let recorded = number(connection, &SQL.recorded(), [older.clone(), newer])?;
    let stamp = number(connection, &SQL.stamp(), [older])?;
    Ok(groups.into_undo((from, to), stamp, recorded.unwrap_or(0)))
}

/// What a call of prune drops.
struct Excess {
    /// Entries up to this number.
    entries: Option<i64>,
    has_more: bool,
}

impl Excess {
    /// `None`: nothing.
    fn of(connection: &Connection, bounds: &Bounds) -> Result<Option<Self>, Error> {
        let oldest = query(connection, &SQL.weighed(), [])?;
        let oldest = oldest.iter().map(|row| weighed(row)).collect::<Result<Vec<_>, _>>()?;
        let total = number(connection, &SQL.bytes(), [])?.unwrap_or(0);
        let newest = newest(connection)?.1;
        let generation = Generation(u64::try_from(newest).unwrap_or(0));
        let dropped = expired(&oldest, u64::try_from(total).unwrap_or(0), generation, bounds);
        let last = oldest[..dropped].last();
        let entries = last.map(|entry| to_sql("archive_entries.number", entry.number));
        let entries = entries.transpose()?;
        let has_more = dropped == DROPPED_AT_ONCE;
        // Contents without an entry: the rest of an earlier call.
        let orphans = "SELECT 1 FROM archive_groups
             WHERE generation < (SELECT MIN(generation) FROM archive_entries) LIMIT 1";
        let has_orphans = number(connection, orphans, [])?.is_some();
        Ok((entries.is_some() || has_orphans).then_some(Self { entries, has_more }))
    }
}

fn prune(transaction: &Transaction<'_>, excess: &Excess) -> Result<bool, Error> {
    let Excess { entries, has_more } = *excess;
    if let Some(last) = entries {
        execute(transaction, &SQL.drop_entries(), [last.into()])?;
    }
    let Some(oldest) = number(transaction, &SQL.oldest(), [])? else { return Ok(false) };
    execute(transaction, &SQL.drop_progress(), [oldest.into()])?;
    let left = query(transaction, &SQL.last_content(), [oldest.into()])?;
    let Some(first_left) = left.first() else {
        execute(transaction, &SQL.drop_contents(), [oldest.into()])?;
        return Ok(has_more);
    };
    let mut columns = Columns(first_left.iter());
    let generation = columns.int("archive_groups.generation")?;
    let group = columns.int("archive_groups.group_id")?;
    execute(transaction, &SQL.drop_contents(), [generation.into()])?;
    execute(transaction, &SQL.drop_some_contents(), [generation.into(), group.into()])?;
    Ok(true)
}

/// Highest number and generation.
fn newest(connection: &Connection) -> Result<(i64, i64), Error> {
    let rows = query(connection, &SQL.newest(), [])?;
    let mut columns = Columns(rows.first().map_or_else(|| [].iter(), |row| row.iter()));
    Ok((columns.int("archive_entries.number")?, columns.int("archive_entries.generation")?))
}

/// The number in the only column of the first row, if any.
pub(super) fn number(
    connection: &Connection,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Option<i64>, Error> {
    let rows = query(connection, sql, values)?;
    let Some(row) = rows.first() else { return Ok(None) };
    Columns(row.iter()).optional("archive_entries")
}

pub(super) fn query(
    connection: &Connection,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<Vec<Value>>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let count = statement.column_count();
    let mut rows = statement.query(params_from_iter(values.into_iter().map(to_sqlite)))?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let columns = (0..count).map(|column| Ok(from_sqlite(row.get(column)?)));
        all.push(columns.collect::<Result<_, Error>>()?);
    }
    Ok(all)
}

pub(super) fn execute(
    transaction: &Transaction<'_>,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<(), Error> {
    let mut statement = transaction.prepare_cached(sql)?;
    statement.execute(params_from_iter(values.into_iter().map(to_sqlite)))?;
    Ok(())
}

fn to_sqlite(value: Value) -> types::Value {
    match value {
        Value::Null => types::Value::Null,
        Value::Int(number) => types::Value::Integer(number),
        Value::Text(text) => types::Value::Text(text),
        Value::Bytes(bytes) => types::Value::Blob(bytes),
    }
}

/// No column of these tables has a fraction.
fn from_sqlite(value: types::Value) -> Value {
    match value {
        types::Value::Null | types::Value::Real(_) => Value::Null,
        types::Value::Integer(number) => Value::Int(number),
        types::Value::Text(text) => Value::Text(text),
        types::Value::Blob(bytes) => Value::Bytes(bytes),
    }
}
