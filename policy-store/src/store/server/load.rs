//! Reads everything, or the changes since a generation.

use std::collections::HashMap;

use model::{
    generation::Point,
    ids::{CellId, GroupGuid},
};
use storage::server::{Dialect, Row, Server, Transaction, Value};

use super::{
    super::{
        Contents, Error, Stored,
        rows::{self, GroupRow, PastRows, ReportRow, Scopes, StateRow, corrupt, to_sql},
    },
    only, text,
};
use crate::{
    groups::{
        decide::{Known, State},
        history::Past,
    },
    reports::Report,
};

/// Number of groups per query: the result of a large set is never in memory twice.
const PAGE: i64 = 1000;

const STATE: &str = "SELECT generation, stamp_ns, watermark_seconds, watermark_nanoseconds,
        fencing_token, writer, synced_at_ms, last_id, held
    FROM portcullis_store_state WHERE only_row = 1";

const GROUPS: &str = "SELECT id, guid, name, running_default, staging_default, rules, content_hash
     FROM portcullis_security_groups";

const CHANGED: &str = "(SELECT group_id FROM portcullis_group_changes WHERE generation > ?)";

/// Guids of all groups, with what a decision needs of each.
pub(super) async fn known(transaction: &Transaction) -> Result<HashMap<GroupGuid, Known>, Error> {
    let sql = "SELECT guid, id, content_hash FROM portcullis_security_groups";
    let rows = transaction.query(sql, &[]).await?;
    let known = rows
        .iter()
        .map(|row| rows::known(row.get(1)?, text(row, 0, "security_groups.guid")?, row.get(2)?));
    known.collect()
}

pub(super) async fn load(server: &Server, since: Option<Point>) -> Result<Contents, Error> {
    // The common case, no change, takes no lock.
    if let Some(since) = since {
        let state = state(server).await?;
        if state.point() == since {
            let past = Past { from: since, steps: Vec::new() };
            return Ok(Contents { state, since: Some(since), past, ..Contents::default() });
        }
    }
    let lock = match server.dialect() {
        Dialect::Postgres => "FOR SHARE",
        Dialect::MySql => "LOCK IN SHARE MODE",
    };
    let mut contents = server
        .transaction(async |transaction: Transaction| {
            let rows = transaction.query(&format!("{STATE} {lock}"), &[]).await?;
            let state = parse_state(&rows)?;
            if let Some(since) = since
                && let Some(past) = past(&transaction, Some(since), state.point()).await?
            {
                let groups = groups(&transaction, Some(since)).await?;
                return Ok(Contents {
                    state,
                    since: Some(since),
                    groups,
                    past,
                    reports: Vec::new(),
                });
            }
            let past = past(&transaction, None, state.point()).await?.unwrap_or_default();
            let groups = groups(&transaction, None).await?;
            Ok::<_, Error>(Contents { state, since: None, groups, past, reports: Vec::new() })
        })
        .await?;
    if contents.since.is_none() {
        contents.reports = reports(server, i64::MIN).await?;
    }
    Ok(contents)
}

pub(super) async fn state(server: &Server) -> Result<State, Error> {
    parse_state(&server.query(STATE, &[]).await?)
}

/// Reads the state and locks it until the transaction ends: every writer locks it first.
pub(super) async fn state_for_update(transaction: &Transaction) -> Result<State, Error> {
    parse_state(&transaction.query(&format!("{STATE} FOR UPDATE"), &[]).await?)
}

fn parse_state(rows: &[Row]) -> Result<State, Error> {
    let row = only(rows)?;
    let writer: Option<Vec<u8>> = row.get(5)?;
    let writer = writer.map(String::from_utf8).transpose();
    let held: Option<Vec<u8>> = row.get(8)?;
    let held = held.map(String::from_utf8).transpose();
    StateRow {
        generation: row.get(0)?,
        stamp_ns: row.get(1)?,
        watermark_seconds: row.get(2)?,
        watermark_nanoseconds: row.get(3)?,
        fencing_token: row.get(4)?,
        writer: writer.map_err(corrupt("store_state.writer"))?,
        synced_at_ms: row.get(6)?,
        last_id: row.get(7)?,
        held: held.map_err(corrupt("store_state.held"))?,
    }
    .try_into()
}

/// `None`: the history does not reach back to `since`.
async fn past(
    transaction: &Transaction,
    since: Option<Point>,
    now: Point,
) -> Result<Option<Past>, Error> {
    let first = since.map_or(0, |since| since.generation.0);
    let first = Value::Int(to_sql("generations.generation", first)?);
    let mut past = PastRows::default();
    let sql = "SELECT generation, stamp_ns FROM portcullis_generations
        WHERE generation >= ? ORDER BY generation";
    for row in transaction.query(sql, std::slice::from_ref(&first)).await? {
        past.generation(row.get(0)?, row.get(1)?)?;
    }
    if since.is_some() && past.from() != since {
        return Ok(None);
    }
    let sql = "SELECT generation, group_id, guid, reach_before FROM portcullis_group_changes
        WHERE generation > ? ORDER BY generation, group_id";
    for row in transaction.query(sql, &[first]).await? {
        let guid = text(&row, 2, "group_changes.guid")?;
        past.change(row.get(0)?, row.get(1)?, guid, row.get(3)?)?;
    }
    Ok(Some(past.into_past(now)))
}

async fn groups(transaction: &Transaction, since: Option<Point>) -> Result<Vec<Stored>, Error> {
    let mut parameters = Vec::new();
    let mut wanted = "id > ?".to_owned();
    if let Some(since) = since {
        wanted = format!("{wanted} AND id IN {CHANGED}");
        parameters.push(Value::Int(to_sql("generations.generation", since.generation.0)?));
    }
    let sql = format!("{GROUPS} WHERE {wanted} ORDER BY id LIMIT {PAGE}");
    let mut groups = Vec::new();
    let mut scopes = Scopes::default();
    let mut last = 0;
    loop {
        let mut with_place = vec![Value::Int(last)];
        with_place.extend(parameters.iter().cloned());
        let rows = transaction.query(&sql, &with_place).await?;
        let Some(end) = rows.last() else { return Ok(groups) };
        let end: i64 = end.get(0)?;
        bindings(transaction, (last, end), &parameters, &mut scopes).await?;
        for row in &rows {
            groups.push(group(row, &mut scopes)?);
        }
        last = end;
    }
}

/// These groups, in any order.
pub(super) async fn these(transaction: &Transaction, ids: &[i64]) -> Result<Vec<Stored>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let marks = vec!["?"; ids.len()].join(",");
    let ids: Vec<Value> = ids.iter().map(|id| Value::Int(*id)).collect();
    let sql = format!(
        "SELECT group_id, lifecycle, space_guid FROM portcullis_security_group_spaces
         WHERE group_id IN ({marks})"
    );
    let mut scopes = Scopes::default();
    bind_all(&transaction.query(&sql, &ids).await?, &mut scopes)?;
    let sql = format!("{GROUPS} WHERE id IN ({marks})");
    let rows = transaction.query(&sql, &ids).await?;
    rows.iter().map(|row| group(row, &mut scopes)).collect()
}

async fn bindings(
    transaction: &Transaction,
    (after, to): (i64, i64),
    since: &[Value],
    scopes: &mut Scopes,
) -> Result<(), Error> {
    let changed =
        if since.is_empty() { String::new() } else { format!("AND group_id IN {CHANGED}") };
    let sql = format!(
        "SELECT group_id, lifecycle, space_guid FROM portcullis_security_group_spaces
         WHERE group_id > ? AND group_id <= ? {changed}"
    );
    let mut parameters = vec![Value::Int(after), Value::Int(to)];
    parameters.extend(since.iter().cloned());
    bind_all(&transaction.query(&sql, &parameters).await?, scopes)
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

fn group(row: &Row, scopes: &mut Scopes) -> Result<Stored, Error> {
    scopes.group(&GroupRow {
        id: row.get(0)?,
        guid: text(row, 1, "security_groups.guid")?,
        name: text(row, 2, "security_groups.name")?,
        running_default: row.get(3)?,
        staging_default: row.get(4)?,
        rules: text(row, 5, "security_groups.rules")?,
        content_hash: row.get(6)?,
    })
}

/// Reports received after a time.
pub(super) async fn reports(
    server: &Server,
    after_ms: i64,
) -> Result<Vec<(CellId, Report)>, Error> {
    let sql = "SELECT cell_id, enforced_generation, containers, isolated_rules, reported_at_ms
        FROM portcullis_cell_reports WHERE reported_at_ms > ? ORDER BY cell_id";
    let rows = server.query(sql, &[Value::Int(after_ms)]).await?;
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
