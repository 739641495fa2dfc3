//! Opens the configured store.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;

use crate::{
    config::Database,
    groups::decide::State,
    store::{Error, Store, server::Server, sqlite::Sqlite},
};

/// Longest time for which Replaces leave the original's tables out, after a slow failure.
const ORIGINAL_PAUSE: Duration = Duration::from_secs(60);

/// Opens the store, with the original's log lines.
///
/// # Errors
/// The file or the server cannot be used.
pub(crate) async fn open(database: &Database) -> Result<Arc<dyn Store>, Error> {
    tracing::info!("getting db connection");
    let store: Arc<dyn Store> = match database {
        Database::Sqlite(path) => Arc::new(Sqlite::open(path)?),
        Database::Server { options, write_original_tables } => {
            let server = Box::pin(Server::connect(options)).await?;
            match write_original_tables {
                true => Arc::new(server.write_original_tables(ORIGINAL_PAUSE)),
                false => Arc::new(server),
            }
        }
    };
    tracing::info!("db connection retrieved");
    Ok(store)
}

/// Resets the newest fencing token; returns a description of the previous state.
///
/// # Errors
/// The file is in use, or the file or the server cannot be used.
pub(crate) fn reset_fencing(database: &Database) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting tokio")?;
    let before = runtime.block_on(async {
        match database {
            Database::Sqlite(path) => {
                let store = Sqlite::open(path)?;
                let before = store.reset_fencing().await?;
                store.close().await?;
                Ok::<_, Error>(before)
            }
            Database::Server { options, .. } => {
                Box::pin(async { Server::connect(options).await?.reset_fencing().await }).await
            }
        }
    });
    let State { token, writer, .. } = before.context("resetting the fencing token")?;
    Ok(match token {
        None => "there is no fencing token: every writer is let in".to_owned(),
        Some(token) => {
            let writer = writer.map_or_else(String::new, |writer| format!(" of {writer}"));
            format!("forgot fencing token {token}{writer}: the next writer is let in")
        }
    })
}
