//! Writes, reads and closing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use rusqlite::Connection;
use storage::{
    Error, Kind,
    sqlite::{Database, Options},
};
use tokio::{task::JoinSet, time::timeout};

use crate::{PATIENCE, Place, insert, numbers};

/// Blocks the writer until released, so that writes queued meanwhile share a transaction.
async fn hold_up(database: &Database) -> (mpsc::Sender<()>, JoinSet<Result<(), Error>>) {
    let (release, released) = mpsc::channel();
    let (started, begun) = tokio::sync::oneshot::channel();
    let mut held = JoinSet::new();
    let database = database.clone();
    held.spawn(async move {
        let work = move |_: &rusqlite::Transaction<'_>| {
            started.send(()).unwrap();
            let _either = released.recv_timeout(PATIENCE);
            Ok(())
        };
        database.write(work).await
    });
    timeout(PATIENCE, begun).await.unwrap().unwrap();
    (release, held)
}

/// Queues a write without waiting for its result.
async fn queue(jobs: &mut JoinSet<Result<(), Error>>, database: &Database, number: i64) {
    let database = database.clone();
    jobs.spawn(async move { insert(&database, number).await });
    tokio::task::yield_now().await;
}

#[tokio::test]
async fn a_confirmed_write_is_visible_to_all_readers() {
    let place = Place::new();
    let database = place.open();
    for number in 0..20 {
        insert(&database, number).await.unwrap();
        assert_eq!(numbers(&database).await.len(), usize::try_from(number).unwrap() + 1);
    }
    database.close().await.unwrap();
    let database = place.open();
    assert_eq!(numbers(&database).await, (0..20).collect::<Vec<_>>());
    database.close().await.unwrap();
}

#[tokio::test]
async fn many_writes_share_one_commit() {
    let place = Place::new();
    let database = place.open();
    let (release, mut held) = hold_up(&database).await;
    let mut jobs = JoinSet::new();
    for number in 0..100 {
        queue(&mut jobs, &database, number).await;
    }
    release.send(()).unwrap();
    assert!(jobs.join_all().await.iter().all(Result::is_ok));
    held.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(numbers(&database).await.len(), 100);
    let log = std::fs::metadata(place.path.with_file_name("db-wal")).unwrap();
    // Header, schema, and the few pages of one commit: 100 commits would write at least 100 pages.
    assert!(log.len() < 40 * 4096, "{}", log.len());
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_write_that_fails_or_panics_does_not_affect_its_batch() {
    let place = Place::new();
    let database = place.open();
    let (release, _held) = hold_up(&database).await;
    let mut jobs = JoinSet::new();
    queue(&mut jobs, &database, 1).await;
    let (fails, panics) = (database.clone(), database.clone());
    jobs.spawn(async move {
        let write = fails.write(|transaction| -> Result<(), Error> {
            transaction.execute("INSERT INTO numbers (number) VALUES (2)", [])?;
            transaction.execute("INSERT INTO numbers (number) VALUES (2)", [])?;
            Ok(())
        });
        write.await
    });
    tokio::task::yield_now().await;
    jobs.spawn(async move {
        let write = panics.write(|transaction| -> Result<(), Error> {
            transaction.execute("INSERT INTO numbers (number) VALUES (4)", [])?;
            panic!("as it must");
        });
        write.await
    });
    tokio::task::yield_now().await;
    queue(&mut jobs, &database, 3).await;
    release.send(()).unwrap();
    let answers = jobs.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 2, "{answers:?}");
    assert!(answers.iter().any(|answer| matches!(answer, Err(Error::Panicked))));
    assert_eq!(numbers(&database).await, [1, 3]);
    database.close().await.unwrap();
}

#[tokio::test]
async fn errors_keep_their_kind() {
    let place = Place::new();
    let database = place.open();
    insert(&database, 1).await.unwrap();
    let twice = insert(&database, 1).await.unwrap_err();
    assert_eq!((twice.kind(), twice.is_retryable()), (Kind::Constraint, false));
    let read_only = database
        .read(|connection| -> Result<_, Error> {
            Ok(connection.execute("DELETE FROM numbers", [])?)
        })
        .await;
    assert_eq!(read_only.unwrap_err().kind(), Kind::ReadOnly);
    database.close().await.unwrap();
}

#[tokio::test]
async fn another_programs_lock_is_busy_and_transient() {
    let place = Place::new();
    let options = Options { busy_timeout: Duration::from_millis(20), ..Options::default() };
    let database = place.open_with(&options);
    let other = Connection::open(&place.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = insert(&database, 1).await.unwrap_err();
    assert_eq!((busy.kind(), busy.is_retryable()), (Kind::Busy, true), "{busy:?}");
    other.execute_batch("ROLLBACK").unwrap();
    insert(&database, 1).await.unwrap();
    assert_eq!(numbers(&database).await, [1]);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_stores_nothing_of_what_failed_and_goes_by() {
    let place = Place::new();
    let database = place.open_with(&Options { max_pages: Some(30), ..Options::default() });
    let fill = async |number: i64| {
        let write = database.write(move |transaction| -> Result<_, Error> {
            let text = "x".repeat(3_000);
            transaction.execute("INSERT INTO numbers VALUES (?1, ?2)", (number, text))?;
            Ok(())
        });
        write.await
    };
    let mut stored = 0;
    let full = loop {
        match fill(stored).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(stored > 5);
    assert_eq!((full.kind(), full.is_retryable()), (Kind::Full, true), "{full:?}");
    assert_eq!(numbers(&database).await, (0..stored).collect::<Vec<_>>());

    // In one transaction with others: no caller gets a success for a write that is not stored.
    let (release, _held) = hold_up(&database).await;
    let mut jobs = JoinSet::new();
    for number in 100..110 {
        let database = database.clone();
        jobs.spawn(async move {
            let write = database.write(move |transaction| -> Result<_, Error> {
                let text = "x".repeat(if number == 105 { 3_000 } else { 1 });
                transaction.execute("INSERT INTO numbers VALUES (?1, ?2)", (number, text))?;
                Ok(number)
            });
            (number, write.await)
        });
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();
    let answers = jobs.join_all().await;
    let held = numbers(&database).await;
    for (number, answer) in &answers {
        assert_eq!(held.contains(number), answer.is_ok(), "{number}: {answer:?}");
        if let Err(error) = answer {
            assert!(error.is_retryable(), "{error:?}");
        }
    }
    let (_, big) = answers.iter().find(|(number, _)| *number == 105).unwrap();
    assert_eq!(big.as_ref().unwrap_err().kind(), Kind::Full);

    let removed = database
        .write(|transaction| -> Result<_, Error> {
            Ok(transaction.execute("DELETE FROM numbers WHERE number < 3", [])?)
        })
        .await;
    assert_eq!(removed.unwrap(), 3);
    fill(1_000).await.unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_read_sees_one_snapshot() {
    let place = Place::new();
    let database = place.open();
    insert(&database, 1).await.unwrap();
    let (go_on, wait) = mpsc::channel::<()>();
    let (started, begun) = tokio::sync::oneshot::channel();
    let reading = database.clone();
    let mut read = JoinSet::new();
    read.spawn(async move {
        let count = |connection: &Connection| {
            connection.query_row("SELECT count(*) FROM numbers", [], |row| row.get::<_, i64>(0))
        };
        reading
            .read(move |connection| -> Result<_, Error> {
                let before = count(connection)?;
                started.send(()).unwrap();
                wait.recv_timeout(PATIENCE).unwrap();
                Ok((before, count(connection)?))
            })
            .await
    });
    timeout(PATIENCE, begun).await.unwrap().unwrap();
    insert(&database, 2).await.unwrap();
    go_on.send(()).unwrap();
    assert_eq!(read.join_next().await.unwrap().unwrap().unwrap(), (1, 1));
    assert_eq!(numbers(&database).await, [1, 2]);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_read_that_panics_costs_no_connection() {
    let place = Place::new();
    let database = place.open();
    for _ in 0..5 {
        let read = database.read(|_| -> Result<(), Error> { panic!("as it must") }).await;
        assert!(matches!(read, Err(Error::Panicked)));
    }
    assert_eq!(numbers(&database).await, [0; 0]);
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_queued_write_runs_without_its_caller() {
    let place = Place::new();
    let database = place.open();
    let (release, _held) = hold_up(&database).await;
    let mut given_up = Box::pin(insert(&database, 5));
    assert!(timeout(Duration::ZERO, &mut given_up).await.is_err());
    drop(given_up);
    release.send(()).unwrap();
    insert(&database, 6).await.unwrap();
    assert_eq!(numbers(&database).await, [5, 6]);
    database.close().await.unwrap();
}

/// An open handle must not make close hang.
#[tokio::test]
async fn close_does_not_wait_for_handles() {
    let place = Place::new();
    let database = place.open();
    let (release, _held) = hold_up(&database).await;
    let mut jobs = JoinSet::new();
    for number in 0..10 {
        queue(&mut jobs, &database, number).await;
    }
    let other = database.clone();
    let closing = database.clone();
    let mut end = JoinSet::new();
    end.spawn(async move { closing.close().await });
    tokio::task::yield_now().await;
    release.send(()).unwrap();
    timeout(PATIENCE, end.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    assert!(jobs.join_all().await.iter().all(Result::is_ok), "queued before the end");
    assert!(matches!(insert(&other, 11).await, Err(Error::Closed)));
    let read = other.read(|_| Ok(())).await;
    assert!(matches!(read, Err(Error::Closed)));
    assert!(matches!(other.close().await, Err(Error::Closed)));
    timeout(PATIENCE, other.closed()).await.unwrap();

    let log = place.path.with_file_name("db-wal");
    assert!(!log.exists(), "the log is in the database");
    let database = place.open();
    assert_eq!(numbers(&database).await.len(), 10);
    database.close().await.unwrap();
}

#[tokio::test]
async fn dropping_all_handles_closes_the_database() {
    let place = Place::new();
    let database = place.open();
    insert(&database, 1).await.unwrap();
    drop(database);
    let opened = timeout(PATIENCE, async {
        loop {
            match Database::open(&place.path, &Options::default(), crate::NUMBERS) {
                Ok(database) => return database,
                Err(Error::InUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    let database = opened.await.unwrap();
    assert_eq!(numbers(&database).await, [1]);
    database.close().await.unwrap();
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let place = Place::new();
    let database = place.open_with(&Options { queue: 4, ..Options::default() });
    let (release, _held) = hold_up(&database).await;
    let written = Arc::new(AtomicBool::new(false));
    let mut jobs = JoinSet::new();
    for number in 0..4 {
        queue(&mut jobs, &database, number).await;
    }
    let (one_more, done) = (database.clone(), Arc::clone(&written));
    jobs.spawn(async move {
        insert(&one_more, 5).await?;
        done.store(true, Ordering::SeqCst);
        Ok(())
    });
    let early = timeout(Duration::from_millis(20), jobs.join_next()).await;
    assert!(early.is_err() && !written.load(Ordering::SeqCst));
    release.send(()).unwrap();
    assert!(jobs.join_all().await.iter().all(Result::is_ok));
    database.close().await.unwrap();
}
