//! Mutual TLS whose certificates are reloaded when their files change.
//!
//! Invariants:
//! - A server requires a client certificate that chains to its CA and, if it has extended key
//!   usages, includes clientAuth (docs/compatibility/locket.md#tls).
//! - TLS 1.3 with all its suites; TLS 1.2 with ECDHE-RSA-AES256-GCM-SHA384 and
//!   ECDHE-RSA-AES128-GCM-SHA256 only.
//! - A connection uses the material current at its handshake.
//! - Unusable material never replaces usable material; each error names its file.
//! - `load` rejects files that cannot be used now; `follow` starts without them, and `watch` loads
//!   them as soon as they can be used.

mod expiry;
mod identity;
mod material;
mod pattern;
mod rejected_peer;
mod reload;
mod report;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;
use trust::{ClientVerifier, ServerVerifier};

pub use expiry::Invalid;
pub use identity::{Denied, Identity, Peer, describe, peer};
pub use material::Error;
pub use pattern::{Pattern, matches_wildcard};

pub(crate) use rejected_peer::record_rejected;

use material::{Authorities, Material};
use reload::{HotReload, Made};

use crate::config::Reader;
use crate::health::Component;

/// The three files of one side of mutual TLS, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// CA certificates that the peer's certificate must chain to.
    pub ca: PathBuf,
    /// The own certificate, followed by its intermediates.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl Files {
    /// Reads three keys that must be set: CA, certificate and private key.
    pub fn required(keys: &mut Reader<'_>, names: [&'static str; 3]) -> Option<Self> {
        let [ca, cert, key] = names.map(|name| keys.required(name));
        Some(Self { ca: ca?, cert: cert?, key: key? })
    }

    /// The files that these keys name (CA, certificate, key): all three or none. The outer `None`
    /// says that a problem was recorded.
    pub fn optional(keys: &mut Reader<'_>, names: [&'static str; 3]) -> Option<Option<Self>> {
        let [ca, cert, key] = names.map(|name| keys.optional(name));
        let paths = [ca?, cert?, key?];
        if paths.iter().all(Option::is_none) {
            return Some(None);
        }
        for (name, _) in names.iter().zip(&paths).filter(|(_, path)| path.is_none()) {
            keys.problem(name, "missing, although another file of the three is given");
        }
        let [ca, cert, key] = paths;
        Some(Some(Self { ca: ca?, cert: cert?, key: key? }))
    }

    fn all(&self) -> [PathBuf; 3] {
        let Self { ca, cert, key } = self;
        [ca.clone(), cert.clone(), key.clone()]
    }
}

/// Names a set of TLS files in log lines and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// Prefix of the service's metrics, such as `lock_server`.
    pub service: &'static str,
    /// Purpose of the files, such as `server`: the label `tls` of the metrics.
    pub name: &'static str,
}

/// Error for a missing or unusable certificate, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

impl From<Unusable> for io::Error {
    fn from(error: Unusable) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// The application protocol (ALPN) that a server requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2. Clients that do not offer it are rejected, as in other gRPC servers.
    H2,
    /// Any protocol: the client's offer is ignored.
    None,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::H2 => vec![b"h2".to_vec()],
            Self::None => vec![],
        }
    }
}

/// The TLS of a server.
#[derive(Debug, Clone)]
pub struct ServerTls {
    files: Files,
    alpn: Alpn,
    live: HotReload<ServerConfigs>,
}

/// One configuration for each [`Alpn`].
struct ServerConfigs {
    h2: Arc<ServerConfig>,
    none: Arc<ServerConfig>,
}

impl ServerTls {
    /// Loads the files.
    ///
    /// # Errors
    /// When a file cannot be read or used, when key and certificate do not
    /// belong together, or when the certificate is not valid now.
    pub fn load(files: &Files, alpn: Alpn) -> Result<Self, Error> {
        const ROLE: Role = Role { service: "runtime", name: "server" };
        let live = HotReload::load(ROLE, &files.all(), || server_configs(files))?;
        Ok(Self { files: files.clone(), alpn, live })
    }

    /// Loads the files if they can be used. Until then, handshakes are rejected. A certificate that
    /// is not valid now is presented all the same, since the client decides about it.
    /// [`Self::watch`] reports and reloads.
    pub fn follow(role: Role, files: &Files, alpn: Alpn) -> Self {
        let live = HotReload::follow(role, &files.all(), || server_configs(files));
        Self { files: files.clone(), alpn, live }
    }

    /// Reports to `health` whether the server has a valid certificate.
    #[must_use]
    pub fn telling(mut self, health: Component) -> Self {
        self.live = self.live.telling(health);
        self
    }

    /// The same certificates for another protocol.
    #[must_use]
    pub fn for_alpn(&self, alpn: Alpn) -> Self {
        Self { alpn, ..self.clone() }
    }

    /// Reloads changed files until shutdown, and reports on them. Without this task the material is
    /// never reloaded.
    ///
    /// # Errors
    /// Never; the return type fits [`crate::supervise::Tasks`].
    pub async fn watch(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { files, alpn: _, live } = self;
        live.watch(move || server_configs(&files), shutdown).await;
        Ok(())
    }

    pub(crate) fn alpn(&self) -> Alpn {
        self.alpn
    }

    /// The current configuration. Without usable files it rejects each handshake with an alert.
    pub fn rustls_config(&self) -> Arc<ServerConfig> {
        match (self.live.current(), self.alpn) {
            (Ok(configs), Alpn::H2) => Arc::clone(&configs.h2),
            (Ok(configs), Alpn::None) => Arc::clone(&configs.none),
            (Err(_unusable), _) => Arc::clone(&REFUSING),
        }
    }
}

/// Rejects each handshake, for lack of a certificate.
static REFUSING: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let config = ServerConfig::builder_with_provider(Arc::new(server_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    Arc::new(config)
});

#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// The TLS of a client.
#[derive(Debug, Clone)]
pub struct ClientTls {
    source: Source,
    live: HotReload<ClientConfig>,
}

/// The files of a client's TLS.
#[derive(Debug, Clone)]
enum Source {
    Mutual(Files),
    /// CA certificates only.
    Trusting(Arc<[PathBuf]>),
}

impl Source {
    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Mutual(files) => files.all().to_vec(),
            Self::Trusting(bundles) => bundles.to_vec(),
        }
    }
}

impl ClientTls {
    /// Loads the files.
    ///
    /// # Errors
    /// When a file cannot be read or used, when key and certificate do not
    /// belong together, or when the certificate is not valid now.
    pub fn load(files: &Files) -> Result<Self, Error> {
        Self::load_source(Source::Mutual(files.clone()))
    }

    /// Loads the files if they can be used. Until then, connecting fails with [`Unusable`]. A
    /// certificate that is not valid now is presented all the same, since the server decides about
    /// it. [`Self::watch`] reports and reloads.
    pub fn follow(role: Role, files: &Files) -> Self {
        Self::follow_source(role, Source::Mutual(files.clone()))
    }

    /// Creates a client without a certificate, which trusts the CAs of all `bundles` together. A
    /// file with white space only is skipped.
    ///
    /// # Errors
    /// When a file cannot be read or used, or when the files have no CA at all.
    pub fn trusting(bundles: &[PathBuf]) -> Result<Self, Error> {
        Self::load_source(Source::Trusting(bundles.into()))
    }

    /// Like [`Self::trusting`], but starts without usable files as [`Self::follow`] does.
    pub fn follow_trusting(role: Role, bundles: &[PathBuf]) -> Self {
        Self::follow_source(role, Source::Trusting(bundles.into()))
    }

    fn load_source(source: Source) -> Result<Self, Error> {
        const ROLE: Role = Role { service: "runtime", name: "client" };
        let live = HotReload::load(ROLE, &source.files(), || client_config(&source))?;
        Ok(Self { source, live })
    }

    fn follow_source(role: Role, source: Source) -> Self {
        let live = HotReload::follow(role, &source.files(), || client_config(&source));
        Self { source, live }
    }

    /// Reports to `health` whether the client has a valid certificate.
    #[must_use]
    pub fn telling(mut self, health: Component) -> Self {
        self.live = self.live.telling(health);
        self
    }

    /// Why there is no valid certificate now; `None` when there is one.
    pub fn problem(&self) -> Option<String> {
        self.live.problem()
    }

    /// The current configuration, without an application protocol.
    ///
    /// # Errors
    /// When no files have been usable yet.
    pub fn rustls_config(&self) -> Result<Arc<ClientConfig>, Unusable> {
        self.live.current()
    }

    /// Reloads changed files until shutdown, and reports on them. Without this task the material is
    /// never reloaded.
    ///
    /// # Errors
    /// Never; the return type fits [`crate::supervise::Tasks`].
    pub async fn watch(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { source, live } = self;
        live.watch(move || client_config(&source), shutdown).await;
        Ok(())
    }
}

/// Installs aws-lc-rs as the default provider of rustls, for code that passes none, such as HTTP
/// clients. Safe to call again.
pub fn install_provider() {
    let _already_installed = aws_lc_rs::default_provider().install_default();
}

/// Seeds the library's random generator on a separate thread. On some machines this takes longer
/// than the rest of the start, and would delay the first handshake. The thread is not joined; code
/// that needs randomness meanwhile blocks inside the library.
pub(crate) fn gather_randomness() {
    let random = aws_lc_rs::default_provider().secure_random;
    // A failure is returned to the code that needs randomness.
    let gather = move || _ = random.fill(&mut [0; 1]);
    let _no_thread = std::thread::Builder::new().name("randomness".to_owned()).spawn(gather);
}

fn server_configs(files: &Files) -> Result<Made<ServerConfigs>, Error> {
    let Material { authorities, chain, key, facts } = Material::load(files)?;
    let Authorities { roots, certificates } = authorities;
    let provider = Arc::new(server_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Error::authorities(&files.ca, error))?;
    let verifier = Arc::new(ClientVerifier::new(verifier, certificates, rejected_peer::record));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| Error::pair(files, error))?;
    config.ignore_client_order = true;
    let with = |alpn: Alpn| {
        let mut config = config.clone();
        config.alpn_protocols = alpn.protocols();
        Arc::new(config)
    };
    let configs = ServerConfigs { h2: with(Alpn::H2), none: with(Alpn::None) };
    Ok(Made { config: Arc::new(configs), facts })
}

fn client_config(source: &Source) -> Result<Made<ClientConfig>, Error> {
    let (config, facts) = match source {
        Source::Mutual(files) => {
            let Material { authorities, chain, key, facts } = Material::load(files)?;
            let builder = client_builder(&files.ca, authorities)?;
            let config = builder.with_client_auth_cert(chain, key);
            (config.map_err(|error| Error::pair(files, error))?, facts)
        }
        Source::Trusting(bundles) => {
            let (authorities, facts) = material::load_bundles(bundles)?;
            let path = bundles.first().cloned().unwrap_or_default();
            (client_builder(&path, authorities)?.with_no_client_auth(), facts)
        }
    };
    Ok(Made { config: Arc::new(config), facts })
}

type ClientBuilder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

/// `path` is the CA file, for errors.
fn client_builder(path: &Path, authorities: Authorities) -> Result<ClientBuilder, Error> {
    let Authorities { roots, certificates } = authorities;
    let mut provider = aws_lc_rs::default_provider();
    prefer_aes_128(&mut provider);
    let provider = Arc::new(provider);
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Error::authorities(path, error))?;
    let verifier = ServerVerifier::new(verifier, certificates);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(builder)
}

fn server_provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| {
        suite.tls13().is_some()
            || matches!(
                suite.suite(),
                CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
                    | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
            )
    });
    prefer_aes_128(&mut provider);
    provider
}

/// The common choice of the originals, and 25% faster than 256 bits.
fn prefer_aes_128(provider: &mut CryptoProvider) {
    let preferred = CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != preferred);
}
