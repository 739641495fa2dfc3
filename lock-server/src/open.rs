//! Opens the store that the configuration names.
//!
//! A database server that is not there yet is waited for, with growing pauses, as
//! long as `db_start_timeout` says: the original ends at once and leaves it to its
//! supervisor. What will not pass by itself, such as a refused password, ends the
//! start at once.

use std::path::Path;

use anyhow::Context as _;
use runtime::{backoff::Backoff, error::chain, process::Failure};
use storage::server::{Options, Tls};
use tokio::time::{Instant, sleep};

use crate::{
    config::{Database, Server},
    feed::Feed,
    store::any::{Any, Keeper},
};

/// The first pause between two attempts, and the longest.
const PAUSES: [std::time::Duration; 2] =
    [std::time::Duration::from_millis(200), std::time::Duration::from_secs(5)];

/// Opens it.
///
/// # Errors
/// With the original's words (contracts/locket.md 4.2): the file or the server
/// cannot be used.
pub async fn open(database: &Database, feed: Feed) -> Result<(Any, Keeper), Failure> {
    match database {
        Database::Embedded(path) => embedded(path, feed).await,
        Database::Shared(server) => shared(server, feed).await,
    }
}

async fn embedded(path: &Path, feed: Feed) -> Result<(Any, Keeper), Failure> {
    Any::embedded(path, feed)
        .await
        .context("opening database_connection_string")
        .map_err(|error| Failure::fatal("sql-failed-to-connect", error))
}

async fn shared(server: &Server, feed: Feed) -> Result<(Any, Keeper), Failure> {
    let options = options(server);
    options.check().map_err(|error| Failure::fatal("invalid-db-connection-string", error))?;
    let deadline = Instant::now() + server.start_timeout;
    let mut backoff = Backoff::new(PAUSES[0], PAUSES[1]);
    loop {
        let error = match Any::shared(&options, feed.clone()).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let pause = backoff.pause();
        if !error.is_retryable() || Instant::now() + pause >= deadline {
            let line = match error {
                storage::Error::Migration { .. } | storage::Error::Step { .. } => {
                    "failed-to-create-lock-table"
                }
                _ => "sql-failed-to-connect",
            };
            return Err(Failure::fatal(line, error));
        }
        tracing::info!(error = chain(&error), pause = ?pause, "waiting-for-database");
        sleep(pause).await;
    }
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
        start_timeout: _,
    } = server;
    Options {
        tls: ca.as_ref().map(|ca| Tls { ca: ca.clone(), verify_identity: *verify_identity }),
        max_open: max_open.unwrap_or(0),
        max_lifetime: *max_lifetime,
        connect_timeout: *connect_timeout,
        operation_timeout: *operation_timeout,
        application_name: "locket".to_owned(),
        ..Options::new((*driver).into(), connection_string.clone())
    }
}
