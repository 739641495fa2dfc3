//! SQLite tables and statements.
//!
//! `locks` has a row for each held lock, with its token, in the order of arrival: the
//! row number is the lock's `id`. The keys have no index: the table in memory finds
//! them, and with an index every new key would change a page of its own.
//! `fencing_tokens` keeps the last token of every key that was held and is free; its
//! rows are never deleted.

use std::{collections::HashMap, sync::Arc};

use model::lock::{self, FencingToken, Lock, LockKey, LockKind, LockValue, Owner, Ttl};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use storage::{Column, Migration, Table};

use crate::lock_version::{LockVersion, Request};

pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "locks and fencing tokens", sql: FIRST },
    Migration { version: 2, name: "locks in the order of their arrival", sql: BY_ARRIVAL },
    Migration { version: 3, name: "locks with their tokens, without an index", sql: NUMBERED },
];

/// Schema after the last migration. A recreated table of tokens starts at the time in
/// milliseconds, so that no token goes back.
pub(super) const TABLES: &[Table] = &[
    Table {
        options: "STRICT, WITHOUT ROWID",
        ..Table::new(
            "fencing_tokens",
            &[
                Column::key("path", "TEXT NOT NULL PRIMARY KEY"),
                Column::key("token", "INTEGER NOT NULL DEFAULT {now} CHECK (token > 0)"),
            ],
        )
    },
    Table {
        options: "STRICT",
        ..Table::new(
            "locks",
            &[
                Column::key("id", "INTEGER PRIMARY KEY"),
                Column::key("path", "TEXT NOT NULL"),
                Column::addable("owner", "TEXT"),
                Column::addable("value", "TEXT"),
                Column::addable("type", "TEXT DEFAULT ''"),
                Column::addable("modified_index", "INTEGER DEFAULT 0"),
                Column::addable("ttl", "INTEGER DEFAULT 0"),
                Column::addable("token", "INTEGER NOT NULL DEFAULT {now}"),
            ],
        )
    },
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

// Rows have about 800 bytes. In key order each new row would change a page of its own;
// in order of arrival the rows of one commit share pages.
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

const NUMBERED: &str = "CREATE TABLE locks_by_number (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL,
    owner TEXT,
    value TEXT,
    type TEXT DEFAULT '',
    modified_index INTEGER DEFAULT 0,
    ttl INTEGER DEFAULT 0,
    token INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO locks_by_number (path, owner, value, type, modified_index, ttl, token)
SELECT path, owner, value, type, modified_index, ttl, COALESCE(token, 0)
FROM locks LEFT JOIN fencing_tokens USING (path);
DROP TABLE locks;
ALTER TABLE locks_by_number RENAME TO locks;";

const LAST_TOKEN: &str = "SELECT token FROM fencing_tokens WHERE path = ?1";

// Memory is authoritative: a row that a failed disk changed is replaced.
const PUT: &str = "INSERT INTO locks (id, path, owner, value, type, modified_index, ttl, token)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, value = excluded.value,
type = excluded.type, modified_index = excluded.modified_index, ttl = excluded.ttl";

const DELETE: &str = "DELETE FROM locks WHERE id = ?1";

const KEEP_TOKEN: &str = "INSERT INTO fencing_tokens (path, token) VALUES (?1, ?2)
ON CONFLICT (path) DO UPDATE SET token = MAX(token, excluded.token)";

const FORGET_FROM: &str = "DELETE FROM locks WHERE id >= ?1";

// A row inserted by hand has no token of its own.
const LOAD: &str = "SELECT id, path, owner, value, type, modified_index, ttl,
MAX(locks.token, COALESCE(fencing_tokens.token, 0)) AS token
FROM locks LEFT JOIN fencing_tokens USING (path) ORDER BY id";

/// Token for a key that was never held: 0, or the time when the table was recreated.
pub(super) fn floor(connection: &Connection) -> Result<FencingToken, rusqlite::Error> {
    let sql = "SELECT dflt_value FROM pragma_table_info('fencing_tokens') WHERE name = 'token'";
    let floor: Option<String> = connection.query_row(sql, [], |row| row.get(0))?;
    let floor = floor.and_then(|text| text.parse().ok());
    Ok(FencingToken(floor.unwrap_or(0)))
}

/// Token for the next owner of a free key; `floor` is the token for a key that was
/// never held.
pub(super) fn next_token(
    connection: &Connection,
    key: &LockKey,
    floor: FencingToken,
) -> Result<FencingToken, rusqlite::Error> {
    let last: Option<i64> = connection
        .prepare_cached(LAST_TOKEN)?
        .query_row([key.as_str()], |row| row.get(0))
        .optional()?;
    Ok(last.map_or(floor, |last| FencingToken(last.unsigned_abs())).next())
}

/// Replaces the stored version of a lock.
pub(super) fn put(connection: &Connection, held: &LockVersion) -> Result<(), rusqlite::Error> {
    let LockVersion { lock, id, index, request: _, foreign_type: _ } = held;
    let Lock { key, owner, value, kind, ttl, token } = lock;
    connection.prepare_cached(PUT)?.execute(params![
        // SQLite converts a numeric text in an integer column.
        id,
        key.as_str(),
        owner.as_str(),
        value.as_str(),
        kind.as_str(),
        index,
        ttl.seconds(),
        number(*token),
    ])?;
    Ok(())
}

/// Deletes a lock; its token stays.
pub(super) fn delete(connection: &Connection, held: &LockVersion) -> Result<(), rusqlite::Error> {
    let LockVersion { lock, id, .. } = held;
    // Delete the row first: in a full database that makes room for the token.
    connection.prepare_cached(DELETE)?.execute([id])?;
    let token = number(lock.token);
    connection.prepare_cached(KEEP_TOKEN)?.execute(params![lock.key.as_str(), token])?;
    Ok(())
}

fn number(token: FencingToken) -> i64 {
    i64::try_from(token.0).unwrap_or(i64::MAX)
}

/// Deletes the leftovers of a failed commit: rows from this number on.
pub(super) fn forget_from(connection: &Connection, first: i64) -> Result<(), rusqlite::Error> {
    connection.execute(FORGET_FROM, [first])?;
    Ok(())
}

/// Allocates and frees a page: needs the same disk access as a new lock and leaves no
/// data.
pub(super) fn probe(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch("CREATE TABLE probe (page TEXT); DROP TABLE probe;")
}

/// Result of [`load`].
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) locks: Vec<LockVersion>,
    /// Number of the next row.
    pub(super) next: i64,
    /// See [`floor`].
    pub(super) floor: FencingToken,
}

/// Loads all locks. An invalid row, such as one without an owner, counts as absent and
/// is reported. Of several rows with one key, which only a manual change or a failing
/// disk can produce, the last one counts; the others are deleted.
pub(super) fn load(connection: &Connection) -> Result<Loaded, rusqlite::Error> {
    let mut statement = connection.prepare(LOAD)?;
    let mut rows = statement.query([])?;
    let mut newest: HashMap<LockKey, LockVersion> = HashMap::new();
    let (mut overtaken, mut next) = (Vec::new(), 1);
    while let Some(row) = rows.next()? {
        next = row.get::<_, i64>("id")?.saturating_add(1);
        match read(row) {
            Ok(held) => overtaken.extend(newest.insert(held.lock.key.clone(), held)),
            Err(error) => {
                let key: Option<String> = row.get("path").ok();
                tracing::error!(key, error = %error, "failed-to-scan-lock");
            }
        }
    }
    for held in &overtaken {
        connection.execute(DELETE, [&held.id])?;
    }
    Ok(Loaded { locks: newest.into_values().collect(), next, floor: floor(connection)? })
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

fn read(row: &Row<'_>) -> Result<LockVersion, Unreadable> {
    let text = |column| row.get::<_, String>(column);
    let kind = match text("type")?.as_str() {
        "lock" => LockKind::Lock,
        "presence" => LockKind::Presence,
        other => return Err(Unreadable::Kind(other.to_owned())),
    };
    let request: Request = None;
    Ok(LockVersion {
        lock: Lock {
            key: LockKey::parse(&text("path")?)?,
            owner: Owner::parse(&text("owner")?)?,
            value: LockValue::parse(&text("value")?)?,
            kind,
            ttl: Ttl::try_from_seconds(row.get("ttl")?)?,
            token: FencingToken(row.get::<_, i64>("token")?.unsigned_abs()),
        },
        id: row_id(row.get("id")?),
        index: row.get("modified_index")?,
        request,
        foreign_type: None,
    })
}

/// The `id` of the lock in the row with this number.
pub(super) fn row_id(number: i64) -> Arc<str> {
    number.to_string().into()
}

#[cfg(test)]
mod tests {
    use storage::sqlite::{Database, Options};

    use super::*;

    async fn reopened(path: &std::path::Path, migrations: &'static [Migration]) -> Database {
        Database::open(path, &Options::default(), migrations).unwrap()
    }

    async fn run(database: &Database, sql: &'static str) {
        let write = database.write(move |transaction| Ok(transaction.execute_batch(sql)?));
        let written: Result<(), storage::Error> = write.await;
        written.unwrap();
    }

    async fn loaded(database: &Database) -> Loaded {
        let load = database.write(|transaction| load(transaction).map_err(storage::Error::from));
        let mut loaded = load.await.unwrap();
        loaded.locks.sort_by(|a, b| a.lock.key.cmp(&b.lock.key));
        loaded
    }

    #[tokio::test]
    async fn the_file_of_an_earlier_release_keeps_its_locks_and_tokens() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("db");
        let earlier = reopened(&path, &MIGRATIONS[..2]).await;
        let rows = "INSERT INTO locks VALUES ('a', 'o', 'v', 'lock', 7, 'guid', 15),
            ('b', 'p', 'w', 'presence', 1, 'guid', 16), ('nobody', NULL, 'w', 'lock', 1, 'g', 1);
            INSERT INTO fencing_tokens VALUES ('a', 3), ('b', 1), ('free', 9);";
        run(&earlier, rows).await;
        earlier.close().await.unwrap();

        let database = reopened(&path, MIGRATIONS).await;
        let Loaded { locks, next, floor } = loaded(&database).await;
        let shown: Vec<_> = locks
            .iter()
            .map(|held| {
                let LockVersion { lock, id, index, request: _, foreign_type: _ } = held;
                let Lock { key, owner, value, kind, ttl, token } = lock;
                assert!(id.parse::<i64>().unwrap() < next);
                (
                    key.as_str(),
                    owner.as_str(),
                    value.as_str(),
                    *kind,
                    ttl.seconds(),
                    token.0,
                    *index,
                )
            })
            .collect();
        let expected = [
            ("a", "o", "v", LockKind::Lock, 15, 3, 7),
            ("b", "p", "w", LockKind::Presence, 16, 1, 1),
        ];
        assert_eq!(shown, expected);

        // Tokens of keys that are free, held and released.
        let held = locks[0].clone();
        let key = |text: &str| LockKey::parse(text).unwrap();
        let tokens = database.write(move |transaction| {
            delete(transaction, &held)?;
            let next = |text: &str| next_token(transaction, &key(text), floor);
            Ok([next("free")?.0, next("new")?.0, next("a")?.0])
        });
        let tokens: Result<_, storage::Error> = tokens.await;
        assert_eq!(tokens.unwrap(), [10, 1, 4]);
        database.close().await.unwrap();
    }

    #[tokio::test]
    async fn of_several_rows_of_a_key_the_last_counts_and_the_others_go() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("db");
        let database = reopened(&path, MIGRATIONS).await;
        let rows = "INSERT INTO locks (path, owner, value, type, ttl)
            VALUES ('k', 'before', 'v', 'lock', 9), ('k', 'o', 'v', 'lock', 9);
            INSERT INTO fencing_tokens VALUES ('k', 5);";
        run(&database, rows).await;
        let Loaded { locks, next, floor: _ } = loaded(&database).await;
        let shown: Vec<_> =
            locks.iter().map(|held| (held.lock.owner.as_str(), &*held.id)).collect();
        assert_eq!((shown, next), (vec![("o", "2")], 3));
        assert_eq!(locks[0].lock.token, FencingToken(5), "a row made by hand has none");
        run(&database, "DELETE FROM locks WHERE owner = 'o'").await;
        assert_eq!(loaded(&database).await.locks, []);
        database.close().await.unwrap();
    }
}
