//! Opens the configured store.
//!
//! Waits up to `db_start_timeout` for a database server that is not reachable yet; the
//! original exits at once and leaves the retry to its supervisor.

use std::path::Path;

use anyhow::Context as _;
use runtime::process::Failure;
use storage::server::Options;

use crate::{
    config::Database,
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
        Database::Shared(options) => shared(options, feed).await,
    }
}

async fn embedded(path: &Path, feed: Feed) -> Result<Opened, Failure> {
    let opened = Embedded::open(path, &storage::sqlite::Options::default(), feed).await;
    let (store, flusher) = opened
        .context("opening database_connection_string")
        .map_err(|error| Failure::fatal("sql-failed-to-connect", error))?;
    Ok(Opened::Embedded(store, flusher))
}

async fn shared(options: &Options, feed: Feed) -> Result<Opened, Failure> {
    options.check().map_err(|error| Failure::fatal("invalid-db-connection-string", error))?;
    let opened = Shared::open(options, feed).await.map_err(|error| {
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
