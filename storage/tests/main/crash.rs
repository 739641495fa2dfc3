//! `kill -9`: this test binary starts itself as the process to kill.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rusqlite::Connection;
use storage::{
    Migration,
    sqlite::{Database, Options},
};
use tempfile::TempDir;

use crate::{NUMBERS, insert, numbers};

/// Environment variable that turns the binary into the process to kill, and names the database.
const VICTIM: &str = "STORAGE_TEST_VICTIM";

/// A migration of several seconds, whose single steps do not complete the new schema.
const SLOW: &[Migration] = &[
    NUMBERS[0],
    Migration { version: 2, name: "first half", sql: "CREATE TABLE half (x)" },
    Migration {
        version: 3,
        name: "second half",
        sql: "CREATE TABLE other (x);
            WITH RECURSIVE many (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM many WHERE x < 3000000)
            INSERT INTO other SELECT x FROM many",
    },
];

fn victim(test: &str, path: &PathBuf) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(VICTIM, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn as_victim() -> Option<PathBuf> {
    env::var_os(VICTIM).map(PathBuf::from)
}

#[tokio::test]
async fn confirmed_writes_survive_a_kill() {
    if let Some(path) = as_victim() {
        let database = Database::open(path, &Options::default(), NUMBERS).unwrap();
        for number in 0.. {
            insert(&database, number).await.unwrap();
            println!("answered {number}");
        }
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("db");
    let mut victim = victim("crash::confirmed_writes_survive_a_kill", &path);
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let mut answered = -1;
    let mut killed = false;
    while let Some(Ok(line)) = lines.next() {
        let number = line.rsplit_once("answered ").and_then(|(_, number)| number.parse().ok());
        answered = number.unwrap_or(answered);
        if answered >= 50 && !killed {
            victim.kill().unwrap();
            killed = true;
        }
    }
    victim.wait().unwrap();
    assert!(killed);
    let database = Database::open(&path, &Options::default(), NUMBERS).unwrap();
    let stored = numbers(&database).await;
    let last = stored.last().copied().unwrap();
    assert_eq!(stored, (0..=last).collect::<Vec<_>>());
    assert!(last >= answered, "{last} {answered}");
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_kill_in_a_migration_leaves_the_old_or_the_new_schema() {
    if let Some(path) = as_victim() {
        println!("migrating");
        Database::open(path, &Options::default(), SLOW).unwrap();
        println!("migrated");
        return;
    }
    let mut old = 0;
    for wait in [1, 5, 20, 60, 150, 400] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("db");
        Database::open(&path, &Options::default(), NUMBERS).unwrap().close().await.unwrap();
        let test = "crash::a_kill_in_a_migration_leaves_the_old_or_the_new_schema";
        let mut victim = victim(test, &path);
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().ends_with("migrating") {}
        tokio::time::sleep(Duration::from_millis(wait)).await;
        victim.kill().unwrap();
        victim.wait().unwrap();

        let connection = Connection::open(&path).unwrap();
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let versions = count("SELECT count(*) FROM schema_migrations");
        let tables = count("SELECT count(*) FROM sqlite_schema WHERE name IN ('half', 'other')");
        assert!(
            (versions, tables) == (1, 0) || (versions, tables) == (3, 2),
            "{versions} {tables}"
        );
        if versions == 3 {
            assert_eq!(count("SELECT count(*) FROM other"), 3_000_000);
        } else {
            old += 1;
            drop(connection);
            let database = Database::open(&path, &Options::default(), NUMBERS).unwrap();
            database.close().await.unwrap();
        }
    }
    assert!(old > 0, "no kill hit the migration: it tells nothing");
}
