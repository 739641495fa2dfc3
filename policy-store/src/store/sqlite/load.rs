//! Reads everything, or the changes since a generation.

use model::{generation::Point, ids::CellId};
use rusqlite::{Connection, OptionalExtension as _, Row, Rows};

use super::super::{
    Contents, Error, Stored,
    rows::{GroupRow, PastRows, ReportRow, Scopes, StateRow, to_sql},
};
use crate::{
    groups::{decide::State, history::Past},
    reports::Report,
};

/// Must run in a transaction of the caller, for a consistent read.
pub(super) fn load(connection: &Connection, since: Option<Point>) -> Result<Contents, Error> {
    let state = state(connection)?;
    if let Some(since) = since
        && let Some(past) = past(connection, Some(since), state.point())?
    {
        let changed = "SELECT group_id FROM group_changes WHERE generation > ?1";
        let generation = to_sql("generations.generation", since.generation.0)?;
        let groups = groups(
            connection,
            &format!("WHERE group_id IN ({changed})"),
            &format!("WHERE id IN ({changed})"),
            Some(generation),
        )?;
        return Ok(Contents { state, since: Some(since), groups, past, reports: Vec::new() });
    }
    let past = past(connection, None, state.point())?.unwrap_or_default();
    let groups = groups(connection, "", "", None)?;
    Ok(Contents { state, since: None, groups, past, reports: reports(connection)? })
}

pub(super) fn state(connection: &Connection) -> Result<State, Error> {
    let row = connection
        .prepare_cached(
            "SELECT generation, stamp_ns, watermark_seconds, watermark_nanoseconds, fencing_token,
                    writer, synced_at_ms, last_id, held
             FROM store_state",
        )?
        .query_row([], state_row)
        .optional()?;
    row.map_or_else(|| Ok(State::default()), TryInto::try_into)
}

fn state_row(row: &Row<'_>) -> Result<StateRow, rusqlite::Error> {
    Ok(StateRow {
        generation: row.get(0)?,
        stamp_ns: row.get(1)?,
        watermark_seconds: row.get(2)?,
        watermark_nanoseconds: row.get(3)?,
        fencing_token: row.get(4)?,
        writer: row.get(5)?,
        synced_at_ms: row.get(6)?,
        last_id: row.get(7)?,
        held: row.get(8)?,
    })
}

/// `None`: the history does not reach back to `since`.
fn past(connection: &Connection, since: Option<Point>, now: Point) -> Result<Option<Past>, Error> {
    let first = since.map_or(0, |since| since.generation.0);
    let first = to_sql("generations.generation", first)?;
    let mut past = PastRows::default();
    let mut statement = connection.prepare_cached(
        "SELECT generation, stamp_ns FROM generations WHERE generation >= ?1 ORDER BY generation",
    )?;
    let mut rows = statement.query([first])?;
    while let Some(row) = rows.next()? {
        past.generation(row.get(0)?, row.get(1)?)?;
    }
    if since.is_some() && past.from() != since {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached(
        "SELECT generation, group_id, guid, reach_before FROM group_changes
         WHERE generation > ?1 ORDER BY generation, group_id",
    )?;
    let mut rows = statement.query([first])?;
    while let Some(row) = rows.next()? {
        let guid = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        let reach = row.get_ref(3)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        past.change(row.get(0)?, row.get(1)?, guid, reach)?;
    }
    Ok(Some(past.into_past(now)))
}

fn groups(
    connection: &Connection,
    bound: &str,
    wanted: &str,
    since: Option<i64>,
) -> Result<Vec<Stored>, Error> {
    let mut scopes = Scopes::default();
    let mut statement = connection.prepare_cached(&format!(
        "SELECT group_id, lifecycle, space_guid FROM security_group_spaces {bound}"
    ))?;
    bind_all(&mut statement.query(rusqlite::params_from_iter(since))?, &mut scopes)?;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, guid, name, running_default, staging_default, rules, content_hash
         FROM security_groups {wanted} ORDER BY id"
    ))?;
    let mut rows = statement.query(rusqlite::params_from_iter(since))?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        groups.push(scopes.group(&GroupRow {
            id: row.get(0)?,
            guid: row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?,
            name: row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?,
            running_default: row.get(3)?,
            staging_default: row.get(4)?,
            rules: row.get_ref(5)?.as_str().map_err(rusqlite::Error::from)?,
            content_hash: row.get_ref(6)?.as_blob().map_err(rusqlite::Error::from)?,
        })?);
    }
    Ok(groups)
}

pub(super) fn bind_all(rows: &mut Rows<'_>, scopes: &mut Scopes) -> Result<(), Error> {
    while let Some(row) = rows.next()? {
        let lifecycle = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        let space = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        scopes.bind(row.get(0)?, lifecycle, space)?;
    }
    Ok(())
}

fn reports(connection: &Connection) -> Result<Vec<(CellId, Report)>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT cell_id, enforced_generation, containers, isolated_rules, reported_at_ms
         FROM cell_reports ORDER BY cell_id",
    )?;
    let mut rows = statement.query([])?;
    let mut reports = Vec::new();
    while let Some(row) = rows.next()? {
        let row = ReportRow {
            cell_id: row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?,
            enforced_generation: row.get(1)?,
            containers: row.get(2)?,
            isolated_rules: row.get(3)?,
            reported_at_ms: row.get(4)?,
        };
        reports.push(row.parse()?);
    }
    Ok(reports)
}
