//! Opens the configured store.

use std::sync::Arc;

use anyhow::Context as _;

use crate::{
    config::Database,
    groups::decide::State,
    http::freshness::Newest,
    report::Look,
    store::{Error, Store, server::Server, sqlite::Sqlite},
};

/// An open store, and functions that only a store on a server has.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    /// Reads the newest generation; other instances may write.
    pub(crate) newest: Option<Newest>,
    /// Reads connection pool statistics.
    pub(crate) look: Option<Look>,
}

/// Opens the store, with the original's log lines.
///
/// # Errors
/// The file or the server cannot be used.
pub(crate) async fn open(database: &Database) -> Result<Opened, Error> {
    tracing::info!("getting db connection");
    let opened = match database {
        Database::Sqlite(path) => {
            Opened { store: Arc::new(Sqlite::open(path)?), newest: None, look: None }
        }
        Database::Server(options) => shared(Box::pin(Server::connect(options)).await?),
    };
    tracing::info!("db connection retrieved");
    Ok(opened)
}

fn shared(server: Server) -> Opened {
    let server = Arc::new(server);
    let (asked, looked_at) = (Arc::clone(&server), Arc::clone(&server));
    let newest: Newest = Arc::new(move || {
        let server = Arc::clone(&asked);
        Box::pin(async move { server.newest().await })
    });
    let look: Look = Box::new(move || looked_at.stats());
    Opened { store: server, newest: Some(newest), look: Some(look) }
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
            Database::Server(options) => {
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
