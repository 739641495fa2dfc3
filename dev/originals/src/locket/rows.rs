//! The table `locks` and its transactions, docs/compatibility/locket.md#schema.

use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use crate::sql::{Connection, Database, Dialect, Error, Row, Value};

/// A transaction is tried three times, with this pause, after a deadlock on MySQL and
/// after the loss of a connection.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) owner: String,
    pub(super) value: String,
    pub(super) kind: String,
    pub(super) index: i64,
    pub(super) id: String,
    pub(super) ttl: i64,
}

/// Why a call fails.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another owner has the key.
    Collision,
    /// There is no such lock.
    NotFound,
    /// The text of a database error, as callers of the original get it.
    Database(String),
}

/// A failure within a transaction.
enum Broken {
    By(Failure),
    At(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::At(error)
    }
}

#[derive(Debug)]
pub(super) struct Rows {
    database: Database,
}

/// One transaction, from BEGIN to COMMIT.
enum Work<'a> {
    Lock { key: &'a str, owner: &'a str, value: &'a str, kind: &'a str, ttl: i64 },
    Fetch { key: &'a str },
    Release { key: &'a str, owner: &'a str },
    Expire { key: &'a str, generation: &'a Lock },
}

impl Rows {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    pub(super) async fn create_table(&self) -> Result<(), Error> {
        let sql = "CREATE TABLE IF NOT EXISTS locks (path VARCHAR(255) PRIMARY KEY, \
             owner VARCHAR(255), value VARCHAR(4096), type VARCHAR(255) DEFAULT '', \
             modified_index BIGINT DEFAULT 0, modified_id varchar(255) DEFAULT '', \
             ttl BIGINT DEFAULT 0)";
        self.database.run(sql, &[]).await.map(drop)
    }

    /// Claims or refreshes a lock; returns its new generation.
    pub(super) async fn lock(
        &self,
        key: &str,
        owner: &str,
        value: &str,
        kind: &str,
        ttl: i64,
    ) -> Result<Lock, Failure> {
        let locked = self.transact(&Work::Lock { key, owner, value, kind, ttl }).await?;
        locked.ok_or(Failure::NotFound)
    }

    pub(super) async fn fetch(&self, key: &str) -> Result<Lock, Failure> {
        self.transact(&Work::Fetch { key }).await?.ok_or(Failure::NotFound)
    }

    /// Deletes the owner's lock; an absent one is a success.
    pub(super) async fn release(&self, key: &str, owner: &str) -> Result<(), Failure> {
        self.transact(&Work::Release { key, owner }).await.map(drop)
    }

    /// Deletes this generation of a lock; returns it if it was there.
    pub(super) async fn expire(
        &self,
        key: &str,
        generation: &Lock,
    ) -> Result<Option<Lock>, Failure> {
        self.transact(&Work::Expire { key, generation }).await
    }

    /// All locks of a kind that have an owner.
    pub(super) async fn of_kind(&self, kind: &str) -> Result<Vec<(String, Lock)>, Failure> {
        let all = self.read("WHERE type = ?", &[kind.into()]).await;
        let all = all.map_err(|error| self.failure(&error))?;
        Ok(all.into_iter().filter(|(_key, lock)| !lock.owner.is_empty()).collect())
    }

    /// All rows without NULL.
    pub(super) async fn all(&self) -> Result<Vec<(String, Lock)>, Error> {
        self.read("", &[]).await
    }

    async fn read(&self, condition: &str, values: &[Value]) -> Result<Vec<(String, Lock)>, Error> {
        let sql = format!(
            "SELECT owner, value, type, modified_index, modified_id, ttl, path FROM locks {condition}"
        );
        let rows = self.database.run(&sql, values).await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            if let (Some(lock), Some(key)) = (lock_of(&row)?, row.text(6)?) {
                all.push((key, lock));
            }
        }
        Ok(all)
    }

    async fn transact(&self, work: &Work<'_>) -> Result<Option<Lock>, Failure> {
        let mut attempt = 1;
        loop {
            match self.attempt(work).await {
                Ok(lock) => return Ok(lock),
                Err(Broken::By(failure)) => return Err(failure),
                Err(Broken::At(error)) if attempt < ATTEMPTS && self.may_repeat(&error) => {}
                Err(Broken::At(error)) => return Err(self.failure(&error)),
            }
            attempt += 1;
            sleep(PAUSE).await;
        }
    }

    async fn attempt(&self, work: &Work<'_>) -> Result<Option<Lock>, Broken> {
        let mut lease = self.database.take().await?;
        let connection = &mut lease.connection;
        connection.command("BEGIN").await?;
        let outcome = work.run(connection).await;
        let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
        match (connection.command(end).await, outcome) {
            (Ok(()), outcome) => {
                self.database.give_back(lease);
                outcome
            }
            (Err(error), Ok(_)) => Err(error.into()),
            (Err(_), Err(first)) => Err(first),
        }
    }

    fn may_repeat(&self, error: &Error) -> bool {
        let deadlock = self.database.dialect() == Dialect::MySql
            && error.code().is_some_and(|code| code == "1213");
        deadlock || error.is_broken()
    }

    fn failure(&self, error: &Error) -> Failure {
        let Some(code) = error.code() else { return Failure::Database(error.to_string()) };
        let flavor = match self.database.dialect() {
            Dialect::Postgres => "postgres",
            Dialect::MySql => "mysql",
        };
        Failure::Database(match code.as_str() {
            "23505" | "1062" => "sql-resource-exists".to_owned(),
            "22001" | "1406" => "sql-bad-request".to_owned(),
            "42P01" | "1146" => "sql-unrecoverable".to_owned(),
            "1213" => "sql-deadlock".to_owned(),
            code => format!("sql-unknown, error code: {code}, flavor: {flavor}"),
        })
    }
}

impl Work<'_> {
    async fn run(&self, connection: &mut Connection) -> Result<Option<Lock>, Broken> {
        match *self {
            Work::Lock { key, owner, value, kind, ttl } => {
                let found = select(connection, key).await?;
                if let Some(Lock { owner: other, .. }) = &found
                    && !other.is_empty()
                    && other != owner
                {
                    return Err(Broken::By(Failure::Collision));
                }
                let exists = found.is_some();
                let (index, id) = found.map_or((0, String::new()), |lock| (lock.index, lock.id));
                let id = if id.is_empty() { Uuid::new_v4().to_string() } else { id };
                let [owner, value, kind] = [owner, value, kind].map(str::to_owned);
                let lock = Lock { owner, value, kind, index: index + 1, id, ttl };
                write(connection, key, &lock, exists).await?;
                Ok(Some(lock))
            }
            Work::Fetch { key } => {
                let found = select(connection, key).await?;
                Ok(found.filter(|lock| !lock.owner.is_empty()))
            }
            Work::Release { key, owner } => match select(connection, key).await? {
                None => Ok(None),
                Some(lock) if lock.owner == owner => delete(connection, key, lock).await,
                Some(_other) => Err(Broken::By(Failure::Collision)),
            },
            Work::Expire { key, generation } => match select(connection, key).await? {
                Some(lock) if is_same(&lock, generation) => delete(connection, key, lock).await,
                _other => Ok(None),
            },
        }
    }
}

/// Owner, id and index decide, nothing else.
fn is_same(lock: &Lock, generation: &Lock) -> bool {
    (&lock.owner, &lock.id, lock.index) == (&generation.owner, &generation.id, generation.index)
}

async fn select(connection: &mut Connection, key: &str) -> Result<Option<Lock>, Broken> {
    let sql = "SELECT owner, value, type, modified_index, modified_id, ttl FROM locks \
         WHERE path = ? LIMIT 1 FOR UPDATE";
    let rows = connection.run(sql, &[key.into()]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let null = || Broken::By(Failure::Database("converting NULL to string".to_owned()));
    Ok(Some(lock_of(row)?.ok_or_else(null)?))
}

async fn write(
    connection: &mut Connection,
    key: &str,
    lock: &Lock,
    exists: bool,
) -> Result<(), Broken> {
    let sql = match exists {
        false => {
            "INSERT INTO locks (owner, value, type, modified_index, modified_id, ttl, path) \
             VALUES (?, ?, ?, ?, ?, ?, ?)"
        }
        true => {
            "UPDATE locks SET owner = ?, value = ?, type = ?, modified_index = ?, \
             modified_id = ?, ttl = ? WHERE path = ?"
        }
    };
    let Lock { owner, value, kind, index, id, ttl } = lock;
    let [owner, value, kind, id, key] = [owner.as_str(), value, kind, id, key].map(Value::from);
    let values = [owner, value, kind, (*index).into(), id, (*ttl).into(), key];
    Ok(connection.run(sql, &values).await.map(drop)?)
}

async fn delete(
    connection: &mut Connection,
    key: &str,
    lock: Lock,
) -> Result<Option<Lock>, Broken> {
    connection.run("DELETE FROM locks WHERE path = ?", &[key.into()]).await?;
    Ok(Some(lock))
}

/// `None` if a column is NULL.
fn lock_of(row: &Row) -> Result<Option<Lock>, Error> {
    let columns =
        (row.text(0)?, row.text(1)?, row.text(2)?, row.int(3)?, row.text(4)?, row.int(5)?);
    let (Some(owner), Some(value), Some(kind), Some(index), Some(id), Some(ttl)) = columns else {
        return Ok(None);
    };
    Ok(Some(Lock { owner, value, kind, index, id, ttl }))
}
