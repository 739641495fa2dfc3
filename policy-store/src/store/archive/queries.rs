//! The history in every SQL database.

use model::generation::Generation;
use storage::server::{Dialect, Row, Value};

use super::{
    super::{
        Error,
        batch::Batch,
        plan,
        rows::{Scopes, to_sql},
        session::{Columns, IDS_AT_ONCE, Kind, Session, number, only},
    },
    groups::{GroupBefore, GroupRows, UndoRows, changed_group},
    rows::{EntryRow, ProgressRow, reached, weighed},
    sql::Sql,
};
use crate::groups::{
    archive::{Bounds, DROPPED_AT_ONCE, Numbered, OperatorDecision, Query, Reached, Undo, expired},
    decide::{Decision, Replacement},
};

/// Adds the entry of a decision; called while the state is locked.
pub(in crate::store) async fn record(
    session: &impl Session,
    decision: &OperatorDecision,
) -> Result<(), Error> {
    let sql = Sql::of(session.kind());
    let mut entry = EntryRow::of_decision(decision)?;
    entry.number = newest(&session.query(&sql.newest(), &[]).await?)?.0 + 1;
    session.execute(&sql.insert_entry(), &entry.values()).await
}

/// Adds the entry of a Replace; called before its changes are written, while the state is
/// locked.
pub(in crate::store) async fn add(
    session: &impl Session,
    (write, is_first): (&Replacement, bool),
    decision: &Decision,
    before: &Scopes,
) -> Result<(), Error> {
    let sql = Sql::of(session.kind());
    let Some(mut entry) = EntryRow::of_change(decision, write, is_first)? else { return Ok(()) };
    let (number, newest) = newest(&session.query(&sql.newest(), &[]).await?)?;
    if newest >= entry.generation {
        for sql in sql.forget_from() {
            session.execute(&sql, &[entry.generation.into()]).await?;
        }
    }
    entry.number = number + 1;
    if entry.is_recorded {
        let mut rows = GroupRows::new(entry.generation, decision)?;
        let insert = sql.insert_groups();
        let insert = Batch { before: &insert, marks: "(?,?,?,?,?,?)", after: "" };
        insert.run(session, rows.added()?).await?;
        for ids in plan::touched(decision)?.chunks(IDS_AT_ONCE) {
            let marks = vec!["?"; ids.len()].join(",");
            let sql = format!(
                "SELECT id, guid, name, rules FROM {}security_groups WHERE id IN ({marks})",
                session.kind().prefix()
            );
            let ids: Vec<Value> = ids.iter().map(|id| Value::from(*id)).collect();
            let groups = session.query(&sql, &ids).await?;
            let groups = groups
                .iter()
                .map(|row| Ok(rows.touched(&GroupBefore::read(row.values())?, before)));
            let groups = groups.collect::<Result<_, Error>>()?;
            insert.run(session, groups).await?;
        }
        entry.bytes = rows.bytes;
    }
    session.execute(&sql.insert_entry(), &entry.values()).await
}

pub(in crate::store) async fn entries(
    session: &impl Session,
    wanted: &Query,
) -> Result<Vec<Numbered>, Error> {
    let sql = Sql::of(session.kind());
    let (text, values) = sql.entries(wanted)?;
    let rows = session.query(&text, &values).await?;
    let rows =
        rows.iter().map(|row| EntryRow::read(row.values())).collect::<Result<Vec<_>, _>>()?;
    let range = rows.last().zip(rows.first());
    let Some((oldest, newest)) = range else { return Ok(Vec::new()) };
    let range = [oldest.generation.into(), newest.generation.into()];
    let progress = session.query(&sql.progress(), &range).await?;
    let reached = reached(progress.iter().map(Row::values))?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let groups = match row.has_groups() {
            true => session.query(&sql.named_groups(), &[row.generation.into()]).await?,
            false => Vec::new(),
        };
        let groups = groups.iter().map(|group| changed_group(group.values()));
        let reached = reached.get(&row.generation).copied();
        entries.push(row.entry(groups.collect::<Result<_, _>>()?, reached)?);
    }
    Ok(entries)
}

/// The contents first: entries are dropped before their contents, so that all contents were
/// there if all entries still are.
pub(in crate::store) async fn undo(
    session: &impl Session,
    from: Generation,
    to: Generation,
) -> Result<Option<Undo>, Error> {
    let sql = Sql::of(session.kind());
    let [older, newer] = [to, from]
        .map(|generation| to_sql("archive_entries.generation", generation.0).map(Value::from));
    let (older, newer) = (older?, newer?);
    let mut groups = UndoRows::default();
    for row in session.query(&sql.undo(), &[older.clone(), newer.clone()]).await? {
        groups.group(row.values())?;
    }
    let stamp = number(&session.query(&sql.stamp(), std::slice::from_ref(&older)).await?)?;
    let recorded = number(&session.query(&sql.recorded(), &[older, newer]).await?)?;
    Ok(groups.into_undo((from, to), stamp, recorded.unwrap_or(0)))
}

/// Stores progress; keeps a row that is there.
pub(in crate::store) async fn save_progress(
    session: &impl Session,
    instance: &str,
    progress: &[(Generation, Reached)],
) -> Result<(), Error> {
    let (insert, after) = match session.kind() {
        Kind::Sqlite | Kind::Server(Dialect::Postgres) => ("INSERT", "ON CONFLICT DO NOTHING"),
        Kind::Server(Dialect::MySql) => ("INSERT IGNORE", ""),
    };
    let before = Sql::of(session.kind()).insert_progress(insert);
    let insert = Batch { before: &before, marks: "(?,?,?,?,?,?,?,?,?)", after };
    let rows = progress
        .iter()
        .map(|(generation, reached)| ProgressRow::values(instance, *generation, reached));
    insert.run(session, rows.collect::<Result<_, Error>>()?).await
}

/// What a call of prune drops.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Excess {
    /// Entries up to this number.
    entries: Option<i64>,
    has_more: bool,
}

/// `None`: nothing. Takes no lock of the state: a Replace never waits for it.
pub(in crate::store) async fn excess(
    session: &impl Session,
    bounds: &Bounds,
) -> Result<Option<Excess>, Error> {
    let sql = Sql::of(session.kind());
    let oldest = session.query(&sql.weighed(), &[]).await?;
    let oldest = oldest.iter().map(|row| weighed(row.values())).collect::<Result<Vec<_>, _>>()?;
    let total = number(&session.query(&sql.bytes(), &[]).await?)?.unwrap_or(0);
    let newest = newest(&session.query(&sql.newest(), &[]).await?)?.1;
    let newest = Generation(u64::try_from(newest).unwrap_or(0));
    let dropped = expired(&oldest, u64::try_from(total).unwrap_or(0), newest, bounds);
    let last = oldest[..dropped].last();
    let entries = last.map(|entry| to_sql("archive_entries.number", entry.number)).transpose()?;
    // Contents without an entry: the rest of an earlier call.
    let has_orphans = !session.query(&sql.orphans(), &[]).await?.is_empty();
    let has_more = dropped == DROPPED_AT_ONCE;
    Ok((entries.is_some() || has_orphans).then_some(Excess { entries, has_more }))
}

/// Drops the excess; returns whether there may be more.
pub(in crate::store) async fn prune(session: &impl Session, excess: Excess) -> Result<bool, Error> {
    let Excess { entries, has_more } = excess;
    let sql = Sql::of(session.kind());
    if let Some(last) = entries {
        session.execute(&sql.drop_entries(), &[last.into()]).await?;
    }
    let Some(oldest) = number(&session.query(&sql.oldest(), &[]).await?)? else { return Ok(false) };
    session.execute(&sql.drop_progress(), &[oldest.into()]).await?;
    let left = session.query(&sql.last_content(), &[oldest.into()]).await?;
    let Some(first_left) = left.first() else {
        session.execute(&sql.drop_contents(), &[oldest.into()]).await?;
        return Ok(has_more);
    };
    let mut columns = Columns(first_left.values().iter());
    let generation = columns.int("archive_groups.generation")?;
    let group = columns.int("archive_groups.group_id")?;
    session.execute(&sql.drop_contents(), &[generation.into()]).await?;
    let some = [generation.into(), group.into()];
    session.execute(&sql.drop_some_contents(), &some).await?;
    Ok(true)
}

/// Highest number and generation.
fn newest(rows: &[Row]) -> Result<(i64, i64), Error> {
    let row = only(rows)?;
    Ok((row.get(0)?, row.get(1)?))
}
