//! Numbered changes of the schema.
//!
//! On SQLite all pending migrations run in one transaction together with their
//! record in `schema_migrations`: whenever the process dies, the schema is the old
//! or the new one. The record keeps the statements themselves, so that a database of
//! another program, or a migration that was edited after it was applied, is
//! recognised before anything is written.

use rusqlite::{Connection, TransactionBehavior, params};

use crate::Error;

/// One step of the schema.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// 1, 2, 3 ... without gaps.
    pub version: u32,
    /// Short name for messages.
    pub name: &'static str,
    /// One or more statements.
    pub sql: &'static str,
}

const RECORD: &str = "CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    sql TEXT NOT NULL
) STRICT";

/// Brings the schema to the last of `migrations`.
pub(crate) fn migrate(
    connection: &mut Connection,
    migrations: &'static [Migration],
) -> Result<(), Error> {
    check_order(migrations)?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(Error::transaction)?;
    transaction.execute_batch(RECORD)?;
    let applied = applied(&transaction)?;
    check_applied(&applied, migrations)?;
    for migration in &migrations[applied.len()..] {
        let Migration { version, name, sql } = *migration;
        transaction
            .execute_batch(sql)
            .and_then(|()| {
                transaction.execute(
                    "INSERT INTO schema_migrations (version, name, sql) VALUES (?1, ?2, ?3)",
                    params![version, name, sql],
                )
            })
            .map_err(|source| Error::Migration { version, name, source: source.into() })?;
    }
    transaction.commit().map_err(Error::transaction)
}

/// What the record says of a migration.
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
