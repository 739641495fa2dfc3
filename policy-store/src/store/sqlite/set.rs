//! The set in SQLite, in bulk.

use std::{
    future::{Future, ready},
    sync::mpsc,
    thread,
};

use model::generation::Point;
use rusqlite::{Connection, Rows, params, params_from_iter};

use super::super::{
    Error, Stored,
    plan::{self, Binding},
    rows::{GroupRow, Scopes, to_sql},
    rules,
    session::Set,
};
use crate::groups::decide::{Decision, Upsert};

/// Number of bindings per statement: takes half the time of one statement per binding.
const BINDINGS_AT_ONCE: usize = 64;
/// From this number of groups on, another thread encodes their rules.
const MANY: usize = 64;
/// How many texts that thread may be ahead.
const TEXTS_AHEAD: usize = 32;

impl Set for Connection {
    fn groups(
        &self,
        since: Option<Point>,
    ) -> impl Future<Output = Result<Vec<Stored>, Error>> + Send {
        ready(groups(self, since))
    }

    fn store(
        &self,
        upserts: &[Upsert],
        _most: usize,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(store_all(self, upserts))
    }

    fn bind(
        &self,
        decision: &Decision,
        before: &Scopes,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(bind(self, decision, before))
    }
}

fn groups(connection: &Connection, since: Option<Point>) -> Result<Vec<Stored>, Error> {
    let generation = |since: Point| to_sql("generations.generation", since.generation.0);
    let since = since.map(generation).transpose()?;
    let wanted = |column| match since {
        None => String::new(),
        Some(_) => {
            format!("WHERE {column} IN (SELECT group_id FROM group_changes WHERE generation > ?1)")
        }
    };
    let mut scopes = Scopes::default();
    let mut statement = connection.prepare_cached(&format!(
        "SELECT group_id, lifecycle, space_guid FROM security_group_spaces {}",
        wanted("group_id")
    ))?;
    bind_all(&mut statement.query(params_from_iter(since))?, &mut scopes)?;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, guid, name, running_default, staging_default, rules, content_hash
         FROM security_groups {} ORDER BY id",
        wanted("id")
    ))?;
    let mut rows = statement.query(params_from_iter(since))?;
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

fn bind_all(rows: &mut Rows<'_>, scopes: &mut Scopes) -> Result<(), Error> {
    while let Some(row) = rows.next()? {
        let lifecycle = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        let space = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        scopes.bind(row.get(0)?, lifecycle, space)?;
    }
    Ok(())
}

fn store_all(connection: &Connection, upserts: &[Upsert]) -> Result<(), Error> {
    let text = |upsert: &Upsert| rules::to_text(&upsert.group.rules());
    if upserts.len() < MANY {
        return upserts.iter().try_for_each(|upsert| store(connection, upsert, &text(upsert)));
    }
    thread::scope(|scope| {
        let (sender, texts) = mpsc::sync_channel(TEXTS_AHEAD);
        // Ends early when the database failed and the receiver was dropped.
        scope.spawn(move || upserts.iter().map(text).try_for_each(|text| sender.send(text)));
        let mut stored = upserts.iter().zip(texts);
        stored.try_for_each(|(upsert, text)| store(connection, upsert, &text))
    })
}

fn store(connection: &Connection, upsert: &Upsert, rules: &str) -> Result<(), Error> {
    let Upsert { id, group, hash, added: _ } = upsert;
    connection
        .prepare_cached(
            "INSERT INTO security_groups
                 (id, guid, name, running_default, staging_default, rules, content_hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET
                 name = excluded.name, running_default = excluded.running_default,
                 staging_default = excluded.staging_default, rules = excluded.rules,
                 content_hash = excluded.content_hash",
        )?
        .execute(params![
            plan::sql_id(*id)?,
            group.guid.as_str(),
            group.name,
            group.running.everywhere,
            group.staging.everywhere,
            rules,
            hash.0
        ])?;
    Ok(())
}

fn bind(connection: &Connection, decision: &Decision, before: &Scopes) -> Result<(), Error> {
    let (gone, mut new) = plan::bindings(decision, before)?;
    let mut delete = connection.prepare_cached(
        "DELETE FROM security_group_spaces
         WHERE group_id = ?1 AND lifecycle = ?2 AND space_guid = ?3",
    )?;
    for binding in gone {
        delete.execute(params![binding.group_id, binding.lifecycle, binding.space.as_str()])?;
    }
    let mut together = Vec::with_capacity(BINDINGS_AT_ONCE);
    loop {
        together.extend(new.by_ref().take(BINDINGS_AT_ONCE));
        if together.len() < BINDINGS_AT_ONCE {
            return together.chunks(1).try_for_each(|bindings| insert(connection, bindings));
        }
        insert(connection, &together)?;
        together.clear();
    }
}

fn insert(connection: &Connection, bindings: &[Binding<'_>]) -> Result<(), Error> {
    let marks = vec!["(?,?,?)"; bindings.len()].join(",");
    let mut insert = connection.prepare_cached(&format!(
        "INSERT INTO security_group_spaces (group_id, lifecycle, space_guid) VALUES {marks}"
    ))?;
    for (at, Binding { group_id, lifecycle, space }) in bindings.iter().enumerate() {
        insert.raw_bind_parameter(3 * at + 1, group_id)?;
        insert.raw_bind_parameter(3 * at + 2, lifecycle)?;
        insert.raw_bind_parameter(3 * at + 3, space.as_str())?;
    }
    insert.raw_execute()?;
    Ok(())
}
