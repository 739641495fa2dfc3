//! HTTP/1.1 clients, as the originals' clients are: no proxy of the environment,
//! no redirect. With TLS of files, changed files count from the next
//! request on.
//!
//! reqwest connects by itself, to an address after the other. Its resolver here finds
//! out which address of a name answers (`net`), and names that one first.

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

/// A connection attempt takes at most this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What every client begins with.
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

/// The servers that a client will call, and its resolver: of the addresses of a name,
/// the one that takes a connection first comes first.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    /// A resolver is asked for a name only; the port is in the URL.
    ports: Arc<BTreeMap<String, u16>>,
}

impl Servers {
    /// The servers of these URLs. The addresses of any other name are not tried
    /// beforehand.
    pub fn new(urls: &[&str]) -> Self {
        let port = |server: &&str| {
            // A URL that cannot be parsed fails where it is called.
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

/// A client with TLS of files that keeps its connections as long as these stay
/// the same.
#[derive(Debug)]
pub struct TlsClient {
    tls: ClientTls,
    user_agent: String,
    servers: Servers,
    adjust: fn(ClientBuilder) -> ClientBuilder,
    built: Mutex<Option<(Arc<ClientConfig>, Client)>>,
}

impl TlsClient {
    /// A client for certificates that may become usable later. `adjust` changes
    /// the result of [`builder`].
    pub fn new(
        tls: ClientTls,
        user_agent: String,
        servers: Servers,
        adjust: fn(ClientBuilder) -> ClientBuilder,
    ) -> Self {
        Self { tls, user_agent, servers, adjust, built: Mutex::new(None) }
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
