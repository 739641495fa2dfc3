//! HTTP/1.1 clients, as the originals' clients are: no proxy of the environment,
//! no redirect. With TLS of files, changed files count from the next
//! request on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};
use rustls::ClientConfig;

use crate::tls::ClientTls;

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

/// A client with TLS of files that keeps its connections as long as these stay
/// the same.
#[derive(Debug)]
pub struct TlsClient {
    tls: ClientTls,
    user_agent: String,
    adjust: fn(ClientBuilder) -> ClientBuilder,
    built: Mutex<(Arc<ClientConfig>, Client)>,
}

impl TlsClient {
    /// A client for the certificates that are valid now. `adjust` changes what
    /// [`builder`] begins with.
    ///
    /// # Errors
    /// They cannot be used for HTTP.
    pub fn new(
        tls: ClientTls,
        user_agent: String,
        adjust: fn(ClientBuilder) -> ClientBuilder,
    ) -> Result<Self, reqwest::Error> {
        let config = tls.rustls_config();
        let client = build(&config, adjust(builder(&user_agent)))?;
        Ok(Self { tls, user_agent, adjust, built: Mutex::new((config, client)) })
    }

    /// The client of this moment; ask anew for each request.
    ///
    /// # Errors
    /// The new certificates cannot be used for HTTP.
    pub fn client(&self) -> Result<Client, reqwest::Error> {
        let config = self.tls.rustls_config();
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&built.0, &config) {
            let client = build(&config, (self.adjust)(builder(&self.user_agent)))?;
            *built = (config, client);
        }
        Ok(built.1.clone())
    }
}

fn build(config: &ClientConfig, builder: ClientBuilder) -> Result<Client, reqwest::Error> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    builder.tls_backend_preconfigured(config).build()
}
