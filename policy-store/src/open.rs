//! Opens the store that the configuration names.

use std::sync::Arc;

use crate::{
    config::Database,
    http::fresh::Newest,
    report::Look,
    store::{Error, Store, server::Server, sqlite::Sqlite},
};

/// A store, and what only one on a server has.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    /// Others may write to it.
    pub(crate) newest: Option<Newest>,
    /// It has connections.
    pub(crate) look: Option<Look>,
}

/// Opens it, with the original's lines about it.
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
