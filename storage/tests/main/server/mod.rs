//! Black-box tests with PostgreSQL and MariaDB: the guarantees in the header of `storage::server`,
//! on real servers.

mod addresses;
mod closing;
mod faults;
mod listening;
mod migrating;
mod trust;

use std::{sync::Arc, time::Duration};

use storage::{
    Error, Kind, Migration,
    server::{Dialect, NewRows, Options, Schema, Server, Value},
    testing::TestServer,
};
use tokio::{sync::Barrier, task::JoinSet, time::timeout};

use crate::PATIENCE;

/// Runs each test on both servers.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(storage::server::Dialect::Postgres).await; })*
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(storage::server::Dialect::MySql).await; })*
        }
    };
}
pub(crate) use on_both;

const ACCOUNTS: Migration = Migration {
    version: 1,
    name: "accounts",
    sql: "CREATE TABLE accounts (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL, note VARCHAR(20));
          INSERT INTO accounts VALUES (1, 100, 'it''s; mine'), (2, 100, NULL)",
};

const SCHEMA: Schema = Schema { record: "test_migrations", migrations: &[ACCOUNTS], tables: &[] };

/// A new database with accounts 1 and 2 of 100 each.
async fn open(dialect: Dialect) -> Server {
    connect(&TestServer::shared(dialect).database()).await
}

async fn connect(options: &Options) -> Server {
    Server::connect(options, &SCHEMA).await.unwrap()
}

async fn balances(server: &Server) -> Vec<i64> {
    let rows = server.query("SELECT balance FROM accounts ORDER BY id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0).unwrap()).collect()
}

const GIVE: &str = "UPDATE accounts SET balance = balance + ? WHERE id = ?";

async fn give(server: &Server, account: i64, amount: i64) -> Result<u64, Error> {
    server.execute(GIVE, &[amount.into(), account.into()]).await
}

on_both! {
    values_come_back_as_they_went_in
    a_transaction_takes_effect_as_a_whole_or_not_at_all
    a_statement_that_failed_ends_the_transaction
    a_transaction_that_outlives_its_work_is_closed
    deadlocks_are_retried
    what_is_not_accepted_is_sorted
    a_caller_that_gives_up_leaves_no_lock_behind
    a_wait_for_a_lock_is_bounded
    rows_are_copied_and_undone_with_their_transaction
    connections_are_bounded_and_counted
    old_connections_are_not_used_again
    a_closed_server_refuses
}

async fn values_come_back_as_they_went_in(dialect: Dialect) {
    let server = open(dialect).await;
    let blob = if dialect == Dialect::Postgres { "BYTEA" } else { "LONGBLOB" };
    let create =
        format!("CREATE TABLE things (a SMALLINT, b INT, c BIGINT, d VARCHAR(100), e {blob})");
    server.execute(&create, &[]).await.unwrap();
    let insert = "INSERT INTO things VALUES (?, ?, ?, ?, ?)";
    let first = [
        Value::Int(-3),
        Value::Int(i64::from(i32::MIN)),
        Value::Int(i64::MAX),
        Value::from("?; 'ä' 🙂 \\ \" "),
        Value::from((0..=255).collect::<Vec<u8>>()),
    ];
    let second = [const { Value::Null }; 5];
    for values in [&first, &second] {
        assert_eq!(server.execute(insert, values).await.unwrap(), 1);
    }
    let rows = server.query("SELECT * FROM things ORDER BY a IS NULL", &[]).await.unwrap();
    let rows: Vec<_> = rows.iter().map(|row| row.values().to_vec()).collect();
    assert_eq!(rows, [first, second]);
    let count = server.query("SELECT COUNT(*) FROM things WHERE d = ?", &["x".into()]).await;
    assert_eq!(count.unwrap()[0].get::<i64>(0).unwrap(), 0);
    let note = server.query("SELECT note FROM accounts WHERE id = ?", &[1.into()]).await;
    assert_eq!(note.unwrap()[0].get::<&str>(0).unwrap(), "it's; mine");
}

async fn a_transaction_takes_effect_as_a_whole_or_not_at_all(dialect: Dialect) {
    let server = open(dialect).await;
    let moved = async |fails: bool| -> Result<u64, Error> {
        server
            .transaction(|transaction| async move {
                let from = transaction.execute(GIVE, &[(-30_i64).into(), 1.into()]).await?;
                let to = transaction.execute(GIVE, &[30.into(), 2.into()]).await?;
                let rows = transaction.query("SELECT balance FROM accounts", &[]).await?;
                assert_eq!(rows.len(), 2);
                if fails { Err(Error::Panicked) } else { Ok(from + to) }
            })
            .await
    };
    assert!(matches!(moved(true).await, Err(Error::Panicked)));
    assert_eq!(balances(&server).await, [100, 100]);
    assert_eq!(moved(false).await.unwrap(), 2);
    assert_eq!(balances(&server).await, [70, 130]);
    server.transaction(|_| async { Ok::<_, Error>(()) }).await.unwrap();
}

async fn a_statement_that_failed_ends_the_transaction(dialect: Dialect) {
    let server = open(dialect).await;
    let done = server
        .transaction(|transaction| async move {
            transaction.execute(GIVE, &[1.into(), 1.into()]).await?;
            let broken = transaction.execute("INSERT INTO accounts VALUES (1, 1, '')", &[]).await;
            assert_eq!(broken.unwrap_err().kind(), Kind::Constraint);
            let after = transaction.execute(GIVE, &[1.into(), 1.into()]).await;
            assert_eq!(after.unwrap_err().kind(), Kind::Constraint);
            // A caller that ignores the error gets it all the same.
            Ok::<_, Error>(())
        })
        .await;
    assert_eq!(done.unwrap_err().kind(), Kind::Constraint);
    assert_eq!(balances(&server).await, [100, 100]);
}

async fn a_transaction_that_outlives_its_work_is_closed(dialect: Dialect) {
    let server = open(dialect).await;
    let kept = server
        .transaction(|transaction| async move {
            transaction.execute(GIVE, &[1.into(), 1.into()]).await?;
            Ok::<_, Error>(transaction)
        })
        .await
        .unwrap();
    let after = kept.execute(GIVE, &[1.into(), 1.into()]).await;
    assert!(matches!(after, Err(Error::Closed)), "{after:?}");
    assert_eq!(balances(&server).await, [101, 100]);
}

/// Two concurrent transactions that lock the same two rows in opposite order.
async fn deadlocks_are_retried(dialect: Dialect) {
    let server = open(dialect).await;
    let both = Arc::new(Barrier::new(2));
    let mut tasks = JoinSet::new();
    for order in [[1_i64, 2], [2, 1]] {
        let (server, both) = (server.clone(), Arc::clone(&both));
        tasks.spawn(async move {
            let mut tries = 0;
            let moved = server.transaction(|transaction| {
                tries += 1;
                let (both, first) = (Arc::clone(&both), tries == 1);
                async move {
                    transaction.execute(GIVE, &[1.into(), order[0].into()]).await?;
                    if first {
                        both.wait().await;
                    }
                    transaction.execute(GIVE, &[1.into(), order[1].into()]).await
                }
            });
            assert_eq!(timeout(PATIENCE, moved).await.unwrap().unwrap(), 1);
            tries
        });
    }
    let tries: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!(tries, 3, "one of the two was the victim once");
    assert_eq!(balances(&server).await, [102, 102]);
}

async fn what_is_not_accepted_is_sorted(dialect: Dialect) {
    let server = open(dialect).await;
    for (sql, kind) in [
        ("INSERT INTO accounts VALUES (1, 0, NULL)", Kind::Constraint),
        ("UPDATE accounts SET note = 'much longer than twenty characters'", Kind::Data),
        ("SELECT * FROM nowhere", Kind::Schema),
        ("SELECT nothing FROM accounts", Kind::Schema),
        ("SELEC", Kind::Other),
    ] {
        let error = server.execute(sql, &[]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{sql}: {error:?}");
        assert!(!error.is_retryable(), "{sql}");
        assert!(matches!(error, Error::Server { .. }), "{sql}: known not to be stored");
    }
    let wrong = server.query("SELECT note FROM accounts WHERE id = ?", &["x".into()]).await;
    assert!(dialect == Dialect::MySql || wrong.is_err());
    assert_eq!(balances(&server).await, [100, 100]);
}

async fn a_caller_that_gives_up_leaves_no_lock_behind(dialect: Dialect) {
    let server = open(dialect).await;
    let (locked, given_up) = (Barrier::new(2), std::future::pending::<()>());
    let mut given_up = Some(given_up);
    let work = server.transaction(|transaction| {
        let (locked, given_up) = (&locked, given_up.take());
        async move {
            transaction.execute(GIVE, &[1.into(), 1.into()]).await?;
            locked.wait().await;
            if let Some(for_ever) = given_up {
                for_ever.await;
            }
            Ok::<_, Error>(())
        }
    });
    tokio::select! {
        _ = work => unreachable!("it waits for ever"),
        _ = locked.wait() => {}
    }
    assert_eq!(timeout(PATIENCE, give(&server, 1, 5)).await.unwrap().unwrap(), 1);
    assert_eq!(balances(&server).await, [105, 100]);
}

async fn a_wait_for_a_lock_is_bounded(dialect: Dialect) {
    let mut options = TestServer::shared(dialect).database();
    let holder = connect(&options).await;
    options.operation_timeout = Duration::from_secs(1);
    let waiter = connect(&options).await;
    let checked = holder.transaction(|transaction| {
        let waiter = &waiter;
        async move {
            transaction.execute(GIVE, &[1.into(), 1.into()]).await?;
            let error = timeout(PATIENCE, give(waiter, 1, 1)).await.unwrap().unwrap_err();
            assert!(error.is_retryable(), "{error:?}");
            // Work that needs no lock of another transaction continues.
            assert_eq!(balances(waiter).await, [100, 100]);
            Ok::<_, Error>(())
        }
    });
    checked.await.unwrap();
    let mut all = balances(&holder).await;
    // The server may have received the cancelled write before.
    assert!([101, 102].contains(&all.remove(0)) && all == [100]);
}

const NOTED: &str = "SELECT note FROM accounts WHERE id > 2 ORDER BY id";

async fn rows_are_copied_and_undone_with_their_transaction(dialect: Dialect) {
    let server = open(dialect).await;
    let notes = ["tab\tback\\slash", "two\nlines\r", "\\.", ""];
    let copy = |first: i64, fails: bool| {
        server.transaction(move |transaction| async move {
            let mut left = (first..).zip(notes);
            let into = "accounts (id, balance, note)";
            let write = |rows: &mut NewRows| {
                let Some((id, note)) = left.next() else { return false };
                rows.push([id.into(), 0.into(), note.into()]);
                true
            };
            let copied = transaction.copy(into, write).await?;
            if fails { Err(Error::Panicked) } else { Ok(copied) }
        })
    };
    let noted = async || {
        let rows = server.query(NOTED, &[]).await.unwrap();
        rows.iter().map(|row| row.get::<String>(0).unwrap()).collect::<Vec<_>>()
    };
    if dialect == Dialect::MySql {
        let error = copy(3, false).await.unwrap_err();
        assert!(format!("{error:?}").contains("COPY"), "{error:?}");
        return;
    }
    assert!(matches!(copy(3, true).await, Err(Error::Panicked)));
    assert!(noted().await.is_empty());
    // A row that exists already.
    assert_eq!(copy(2, false).await.unwrap_err().kind(), Kind::Constraint);
    assert!(noted().await.is_empty());
    assert_eq!(copy(3, false).await.unwrap(), 4);
    assert_eq!(noted().await, notes);
}

async fn connections_are_bounded_and_counted(dialect: Dialect) {
    let mut options = TestServer::shared(dialect).database();
    options.max_open = 2;
    let server = connect(&options).await;
    let before = server.stats();
    let mut tasks = JoinSet::new();
    let sleep = match dialect {
        Dialect::Postgres => "SELECT pg_sleep(0.2)",
        Dialect::MySql => "SELECT SLEEP(0.2)",
    };
    for _ in 0..6 {
        let server = server.clone();
        tasks.spawn(async move { server.query(sleep, &[]).await.unwrap() });
    }
    tasks.join_all().await;
    server.execute("SELEC", &[]).await.unwrap_err();
    let stats = server.stats();
    assert_eq!((stats.open, stats.in_flight), (2, 2));
    assert_eq!(stats.queries - before.queries, 7);
    assert_eq!((stats.succeeded - before.succeeded, stats.failed - before.failed), (6, 1));
    assert!(stats.waits >= 3 && stats.waited > Duration::from_millis(100), "{stats:?}");
    assert!(stats.longest >= Duration::from_millis(200), "{stats:?}");
    assert_eq!(server.stats().longest, Duration::ZERO);
}

async fn old_connections_are_not_used_again(dialect: Dialect) {
    let mut options = TestServer::shared(dialect).database();
    options.max_lifetime = Some(Duration::ZERO);
    let server = connect(&options).await;
    let id = match dialect {
        Dialect::Postgres => "SELECT pg_backend_pid()",
        Dialect::MySql => "SELECT CONNECTION_ID()",
    };
    let ask = async || server.query(id, &[]).await.unwrap()[0].get::<i64>(0).unwrap();
    assert_ne!(ask().await, ask().await);
}

async fn a_closed_server_refuses(dialect: Dialect) {
    let server = open(dialect).await;
    server.close().await;
    assert!(matches!(give(&server, 1, 1).await, Err(Error::Closed)));
    assert!(matches!(server.query("SELECT 1", &[]).await, Err(Error::Closed)));
    let done = server.transaction(|_| async { Ok::<_, Error>(()) }).await;
    assert!(matches!(done, Err(Error::Closed)));
}
