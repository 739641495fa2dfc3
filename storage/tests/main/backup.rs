//! Backups of a database that is in use.

use std::fs;

use storage::{Error, sqlite::backup};
use tokio::sync::watch;

use crate::{Place, insert, numbers};

/// The file names in the database's directory, sorted.
fn names(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path.parent().unwrap()).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
    let mut names: Vec<String> = entries.map(|entry| name(entry).unwrap()).collect();
    names.sort();
    names
}

/// Each write is two rows: a backup has both or none, all writes confirmed before it began, and no
/// gaps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_one_snapshot() {
    let place = Place::new();
    let database = place.open();
    let (answered, enough) = (watch::Sender::new(0i64), watch::Sender::new(false));
    let write = async {
        for number in 1.. {
            let pair = database.write(move |transaction| -> Result<_, Error> {
                let text = "x".repeat(2_000);
                let mut insert = transaction.prepare("INSERT INTO numbers VALUES (?1, ?2)")?;
                insert.execute((number, &text))?;
                insert.execute((-number, &text))?;
                Ok(())
            });
            pair.await.unwrap();
            answered.send_replace(number);
            if *enough.borrow() {
                return;
            }
        }
    };
    let copy = async {
        for round in 1..=8 {
            let much = |number: &i64| *number >= round * 50;
            let before = *answered.subscribe().wait_for(much).await.unwrap();
            let to = place.path.with_file_name("copy");
            let (from, target) = (place.path.clone(), to.clone());
            let bytes = tokio::task::spawn_blocking(move || backup(&from, &target).unwrap());
            let bytes = bytes.await.unwrap();
            assert_eq!(bytes, fs::metadata(&to).unwrap().len());
            let copy = Place { path: to, ..Place::new() };
            let copied = copy.open();
            let found = numbers(&copied).await;
            let last = *found.last().unwrap();
            assert!(last >= before, "{last} of {before}");
            let whole: Vec<i64> = (-last..=last).filter(|number| *number != 0).collect();
            assert_eq!(found, whole);
            // The backup is a normal database.
            insert(&copied, 0).await.unwrap();
            copied.close().await.unwrap();
        }
        enough.send_replace(true);
    };
    tokio::join!(write, copy);
    database.close().await.unwrap();
    assert_eq!(names(&place), ["copy", "copy.lock", "db", "db.lock"]);
}

/// A failed backup neither replaces an existing file nor leaves a new one.
#[tokio::test]
async fn a_failed_backup_changes_no_file() {
    let place = Place::new();
    let database = place.open();
    insert(&database, 1).await.unwrap();
    fs::hard_link(&place.path, place.path.with_file_name("link")).unwrap();
    let old = place.path.with_file_name("old");
    fs::write(&old, "an older copy").unwrap();
    let before = names(&place);
    for own in ["db", "db-wal", "db-shm", "db-journal", "db.lock", "link"] {
        let error = backup(&place.path, &place.path.with_file_name(own)).unwrap_err();
        assert!(matches!(error, Error::OwnFile { .. }), "{own}: {error}");
    }
    let roundabout = place.path.parent().unwrap().join("./db");
    assert!(matches!(backup(&place.path, &roundabout), Err(Error::OwnFile { .. })));
    for missing in ["nothing", "nowhere/db"] {
        let error = backup(&place.path.with_file_name(missing), &old).unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{missing}: {error}");
    }
    let nowhere = place.path.with_file_name("nowhere").join("copy");
    assert!(matches!(backup(&place.path, &nowhere), Err(Error::Create { .. })));
    let directory = place.path.parent().unwrap();
    assert!(matches!(backup(&place.path, directory), Err(Error::Create { .. })));
    assert_eq!(names(&place), before);
    assert_eq!(fs::read_to_string(&old).unwrap(), "an older copy");
    assert_eq!(numbers(&database).await, [1]);

    fs::write(place.path.with_file_name("text"), "x".repeat(8_192)).unwrap();
    let error = backup(&place.path.with_file_name("text"), &old).unwrap_err();
    assert_eq!(error.kind(), storage::Kind::Corrupt, "{error}");
    assert_eq!(fs::read_to_string(&old).unwrap(), "an older copy");

    backup(&place.path, &old).unwrap();
    database.close().await.unwrap();
    // The same with a database that no process has open.
    backup(&place.path, &old).unwrap();
    let copied = Place { path: old, ..Place::new() };
    assert_eq!(numbers(&copied.open()).await, [1]);
}
