//! HTTP client with one trust, one identity, one set of log lines.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::header::LOCATION;
use reqwest::{Client, RequestBuilder, Response, Url};
use runtime::{
    https::{self, Servers, TlsClient, builder},
    tls::ClientTls,
};

use super::error::{Fault, retry_after};

/// Size limit of a small body, such as a token, a stamp or an error.
const LARGEST_SMALL_BODY: usize = 1 << 20;

/// TLS trust and client identity.
pub enum Trust {
    /// The system's CAs.
    System,
    /// Files that are reloaded at runtime: CAs, and the client certificate if the server
    /// requests one.
    Files(ClientTls),
    /// Any certificate; with a client certificate if configured.
    Anything(Option<Identity>),
}

/// Client certificate and key, where the server's certificate is not verified.
#[derive(Debug)]
pub struct Identity {
    /// PEM of the certificate.
    pub cert: PathBuf,
    /// PEM of the key.
    pub key: PathBuf,
}

/// A client with a connection pool.
pub enum Http {
    /// Certificates never change.
    Fixed(Client),
    /// Rebuilt when the TLS files change.
    Reloading(Box<TlsClient>),
    /// Rebuilt when the files of the identity change; trusts any server.
    Trusting(Box<Careless>),
}

/// A client that verifies no server certificate and has a client certificate.
pub struct Careless {
    identity: Identity,
    user_agent: String,
    servers: Servers,
    /// Content of the files, and the client built from them.
    built: Mutex<Option<(Vec<u8>, Client)>>,
}

impl Careless {
    fn client(&self) -> Result<Client, https::Error> {
        let Identity { cert, key } = &self.identity;
        let pem = [read_file(cert)?, read_file(key)?].join(&b'\n');
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, client)) = &*built
            && *of == pem
        {
            return Ok(client.clone());
        }
        let identity = reqwest::Identity::from_pem(&pem).map_err(https::Error::Build)?;
        let builder =
            builder(&self.user_agent, &self.servers).tls_danger_accept_invalid_certs(true);
        let client = builder.identity(identity).build().map_err(https::Error::Build)?;
        *built = Some((pem, client.clone()));
        Ok(client)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, https::Error> {
    fs::read(path).map_err(|error| https::Error::Read(path.to_owned(), error))
}

impl Http {
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(trust: Trust, user_agent: String, servers: Servers) -> Result<Self, reqwest::Error> {
        Ok(match trust {
            Trust::System => Self::Fixed(builder(&user_agent, &servers).build()?),
            Trust::Anything(None) => {
                let builder = builder(&user_agent, &servers).tls_danger_accept_invalid_certs(true);
                Self::Fixed(builder.build()?)
            }
            Trust::Anything(Some(identity)) => {
                let built = Mutex::new(None);
                Self::Trusting(Box::new(Careless { identity, user_agent, servers, built }))
            }
            Trust::Files(tls) => {
                Self::Reloading(Box::new(TlsClient::new(tls, user_agent, servers, |builder| {
                    builder
                })))
            }
        })
    }

    /// Client with the current certificates.
    ///
    /// # Errors
    /// The current certificates are not usable.
    pub fn client(&self) -> Result<Client, https::Error> {
        match self {
            Self::Fixed(client) => Ok(client.clone()),
            Self::Reloading(client) => client.client(),
            Self::Trusting(client) => client.client(),
        }
    }
}

/// Sends and waits for the response headers; the body must have arrived within `timeout`
/// as well.
pub(super) async fn send(request: RequestBuilder, timeout: Duration) -> Result<Response, Fault> {
    request.timeout(timeout).send().await.map_err(Fault::Request)
}

/// Redirect target, if the response is a redirect. User info in the target is dropped:
/// the HTTP client would send it in addition to the token.
///
/// # Errors
/// The target has another scheme, host or port.
pub(super) fn redirect(response: &Response) -> Result<Option<Url>, Fault> {
    let code = response.status();
    if !matches!(code.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.headers().get(LOCATION) else { return Ok(None) };
    let from = response.url();
    let to = location.to_str().ok().and_then(|location| from.join(location).ok());
    match to {
        Some(mut to) if to.origin() == from.origin() => {
            let dropped = to.set_username("").and_then(|()| to.set_password(None));
            Ok(dropped.ok().map(|()| to))
        }
        Some(to) => Err(Fault::Elsewhere { code, to: to.origin().ascii_serialization() }),
        None => Ok(None),
    }
}

/// `Retry-After` of the response.
pub(super) fn wish(response: &Response) -> Option<Duration> {
    retry_after(response.status(), response.headers(), jiff::Timestamp::now())
}

/// Reads a small body completely.
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
