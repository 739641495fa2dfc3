//! The history on a database server.

use std::sync::Arc;

use model::generation::Generation;
use storage::server::{Dialect, Row, Server as Database, Transaction, Value};

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
    Server,
    batch::Batch,
    load,
};
use crate::groups::{
    archive::{Bounds, DROPPED_AT_ONCE, Numbered, OperatorDecision, Query, Reached, Undo, expired},
    decide::{Decision, Replacement},
};

/// Number of ids per statement.
const IDS_AT_ONCE: usize = 500;

fn sql(dialect: Dialect) -> Sql {
    let integer = match dialect {
        Dialect::Postgres => "BIGINT",
        Dialect::MySql => "SIGNED",
    };
    Sql { prefix: "portcullis_", integer }
}

impl Archive for Server {
    fn entries(&self, query: Query) -> Answer<'_, Vec<Numbered>> {
        Box::pin(async move { entries(&self.server, &query).await })
    }

    fn undo(&self, from: Generation, to: Generation) -> Answer<'_, Option<Undo>> {
        Box::pin(async move { undo(&self.server, from, to).await })
    }

    fn record(&self, decision: Arc<OperatorDecision>) -> Answer<'_, ()> {
        let dialect = self.server.dialect();
        Box::pin(async move {
            self.server
                .transaction(async |transaction: Transaction| {
                    // Two entries must not get the same number.
                    load::state_for_update(&transaction).await?;
                    record(&transaction, dialect, &decision).await
                })
                .await
        })
    }

    fn save_progress(
        &self,
        instance: Arc<str>,
        progress: Arc<[(Generation, Reached)]>,
    ) -> Answer<'_, ()> {
        let dialect = self.server.dialect();
        let (insert, after) = match dialect {
            Dialect::Postgres => ("INSERT", "ON CONFLICT DO NOTHING"),
            Dialect::MySql => ("INSERT IGNORE", ""),
        };
        Box::pin(async move {
            let before = sql(dialect).insert_progress(insert);
            let insert = Batch { before: &before, marks: "(?,?,?,?,?,?,?,?,?)", after };
            self.server
                .transaction(async |transaction: Transaction| {
                    let rows = progress.iter().map(|(generation, reached)| {
                        ProgressRow::values(&instance, *generation, reached)
                    });
                    insert.run(&transaction, rows.collect::<Result<_, Error>>()?).await
                })
                .await
        })
    }

    fn prune(&self, bounds: Bounds) -> Answer<'_, bool> {
        Box::pin(async move { prune(&self.server, &bounds).await })
    }
}

/// Adds the entry of a decision; called while the state is locked.
pub(super) async fn record(
    transaction: &Transaction,
    dialect: Dialect,
    decision: &OperatorDecision,
) -> Result<(), Error> {
    let sql = sql(dialect);
    let mut entry = EntryRow::of_decision(decision)?;
    entry.number = newest(&transaction.query(&sql.newest(), &[]).await?)?.0 + 1;
    transaction.execute(&sql.insert_entry(), &entry.values()).await?;
    Ok(())
}

/// Adds the entry of a Replace; called before its changes are written, while the state is
/// locked.
pub(super) async fn add(
    transaction: &Transaction,
    dialect: Dialect,
    (write, is_first): (&Replacement, bool),
    decision: &Decision,
    before: &Scopes,
) -> Result<(), Error> {
    let sql = sql(dialect);
    let Some(mut entry) = EntryRow::of_change(decision, write, is_first)? else { return Ok(()) };
    let (number, newest) = newest(&transaction.query(&sql.newest(), &[]).await?)?;
    if newest >= entry.generation {
        for sql in sql.forget_from() {
            transaction.execute(&sql, &[entry.generation.into()]).await?;
        }
    }
    entry.number = number + 1;
    if entry.is_recorded {
        let mut rows = GroupRows::new(entry.generation, decision)?;
        let insert = sql.insert_groups();
        let insert = Batch { before: &insert, marks: "(?,?,?,?,?,?)", after: "" };
        insert.run(transaction, rows.added()?).await?;
        for ids in plan::touched(decision)?.chunks(IDS_AT_ONCE) {
            let marks = vec!["?"; ids.len()].join(",");
            let sql = format!(
                "SELECT id, guid, name, rules FROM portcullis_security_groups
                 WHERE id IN ({marks})"
            );
            let ids: Vec<Value> = ids.iter().map(|id| Value::from(*id)).collect();
            let groups = transaction.query(&sql, &ids).await?.into_iter();
            let groups =
                groups.map(|row| Ok(rows.touched(&GroupBefore::read(&row.into_values())?, before)));
            let groups = groups.collect::<Result<_, Error>>()?;
            insert.run(transaction, groups).await?;
        }
        entry.bytes = rows.bytes;
    }
    transaction.execute(&sql.insert_entry(), &entry.values()).await?;
    Ok(())
}

async fn entries(server: &Database, wanted: &Query) -> Result<Vec<Numbered>, Error> {
    let sql = sql(server.dialect());
    let (text, values) = sql.entries(wanted)?;
    let rows = server.query(&text, &values).await?.into_iter();
    let rows = rows.map(|row| EntryRow::read(&row.into_values()));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    let range = rows.last().zip(rows.first());
    let Some((oldest, newest)) = range else { return Ok(Vec::new()) };
    let range = [oldest.generation.into(), newest.generation.into()];
    let progress = server.query(&sql.progress(), &range).await?;
    let reached = reached(progress.into_iter().map(Row::into_values))?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let groups = match row.has_groups() {
            true => server.query(&sql.named_groups(), &[row.generation.into()]).await?,
            false => Vec::new(),
        };
        let groups = groups.into_iter().map(|group| changed_group(&group.into_values()));
        let reached = reached.get(&row.generation).copied();
        entries.push(row.entry(groups.collect::<Result<_, _>>()?, reached)?);
    }
    Ok(entries)
}

/// The contents first: entries are dropped before their contents, so that all contents were
/// there if all entries still are.
async fn undo(server: &Database, from: Generation, to: Generation) -> Result<Option<Undo>, Error> {
    let sql = sql(server.dialect());
    let [older, newer] = [to, from]
        .map(|generation| to_sql("archive_entries.generation", generation.0).map(Value::from));
    let (older, newer) = (older?, newer?);
    let mut groups = UndoRows::default();
    for row in server.query(&sql.undo(), &[older.clone(), newer.clone()]).await? {
        groups.group(&row.into_values())?;
    }
    let stamp = number(&server.query(&sql.stamp(), std::slice::from_ref(&older)).await?)?;
    let recorded = number(&server.query(&sql.recorded(), &[older, newer]).await?)?;
    Ok(groups.into_undo((from, to), stamp, recorded.unwrap_or(0)))
}

/// Takes no lock of the state: a Replace never waits for it.
async fn prune(server: &Database, bounds: &Bounds) -> Result<bool, Error> {
    let sql = sql(server.dialect());
    let oldest = server.query(&sql.weighed(), &[]).await?.into_iter();
    let oldest = oldest.map(|row| weighed(&row.into_values())).collect::<Result<Vec<_>, _>>()?;
    let total = number(&server.query(&sql.bytes(), &[]).await?)?.unwrap_or(0);
    let newest = newest(&server.query(&sql.newest(), &[]).await?)?.1;
    let newest = Generation(u64::try_from(newest).unwrap_or(0));
    let dropped = expired(&oldest, u64::try_from(total).unwrap_or(0), newest, bounds);
    if let Some(last) = oldest[..dropped].last() {
        let last = to_sql("archive_entries.number", last.number)?;
        server.execute(&sql.drop_entries(), &[last.into()]).await?;
    }
    let Some(oldest) = number(&server.query(&sql.oldest(), &[]).await?)? else { return Ok(false) };
    let orphans = "SELECT 1 FROM portcullis_archive_groups WHERE generation < ? LIMIT 1";
    let has_orphans = !server.query(orphans, &[oldest.into()]).await?.is_empty();
    if dropped > 0 {
        server.execute(&sql.drop_progress(), &[oldest.into()]).await?;
    }
    if !has_orphans {
        return Ok(dropped == DROPPED_AT_ONCE);
    }
    let left = server.query(&sql.last_content(), &[oldest.into()]).await?;
    let Some(first_left) = left.into_iter().next() else {
        server.execute(&sql.drop_contents(), &[oldest.into()]).await?;
        return Ok(dropped == DROPPED_AT_ONCE);
    };
    let first_left = first_left.into_values();
    let mut columns = Columns(first_left.iter());
    let generation = columns.int("archive_groups.generation")?;
    let group = columns.int("archive_groups.group_id")?;
    server.execute(&sql.drop_contents(), &[generation.into()]).await?;
    let some = [generation.into(), group.into()];
    server.execute(&sql.drop_some_contents(), &some).await?;
    Ok(true)
}

/// Highest number and generation.
fn newest(rows: &[Row]) -> Result<(i64, i64), Error> {
    let row = super::only(rows)?;
    Ok((row.get(0)?, row.get(1)?))
}

/// The number in the only column of the first row, if any.
fn number(rows: &[Row]) -> Result<Option<i64>, Error> {
    match rows.first() {
        None => Ok(None),
        Some(row) => Ok(row.get(0)?),
    }
}
