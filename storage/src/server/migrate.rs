//! The schema on a server, when several processes start at once.
//!
//! Whoever comes first holds a lock of the server (PostgreSQL: an advisory lock,
//! MySQL: a named lock) that falls with its connection; the others wait, and find
//! everything done. On PostgreSQL all migrations and their record are one
//! transaction. MySQL commits each statement by itself: there the record counts
//! them, and a migration that was cut short is carried on with the statement that
//! comes next; should that one have been carried out just before the end, then what
//! it complains of (its table exists, its column is gone) says so.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    Dialect, Schema, Server,
    fault::Fault,
    pool::Lease,
    text,
    value::{Row, Value},
};
use crate::{
    Error, Kind, Migration,
    migration::{Applied, check_applied, check_order},
};

/// How long all of it may take, the wait for others included.
const PATIENCE: Duration = Duration::from_secs(300);

/// MySQL: what there is to make is there, what there is to drop is gone.
const DONE_BEFORE: [&str; 5] = ["1050", "1060", "1061", "1068", "1091"];

pub(super) async fn migrate(server: &Server, schema: &Schema) -> Result<(), Error> {
    check_order(schema.migrations)?;
    let work = async {
        let mut lease = server.shared.pool.lease().await?;
        match server.dialect() {
            Dialect::Postgres => on_postgres(&mut lease, schema).await,
            Dialect::MySql => on_mysql(&mut lease, schema).await,
        }
    };
    timeout(PATIENCE, work).await.unwrap_or(Err(Error::Timeout { after: PATIENCE, source: None }))
}

fn failed(fault: Fault) -> Error {
    Error::Server { source: Arc::new(fault) }
}

/// A number for the record's name: two programs in one database do not wait for
/// each other (FNV-1a).
fn number(name: &str) -> i64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    i64::from_ne_bytes(hash.to_ne_bytes())
}

async fn on_postgres(lease: &mut Lease, schema: &Schema) -> Result<(), Error> {
    let Schema { record, migrations } = schema;
    let begin = format!(
        "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
         SET LOCAL idle_in_transaction_session_timeout = 0;
         SELECT pg_advisory_xact_lock({});
         CREATE TABLE IF NOT EXISTS {record} (
             version INTEGER PRIMARY KEY, name TEXT NOT NULL, statements TEXT NOT NULL,
             done INTEGER NOT NULL)",
        number(record)
    );
    lease.batch(&begin).await.map_err(failed)?;
    let applied = applied(lease, record).await?;
    for migration in &migrations[check(&applied, migrations)?..] {
        let Migration { version, name, sql } = *migration;
        let step = |statement, fault| step(migration, statement, fault);
        lease.batch(sql).await.map_err(|fault| step(1, fault))?;
        let count = text::statements(sql).len();
        let insert = format!("INSERT INTO {record} VALUES (?, ?, ?, ?)");
        let values = [version.into(), name.into(), sql.into(), done(count)];
        lease.part(false, &insert, &values).await.map_err(|fault| step(count, fault))?;
    }
    lease.commit().await.map_err(|fault| Error::OutcomeUnknown { source: Arc::new(fault) })
}

fn step(migration: &Migration, statement: usize, fault: Fault) -> Error {
    let Migration { version, name, sql: _ } = *migration;
    Error::Step { version, name, statement, source: Arc::new(fault) }
}

fn done(count: usize) -> Value {
    Value::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

async fn on_mysql(lease: &mut Lease, schema: &Schema) -> Result<(), Error> {
    let lock = format!("portcullis-{:x}", number(schema.record));
    let wait = Value::Int(i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX));
    // The names of locks are the server's: the database's name belongs in it.
    const GET: &str = "SELECT GET_LOCK(CONCAT(?, MD5(DATABASE())), ?)";
    const RELEASE: &str = "SELECT RELEASE_LOCK(CONCAT(?, MD5(DATABASE())))";
    let got = lease.part(false, GET, &[lock.as_str().into(), wait]).await.map_err(failed)?;
    if got.rows.first().map(|row| row.get::<Option<i64>>(0)).transpose()?.flatten() != Some(1) {
        return Err(failed(Fault::new(Kind::Busy, "another process is changing the schema")));
    }
    on_mysql_alone(lease, schema).await?;
    lease.single(RELEASE, &[lock.into()]).await.map_err(failed)?;
    Ok(())
}

async fn on_mysql_alone(lease: &mut Lease, schema: &Schema) -> Result<(), Error> {
    let Schema { record, migrations } = schema;
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {record} (
             version INTEGER PRIMARY KEY, name VARCHAR(255) NOT NULL,
             statements LONGTEXT NOT NULL, done INTEGER NOT NULL)
         CHARACTER SET utf8mb4"
    );
    lease.batch(&create).await.map_err(failed)?;
    let applied = applied(lease, record).await?;
    check(&applied, migrations)?;
    for (at, migration) in migrations.iter().enumerate() {
        let Migration { version, name, sql } = *migration;
        let step = |statement, fault| step(migration, statement, fault);
        let before = applied.get(at).map(|(_, done)| *done);
        if before.is_none() {
            let insert = format!("INSERT INTO {record} VALUES (?, ?, ?, 0)");
            let values = [version.into(), name.into(), sql.into()];
            lease.part(false, &insert, &values).await.map_err(|fault| step(1, fault))?;
        }
        for (index, statement) in text::statements(sql).into_iter().enumerate() {
            if before.is_some_and(|done| index < done) {
                continue;
            }
            match lease.batch(statement).await {
                Ok(()) => {}
                Err(fault) if before == Some(index) && is_done_before(&fault) => {
                    tracing::info!(version, name, statement = index + 1, "migration-carried-on");
                }
                Err(fault) => return Err(step(index + 1, fault)),
            }
            let update = format!("UPDATE {record} SET done = ? WHERE version = ?");
            let values = [done(index + 1), version.into()];
            lease.part(false, &update, &values).await.map_err(|fault| step(index + 1, fault))?;
        }
    }
    Ok(())
}

fn is_done_before(fault: &Fault) -> bool {
    fault.code().is_some_and(|code| DONE_BEFORE.contains(&code))
}

/// What the record says, and how many statements of each are done.
async fn applied(lease: &mut Lease, record: &str) -> Result<Vec<(Applied, usize)>, Error> {
    let select = format!("SELECT version, name, statements, done FROM {record} ORDER BY version");
    let rows = lease.part(false, &select, &[]).await.map_err(failed)?.rows;
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

/// Refuses another program's record; otherwise, how many are applied.
fn check(applied: &[(Applied, usize)], migrations: &[Migration]) -> Result<usize, Error> {
    let all = applied.iter().map(|(applied, _)| applied);
    check_applied(all, migrations)?;
    Ok(applied.len())
}
