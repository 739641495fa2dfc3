//! Numbered schema migrations.
//!
//! On SQLite all pending migrations run in one transaction, together with their record in
//! `schema_migrations`: if the process dies, the schema is the old or the new one. The record keeps
//! the statements themselves, so that a database of another program, or a migration that was edited
//! after it was applied, is detected before any write.

use rusqlite::{Connection, TransactionBehavior, params};

use crate::{
    Error,
    schema::{self, Found, Lost, Repair, Table},
};

/// One schema migration.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// 1, 2, 3 ... without gaps.
    pub version: u32,
    /// Short name for messages.
    pub name: &'static str,
    /// One or more statements.
    pub sql: &'static str,
}

const RECORD_NAME: &str = "schema_migrations";

const RECORD: &str = "CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    sql TEXT NOT NULL
) STRICT";

/// Applies pending `migrations`, and recreates missing tables and columns of `tables`. Returns what
/// was missing.
pub(crate) fn migrate(
    connection: &mut Connection,
    migrations: &'static [Migration],
    tables: &'static [Table],
) -> Result<Vec<Lost>, Error> {
    check_order(migrations)?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(Error::transaction)?;
    let lost = migrate_in(&transaction, migrations, tables, false)?;
    transaction.commit().map_err(Error::transaction)?;
    lost.iter().for_each(Lost::log);
    Ok(lost)
}

/// Runs within a transaction. `is_running`: the schema was complete before, since this program
/// already runs.
pub(crate) fn migrate_in(
    transaction: &Connection,
    migrations: &'static [Migration],
    tables: &'static [Table],
    is_running: bool,
) -> Result<Vec<Lost>, Error> {
    transaction.execute_batch(RECORD)?;
    let applied = applied(transaction)?;
    check_applied(&applied, migrations)?;
    let before = found(transaction)?;
    // Tables of this program without a record: the record was lost.
    let is_unrecorded = applied.is_empty()
        && !tables.is_empty()
        && (is_running || schema::is_ours(tables, &before));
    let record = Lost { table: RECORD_NAME, column: None };
    let mut lost = if is_unrecorded { vec![record] } else { Vec::new() };
    for migration in &migrations[applied.len()..] {
        let Migration { version, name, sql } = *migration;
        let sql_of_now = if is_unrecorded { "" } else { sql };
        transaction
            .execute_batch(sql_of_now)
            .and_then(|()| {
                transaction.execute(
                    "INSERT INTO schema_migrations (version, name, sql) VALUES (?1, ?2, ?3)",
                    params![version, name, sql],
                )
            })
            .map_err(|source| Error::Migration { version, name, source: source.into() })?;
    }
    if !tables.is_empty() {
        let Repair { lost: missing, statements, made: _, seeds } =
            schema::repair(tables, &found(transaction)?, schema::now(), "");
        // Other tables' references must not follow the renamed table.
        transaction.pragma_update(None, "legacy_alter_table", true)?;
        for sql in statements.iter().map(String::as_str).chain(seeds) {
            transaction.execute_batch(sql)?;
        }
        transaction.pragma_update(None, "legacy_alter_table", false)?;
        lost.extend(missing);
    }
    Ok(lost)
}

/// Whether a table or a column is missing.
pub(crate) fn is_damaged(connection: &Connection, tables: &'static [Table]) -> Result<bool, Error> {
    let found = found(connection)?;
    let is_recorded = found.contains_key(RECORD_NAME);
    Ok(!is_recorded || !schema::repair(tables, &found, 0, "").lost.is_empty())
}

fn found(connection: &Connection) -> Result<Found, Error> {
    let mut statement = connection.prepare(
        "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
         WHERE m.type = 'table'",
    )?;
    let mut rows = statement.query([])?;
    let mut found = Found::new();
    while let Some(row) = rows.next()? {
        found.entry(row.get(0)?).or_default().insert(row.get(1)?);
    }
    Ok(found)
}

/// A recorded migration.
pub(crate) struct Applied {
    pub(crate) version: u32,
    pub(crate) name: String,
    pub(crate) sql: String,
}

fn applied(connection: &Connection) -> Result<Vec<Applied>, Error> {
    let mut statement =
        connection.prepare("SELECT version, name, sql FROM schema_migrations ORDER BY version")?;
    let rows = statement.query_map([], |row| {
        Ok(Applied { version: row.get(0)?, name: row.get(1)?, sql: row.get(2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(crate) fn check_order(migrations: &[Migration]) -> Result<(), Error> {
    for (expected, migration) in (1u32..).zip(migrations) {
        if migration.version != expected {
            return Err(Error::MigrationOrder {
                found: migration.version,
                name: migration.name,
                expected,
            });
        }
    }
    Ok(())
}

pub(crate) fn check_applied<'a>(
    applied: impl IntoIterator<Item = &'a Applied>,
    migrations: &[Migration],
) -> Result<(), Error> {
    let mut last = 0;
    for (at, applied) in applied.into_iter().enumerate() {
        last = applied.version;
        if let Some(known) = migrations.get(at)
            && (applied.version != known.version || applied.sql != known.sql)
        {
            return Err(Error::ChangedMigration {
                version: applied.version,
                applied: applied.name.clone(),
                known: known.name,
            });
        }
    }
    let known = migrations.last().map_or(0, |last| last.version);
    if last > known { Err(Error::NewerSchema { found: last, known }) } else { Ok(()) }
}
