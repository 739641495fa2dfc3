//! Opens the configured store.
//!
//! Waits up to `db_start_timeout` for a database server that is not reachable yet; the
//! original exits at once and leaves the retry to its supervisor.

use std::path::Path;

use anyhow::Context as _;
use runtime::process::Failure;
use storage::server::{Options, Tls};

use crate::{
    config::{Database, Server},
    feed::Feed,
    store::{
        embedded::{Embedded, Flusher},
        shared::{Follower, Shared},
    },
};

/// An open store and its background task.
#[derive(Debug)]
pub enum Opened {
    /// In a SQLite file of this process.
    Embedded(Embedded, Flusher),
    /// On a database server.
    Shared(Shared, Box<Follower>),
}

/// Opens the store.
///
/// # Errors
/// With the original's messages (docs/compatibility/locket.md#configuration): the file or the
/// server cannot be used.
pub async fn open(database: &Database, feed: Feed) -> Result<Opened, Failure> {
    match database {
        Database::Embedded(path) => embedded(path, feed).await,
        Database::Shared(server) => shared(server, feed).await,
    }
}

async fn embedded(path: &Path, feed: Feed) -> Result<Opened, Failure> {
    let opened = Embedded::open(path, &storage::sqlite::Options::default(), feed).await;
    let (store, flusher) = opened
        .context("opening database_connection_string")
        .map_err(|error| Failure::fatal("sql-failed-to-connect", error))?;
    Ok(Opened::Embedded(store, flusher))
}

async fn shared(server: &Server, feed: Feed) -> Result<Opened, Failure> {
    let options = options(server);
    options.check().map_err(|error| Failure::fatal("invalid-db-connection-string", error))?;
    let opened = Shared::open(&options, feed).await.map_err(|error| {
        let line = match error {
            storage::Error::Migration { .. } | storage::Error::Step { .. } => {
                "failed-to-create-lock-table"
            }
            _ => "sql-failed-to-connect",
        };
        Failure::fatal(line, error)
    });
    let (store, follower) = opened?;
    Ok(Opened::Shared(store, Box::new(follower)))
}

fn options(server: &Server) -> Options {
    let Server {
        driver,
        connection_string,
        ca,
        verify_identity,
        max_open,
        max_lifetime,
        connect_timeout,
        operation_timeout,
        start_timeout,
    } = server;
    Options {
        tls: ca.as_ref().map(|ca| Tls { ca: ca.clone(), verify_identity: *verify_identity }),
        max_open: max_open.unwrap_or(0),
        max_lifetime: *max_lifetime,
        connect_timeout: *connect_timeout,
        operation_timeout: *operation_timeout,
        start_timeout: *start_timeout,
        application_name: "locket".to_owned(),
        ..Options::new((*driver).into(), connection_string.clone())
    }
}
