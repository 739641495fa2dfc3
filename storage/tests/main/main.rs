//! Black-box tests of the databases: the guarantees in the headers of `storage::sqlite` and
//! `storage::server`.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails the test")]

mod backup;
mod crash;
mod migrations;
mod server;
mod writes;

use std::{path::PathBuf, time::Duration};

use storage::{
    Error, Migration,
    sqlite::{Database, Options},
};
use tempfile::TempDir;

/// Test timeout, much longer than any expected operation.
const PATIENCE: Duration = Duration::from_secs(20);

const NUMBERS: &[Migration] = &[Migration {
    version: 1,
    name: "numbers",
    sql: "CREATE TABLE numbers (number INTEGER PRIMARY KEY, text TEXT)",
}];

struct Place {
    _directory: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("db");
        Self { _directory: directory, path }
    }

    fn open(&self) -> Database {
        self.open_with(&Options::default())
    }

    fn open_with(&self, options: &Options) -> Database {
        Database::open(&self.path, options, NUMBERS).unwrap()
    }
}

async fn insert(database: &Database, number: i64) -> Result<(), Error> {
    database
        .write(move |transaction| {
            transaction.execute("INSERT INTO numbers (number) VALUES (?1)", [number])?;
            Ok(())
        })
        .await
}

async fn numbers(database: &Database) -> Vec<i64> {
    let read = database.read(|connection| -> Result<_, Error> {
        let mut statement = connection.prepare("SELECT number FROM numbers ORDER BY number")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    });
    read.await.unwrap()
}
