//! Closing of connections: idle ones after their lifetime, all of them with the process, in each
//! case with the protocol's termination message.

use std::time::Duration;

use storage::{
    server::{Dialect, Options, Server},
    testing::TestServer,
};
use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};

use super::{SCHEMA, on_both};
use crate::PATIENCE;

on_both! {
    idle_connections_end_with_their_lifetime
    a_closed_server_says_goodbye
}

fn name(options: &Options) -> &str {
    options.connection_string.rsplit('/').next().unwrap()
}

/// Number of connections to a database, as its operator sees it.
fn connected(process: &TestServer, database: &str) -> usize {
    let sql = match process.dialect() {
        Dialect::Postgres => {
            format!("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = '{database}'")
        }
        Dialect::MySql => {
            format!("SELECT COUNT(*) FROM information_schema.processlist WHERE db = '{database}'")
        }
    };
    process.sql(&sql).parse().unwrap()
}

/// Number of connections that ended without a termination message.
fn abandoned(process: &TestServer) -> u64 {
    let sql = match process.dialect() {
        Dialect::Postgres => "SELECT SUM(sessions_abandoned) FROM pg_stat_database",
        Dialect::MySql => {
            "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS
             WHERE VARIABLE_NAME = 'ABORTED_CLIENTS'"
        }
    };
    process.sql(sql).parse().unwrap()
}

async fn none_left(process: &TestServer, database: &str) {
    let (began, mut beat) = (Instant::now(), interval(Duration::from_millis(100)));
    loop {
        beat.tick().await;
        match connected(process, database) {
            0 => return,
            left if began.elapsed() > PATIENCE => panic!("{left} connections are left"),
            _ => {}
        }
    }
}

/// Ten concurrent statements need ten connections.
async fn ten_at_once(server: &Server) {
    let sleep = match server.dialect() {
        Dialect::Postgres => "SELECT pg_sleep(0.5)",
        Dialect::MySql => "SELECT SLEEP(0.5)",
    };
    let mut tasks = JoinSet::new();
    for _ in 0..10 {
        let server = server.clone();
        tasks.spawn(async move { server.query(sleep, &[]).await.unwrap() });
    }
    tasks.join_all().await;
    assert!(server.stats().open >= 8, "{:?}", server.stats());
}

/// Also without further calls: an idle connection prevents the database from being dropped.
async fn idle_connections_end_with_their_lifetime(dialect: Dialect) {
    let process = TestServer::start(dialect);
    let mut options = process.database();
    options.max_lifetime = Some(Duration::from_secs(5));
    let server = Server::connect(&options, &SCHEMA).await.unwrap();
    ten_at_once(&server).await;
    none_left(&process, name(&options)).await;
    assert_eq!(server.stats().open, 0);
    assert_eq!(abandoned(&process), 0);
    process.sql(&format!("DROP DATABASE {}", name(&options)));
}

async fn a_closed_server_says_goodbye(dialect: Dialect) {
    let process = TestServer::start(dialect);
    let options = process.database();
    let server = Server::connect(&options, &SCHEMA).await.unwrap();
    ten_at_once(&server).await;
    server.close().await;
    assert_eq!(server.stats().open, 0);
    none_left(&process, name(&options)).await;
    assert_eq!(abandoned(&process), 0);
}
