//! HTTP/1.1 clients that behave as the originals' clients: no proxy from the environment, no
//! redirects. A client with TLS files uses changed files from the next request on.
//!
//! reqwest connects by itself and tries the addresses in order. The resolver here finds out which
//! address of a name accepts connections (`net`) and returns that one first.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use net::Addresses;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Url};
use rustls::ClientConfig;

use crate::tls::{ClientTls, Unusable};

/// Connect timeout of one attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Common settings of all clients.
pub fn builder(user_agent: &str, servers: &Servers) -> ClientBuilder {
    Client::builder()
        .http1_only()
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(net::PROBE)
        .tcp_keepalive_interval(net::PROBE)
        .tcp_user_timeout(net::SILENCE)
        .dns_resolver(Arc::new(servers.clone()))
        .user_agent(user_agent)
}

/// Error from creating a client.
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

/// The servers that a client calls, and their resolver: the address that accepts a connection first
/// is returned first.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    /// The port of each host, since a resolver is asked for a name only.
    ports: Arc<BTreeMap<String, u16>>,
}

impl Servers {
    /// Creates the resolver for the servers of these URLs. Addresses of other names are not probed.
    pub fn new(urls: &[&str]) -> Self {
        let port = |server: &&str| {
            // A URL that cannot be parsed fails at the call.
            let url = Url::parse(server).ok()?;
            Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
        };
        Self { ports: Arc::new(urls.iter().filter_map(port).collect()) }
    }
}

impl Resolve for Servers {
    fn resolve(&self, name: Name) -> Resolving {
        let port = self.ports.get(name.as_str()).copied();
        Box::pin(async move {
            let addresses = Addresses::of(name.as_str(), port.unwrap_or(0)).await?;
            let addresses = if port.is_some() { addresses.probed().await } else { addresses };
            let addresses: Vec<SocketAddr> = addresses.as_slice().to_vec();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// HTTP client with TLS files. The client, with its connection pool, is kept until the files
/// change.
#[derive(Debug)]
pub struct TlsClient {
    tls: ClientTls,
    user_agent: String,
    servers: Servers,
    adjust: fn(ClientBuilder) -> ClientBuilder,
    built: Mutex<Option<(Arc<ClientConfig>, Client)>>,
}

impl TlsClient {
    /// Creates a client whose certificates may become usable later. `adjust` modifies the result of
    /// [`builder`].
    pub fn new(
        tls: ClientTls,
        user_agent: String,
        servers: Servers,
        adjust: fn(ClientBuilder) -> ClientBuilder,
    ) -> Self {
        Self { tls, user_agent, servers, adjust, built: Mutex::new(None) }
    }

    /// Returns the current client; call once per request.
    ///
    /// # Errors
    /// When the current certificates cannot be used.
    pub fn client(&self) -> Result<Client, Error> {
        let config = self.tls.rustls_config()?;
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        match &*built {
            Some((of, client)) if Arc::ptr_eq(of, &config) => Ok(client.clone()),
            _ => {
                let builder = (self.adjust)(builder(&self.user_agent, &self.servers));
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
