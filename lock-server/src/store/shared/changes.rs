//! Change counters of the table `locks`: a read uses them to check that a cached image
//! is current.
//!
//! Triggers on `locks` add a row to the table `lock_changes` in the transaction of each
//! write that changes the response of FetchAll: a new row, a deleted row, another owner,
//! value or type. A refresh that changes none of these adds nothing. Invariants:
//! - The sum over the rows rises with each commit of such a change, whichever program
//!   writes: this or an older release, the original, an operator.
//! - Two equal sums at two times mean that FetchAll has the same response at both. The
//!   sum never falls. Each step is random, so that a database that lost its last
//!   commits in a failover does not reach the same sum again.
//! - No writer waits for another: each adds a row of its own, once per transaction on
//!   PostgreSQL, once per row of `locks` on MySQL.
//! - [`compact`] replaces many rows by one with their sum, in one transaction:
//!   the sum over all rows is the same before and after.
//! - Where the triggers cannot be created (no privilege) or are gone, there is no
//!   [`Mark`], and FetchAll reads all rows of its kind.
//!
//! The triggers are not part of a migration: a server without the privilege has to
//! start, and a lost trigger has to be recreated.

use model::lock::LockKind;
use runtime::error::chain;
use storage::server::{Dialect, Server, Transaction, Value};

/// Sums of the counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    locks: i64,
    presences: i64,
    /// Identity of the table: PostgreSQL's OID; on MySQL, whether the table has a row.
    table: i64,
    rows: i64,
}

impl Mark {
    /// The counters that an image of this kind depends on.
    pub(super) fn of(self, kind: LockKind) -> (i64, i64) {
        match kind {
            LockKind::Lock => (self.locks, self.table),
            LockKind::Presence => (self.presences, self.table),
        }
    }

    /// Whether the table has so many rows that it should be compacted.
    pub(super) fn is_long(self) -> bool {
        self.rows > LONG
    }
}

/// Limit of rows in `lock_changes`; more rows are compacted.
const LONG: i64 = 256;

/// Limit of rows per compaction.
const MOST: u32 = 1_000;

/// Upper bound of a step: 2^43 changes fit.
const STEP: u32 = 1 << 20;

const TRIGGERS: [&str; 3] =
    ["portcullis_locks_inserted", "portcullis_locks_updated", "portcullis_locks_deleted"];

// `to_regclass` takes no lock: the first read after `locks` is dropped, recreated or
// loses its triggers observes that.
const POSTGRES_MARK: &str = "SELECT CAST(COALESCE(SUM(c.locks), 0) AS BIGINT),
CAST(COALESCE(SUM(c.presences), 0) AS BIGINT),
CAST(CAST(to_regclass('locks') AS oid) AS BIGINT),
(SELECT COUNT(*) FROM pg_trigger WHERE tgrelid = CAST(to_regclass('locks') AS oid)
    AND tgname LIKE 'portcullis\\_locks\\_%' AND tgenabled IN ('O', 'A')) = 4, COUNT(*)
FROM lock_changes c";

const MYSQL_MARK: &str = "SELECT CAST(COALESCE(SUM(c.locks), 0) AS SIGNED),
CAST(COALESCE(SUM(c.presences), 0) AS SIGNED), EXISTS (SELECT 1 FROM locks), 1, COUNT(*)
FROM lock_changes c";

/// Reads the counters; `None` when they do not count.
pub(super) async fn mark(server: &Server) -> Result<Option<Mark>, storage::Error> {
    let sql = match server.dialect() {
        Dialect::Postgres => POSTGRES_MARK,
        Dialect::MySql => MYSQL_MARK,
    };
    let rows = server.query(sql, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (table, counts): (Option<i64>, bool) = (row.get(2)?, row.get(3)?);
    let Some(table) = table.filter(|_| counts) else { return Ok(None) };
    Ok(Some(Mark { locks: row.get(0)?, presences: row.get(1)?, table, rows: row.get(4)? }))
}

/// Replaces many rows by one with their sum.
pub(super) async fn compact(server: &Server) -> Result<(), storage::Error> {
    match server.dialect() {
        Dialect::Postgres => {
            let sql = format!(
                "WITH gone AS (
                     DELETE FROM lock_changes WHERE id IN (
                         SELECT id FROM lock_changes LIMIT {MOST} FOR UPDATE SKIP LOCKED)
                     RETURNING locks, presences
                 ) INSERT INTO lock_changes (locks, presences)
                 SELECT CAST(COALESCE(SUM(locks), 0) AS BIGINT),
                     CAST(COALESCE(SUM(presences), 0) AS BIGINT) FROM gone"
            );
            server.execute(&sql, &[]).await.map(drop)
        }
        Dialect::MySql => server.transaction(compact_on_mysql).await,
    }
}

async fn compact_on_mysql(transaction: Transaction) -> Result<(), storage::Error> {
    let select = format!(
        "SELECT id, locks, presences FROM lock_changes ORDER BY id LIMIT {MOST} FOR UPDATE"
    );
    let rows = transaction.query(&select, &[]).await?;
    let (mut ids, mut locks, mut presences) = (Vec::with_capacity(rows.len()), 0, 0);
    for row in &rows {
        ids.push(row.get::<i64>(0)?.to_string());
        locks += row.get::<i64>(1)?;
        presences += row.get::<i64>(2)?;
    }
    if ids.is_empty() {
        return Ok(());
    }
    let delete = format!("DELETE FROM lock_changes WHERE id IN ({})", ids.join(", "));
    transaction.execute(&delete, &[]).await?;
    let insert = "INSERT INTO lock_changes (locks, presences) VALUES (?, ?)";
    transaction.execute(insert, &[Value::from(locks), Value::from(presences)]).await?;
    Ok(())
}

/// Whether the counters, their triggers and the index on `type` exist.
async fn are_there(server: &Server) -> Result<bool, storage::Error> {
    let sql = match server.dialect() {
        Dialect::Postgres => {
            "SELECT to_regclass('lock_changes') IS NOT NULL
             AND EXISTS (SELECT 1 FROM pg_indexes WHERE indexname = 'locks_type'
                 AND schemaname = (SELECT relnamespace::regnamespace::text FROM pg_class
                     WHERE oid = to_regclass('locks')))
             AND (SELECT COUNT(*) FROM pg_trigger WHERE tgrelid = to_regclass('locks')
                 AND tgname LIKE 'portcullis\\_locks\\_%' AND tgenabled IN ('O', 'A')) = 4"
        }
        Dialect::MySql => {
            "SELECT (SELECT COUNT(*) FROM information_schema.triggers
                 WHERE event_object_schema = DATABASE() AND event_object_table = 'locks'
                 AND trigger_name LIKE 'portcullis\\_locks\\_%') = 3
             AND EXISTS (SELECT 1 FROM information_schema.tables
                 WHERE table_schema = DATABASE() AND table_name = 'lock_changes')
             AND EXISTS (SELECT 1 FROM information_schema.statistics
                 WHERE table_schema = DATABASE() AND table_name = 'locks'
                 AND index_name = 'locks_type')"
        }
    };
    server.query(sql, &[]).await?.first().map_or(Ok(false), |row| row.get(0))
}

/// Whether the current user created the triggers: MySQL runs a trigger as its creator,
/// and a trigger of a deleted user would fail each write.
async fn are_ours(server: &Server) -> Result<bool, storage::Error> {
    if server.dialect() == Dialect::Postgres {
        return Ok(true);
    }
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM information_schema.triggers
        WHERE event_object_schema = DATABASE() AND event_object_table = 'locks'
        AND trigger_name LIKE 'portcullis\\_locks\\_%' AND definer <> CURRENT_USER())";
    server.query(sql, &[]).await?.first().map_or(Ok(true), |row| row.get(0))
}

/// Creates missing counters, and at the start recreates those of another user; returns
/// false, after a log line, when the database refuses.
///
/// # Errors
/// The database cannot be queried.
pub(super) async fn ensure(server: &Server, at_start: bool) -> Result<bool, storage::Error> {
    if are_there(server).await? && (!at_start || are_ours(server).await?) {
        return Ok(true);
    }
    let made = match server.dialect() {
        Dialect::Postgres => make_on_postgres(server).await,
        Dialect::MySql => make_on_mysql(server).await,
    };
    match made {
        Ok(()) => {
            tracing::info!("lock-changes-counted");
            Ok(true)
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "lock-changes-not-counted");
            Ok(false)
        }
    }
}

async fn make_on_postgres(server: &Server) -> Result<(), storage::Error> {
    let sql = "SELECT quote_ident(n.nspname) FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('locks')";
    let rows = server.query(sql, &[]).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    server.define(&on_postgres(&row.get::<String>(0)?)).await
}

/// One transaction. Writers of `locks` are blocked while the index is built; the
/// statements fail when they would have to wait for long.
fn on_postgres(schema: &str) -> String {
    let [inserted, updated, deleted] = TRIGGERS;
    format!(
        "BEGIN;
SET LOCAL lock_timeout = '2s';
SELECT pg_advisory_xact_lock(8077251001);
CREATE TABLE IF NOT EXISTS {schema}.lock_changes (
    id BIGSERIAL PRIMARY KEY, locks BIGINT NOT NULL, presences BIGINT NOT NULL);
CREATE INDEX IF NOT EXISTS locks_type ON {schema}.locks (type);
CREATE OR REPLACE FUNCTION {schema}.portcullis_locks_changed() RETURNS trigger
LANGUAGE plpgsql AS $body$
DECLARE
    kinds text;
    step bigint;
BEGIN
    IF TG_OP = 'INSERT' THEN
        kinds := CASE WHEN NEW.type = 'presence' THEN 'p' ELSE 'l' END;
    ELSIF TG_OP = 'DELETE' THEN
        kinds := CASE WHEN OLD.type = 'presence' THEN 'p' ELSE 'l' END;
    ELSIF TG_OP = 'UPDATE' AND NEW.type IS NOT DISTINCT FROM OLD.type THEN
        kinds := CASE WHEN NEW.type = 'presence' THEN 'p' ELSE 'l' END;
    ELSE
        kinds := 'lp';
    END IF;
    -- Once in a transaction: the setting falls with it.
    IF current_setting('portcullis.changed', true) IN (kinds, 'lp') THEN
        RETURN NULL;
    END IF;
    step := 1 + floor(random() * {STEP});
    INSERT INTO {schema}.lock_changes (locks, presences) VALUES (
        CASE WHEN kinds = 'p' THEN 0 ELSE step END,
        CASE WHEN kinds = 'l' THEN 0 ELSE step END);
    PERFORM set_config('portcullis.changed', CASE
        WHEN current_setting('portcullis.changed', true) IN ('l', 'p') THEN 'lp'
        ELSE kinds END, true);
    RETURN NULL;
END
$body$;
DROP TRIGGER IF EXISTS {inserted} ON {schema}.locks;
CREATE TRIGGER {inserted} AFTER INSERT ON {schema}.locks
    FOR EACH ROW EXECUTE PROCEDURE {schema}.portcullis_locks_changed();
DROP TRIGGER IF EXISTS {deleted} ON {schema}.locks;
CREATE TRIGGER {deleted} AFTER DELETE ON {schema}.locks
    FOR EACH ROW EXECUTE PROCEDURE {schema}.portcullis_locks_changed();
DROP TRIGGER IF EXISTS {updated} ON {schema}.locks;
CREATE TRIGGER {updated} AFTER UPDATE ON {schema}.locks FOR EACH ROW
    WHEN (OLD.owner IS DISTINCT FROM NEW.owner OR OLD.value IS DISTINCT FROM NEW.value
        OR OLD.type IS DISTINCT FROM NEW.type OR OLD.path IS DISTINCT FROM NEW.path)
    EXECUTE PROCEDURE {schema}.portcullis_locks_changed();
DROP TRIGGER IF EXISTS portcullis_locks_truncated ON {schema}.locks;
CREATE TRIGGER portcullis_locks_truncated AFTER TRUNCATE ON {schema}.locks
    FOR EACH STATEMENT EXECUTE PROCEDURE {schema}.portcullis_locks_changed();
COMMIT"
    )
}

/// MySQL error: the index exists already.
const THERE: &str = "1061";

async fn make_on_mysql(server: &Server) -> Result<(), storage::Error> {
    for statement in on_mysql() {
        match server.define(&statement).await {
            Err(storage::Error::Server { source }) if source.code() == Some(THERE) => {}
            made => made?,
        }
    }
    Ok(())
}

/// Creates the triggers while writers are blocked.
fn on_mysql() -> [String; 3] {
    let [inserted, updated, deleted] = TRIGGERS;
    // Some collations treat different texts as equal: compare bytes.
    let same = ["owner", "value", "type", "path"]
        .map(|column| format!("BINARY OLD.{column} <=> BINARY NEW.{column}"))
        .join(" AND ");
    let (old, new) = ("OLD.type <=> 'presence'", "NEW.type <=> 'presence'");
    let (on_insert, on_delete) = (count(new, new), count(old, old));
    let on_update = count(&format!("({old} AND {new})"), &format!("({old} OR {new})"));
    [
        "CREATE TABLE IF NOT EXISTS lock_changes (id BIGINT AUTO_INCREMENT PRIMARY KEY,
             locks BIGINT NOT NULL, presences BIGINT NOT NULL) ENGINE = InnoDB"
            .to_owned(),
        "CREATE INDEX locks_type ON locks (type)".to_owned(),
        format!(
            "SET SESSION lock_wait_timeout = 2;
             LOCK TABLES locks WRITE, lock_changes WRITE;
             DROP TRIGGER IF EXISTS {inserted};
             CREATE TRIGGER {inserted} AFTER INSERT ON locks FOR EACH ROW {on_insert};
             DROP TRIGGER IF EXISTS {deleted};
             CREATE TRIGGER {deleted} AFTER DELETE ON locks FOR EACH ROW {on_delete};
             DROP TRIGGER IF EXISTS {updated};
             CREATE TRIGGER {updated} AFTER UPDATE ON locks FOR EACH ROW
             IF NOT ({same}) THEN {on_update}; END IF;
             UNLOCK TABLES"
        ),
    ]
}

/// Trigger statement; the conditions tell whether all or some of the row is presence.
fn count(is_all: &str, is_some: &str) -> String {
    let step = format!("1 + FLOOR(RAND() * {STEP})");
    format!(
        "INSERT INTO lock_changes (locks, presences)
         VALUES (IF({is_all}, 0, {step}), IF({is_some}, {step}, 0))"
    )
}
