//! Restores the locks that this instance knows after a table was lost.
//!
//! Otherwise any client could take the keys of a lost table while their owners still
//! rely on them. Invariants:
//! - A lock is restored only if its token is the newest of its key: another instance
//!   may know a later owner.
//! - A lock whose time to live has ended is not restored.
//! - Tokens only rise: a higher stored token stays.

use std::sync::Arc;

use storage::{
    Mending,
    server::{Dialect, Value},
};

use crate::lock_version::LockVersion;

/// Limit of locks per statement.
const AT_ONCE: usize = 100;

/// The statements for these locks: their tokens first.
pub(super) fn statements(
    dialect: Dialect,
    mending: &Mending<'_>,
    held: &[Arc<LockVersion>],
) -> Vec<(String, Vec<Value>)> {
    let tokens = held.chunks(AT_ONCE).map(|held| tokens(dialect, mending, held));
    let locks = held.chunks(AT_ONCE).map(|held| locks(dialect, mending, held));
    uncounted(dialect, mending).into_iter().chain(tokens).chain(locks).collect()
}

/// MySQL drops the triggers together with the table, and a read of the counters does not
/// reveal that: without counters, reads use the rows until both are recreated.
fn uncounted(dialect: Dialect, mending: &Mending<'_>) -> Option<(String, Vec<Value>)> {
    let is_made = mending.name("locks") != "locks";
    (dialect == Dialect::MySql && is_made)
        .then(|| ("DROP TABLE IF EXISTS lock_changes".to_owned(), Vec::new()))
}

fn token(held: &LockVersion) -> Value {
    Value::Int(i64::try_from(held.lock.token.0).unwrap_or(i64::MAX))
}

fn tokens(
    dialect: Dialect,
    mending: &Mending<'_>,
    held: &[Arc<LockVersion>],
) -> (String, Vec<Value>) {
    let table = mending.name("fencing_tokens");
    let on_conflict = match dialect {
        Dialect::Postgres => {
            "ON CONFLICT (path) DO UPDATE SET modified_id = excluded.modified_id
             WHERE f.token = excluded.token"
        }
        Dialect::MySql => {
            "ON DUPLICATE KEY UPDATE
             modified_id = IF(token = VALUES(token), VALUES(modified_id), modified_id)"
        }
    };
    let alias = if dialect == Dialect::Postgres { "AS f" } else { "" };
    let marks = vec!["(?, ?, ?)"; held.len()].join(", ");
    let sql = format!(
        "INSERT INTO {table} {alias} (path, token, modified_id) VALUES {marks} {on_conflict}"
    );
    let row = |held: &Arc<LockVersion>| {
        [held.lock.key.as_str().into(), token(held), Value::from(&*held.id)]
    };
    (sql, held.iter().flat_map(row).collect())
}

fn locks(
    dialect: Dialect,
    mending: &Mending<'_>,
    held: &[Arc<LockVersion>],
) -> (String, Vec<Value>) {
    let (table, tokens) = (mending.name("locks"), mending.name("fencing_tokens"));
    let (text, number, path, on_conflict) = match dialect {
        Dialect::Postgres => (
            "TEXT",
            "BIGINT",
            "r.path",
            "ON CONFLICT (path) DO UPDATE SET owner = excluded.owner, value = excluded.value,
             type = excluded.type, modified_index = excluded.modified_index,
             modified_id = excluded.modified_id, ttl = excluded.ttl",
        ),
        Dialect::MySql => (
            "CHAR",
            "SIGNED",
            "CONVERT(r.path USING utf8mb4)",
            "ON DUPLICATE KEY UPDATE owner = VALUES(owner), value = VALUES(value),
             type = VALUES(type), modified_index = VALUES(modified_index),
             modified_id = VALUES(modified_id), ttl = VALUES(ttl)",
        ),
    };
    let row = format!(
        "SELECT CAST(? AS {text}) AS path, CAST(? AS {text}) AS owner, CAST(? AS {text}) AS value,
         CAST(? AS {text}) AS type, CAST(? AS {number}) AS modified_index,
         CAST(? AS {text}) AS modified_id, CAST(? AS {number}) AS ttl, CAST(? AS {number}) AS token"
    );
    let rows = vec![row; held.len()].join(" UNION ALL ");
    let sql = format!(
        "INSERT INTO {table} (path, owner, value, type, modified_index, modified_id, ttl)
         SELECT r.path, r.owner, r.value, r.type, r.modified_index, r.modified_id, r.ttl
         FROM ({rows}) r JOIN {tokens} f
         ON f.path = {path} AND f.modified_id = r.modified_id AND f.token = r.token
         {on_conflict}"
    );
    let row = |held: &Arc<LockVersion>| {
        let lock = &held.lock;
        [
            lock.key.as_str().into(),
            lock.owner.as_str().into(),
            lock.value.as_str().into(),
            Value::from(held.foreign_type.as_deref().unwrap_or(lock.kind.as_str())),
            // A new version: every instance measures its time to live anew.
            Value::Int(held.index.saturating_add(1)),
            Value::from(&*held.id),
            Value::Int(lock.ttl.seconds()),
            token(held),
        ]
    };
    (sql, held.iter().flat_map(row).collect())
}
