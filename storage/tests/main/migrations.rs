//! Opening a database and its schema.

use std::os::unix::fs::PermissionsExt as _;

use rusqlite::Connection;
use storage::{
    Error, Kind, Migration,
    sqlite::{Database, Options},
};

use crate::{NUMBERS, Place, insert, numbers};

const TWO: &[Migration] = &[
    NUMBERS[0],
    Migration {
        version: 2,
        name: "more",
        sql: "CREATE TABLE more (x); CREATE INDEX i ON more (x)",
    },
];

fn open(place: &Place, migrations: &'static [Migration]) -> Result<Database, Error> {
    Database::open(&place.path, &Options::default(), migrations)
}

fn tables(place: &Place) -> Vec<String> {
    let connection = Connection::open(&place.path).unwrap();
    let mut statement = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        .unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[tokio::test]
async fn the_schema_goes_forward_and_keeps_the_rows() {
    let place = Place::new();
    let database = place.open();
    insert(&database, 1).await.unwrap();
    database.close().await.unwrap();
    let database = open(&place, TWO).unwrap();
    assert_eq!(numbers(&database).await, [1]);
    database.close().await.unwrap();
    assert_eq!(tables(&place), ["more", "numbers", "schema_migrations"]);
    open(&place, TWO).unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let place = Place::new();
    open(&place, TWO).unwrap().close().await.unwrap();
    let error = open(&place, NUMBERS).unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 2, known: 1 }), "{error}");
    assert_eq!(
        error.to_string(),
        "the database has schema version 2, this release knows only 1: \
         use the newer release or restore a backup"
    );
    assert!(!error.is_retryable());
    open(&place, TWO).unwrap().close().await.unwrap();
}

#[tokio::test]
async fn another_programs_database_is_refused() {
    const OTHER: &[Migration] =
        &[Migration { version: 1, name: "other", sql: "CREATE TABLE o (x)" }];
    let place = Place::new();
    place.open().close().await.unwrap();
    let error = open(&place, OTHER).unwrap_err();
    assert!(matches!(error, Error::ChangedMigration { version: 1, .. }), "{error}");
    assert_eq!(tables(&place), ["numbers", "schema_migrations"]);
}

#[tokio::test]
async fn a_migration_that_fails_leaves_the_schema_as_it_was() {
    const BROKEN: &[Migration] = &[
        NUMBERS[0],
        Migration { version: 2, name: "good", sql: "CREATE TABLE good (x)" },
        Migration {
            version: 3,
            name: "bad",
            sql: "CREATE TABLE half (x); CREATE TABLE numbers (x)",
        },
    ];
    let place = Place::new();
    place.open().close().await.unwrap();
    let error = open(&place, BROKEN).unwrap_err();
    assert_eq!(error.to_string(), "migration 3 (bad) failed");
    assert_eq!(tables(&place), ["numbers", "schema_migrations"]);
    place.open().close().await.unwrap();
}

#[test]
fn migrations_are_numbered_without_gaps() {
    const GAP: &[Migration] = &[NUMBERS[0], Migration { version: 3, name: "x", sql: "" }];
    let error = open(&Place::new(), GAP).unwrap_err();
    assert!(matches!(error, Error::MigrationOrder { found: 3, expected: 2, .. }), "{error}");
}

#[tokio::test]
async fn one_process_owns_the_database_and_others_may_read() {
    let place = Place::new();
    let database = place.open();
    insert(&database, 7).await.unwrap();
    let error = open(&place, NUMBERS).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    let looking = Connection::open(&place.path).unwrap();
    let seen: i64 = looking.query_row("SELECT number FROM numbers", [], |row| row.get(0)).unwrap();
    assert_eq!(seen, 7);
    drop(looking);
    database.close().await.unwrap();
    place.open().close().await.unwrap();
}

#[tokio::test]
async fn the_files_are_for_their_owner_alone() {
    let place = Place::new();
    let database = place.open();
    insert(&database, 1).await.unwrap();
    for end in ["", "-wal", "-shm", ".lock"] {
        let mut file = place.path.clone().into_os_string();
        file.push(end);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    database.close().await.unwrap();
}

#[test]
fn a_file_that_is_not_a_database_is_rejected_unchanged() {
    let place = Place::new();
    let text = "something else ".repeat(1_000);
    std::fs::write(&place.path, &text).unwrap();
    let error = open(&place, NUMBERS).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    assert!(error.to_string().contains(place.path.to_str().unwrap()), "{error}");
    assert_eq!(std::fs::read_to_string(&place.path).unwrap(), text);
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let mut place = Place::new();
    place.path = place.path.join("deeper");
    let error = open(&place, NUMBERS).unwrap_err();
    assert!(error.to_string().contains(place.path.to_str().unwrap()), "{error}");
}
