//! HTTP/1.1 clients, as the originals' clients are: no proxy of the environment,
//! no redirect. With TLS of files, changed files count from the next
//! request on.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};
use rustls::ClientConfig;

use crate::tls::{ClientTls, Unusable};

/// A connection attempt takes at most this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What every client begins with.
pub fn builder(user_agent: &str) -> ClientBuilder {
    Client::builder()
        .http1_only()
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(user_agent)
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TLS files cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// A file of a certificate or key cannot be read.
    #[error("reading {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The certificates cannot be used for HTTP.
    #[error("building an HTTP client")]
    Build(#[source] reqwest::Error),
}

/// A client with TLS of files that keeps its connections as long as these stay
/// the same.
#[derive(Debug)]
pub struct TlsClient {
    tls: ClientTls,
    user_agent: String,
    adjust: fn(ClientBuilder) -> ClientBuilder,
    built: Mutex<Option<(Arc<ClientConfig>, Client)>>,
}

impl TlsClient {
    /// A client for certificates that may become usable later. `adjust` changes
    /// the result of [`builder`].
    pub fn new(
        tls: ClientTls,
        user_agent: String,
        adjust: fn(ClientBuilder) -> ClientBuilder,
    ) -> Self {
        Self { tls, user_agent, adjust, built: Mutex::new(None) }
    }

    /// The client of this moment; ask anew for each request.
    ///
    /// # Errors
    /// The certificates of this moment cannot be used.
    pub fn client(&self) -> Result<Client, Error> {
        let config = self.tls.rustls_config()?;
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        match &*built {
            Some((of, client)) if Arc::ptr_eq(of, &config) => Ok(client.clone()),
            _ => {
                let builder = (self.adjust)(builder(&self.user_agent));
                let client = build(&config, builder).map_err(Error::Build)?;
                *built = Some((config, client.clone()));
                Ok(client)
            }
        }
    }
}

fn build(config: &ClientConfig, builder: ClientBuilder) -> Result<Client, reqwest::Error> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    builder.tls_backend_preconfigured(config).build()
}
