//! A server whose name has several addresses, some of which are dead.

use std::time::Duration;

use net::testing::{drop_only, resolved, with_three_addresses};
use storage::{
    server::{Dialect, Options},
    testing::TestServer,
};
use tokio::time::{Instant, timeout};

use super::{balances, connect, give};
use crate::PATIENCE;

/// A server on all addresses of `localhost`, and options to reach it by that name.
fn by_name(dialect: Dialect) -> (TestServer, Options) {
    let everywhere = match dialect {
        Dialect::Postgres => "listen_addresses = '*'",
        Dialect::MySql => "bind-address = 0.0.0.0",
    };
    let process = TestServer::start_with(dialect, None, &[everywhere]);
    let database = process.database();
    if dialect == Dialect::Postgres {
        // The server runs programs in its data directory.
        process.sql(
            "COPY (SELECT 'host all all 10.71.0.0/24 scram-sha-256') \
             TO PROGRAM 'cat >> pg_hba.conf'",
        );
        process.sql("SELECT pg_reload_conf()");
    }
    let text = database.connection_string.replace("127.0.0.1", "localhost");
    (process, Options { connection_string: text, ..database })
}

fn dead_addresses(dialect: Dialect) {
    with_three_addresses(move || {
        let (process, options) = by_name(dialect);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let addresses = resolved();
            drop_only(&addresses[..2]);
            let began = Instant::now();
            let server = timeout(PATIENCE, connect(&options)).await.expect("the third answers");
            let took = began.elapsed();
            assert!(took < Duration::from_secs(5), "{took:?}");

            // The address in use dies under an idle connection.
            drop_only(&addresses[2..]);
            let began = Instant::now();
            let balances = timeout(PATIENCE, balances(&server)).await.expect("an answer");
            let took = began.elapsed();
            assert_eq!(balances, [100, 100]);
            assert!(took < Duration::from_secs(8), "{took:?}");
            assert_eq!(give(&server, 1, 1).await.unwrap(), 1);
        });
        drop(process);
    });
}

#[test]
fn postgresql_at_dead_addresses() {
    dead_addresses(Dialect::Postgres);
}

#[test]
fn mariadb_at_dead_addresses() {
    dead_addresses(Dialect::MySql);
}
