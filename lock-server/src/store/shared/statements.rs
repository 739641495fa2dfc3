//! SQL statements for PostgreSQL and MySQL.
//!
//! Each call is one transaction: on PostgreSQL one statement, which is one round trip
//! even for many claims; on MySQL several statements in one round trip. A claim writes
//! the row and its token together, and only if the row is free or the claimant's own. No
//! row is locked before it is written, so calls for different keys never wait for each
//! other.
//!
//! `fencing_tokens.modified_id` is the life of the row that the token belongs to. A row
//! with another `modified_id` got its owner from a server without fencing tokens (the
//! original): the next read raises the token.

use std::collections::HashMap;

use model::lock::{Claim, FencingToken, LockKey, Owner};
use storage::{
    Column, Migration, Table,
    server::{Dialect, Row, Schema, Server, Transaction, Value},
};

use super::conditions::{free, is_owner, is_version, may_claim};
use crate::lock_version::LockVersion;

/// The token of a key's first owner is the column's default: 1, and in a recreated table
/// the time in milliseconds, which is higher than any earlier token.
const FIRST_TOKEN: Migration = Migration {
    version: 2,
    name: "first token by default",
    sql: "ALTER TABLE fencing_tokens ALTER COLUMN token SET DEFAULT 1",
};

const POSTGRES_SCHEMA: &[Migration] = &[
    Migration {
        version: 1,
        name: "locks and fencing tokens",
        sql: "CREATE TABLE IF NOT EXISTS locks (
    path VARCHAR(255) PRIMARY KEY,
    owner VARCHAR(255),
    value VARCHAR(4096),
    type VARCHAR(255) DEFAULT '',
    modified_index BIGINT DEFAULT 0,
    modified_id VARCHAR(255) DEFAULT '',
    ttl BIGINT DEFAULT 0
);
CREATE TABLE IF NOT EXISTS fencing_tokens (
    path VARCHAR(255) PRIMARY KEY,
    token BIGINT NOT NULL,
    modified_id VARCHAR(255) NOT NULL
)",
    },
    FIRST_TOKEN,
];

// A binary collation has different names on MariaDB and MySQL. An existing table keeps
// its own collation, as with the original: therefore the other table compares bytes,
// whatever the collation of the first.
const MYSQL_SCHEMA: &[Migration] = &[Migration {
    version: 1,
    name: "locks and fencing tokens",
    sql: "CREATE TABLE IF NOT EXISTS locks (
    path VARCHAR(255) PRIMARY KEY,
    owner VARCHAR(255),
    value VARCHAR(4096),
    type VARCHAR(255) DEFAULT '',
    modified_index BIGINT DEFAULT 0,
    modified_id VARCHAR(255) DEFAULT '',
    ttl BIGINT DEFAULT 0
) CHARACTER SET utf8mb4 /*M!100202 COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;
CREATE TABLE IF NOT EXISTS fencing_tokens (
    path VARBINARY(1020) PRIMARY KEY,
    token BIGINT NOT NULL,
    modified_id VARCHAR(255) NOT NULL
)",
}, FIRST_TOKEN];

/// The tables.
pub(super) fn schema(dialect: Dialect) -> Schema {
    let migrations = match dialect {
        Dialect::Postgres => POSTGRES_SCHEMA,
        Dialect::MySql => MYSQL_SCHEMA,
    };
    let tables = match dialect {
        Dialect::Postgres => POSTGRES_TABLES,
        Dialect::MySql => MYSQL_TABLES,
    };
    Schema { record: "lock_server_migrations", migrations, tables }
}

const LOCKS: &[Column] = &[
    Column::key("path", "VARCHAR(255) PRIMARY KEY"),
    Column::addable("owner", "VARCHAR(255)"),
    Column::addable("value", "VARCHAR(4096)"),
    Column::addable("type", "VARCHAR(255) DEFAULT ''"),
    Column::addable("modified_index", "BIGINT DEFAULT 0"),
    Column::addable("modified_id", "VARCHAR(255) DEFAULT ''"),
    Column::addable("ttl", "BIGINT DEFAULT 0"),
];

const POSTGRES_TABLES: &[Table] = &[
    Table::new(
        "fencing_tokens",
        &[
            Column::key("path", "VARCHAR(255) PRIMARY KEY"),
            Column::key("token", "BIGINT NOT NULL DEFAULT {now}"),
            Column::addable("modified_id", "VARCHAR(255) NOT NULL DEFAULT ''"),
        ],
    ),
    // The original creates this table too.
    Table { is_shared: true, ..Table::new("locks", LOCKS) },
];

const MYSQL_TABLES: &[Table] = &[
    Table::new(
        "fencing_tokens",
        &[
            Column::key("path", "VARBINARY(1020) PRIMARY KEY"),
            Column::key("token", "BIGINT NOT NULL DEFAULT {now}"),
            Column::addable("modified_id", "VARCHAR(255) NOT NULL DEFAULT ''"),
        ],
    ),
    Table {
        is_shared: true,
        options: "CHARACTER SET utf8mb4
            /*M!100202 COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */",
        ..Table::new("locks", LOCKS)
    },
];

/// Row written by a successful claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    /// The key as stored: it can differ, for example in case, where the table's collation
    /// treats the two as equal.
    pub(super) path: String,
    pub(super) index: i64,
    pub(super) id: String,
    pub(super) token: FencingToken,
}

fn token(number: i64) -> FencingToken {
    FencingToken(number.unsigned_abs())
}

fn claim_values(claim: &Claim, id: &str) -> [Value; 6] {
    let Claim { key, owner, value, kind, ttl } = claim;
    [
        key.as_str().into(),
        owner.as_str().into(),
        value.as_str().into(),
        kind.as_str().into(),
        id.into(),
        ttl.seconds().into(),
    ]
}

/// Acquires or refreshes a key; `None` when another owner holds it. `id` is for a new
/// life of the row.
pub(super) async fn claim(
    server: &Server,
    claim: &Claim,
    id: &str,
) -> Result<Option<Taken>, storage::Error> {
    let values = claim_values(claim, id);
    match server.dialect() {
        Dialect::Postgres => claim_on_postgres(server, &values).await,
        Dialect::MySql => claim_on_mysql(server, &values, claim.owner.as_str()).await,
    }
}

/// Common part of a single and a batched claim, on PostgreSQL: takes a free or own row,
/// and a new life of the row gets the next token.
macro_rules! postgres_take {
    () => {
        concat!(
            "    ON CONFLICT (path) DO UPDATE SET
        owner = excluded.owner, value = excluded.value, type = excluded.type, ttl = excluded.ttl,
        modified_index = COALESCE(l.modified_index, 0) + 1,
        modified_id = CASE WHEN ",
            free!("l.owner"),
            " OR COALESCE(l.modified_id, '') = ''
            THEN excluded.modified_id ELSE l.modified_id END
    WHERE ",
            may_claim!(postgres, "l.owner", "excluded.owner"),
            "
    RETURNING path, modified_index, modified_id
), fenced AS (
    INSERT INTO fencing_tokens AS f (path, modified_id)
    SELECT path, modified_id FROM taken
    ON CONFLICT (path) DO UPDATE SET token = f.token + 1, modified_id = excluded.modified_id
    WHERE f.modified_id <> excluded.modified_id
    RETURNING path, token
)
SELECT t.modified_index, t.modified_id, f.token, s.token, s.modified_id, t.path
FROM taken t LEFT JOIN fenced f ON f.path = t.path LEFT JOIN fencing_tokens s ON s.path = t.path"
        )
    };
}

const POSTGRES_CLAIM: &str = concat!(
    "WITH taken AS (
    INSERT INTO locks AS l (path, owner, value, type, modified_index, modified_id, ttl)
    VALUES (?, ?, ?, ?, 1, ?, ?)
",
    postgres_take!()
);

const TOKEN: &str = "SELECT token FROM fencing_tokens WHERE path = ?";

/// The token is valid only if it was issued for this life of the row.
const TOKEN_OF_LIFE: &str = "SELECT token FROM fencing_tokens WHERE path = ? AND modified_id = ?";

// The same for many claims, each an object of a JSON array. The lock timeout for a row
// is set for this statement alone, before it writes.
const POSTGRES_CLAIM_MANY: &str = concat!(
    "WITH lock_wait AS MATERIALIZED (
    SELECT set_config('lock_timeout', '100ms', true) AS set
), asked AS MATERIALIZED (
    SELECT * FROM json_to_recordset(CAST(CAST(? AS text) AS json))
    AS a (path text, owner text, value text, type text, id text, ttl bigint)
), taken AS (
    INSERT INTO locks AS l (path, owner, value, type, modified_index, modified_id, ttl)
    SELECT path, owner, value, type, 1, id, ttl FROM asked, lock_wait WHERE lock_wait.set <> ''
    ORDER BY path
",
    postgres_take!()
);

/// Executes the claims of a JSON array together, on PostgreSQL; returns the taken rows
/// by key. Keys must be distinct.
pub(super) async fn claim_many(
    server: &Server,
    claims: String,
) -> Result<HashMap<String, Taken>, storage::Error> {
    let rows = server.execute_returning(POSTGRES_CLAIM_MANY, &[claims.into()]).await?;
    let mut all = HashMap::with_capacity(rows.len());
    for row in &rows {
        if let Some(taken) = taken(server, row).await? {
            all.insert(taken.path.clone(), taken);
        }
    }
    Ok(all)
}

async fn claim_on_postgres(
    server: &Server,
    values: &[Value; 6],
) -> Result<Option<Taken>, storage::Error> {
    let rows = server.execute_returning(POSTGRES_CLAIM, values).await?;
    match rows.first() {
        Some(row) => taken(server, row).await,
        None => Ok(None),
    }
}

/// Converts the result row of a claim.
async fn taken(server: &Server, row: &Row) -> Result<Option<Taken>, storage::Error> {
    let (id, path): (String, String) = (row.get(1)?, row.get(5)?);
    let given: Option<i64> = row.get(2)?;
    let known: Option<String> = row.get(4)?;
    let number = match given {
        Some(number) => number,
        None if known.as_ref() == Some(&id) => row.get(3)?,
        // The statement sees the tokens as of its begin: a concurrent claim of this owner
        // has issued a token since.
        None => {
            let life = [path.as_str().into(), id.as_str().into()];
            match server.query(TOKEN_OF_LIFE, &life).await?.first() {
                Some(row) => row.get(0)?,
                // The key has yet another owner by now: this claim came too late.
                None => return Ok(None),
            }
        }
    };
    Ok(Some(Taken { path, index: row.get(0)?, id, token: token(number) }))
}

fn number(rows: &[Row]) -> Result<i64, storage::Error> {
    rows.first().map_or(Ok(0), |row| row.get(0))
}

/// Assigns a column if the claimant may take the row.
macro_rules! mysql_set {
    ($column:literal, $value:literal) => {
        concat!(
            $column,
            " = IF(",
            may_claim!(mysql, "owner", "VALUES(owner)"),
            ", ",
            $value,
            ", ",
            $column,
            ")"
        )
    };
}

// Assignments take effect from left to right: the owner, on which the others depend,
// comes last.
const MYSQL_CLAIM: &str = concat!(
    "INSERT INTO locks
(path, owner, value, type, modified_index, modified_id, ttl) VALUES (?, ?, ?, ?, 1, ?, ?)
ON DUPLICATE KEY UPDATE ",
    mysql_set!("value", "VALUES(value)"),
    ", ",
    mysql_set!("type", "VALUES(type)"),
    ", ",
    mysql_set!("ttl", "VALUES(ttl)"),
    ", ",
    mysql_set!("modified_index", "COALESCE(modified_index, 0) + 1"),
    ", modified_id = IF(",
    free!("owner"),
    " OR (",
    is_owner!(mysql, "owner", "VALUES(owner)"),
    " AND COALESCE(modified_id, '') = ''), VALUES(modified_id), modified_id), ",
    mysql_set!("owner", "VALUES(owner)"),
);

// The token first: it depends on the previous id.
const MYSQL_TOKEN: &str = "INSERT INTO fencing_tokens (path, modified_id) VALUES (?, ?)
ON DUPLICATE KEY UPDATE token = IF(modified_id = VALUES(modified_id), token, token + 1),
modified_id = VALUES(modified_id)";

/// All in one round trip: the row stays locked only while the server works on it,
/// whatever the network latency.
async fn claim_on_mysql(
    server: &Server,
    values: &[Value; 6],
    owner: &str,
) -> Result<Option<Taken>, storage::Error> {
    let key = &values[..1];
    let owned = [values[0].clone(), values[1].clone()];
    let answers = server
        .at_once(&[
            (MYSQL_CLAIM, values.as_slice()),
            (MYSQL_TOKEN_OF_OWNER, owned.as_slice()),
            (MYSQL_TAKEN, key),
        ])
        .await?;
    let Some(row) = answers.last().and_then(|rows| rows.first()) else { return Ok(None) };
    if row.get::<Option<String>>(0)?.as_deref() != Some(owner) {
        return Ok(None);
    }
    let token = token(row.get(4)?);
    Ok(Some(Taken { index: row.get(1)?, id: row.get(2)?, path: row.get(3)?, token }))
}

// The same for the row of a key, if this owner holds it.
const MYSQL_TOKEN_OF_OWNER: &str = concat!(
    "INSERT INTO fencing_tokens (path, modified_id)
SELECT CONVERT(path USING utf8mb4), modified_id FROM locks
WHERE path = ? AND ",
    is_owner!(mysql, "owner", "?"),
    "
ON DUPLICATE KEY UPDATE
token = IF(fencing_tokens.modified_id = VALUES(modified_id), token, token + 1),
fencing_tokens.modified_id = VALUES(modified_id)"
);

const MYSQL_TAKEN: &str = "SELECT l.owner, l.modified_index, l.modified_id, l.path, f.token
FROM locks l LEFT JOIN fencing_tokens f ON f.path = CONVERT(l.path USING utf8mb4)
WHERE l.path = ?";

async fn fence_on_mysql(
    transaction: &Transaction,
    key: &Value,
    id: &str,
) -> Result<FencingToken, storage::Error> {
    transaction.execute(MYSQL_TOKEN, &[key.clone(), id.into()]).await?;
    Ok(token(number(&transaction.query(TOKEN, std::slice::from_ref(key)).await?)?))
}

/// Releases a key if `owner` holds it; returns whether it was deleted.
pub(super) async fn release(
    server: &Server,
    key: &LockKey,
    owner: &Owner,
) -> Result<bool, storage::Error> {
    let sql = match server.dialect() {
        Dialect::Postgres => {
            concat!("DELETE FROM locks WHERE path = ? AND ", is_owner!(postgres, "owner", "?"))
        }
        Dialect::MySql => {
            concat!("DELETE FROM locks WHERE path = ? AND ", is_owner!(mysql, "owner", "?"))
        }
    };
    let deleted = server.execute(sql, &[key.as_str().into(), owner.as_str().into()]).await?;
    Ok(deleted > 0)
}

/// Deletes the row if it is still this version; returns whether it was deleted.
pub(super) async fn delete_version(
    server: &Server,
    held: &LockVersion,
) -> Result<bool, storage::Error> {
    let sql = concat!("DELETE FROM locks WHERE path = ? AND owner = ? AND ", is_version!());
    let values = [
        held.lock.key.as_str().into(),
        held.lock.owner.as_str().into(),
        (&*held.id).into(),
        held.index.into(),
    ];
    Ok(server.execute(sql, &values).await? > 0)
}

/// Issues a token for the owner of this life of the row, if the row still has this
/// life.
pub(super) async fn fence(
    server: &Server,
    held: &LockVersion,
) -> Result<Option<FencingToken>, storage::Error> {
    let values: [Value; 2] = [held.lock.key.as_str().into(), (&*held.id).into()];
    let values = &values;
    server
        .transaction(|transaction: Transaction| async move {
            let life = "SELECT 1 FROM locks WHERE path = ? AND modified_id = ? FOR UPDATE";
            if transaction.query(life, values).await?.is_empty() {
                return Ok(None);
            }
            match server.dialect() {
                Dialect::MySql => {
                    fence_on_mysql(&transaction, &values[0], &held.id).await.map(Some)
                }
                Dialect::Postgres => {
                    let sql = "INSERT INTO fencing_tokens AS f (path, modified_id)
                        VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET
                        token = CASE WHEN f.modified_id = excluded.modified_id
                            THEN f.token ELSE f.token + 1 END,
                        modified_id = excluded.modified_id RETURNING token";
                    Ok(Some(token(number(&transaction.query(sql, values).await?)?)))
                }
            }
        })
        .await
}
