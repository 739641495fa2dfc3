//! `--backup-to` while the store serves requests.

use std::collections::BTreeSet;

use policy_store::store::{Contents, Store as _, sqlite::Sqlite};
use serde_json::json;
use tokio::sync::watch;
use tonic::Code;

use crate::support::{
    client::{list_all, replace},
    process::{Program, command},
    sets::{fenced, named},
    site::Site,
};

/// Each Replace names all groups after its generation, which reveals a backup with
/// groups of two generations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_a_store_of_one_generation() {
    let site = Site::new();
    let program = Program::start(&site);
    let writer = site.client(&program.address, "syncer", None);
    let (confirmed, enough) = (watch::Sender::new(0u64), watch::Sender::new(false));
    let write = async {
        for generation in 1.. {
            let set = named(200, &generation.to_string());
            let answer = replace(&writer, &fenced(&set, "syncer-a", 7)).await.unwrap();
            assert_eq!(answer.generation, generation);
            confirmed.send_replace(generation);
            if *enough.borrow() {
                return;
            }
        }
    };
    let to = site.path().join("backup.db");
    let copy = async {
        for round in 1..=5 {
            let much = |generation: &u64| *generation >= round * 2;
            let before = *confirmed.subscribe().wait_for(much).await.unwrap();
            let mut command = command(&site, &site.config());
            command.arg("--backup-to").arg(&to);
            let output = tokio::task::spawn_blocking(move || command.output().unwrap());
            let output = output.await.unwrap();
            assert!(output.status.success(), "{output:?}");
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(said.starts_with("copied ") && said.ends_with("backup.db\n"), "{said}");
            let store = Sqlite::open(&to).unwrap();
            let Contents { state, groups, past, .. } = store.load(None).await.unwrap();
            store.close().await.unwrap();
            let names: BTreeSet<_> =
                groups.iter().map(|stored| stored.group.name.clone()).collect();
            assert!(state.generation.0 >= before, "{} of {before}", state.generation.0);
            assert_eq!(names, BTreeSet::from([state.generation.0.to_string()]));
            assert_eq!(past.steps.last().unwrap().point, state.point());
        }
        enough.send_replace(true);
    };
    tokio::join!(write, copy);
    drop(program);

    // The restored store continues from there, and knows the seen token.
    let mut config = site.config();
    config["database"] = json!({ "type": "sqlite", "path": to });
    let program = Program::start_with(&site, &config);
    let writer = site.client(&program.address, "syncer", None);
    let (generation, groups) = list_all(&writer).await;
    assert_eq!(groups.len(), 200);
    let old = replace(&writer, &fenced(&named(200, "x"), "syncer-a", 6)).await.unwrap_err();
    assert_eq!(old.code(), Code::FailedPrecondition, "{old:?}");
    let next = replace(&writer, &fenced(&named(200, "x"), "syncer-a", 7)).await.unwrap();
    assert_eq!(next.generation, generation + 1);
}

#[test]
fn what_cannot_be_backed_up_says_why() {
    let site = Site::new();
    let server = |kind: &str| {
        json!({
            "type": kind, "user": "u", "host": "127.0.0.1", "port": 1, "database_name": "d",
        })
    };
    let own = json!({ "type": "sqlite", "path": site.path().join("backup.db") });
    let missing = json!({ "type": "sqlite", "path": site.path().join("nothing.db") });
    for (database, text) in [
        (server("postgres"), "the database is on a server: back it up there, as with pg_dump"),
        (server("mysql"), "the database is on a server: back it up there, as with mariadb-dump"),
        (own, "belongs to the database itself: name another file"),
        (missing, "nothing.db"),
    ] {
        let mut config = site.config();
        config["database"] = database;
        let to = site.path().join("backup.db");
        let output = command(&site, &config).arg("--backup-to").arg(&to).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("no backup was made: ") && said.contains(text), "{said}");
        assert!(!to.exists());
    }
}
