//! Schema migration on a server, safe when several processes start at once.
//!
//! The first process takes a server lock (PostgreSQL: an advisory lock, MySQL: a named lock) that
//! is released with its connection; the others wait, and then find the schema complete. On
//! PostgreSQL all migrations and their record are one transaction. MySQL commits each statement
//! separately: there the record counts the statements, and an interrupted migration continues with
//! the next statement. If that statement had been executed just before the interruption, its error
//! (its table exists, its column is gone) shows this.
//!
//! After the migrations, under the same lock, missing tables and columns are recreated. A database
//! with tables of this program but without a record has lost its record: the migrations count as
//! applied, and missing tables and columns are recreated.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use super::{
    Dialect, Restore, Schema, Server,
    fault::Fault,
    pool::Lease,
    text,
    value::{Row, Value},
};
use crate::{
    Error, Kind, Migration,
    migration::{Applied, check_applied, check_order},
    schema::{self, Found, Lost, Mending, Repair},
};

/// Timeout of the whole migration, including the wait for other processes.
const PATIENCE: Duration = Duration::from_secs(300);

/// MySQL error codes of a statement that was already applied: the object to create exists, or the
/// object to drop is gone.
const DONE_BEFORE: [&str; 5] = ["1050", "1060", "1061", "1068", "1091"];

/// MySQL error code: the table exists. MariaDB hides a table from `information_schema` while another
/// process alters it, so a table that looks lost may exist.
const EXISTS: &str = "1050";
/// Attempts of a repair that meets such a table, and the pause between them.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Migrates and repairs; `restore` is `None` at the start of a program. Returns what was missing.
pub(super) async fn migrate(
    server: &Server,
    schema: &Schema,
    restore: Option<&Restore<'_>>,
) -> Result<Vec<Lost>, Error> {
    check_order(schema.migrations)?;
    let work = async {
        let mut lease = server.shared.pool.lease().await?;
        match server.dialect() {
            Dialect::Postgres => on_postgres(&mut lease, schema, restore).await,
            Dialect::MySql => on_mysql(&mut lease, schema, restore).await,
        }
    };
    let done = timeout(PATIENCE, work).await;
    let lost = done.unwrap_or(Err(Error::Timeout { after: PATIENCE, source: None }))?;
    lost.iter().for_each(Lost::log);
    Ok(lost)
}

/// Whether a table or a column is missing: a cheap check without a lock.
pub(super) async fn is_damaged(server: &Server, schema: &Schema) -> Result<bool, Error> {
    let (sql, values) = look(server.dialect(), schema);
    let found = found(&server.query(&sql, &values).await?)?;
    let is_recorded = found.contains_key(schema.record);
    Ok(!is_recorded || !schema::repair(schema.tables, &found, 0, "").lost.is_empty())
}

/// Statement that lists the existing tables and columns.
fn look(dialect: Dialect, schema: &Schema) -> (String, Vec<Value>) {
    let names = schema.tables.iter().map(|table| table.name).chain([schema.record]);
    let names: Vec<Value> = names.map(Value::from).collect();
    let sql = match dialect {
        Dialect::Postgres => {
            let marks = vec!["(CAST(? AS TEXT))"; names.len()].join(",");
            format!(
                "SELECT t.name, a.attname FROM (VALUES {marks}) AS t (name)
                 JOIN pg_attribute a ON a.attrelid = to_regclass(t.name)
                 WHERE a.attnum > 0 AND NOT a.attisdropped"
            )
        }
        Dialect::MySql => {
            let marks = vec!["?"; names.len()].join(",");
            format!(
                "SELECT table_name, column_name FROM information_schema.columns
                 WHERE table_schema = DATABASE() AND table_name IN ({marks})"
            )
        }
    };
    (sql, names)
}

fn found(rows: &[Row]) -> Result<Found, Error> {
    let mut found = Found::new();
    for row in rows {
        found.entry(row.get(0)?).or_default().insert(row.get(1)?);
    }
    Ok(found)
}

async fn found_by(lease: &mut Lease, dialect: Dialect, schema: &Schema) -> Result<Found, Error> {
    let (sql, values) = look(dialect, schema);
    found(&lease.part(false, &sql, &values).await?.rows)
}

/// Recreates missing tables and columns, and restores rows.
async fn repair(
    lease: &mut Lease,
    dialect: Dialect,
    schema: &Schema,
    restore: Option<&Restore<'_>>,
) -> Result<Vec<Lost>, Error> {
    if schema.tables.is_empty() {
        return Ok(Vec::new());
    }
    let mut attempt = 1;
    loop {
        match repair_once(lease, dialect, schema, restore).await {
            Err(Error::Server { source })
                if source.code() == Some(EXISTS) && attempt < ATTEMPTS =>
            {
                attempt += 1;
                sleep(PAUSE).await;
            }
            repaired => return repaired,
        }
    }
}

async fn repair_once(
    lease: &mut Lease,
    dialect: Dialect,
    schema: &Schema,
    restore: Option<&Restore<'_>>,
) -> Result<Vec<Lost>, Error> {
    let found = found_by(lease, dialect, schema).await?;
    // MySQL commits each statement separately, so tables get their final names at the end.
    let suffix = if dialect == Dialect::MySql { "_made" } else { "" };
    let now = schema::now();
    let Repair { lost, statements, made, seeds } =
        schema::repair(schema.tables, &found, now, suffix);
    for sql in &statements {
        lease.batch(sql).await?;
    }
    if let Some(restore) = restore
        && !lost.is_empty()
    {
        for (sql, values) in restore(&Mending { lost: &lost, made: &made, suffix }) {
            lease.part(false, &sql, &values).await?;
        }
    }
    if dialect == Dialect::MySql && !made.is_empty() {
        let renames = made.iter().map(|name| format!("{name}{suffix} TO {name}"));
        let sql = format!("RENAME TABLE {}", renames.collect::<Vec<_>>().join(", "));
        if let Err(fault) = lease.batch(&sql).await {
            let tables = made.iter().map(|name| format!("{name}{suffix}"));
            let sql = format!("DROP TABLE {}", tables.collect::<Vec<_>>().join(", "));
            lease.batch(&sql).await?;
            return Err(fault.into());
        }
    }
    for sql in seeds {
        lease.batch(sql).await?;
    }
    Ok(lost)
}

/// Whether the record was lost: it is empty, but this program already runs or its tables exist.
fn is_unrecorded(
    applied: &[(Applied, usize)],
    schema: &Schema,
    found: &Found,
    restore: Option<&Restore<'_>>,
) -> bool {
    applied.is_empty()
        && !schema.tables.is_empty()
        && (restore.is_some() || schema::is_ours(schema.tables, found))
}

/// Lock number derived from the record's name (FNV-1a), so that two programs in one database do not
/// wait for each other.
fn number(name: &str) -> i64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    i64::from_ne_bytes(hash.to_ne_bytes())
}

async fn on_postgres(
    lease: &mut Lease,
    schema: &Schema,
    restore: Option<&Restore<'_>>,
) -> Result<Vec<Lost>, Error> {
    let Schema { record, migrations, tables: _ } = schema;
    let begin = format!(
        "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
         SET LOCAL idle_in_transaction_session_timeout = 0;
         SELECT pg_advisory_xact_lock({});
         CREATE TABLE IF NOT EXISTS {record} (
             version INTEGER PRIMARY KEY, name TEXT NOT NULL, statements TEXT NOT NULL,
             done INTEGER NOT NULL)",
        number(record)
    );
    lease.batch(&begin).await?;
    let applied = applied(lease, record).await?;
    let found = found_by(lease, Dialect::Postgres, schema).await?;
    let is_unrecorded = is_unrecorded(&applied, schema, &found, restore);
    let mut lost = record_lost(schema, is_unrecorded);
    for migration in &migrations[check(&applied, migrations)?..] {
        let Migration { version, name, sql } = *migration;
        let step = |statement, fault| step(migration, statement, fault);
        if !is_unrecorded {
            lease.batch(sql).await.map_err(|fault| step(1, fault))?;
        }
        let count = text::statements(sql).len();
        let insert = format!("INSERT INTO {record} VALUES (?, ?, ?, ?)");
        let values = [version.into(), name.into(), sql.into(), done(count)];
        lease.part(false, &insert, &values).await.map_err(|fault| step(count, fault))?;
    }
    lost.extend(repair(lease, Dialect::Postgres, schema, restore).await?);
    lease.commit().await.map_err(|fault| Error::OutcomeUnknown { source: Arc::new(fault) })?;
    Ok(lost)
}

fn record_lost(schema: &Schema, is_unrecorded: bool) -> Vec<Lost> {
    let record = Lost { table: schema.record, column: None };
    if is_unrecorded { vec![record] } else { Vec::new() }
}

fn step(migration: &Migration, statement: usize, fault: Fault) -> Error {
    let Migration { version, name, sql: _ } = *migration;
    Error::Step { version, name, statement, source: Arc::new(fault) }
}

fn done(count: usize) -> Value {
    Value::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

async fn on_mysql(
    lease: &mut Lease,
    schema: &Schema,
    restore: Option<&Restore<'_>>,
) -> Result<Vec<Lost>, Error> {
    let lock = format!("portcullis-{:x}", number(schema.record));
    let wait = Value::Int(i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX));
    // Lock names are global to the server, so the database's name is part of it.
    const GET: &str = "SELECT GET_LOCK(CONCAT(?, MD5(DATABASE())), ?)";
    const RELEASE: &str = "SELECT RELEASE_LOCK(CONCAT(?, MD5(DATABASE())))";
    let got = lease.part(false, GET, &[lock.as_str().into(), wait]).await?;
    if got.rows.first().map(|row| row.get::<Option<i64>>(0)).transpose()?.flatten() != Some(1) {
        return Err(Fault::new(Kind::Busy, "another process is changing the schema").into());
    }
    lease.locked();
    let lost = on_mysql_alone(lease, schema, restore).await?;
    lease.part(false, RELEASE, &[lock.into()]).await?;
    lease.released();
    Ok(lost)
}

async fn on_mysql_alone(
    lease: &mut Lease,
    schema: &Schema,
    restore: Option<&Restore<'_>>,
) -> Result<Vec<Lost>, Error> {
    let Schema { record, migrations, tables: _ } = schema;
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {record} (
             version INTEGER PRIMARY KEY, name VARCHAR(255) NOT NULL,
             statements LONGTEXT NOT NULL, done INTEGER NOT NULL)
         CHARACTER SET utf8mb4"
    );
    lease.batch(&create).await?;
    let applied = applied(lease, record).await?;
    check(&applied, migrations)?;
    let found = found_by(lease, Dialect::MySql, schema).await?;
    let is_unrecorded = is_unrecorded(&applied, schema, &found, restore);
    let mut lost = record_lost(schema, is_unrecorded);
    for (at, migration) in migrations.iter().enumerate() {
        let Migration { version, name, sql } = *migration;
        let step = |statement, fault| step(migration, statement, fault);
        let before = applied.get(at).map(|(_, done)| *done);
        if before.is_none() {
            let insert = format!("INSERT INTO {record} VALUES (?, ?, ?, ?)");
            let all = done(text::statements(sql).len());
            let done = if is_unrecorded { all } else { done(0) };
            let values = [version.into(), name.into(), sql.into(), done];
            lease.part(false, &insert, &values).await.map_err(|fault| step(1, fault))?;
        }
        if is_unrecorded {
            continue;
        }
        for (index, statement) in text::statements(sql).into_iter().enumerate() {
            if before.is_some_and(|done| index < done) {
                continue;
            }
            match lease.batch(statement).await {
                Ok(()) => {}
                Err(fault) if before == Some(index) && is_done_before(&fault) => {
                    tracing::info!(version, name, statement = index + 1, "migration-resumed");
                }
                Err(fault) => return Err(step(index + 1, fault)),
            }
            let update = format!("UPDATE {record} SET done = ? WHERE version = ?");
            let values = [done(index + 1), version.into()];
            lease.part(false, &update, &values).await.map_err(|fault| step(index + 1, fault))?;
        }
    }
    lost.extend(repair(lease, Dialect::MySql, schema, restore).await?);
    Ok(lost)
}

fn is_done_before(fault: &Fault) -> bool {
    fault.code().is_some_and(|code| DONE_BEFORE.contains(&code))
}

/// The recorded migrations, and how many statements of each are applied.
async fn applied(lease: &mut Lease, record: &str) -> Result<Vec<(Applied, usize)>, Error> {
    let select = format!("SELECT version, name, statements, done FROM {record} ORDER BY version");
    let rows = lease.part(false, &select, &[]).await?.rows;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<(Applied, usize), Error> {
    let applied = Applied {
        version: u32::try_from(row.get::<i64>(0)?).unwrap_or(u32::MAX),
        name: row.get(1)?,
        sql: row.get(2)?,
    };
    Ok((applied, usize::try_from(row.get::<i64>(3)?).unwrap_or(0)))
}

/// Rejects the record of another program; otherwise returns the number of applied migrations.
fn check(applied: &[(Applied, usize)], migrations: &[Migration]) -> Result<usize, Error> {
    let all = applied.iter().map(|(applied, _)| applied);
    check_applied(all, migrations)?;
    Ok(applied.len())
}
