//! Reads the set, the same for every SQL database; [`Set::groups`] differs.

use std::collections::HashMap;

use model::{
    generation::{Generation, Point},
    ids::{CellId, GroupGuid},
};
use storage::server::{Row, Value};

use super::{
    Contents, Error,
    rows::{self, PastRows, ReportRow, Scopes, StateRow, to_sql},
    session::{Columns, IDS_AT_ONCE, Kind, Session, Set, only, text},
};
use crate::{
    groups::{
        decide::{Known, State},
        history::Past,
    },
    reports::Report,
};

/// Reads everything but the reports, or the changes since a generation; in a transaction.
pub(super) async fn load(
    session: &impl Set,
    since: Option<Point>,
    lock: &str,
) -> Result<Contents, Error> {
    let state = state(session, lock).await?;
    let now = state.point();
    let (since, past) = match past(session, since, now).await? {
        Some(past) => (since, past),
        // The history does not reach back that far.
        None => (None, past(session, None, now).await?.unwrap_or_default()),
    };
    let groups = session.groups(since).await?;
    Ok(Contents { state, since, groups, past, reports: Vec::new() })
}

/// The state; `lock` comes after the query. SQLite has no row before the first Replace.
pub(super) async fn state(session: &impl Session, lock: &str) -> Result<State, Error> {
    let kind = session.kind();
    let sql = format!(
        "SELECT generation, stamp_ns, watermark_seconds, watermark_nanoseconds, fencing_token,
             writer, synced_at_ms, last_id, held
         FROM {}store_state WHERE only_row = 1 {lock}",
        kind.prefix()
    );
    let rows = session.query(&sql, &[]).await?;
    if rows.is_empty() && kind == Kind::Sqlite {
        return Ok(State::default());
    }
    let mut columns = Columns(only(&rows)?.values().iter());
    StateRow {
        generation: columns.int("store_state.generation")?,
        stamp_ns: columns.int("store_state.stamp_ns")?,
        watermark_seconds: columns.optional("store_state.watermark_seconds")?,
        watermark_nanoseconds: columns.optional("store_state.watermark_nanoseconds")?,
        fencing_token: columns.optional("store_state.fencing_token")?,
        writer: columns.text("store_state.writer")?,
        synced_at_ms: columns.optional("store_state.synced_at_ms")?,
        last_id: columns.int("store_state.last_id")?,
        held: columns.text("store_state.held")?,
    }
    .try_into()
}

/// Reads the state and locks it until the transaction ends: every writer locks it first.
pub(super) async fn state_for_update(session: &impl Session) -> Result<State, Error> {
    state(session, session.kind().for_update()).await
}

/// `None`: the history does not reach back to `since`.
async fn past(
    session: &impl Session,
    since: Option<Point>,
    now: Point,
) -> Result<Option<Past>, Error> {
    let prefix = session.kind().prefix();
    let first = since.map_or(0, |since| since.generation.0);
    let first = [Value::Int(to_sql("generations.generation", first)?)];
    let mut past = PastRows::default();
    let sql = format!(
        "SELECT generation, stamp_ns FROM {prefix}generations
         WHERE generation >= ? ORDER BY generation"
    );
    for row in session.query(&sql, &first).await? {
        past.generation(row.get(0)?, row.get(1)?)?;
    }
    if since.is_some() && past.from() != since {
        return Ok(None);
    }
    let sql = format!(
        "SELECT generation, group_id, guid, reach_before FROM {prefix}group_changes
         WHERE generation > ? ORDER BY generation, group_id"
    );
    for row in session.query(&sql, &first).await? {
        let guid = text(&row, 2, "group_changes.guid")?;
        past.change(row.get(0)?, row.get(1)?, guid, row.get(3)?)?;
    }
    Ok(Some(past.into_past(now)))
}

/// Remembered generations and their weights, the newest first.
pub(super) async fn generations(session: &impl Session) -> Result<Vec<(Generation, usize)>, Error> {
    let prefix = session.kind().prefix();
    let sql =
        format!("SELECT generation, weight FROM {prefix}generations ORDER BY generation DESC");
    let rows = session.query(&sql, &[]).await?;
    rows.iter().map(|row| rows::weighed(row.get(0)?, row.get(1)?)).collect()
}

/// Guids of all groups, with what a decision needs of each.
pub(super) async fn known(session: &impl Session) -> Result<HashMap<GroupGuid, Known>, Error> {
    let prefix = session.kind().prefix();
    let sql = format!("SELECT guid, id, content_hash FROM {prefix}security_groups");
    let rows = session.query(&sql, &[]).await?;
    let known = rows
        .iter()
        .map(|row| rows::known(row.get(1)?, text(row, 0, "security_groups.guid")?, row.get(2)?));
    known.collect()
}

/// Scopes of these groups.
pub(super) async fn scopes(session: &impl Session, ids: &[i64]) -> Result<Scopes, Error> {
    let prefix = session.kind().prefix();
    let mut scopes = Scopes::default();
    for ids in ids.chunks(IDS_AT_ONCE) {
        let marks = vec!["?"; ids.len()].join(",");
        let ids: Vec<Value> = ids.iter().map(|id| Value::Int(*id)).collect();
        let sql = format!(
            "SELECT id, running_default, staging_default FROM {prefix}security_groups
             WHERE id IN ({marks})"
        );
        for row in session.query(&sql, &ids).await? {
            scopes.everywhere(row.get(0)?, row.get(1)?, row.get(2)?);
        }
        let sql = format!(
            "SELECT group_id, lifecycle, space_guid FROM {prefix}security_group_spaces
             WHERE group_id IN ({marks})"
        );
        bind_all(&session.query(&sql, &ids).await?, &mut scopes)?;
    }
    Ok(scopes)
}

/// Adds rows with group, lifecycle and space.
pub(super) fn bind_all(rows: &[Row], scopes: &mut Scopes) -> Result<(), Error> {
    for row in rows {
        let lifecycle = text(row, 1, "security_group_spaces.lifecycle")?;
        let space = text(row, 2, "security_group_spaces.space_guid")?;
        scopes.bind(row.get(0)?, lifecycle, space)?;
    }
    Ok(())
}

/// Reports received after a time.
pub(super) async fn reports(
    session: &impl Session,
    after_ms: i64,
) -> Result<Vec<(CellId, Report)>, Error> {
    let sql = format!(
        "SELECT cell_id, enforced_generation, containers, isolated_rules, reported_at_ms
         FROM {}cell_reports WHERE reported_at_ms > ? ORDER BY cell_id",
        session.kind().prefix()
    );
    let rows = session.query(&sql, &[Value::Int(after_ms)]).await?;
    let report = |row: &Row| {
        ReportRow {
            cell_id: text(row, 0, "cell_reports.cell_id")?,
            enforced_generation: row.get(1)?,
            containers: row.get(2)?,
            isolated_rules: row.get(3)?,
            reported_at_ms: row.get(4)?,
        }
        .parse()
    };
    rows.iter().map(report).collect()
}
