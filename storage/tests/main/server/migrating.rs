//! Schema migrations on a server.

use storage::{
    Column, Error, Kind, Migration, Table,
    server::{Dialect, Schema, Server},
    testing::TestServer,
};
use tokio::task::JoinSet;

use super::{ACCOUNTS, SCHEMA, balances, on_both};

const NOTES: Migration = Migration {
    version: 2,
    name: "notes",
    sql: "CREATE TABLE notes (text VARCHAR(20)); CREATE INDEX note ON notes (text);
          INSERT INTO notes VALUES ('once')",
};

const TWO: Schema = Schema { record: SCHEMA.record, migrations: &[ACCOUNTS, NOTES], tables: &[] };

on_both! {
    four_instances_may_start_at_once
    the_schema_goes_forward_and_a_newer_or_a_foreign_one_is_refused
    a_migration_that_fails_is_named
    programs_with_different_records_share_a_database
    lost_tables_and_columns_are_recreated
    a_table_that_is_being_altered_is_not_lost
    the_start_waits_for_an_unavailable_server
}

async fn count(server: &Server, table: &str) -> i64 {
    let rows = server.query(&format!("SELECT COUNT(*) FROM {table}"), &[]).await.unwrap();
    rows[0].get(0).unwrap()
}

async fn four_instances_may_start_at_once(dialect: Dialect) {
    let options = TestServer::shared(dialect).database();
    let mut instances = JoinSet::new();
    for _ in 0..4 {
        let options = options.clone();
        instances.spawn(async move { Server::connect(&options, &TWO).await.unwrap() });
    }
    for server in instances.join_all().await {
        assert_eq!(balances(&server).await, [100, 100]);
        assert_eq!(count(&server, "notes").await, 1);
        assert_eq!(count(&server, "test_migrations").await, 2);
    }
}

async fn the_schema_goes_forward_and_a_newer_or_a_foreign_one_is_refused(dialect: Dialect) {
    const OTHER: Schema = Schema {
        record: SCHEMA.record,
        migrations: &[Migration { sql: "CREATE TABLE other (a INT)", ..ACCOUNTS }],
        tables: &[],
    };
    let options = TestServer::shared(dialect).database();
    let server = Server::connect(&options, &SCHEMA).await.unwrap();
    server.execute("UPDATE accounts SET balance = 7", &[]).await.unwrap();
    let newer = Server::connect(&options, &TWO).await.unwrap();
    assert_eq!(balances(&newer).await, [7, 7]);
    let error = Server::connect(&options, &SCHEMA).await.unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 2, known: 1 }), "{error:?}");
    let error = Server::connect(&options, &OTHER).await.unwrap_err();
    assert!(matches!(error, Error::ChangedMigration { version: 1, .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::Schema);
}

async fn a_migration_that_fails_is_named(dialect: Dialect) {
    const BROKEN: Schema = Schema {
        record: SCHEMA.record,
        migrations: &[
            ACCOUNTS,
            Migration { version: 2, name: "bad", sql: "CREATE TABLE half (a INT); SELEC" },
        ],
        tables: &[],
    };
    const MENDED: Schema = Schema {
        record: SCHEMA.record,
        migrations: &[
            ACCOUNTS,
            Migration { version: 2, name: "good", sql: "CREATE TABLE half (a INT)" },
        ],
        tables: &[],
    };
    let options = TestServer::shared(dialect).database();
    let error = Server::connect(&options, &BROKEN).await.unwrap_err();
    let statement = if dialect == Dialect::Postgres { 1 } else { 2 };
    let text = format!("statement {statement} of migration 2 (bad) failed");
    assert!(error.to_string().starts_with(&text), "{error}");
    match dialect {
        // None of the statements has taken effect.
        Dialect::Postgres => {
            let server = Server::connect(&options, &MENDED).await.unwrap();
            assert_eq!(count(&server, "half").await, 0);
        }
        // The first statement has taken effect: a release with another text reports the migration's
        // name.
        Dialect::MySql => {
            let error = Server::connect(&options, &MENDED).await.unwrap_err();
            assert!(matches!(error, Error::ChangedMigration { version: 2, .. }), "{error:?}");
        }
    }
}

async fn programs_with_different_records_share_a_database(dialect: Dialect) {
    const OTHER: Schema = Schema {
        record: "other_migrations",
        migrations: &[Migration { version: 1, name: "other", sql: "CREATE TABLE o (a INT)" }],
        tables: &[],
    };
    let options = TestServer::shared(dialect).database();
    let one = Server::connect(&options, &SCHEMA).await.unwrap();
    let other = Server::connect(&options, &OTHER).await.unwrap();
    assert_eq!((count(&one, "o").await, balances(&other).await), (0, vec![100, 100]));
}

/// MySQL commits each statement separately: the process may die between two statements, or between
/// a statement and its record.
#[tokio::test]
async fn an_interrupted_migration_is_continued() {
    let mariadb = TestServer::shared(Dialect::MySql);
    for done in ["", "CREATE TABLE notes (text VARCHAR(20))"] {
        let options = mariadb.database();
        Server::connect(&options, &SCHEMA).await.unwrap();
        let database = options.connection_string.rsplit('/').next().unwrap().to_owned();
        let statements = NOTES.sql.replace('\'', "''");
        mariadb.sql_in(
            &database,
            &format!("INSERT INTO test_migrations VALUES (2, 'notes', '{statements}', 0); {done}"),
        );
        let server = Server::connect(&options, &TWO).await.unwrap();
        assert_eq!(count(&server, "notes").await, 1);
        let done = server.query("SELECT done FROM test_migrations ORDER BY version", &[]).await;
        let done: Vec<i64> = done.unwrap().iter().map(|row| row.get(0).unwrap()).collect();
        assert_eq!(done, [2, 3]);
    }
    // Any other failure remains an error.
    let options = mariadb.database();
    Server::connect(&options, &SCHEMA).await.unwrap();
    let database = options.connection_string.rsplit('/').next().unwrap().to_owned();
    let statements = NOTES.sql.replace('\'', "''");
    mariadb.sql_in(
        &database,
        &format!(
            "INSERT INTO test_migrations VALUES (2, 'notes', '{statements}', 2);
             CREATE TABLE notes (other INT)"
        ),
    );
    let error = Server::connect(&options, &TWO).await.unwrap_err();
    assert!(error.to_string().starts_with("statement 3 of migration 2 (notes)"), "{error}");
}

const TABLES: Schema = Schema {
    tables: &[Table::new(
        "accounts",
        &[
            Column::key("id", "BIGINT PRIMARY KEY"),
            Column::key("balance", "BIGINT NOT NULL"),
            Column::addable("note", "VARCHAR(20)"),
        ],
    )],
    ..SCHEMA
};

/// At the start and while the program runs; a newer schema is not repaired.
async fn lost_tables_and_columns_are_recreated(dialect: Dialect) {
    let server = TestServer::shared(dialect);
    let options = server.database();
    let name = options.connection_string.rsplit('/').next().unwrap();
    let here = Server::connect(&options, &TABLES).await.unwrap();
    let mend = async || {
        let lost = here.mend(&|mending| {
            let accounts = mending.name("accounts");
            let row = format!("INSERT INTO {accounts} (id, balance) VALUES (?, 5)");
            let mut lost = mending.lost.iter();
            match lost.any(|lost| lost.table == "accounts" && lost.column.is_none()) {
                true => vec![(row, vec![7.into()])],
                false => Vec::new(),
            }
        });
        lost.await.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(mend().await, [""; 0]);
    server.sql_in(name, "DROP TABLE accounts");
    assert_eq!(mend().await, ["table accounts"]);
    assert_eq!(balances(&here).await, [5]);
    server.sql_in(name, "ALTER TABLE accounts DROP COLUMN note");
    assert_eq!(mend().await, ["column accounts.note"]);
    assert_eq!(balances(&here).await, [5]);
    server.sql_in(name, "DROP TABLE accounts, test_migrations");
    assert_eq!(mend().await, ["table test_migrations", "table accounts"]);
    server.sql_in(name, "ALTER TABLE accounts DROP COLUMN balance");
    let there = Server::connect(&options, &TABLES).await.unwrap();
    assert_eq!(balances(&there).await, [0_i64; 0]);
    server.sql_in(name, "DROP TABLE test_migrations");
    let there = Server::connect(&options, &TABLES).await.unwrap();
    assert_eq!(count(&there, "test_migrations").await, 1);
    server.sql_in(name, "INSERT INTO test_migrations VALUES (2, 'newer', '', 1)");
    server.sql_in(name, "DROP TABLE accounts");
    assert_eq!(mend().await, [""; 0]);
    let error = Server::connect(&options, &TABLES).await.unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 2, known: 1 }), "{error:?}");
}

/// MariaDB hides a table from `information_schema` while another process alters it.
async fn a_table_that_is_being_altered_is_not_lost(dialect: Dialect) {
    let options = TestServer::shared(dialect).database();
    let altering = Server::connect(&options, &TABLES).await.unwrap();
    let mut starts = JoinSet::new();
    for _ in 0..2 {
        let options = options.clone();
        starts.spawn(async move {
            for _ in 0..20 {
                let started = Server::connect(&options, &TABLES).await.unwrap();
                assert_eq!(balances(&started).await, [100, 100]);
                started.close().await;
            }
        });
    }
    let drop = match dialect {
        Dialect::Postgres => "DROP INDEX by_balance",
        Dialect::MySql => "DROP INDEX by_balance ON accounts",
    };
    while starts.try_join_next().map(Result::unwrap).is_none() {
        altering.execute("CREATE INDEX by_balance ON accounts (balance)", &[]).await.unwrap();
        altering.execute(drop, &[]).await.unwrap();
    }
    starts.join_all().await;
}

/// One log line per attempt, and no failure before the timeout.
async fn the_start_waits_for_an_unavailable_server(dialect: Dialect) {
    let process = TestServer::start(dialect);
    let mut options = process.database();
    process.stop();
    let error = Server::connect(&options, &SCHEMA).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    options.start_timeout = std::time::Duration::from_secs(60);
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { Server::connect(&options, &SCHEMA).await });
    let process = tokio::task::spawn_blocking(move || {
        process.restart();
        process
    });
    let process = process.await.unwrap();
    assert_eq!(balances(&waiting.join_next().await.unwrap().unwrap().unwrap()).await, [100, 100]);
    drop(process);
}
