//! Lost tables, columns and rows: recreated at the start and within seconds while the
//! store runs. Watchers and pollers never see groups removed because of the loss, and
//! the generation never goes back.

use std::time::Duration;

use proto::policy_v1::StatusRequest;
use storage::{server::Dialect, testing::TestServer};
use tokio::time::timeout;

use crate::support::{
    client::{Cell, decoded, list_all, replace},
    sets::{fenced, global, named, set},
    site::{Served, Site},
    until,
};

const GROUPS: &str = "/networking/v1/internal/security_groups";

enum Place {
    Server(&'static TestServer, String),
    File(std::path::PathBuf),
}

impl Place {
    fn new(dialect: Option<Dialect>) -> (Site, Self) {
        match dialect {
            Some(dialect) => {
                let server = TestServer::shared(dialect);
                let site = Site::on(server);
                let name = site.config()["database"]["database_name"].as_str().unwrap().to_owned();
                (site, Self::Server(server, name))
            }
            None => {
                let site = Site::new();
                let path = site.path().join("store.db");
                (site, Self::File(path))
            }
        }
    }

    /// Runs statements written with PostgreSQL's table names.
    fn sql(&self, sql: &str) {
        match self {
            Self::Server(server, name) => _ = server.sql_in(name, sql),
            Self::File(path) => {
                let sql = sql.replace("portcullis_policy_store_migrations", "schema_migrations");
                let sql = sql.replace("portcullis_", "");
                rusqlite::Connection::open(path).unwrap().execute_batch(&sql).unwrap();
            }
        }
    }
}

const LOSSES: [&str; 10] = [
    "DROP TABLE portcullis_security_groups",
    "DROP TABLE portcullis_security_group_spaces",
    "DELETE FROM portcullis_security_groups",
    "ALTER TABLE portcullis_security_groups DROP COLUMN rules",
    "DROP TABLE portcullis_store_state",
    "DROP TABLE portcullis_group_changes; DROP TABLE portcullis_generations",
    "DROP TABLE portcullis_cell_reports",
    "DROP TABLE portcullis_archive_entries; DROP TABLE portcullis_archive_progress",
    "DROP TABLE portcullis_archive_groups",
    "DROP TABLE IF EXISTS portcullis_group_changes; DROP TABLE IF EXISTS portcullis_generations;
     DROP TABLE portcullis_security_groups; DROP TABLE portcullis_security_group_spaces;
     DROP TABLE portcullis_store_state; DROP TABLE IF EXISTS portcullis_cell_reports;
     DROP TABLE portcullis_policy_store_migrations",
];

async fn generation(served: &Served) -> u64 {
    let status = served.operator().status(StatusRequest::default()).await.unwrap();
    status.into_inner().generation
}

/// The store restores the groups from memory: the next Replace is the usual difference,
/// old tokens stay refused, and a cell gets only real changes.
async fn a_running_store_mends_itself(dialect: Option<Dialect>) {
    let (site, place) = Place::new(dialect);
    let served = Box::pin(Served::start_at(site)).await;
    let writer = served.writer();
    let mut groups = named(60, "x");
    let mut known = replace(&writer, &fenced(&groups, "syncer-a", 5)).await.unwrap().generation;
    let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &["s1"]).await;
    cell.until(known).await;
    for (round, sql) in LOSSES.iter().enumerate() {
        place.sql(sql);
        groups.extend(set([global("extra", &round.to_string())]));
        let write = fenced(&groups, "syncer-a", 5);
        let mut committed = None;
        until("a Replace is taken again", async || {
            committed = replace(&writer, &write).await.ok();
            committed.is_some()
        })
        .await;
        let committed = committed.unwrap();
        assert_eq!(committed.generation, known + 1, "{dialect:?}: {sql}");
        assert_eq!(committed.removed, 0, "{dialect:?}: {sql}");
        known = committed.generation;
        cell.until(known).await;
        let told: Vec<_> = cell.mirror.sorted();
        let (at, all) = list_all(&served.operator()).await;
        assert_eq!((at, all.len()), (known, groups.len()), "{dialect:?}: {sql}");
        let global = all.iter().find(|stored| decoded(stored).guid == "extra");
        assert!(told.contains(global.unwrap()), "{dialect:?}: {sql}");
        let old = replace(&writer, &fenced(&groups, "syncer-b", 4)).await;
        assert!(old.is_err(), "{dialect:?}, {sql}: an old token is taken");
    }
    // The database has everything again.
    let site = served.stop().await;
    let served = Box::pin(Served::start_at(site)).await;
    let (at, all) = list_all(&served.operator()).await;
    assert_eq!((at, all.len()), (known, groups.len()), "{dialect:?}");
    served.stop().await;
}

/// No instance has the groups then. Cells get nothing before the next complete set,
/// which is accepted; the generation continues to rise.
async fn a_start_without_rows_tells_nothing(dialect: Option<Dialect>) {
    let (site, place) = Place::new(dialect);
    let mut site = Some(site);
    let mut known = 0;
    let groups = named(60, "x");
    for sql in ["SELECT 1"].iter().chain(&LOSSES[..5]) {
        place.sql(sql);
        let served = Box::pin(Served::start_at(site.take().unwrap())).await;
        assert_eq!(generation(&served).await, known, "{dialect:?}: {sql}");
        let poller = served.poller();
        assert_eq!(poller.get(GROUPS).await.status(), 503, "{dialect:?}: {sql}");
        let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &["s1"]).await;
        let told = timeout(Duration::from_millis(300), cell.whole()).await;
        assert!(told.is_err(), "{dialect:?}, {sql}: a cell is told {told:?}");
        let committed = replace(&served.writer(), &fenced(&groups, "syncer-a", 5)).await.unwrap();
        assert!(committed.generation > known, "{dialect:?}: {sql}");
        known = committed.generation;
        cell.until(known).await;
        assert_eq!(poller.get(GROUPS).await.status(), 200);
        site = Some(served.stop().await);
    }
}

macro_rules! everywhere {
    ($($name:ident)*) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(Some(storage::server::Dialect::Postgres)).await; })*
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(Some(storage::server::Dialect::MySql)).await; })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(None).await; })*
        }
    };
}

everywhere! {
    a_running_store_mends_itself
    a_start_without_rows_tells_nothing
}
