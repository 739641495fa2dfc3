//! The tables on the disk, and the statements for them.
//!
//! `locks` has the columns of the original's table (contracts/locket.md 3.1).
//! `fencing_tokens` keeps the last token of every key that was ever held: its
//! rows are never deleted.

use std::sync::Arc;

use model::lock::{self, FencingToken, Lock, LockKey, LockKind, LockValue, Owner, Ttl};
use rusqlite::{Connection, Row, named_params};
use storage::Migration;

use crate::held::{Held, Request};

pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "locks and fencing tokens", sql: FIRST },
    Migration { version: 2, name: "locks in the order of their arrival", sql: BY_ARRIVAL },
];

const FIRST: &str = "CREATE TABLE locks (
    path TEXT NOT NULL PRIMARY KEY,
    owner TEXT,
    value TEXT,
    type TEXT DEFAULT '',
    modified_index INTEGER DEFAULT 0,
    modified_id TEXT DEFAULT '',
    ttl INTEGER DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE fencing_tokens (
    path TEXT NOT NULL PRIMARY KEY,
    token INTEGER NOT NULL CHECK (token > 0)
) STRICT, WITHOUT ROWID;";

// Rows have about 800 bytes. In the order of their keys each new one changes a
// page of its own; one after the other, those of one commit share pages.
const BY_ARRIVAL: &str = "CREATE TABLE locks_by_arrival (
    path TEXT NOT NULL PRIMARY KEY,
    owner TEXT,
    value TEXT,
    type TEXT DEFAULT '',
    modified_index INTEGER DEFAULT 0,
    modified_id TEXT DEFAULT '',
    ttl INTEGER DEFAULT 0
) STRICT;
INSERT INTO locks_by_arrival (path, owner, value, type, modified_index, modified_id, ttl)
SELECT path, owner, value, type, modified_index, modified_id, ttl FROM locks;
DROP TABLE locks;
ALTER TABLE locks_by_arrival RENAME TO locks;";

const NEXT_TOKEN: &str = "INSERT INTO fencing_tokens (path, token) VALUES (:path, 1)
ON CONFLICT (path) DO UPDATE SET token = token + 1 RETURNING token";

// What is in memory is the truth: a row that a failed disk brought back, or
// one that cannot be read, is replaced.
const PUT: &str = "INSERT INTO locks
(path, owner, value, type, modified_index, modified_id, ttl)
VALUES (:path, :owner, :value, :type, :modified_index, :modified_id, :ttl)
ON CONFLICT (path) DO UPDATE SET owner = excluded.owner, value = excluded.value,
type = excluded.type, modified_index = excluded.modified_index,
modified_id = excluded.modified_id, ttl = excluded.ttl";

const DELETE: &str = "DELETE FROM locks WHERE path = :path";

const LOAD: &str = "SELECT path, owner, value, type, modified_index, modified_id, ttl, token
FROM locks LEFT JOIN fencing_tokens USING (path)";

/// The token for the next owner of a key.
pub(super) fn next_token(
    connection: &Connection,
    key: &LockKey,
) -> Result<FencingToken, rusqlite::Error> {
    let token: i64 = connection
        .prepare_cached(NEXT_TOKEN)?
        .query_row(named_params! {":path": key.as_str()}, |row| row.get(0))?;
    Ok(FencingToken(token.unsigned_abs()))
}

/// Stores a version in the place of the one before.
pub(super) fn put(connection: &Connection, held: &Held) -> Result<(), rusqlite::Error> {
    let Held { lock, id, index, request: _ } = held;
    let Lock { key, owner, value, kind, ttl, token: _ } = lock;
    connection.prepare_cached(PUT)?.execute(named_params! {
        ":path": key.as_str(),
        ":owner": owner.as_str(),
        ":value": value.as_str(),
        ":type": kind.as_str(),
        ":modified_index": index,
        ":modified_id": id,
        ":ttl": ttl.seconds(),
    })?;
    Ok(())
}

/// Frees a key. Its token stays.
pub(super) fn delete(connection: &Connection, key: &LockKey) -> Result<(), rusqlite::Error> {
    connection.prepare_cached(DELETE)?.execute(named_params! {":path": key.as_str()})?;
    Ok(())
}

/// Takes a page and gives it back: needs the disk as a new lock does, and leaves
/// nothing behind.
pub(super) fn probe(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch("CREATE TABLE probe (page TEXT); DROP TABLE probe;")
}

/// All locks. A row that can be nobody's lock, such as one without an owner,
/// counts as absent and is reported.
pub(super) fn load(connection: &Connection) -> Result<Vec<Held>, rusqlite::Error> {
    let mut statement = connection.prepare(LOAD)?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        match read(row) {
            Ok(held) => all.push(held),
            Err(error) => {
                let key: Option<String> = row.get("path").ok();
                tracing::error!(key, error = %error, "failed-to-scan-lock");
            }
        }
    }
    Ok(all)
}

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("{0}")]
    Column(#[from] rusqlite::Error),
    #[error("{0}")]
    Lock(#[from] lock::Error),
    #[error("the type `{0}` is neither lock nor presence")]
    Kind(String),
}

fn read(row: &Row<'_>) -> Result<Held, Unreadable> {
    let text = |column| row.get::<_, String>(column);
    let kind = match text("type")?.as_str() {
        "lock" => LockKind::Lock,
        "presence" => LockKind::Presence,
        other => return Err(Unreadable::Kind(other.to_owned())),
    };
    // A row that was put there by hand has no token yet: 0 is below all others.
    let token = row.get::<_, Option<i64>>("token")?.unwrap_or(0);
    let request: Request = None;
    Ok(Held {
        lock: Lock {
            key: LockKey::parse(&text("path")?)?,
            owner: Owner::parse(&text("owner")?)?,
            value: LockValue::parse(&text("value")?)?,
            kind,
            ttl: Ttl::try_from_seconds(row.get("ttl")?)?,
            token: FencingToken(token.unsigned_abs()),
        },
        id: Arc::from(text("modified_id")?),
        index: row.get("modified_index")?,
        request,
    })
}
