//! One HTTP client: one trust, one identity, one set of log lines.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, redirect::Policy};
use runtime::tls::ClientTls;
use rustls::ClientConfig;

use super::error::{Fault, retry_after};

/// A connection attempt takes at most this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// More than any token, stamp or refusal has.
const LARGEST_SMALL_BODY: usize = 1 << 20;

/// How a server proves who it is, and how we do.
pub enum Trust {
    /// Certificates of these authorities only (PEM), or the system's if empty.
    Authorities(Vec<Vec<u8>>),
    /// Mutual TLS whose files may change while we run.
    Mutual(ClientTls),
    /// Any certificate; with our own if there is one (PEM of certificate and
    /// key together).
    Anything(Option<Vec<u8>>),
}

/// A client that keeps its connections.
pub struct Http {
    source: Source,
    user_agent: String,
}

enum Source {
    Fixed(Client),
    /// Rebuilt when the TLS files have changed.
    Reloading(Box<Reloading>),
}

struct Reloading {
    tls: ClientTls,
    built: Mutex<(Arc<ClientConfig>, Client)>,
}

impl Http {
    /// # Errors
    /// A certificate that cannot be used.
    pub fn new(trust: Trust, user_agent: String) -> Result<Self, reqwest::Error> {
        let source = match trust {
            Trust::Authorities(bundles) if bundles.is_empty() => {
                Source::Fixed(builder(&user_agent).build()?)
            }
            Trust::Authorities(bundles) => {
                let mut certificates = Vec::new();
                for bundle in bundles {
                    certificates.extend(reqwest::Certificate::from_pem_bundle(&bundle)?);
                }
                Source::Fixed(builder(&user_agent).tls_certs_only(certificates).build()?)
            }
            Trust::Anything(identity) => {
                let mut builder = builder(&user_agent).tls_danger_accept_invalid_certs(true);
                if let Some(pem) = identity {
                    builder = builder.identity(reqwest::Identity::from_pem(&pem)?);
                }
                Source::Fixed(builder.build()?)
            }
            Trust::Mutual(tls) => {
                let config = tls.rustls_config();
                let client = mutual(&config, &user_agent)?;
                let built = Mutex::new((config, client));
                Source::Reloading(Box::new(Reloading { tls, built }))
            }
        };
        Ok(Self { source, user_agent })
    }

    /// The client for the certificates that are valid now.
    pub fn client(&self) -> Result<Client, reqwest::Error> {
        match &self.source {
            Source::Fixed(client) => Ok(client.clone()),
            Source::Reloading(reloading) => {
                let Reloading { tls, built } = &**reloading;
                let config = tls.rustls_config();
                let mut built = built.lock().unwrap_or_else(PoisonError::into_inner);
                if !Arc::ptr_eq(&built.0, &config) {
                    let client = mutual(&config, &self.user_agent)?;
                    *built = (config, client);
                }
                Ok(built.1.clone())
            }
        }
    }
}

fn mutual(config: &ClientConfig, user_agent: &str) -> Result<Client, reqwest::Error> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    builder(user_agent).tls_backend_preconfigured(config).build()
}

/// HTTP/1.1, no proxy of the environment, no redirect: as the original, whose
/// servers send none.
fn builder(user_agent: &str) -> ClientBuilder {
    Client::builder()
        .http1_only()
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(user_agent)
}

/// Sends, and waits for the head of the answer; the body must have arrived
/// within `timeout` as well.
pub(super) async fn send(request: RequestBuilder, timeout: Duration) -> Result<Response, Fault> {
    request.timeout(timeout).send().await.map_err(Fault::Request)
}

/// How long the server asks to be left alone.
pub(super) fn wish(response: &Response) -> Option<Duration> {
    retry_after(response.status(), response.headers(), jiff::Timestamp::now())
}

/// The whole of a body that is small by its nature.
pub(super) async fn read(mut response: Response) -> Result<Bytes, Fault> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(Fault::Body)? {
        if body.len() + chunk.len() > LARGEST_SMALL_BODY {
            return Err(Fault::TooLarge { limit: LARGEST_SMALL_BODY });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
