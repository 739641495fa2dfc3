//! Properties of SQLite only.

use model::group::ContentHash;
use policy_store::store::{Error, Store, sqlite::Sqlite};

use crate::{
    store::{file, load, replace},
    support::sets::{bound, group, named, replacement, set},
};

/// An unchanged group is not written: its row stays as it was.
#[tokio::test]
async fn sqlite_writes_only_what_changed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&file(&directory)).unwrap();
    let mut groups = named(50, "1");
    replace(&store, replacement(&groups)).await.unwrap();
    // Marks every row; a rewritten row loses its mark.
    let other = rusqlite::Connection::open(file(&directory)).unwrap();
    other.execute("UPDATE security_groups SET name = 'marked'", []).unwrap();
    groups.extend(set([group("g00007", "2"), group("new", "1")]));
    replace(&store, replacement(&groups)).await.unwrap();
    let count = |sql: &str| other.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM security_groups WHERE name = 'marked'"), 49);
    assert_eq!(count("SELECT count(*) FROM security_groups"), 51);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_row_that_makes_no_sense_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&file(&directory)).unwrap();
    replace(&store, replacement(&named(1, "1"))).await.unwrap();
    let other = rusqlite::Connection::open(file(&directory)).unwrap();
    let hash = ContentHash([0; 32]).0;
    for (sql, field) in [
        ("UPDATE security_groups SET rules = 'null'", "security_groups.rules"),
        ("UPDATE security_groups SET rules = '[]', content_hash = x'00'", "content_hash"),
        ("UPDATE store_state SET watermark_nanoseconds = -1", "watermark_nanoseconds"),
        ("UPDATE store_state SET generation = -1, watermark_seconds = NULL", "generation"),
    ] {
        other.execute(sql, []).unwrap();
        let error = store.load(None).await.unwrap_err().to_string();
        assert!(error.contains(field), "{sql}: {error}");
        other.execute("UPDATE security_groups SET content_hash = ?1", [hash]).unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&file(&directory)).unwrap();
    let error = Sqlite::open(&file(&directory)).unwrap_err();
    let Error::Database(error) = error else { panic!("{error}") };
    assert!(error.to_string().contains("in use by another process"), "{error}");
    store.close().await.unwrap();
}

/// The schema of the first releases, with a set.
#[tokio::test]
async fn bindings_outlive_the_change_of_their_table() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&file(&directory)).unwrap();
    let one = bound("one", "1", &["s1", "s2"]);
    replace(&store, replacement(&set([one]))).await.unwrap();
    let before = load(&store).await;
    store.close().await.unwrap();
    let other = rusqlite::Connection::open(file(&directory)).unwrap();
    other
        .execute_batch(
            "CREATE TABLE old (
                 group_id INTEGER NOT NULL REFERENCES security_groups (id),
                 lifecycle TEXT NOT NULL CHECK (lifecycle IN ('running', 'staging')),
                 space_guid TEXT NOT NULL,
                 PRIMARY KEY (group_id, lifecycle, space_guid)
             ) STRICT, WITHOUT ROWID;
             INSERT INTO old SELECT * FROM security_group_spaces;
             DROP TABLE security_group_spaces;
             ALTER TABLE old RENAME TO security_group_spaces;
             DROP TABLE archive_entries;
             DROP TABLE archive_groups;
             DROP TABLE archive_progress;
             DROP TABLE rule_uses;
             DROP TABLE rule_use_cells;
             ALTER TABLE store_state DROP COLUMN held;
             DELETE FROM schema_migrations WHERE version >= 3;",
        )
        .unwrap();
    drop(other);
    let store = Sqlite::open(&file(&directory)).unwrap();
    assert_eq!(load(&store).await, before);
    let many: Vec<String> = (0..200).map(|number| format!("s{number:03}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let all = set([bound("one", "2", &many), group("two", "1")]);
    replace(&store, replacement(&all)).await.unwrap();
    assert_eq!(crate::store::groups(&load(&store).await), all);
    store.close().await.unwrap();
}
