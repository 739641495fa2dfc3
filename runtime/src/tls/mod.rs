//! Mutual TLS whose certificates are reloaded when their files change.
//!
//! What holds:
//! - A server demands a client certificate that chains to its CA and, where it
//!   has extended key usages, has clientAuth (contracts/locket.md 4.3).
//! - TLS 1.3 with all its suites; TLS 1.2 with ECDHE-RSA-AES256-GCM-SHA384 and
//!   ECDHE-RSA-AES128-GCM-SHA256 only.
//! - A connection uses the material of the moment of its handshake.
//! - Material that cannot be used never replaces material that can; each error
//!   names the file it is about.

mod identity;
mod material;
mod pattern;
mod refused;
mod reload;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

pub use identity::{Identity, Peer, peer};
pub use material::Error;
pub use pattern::Pattern;

pub(crate) use refused::noting;

use material::Material;
use reload::Live;

/// The three files of one side of mutual TLS, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Authorities that the other side's certificate must chain to.
    pub ca: PathBuf,
    /// Our certificate, followed by its intermediates.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Files {
    fn all(&self) -> [PathBuf; 3] {
        let Self { ca, cert, key } = self;
        [ca.clone(), cert.clone(), key.clone()]
    }
}

/// The application protocol a server insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2. Clients that do not offer it are refused, as by gRPC servers.
    H2,
    /// Anything: what clients offer is not looked at.
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
    live: Live<ServerConfig>,
}

impl ServerTls {
    /// Loads the files.
    ///
    /// # Errors
    /// When a file cannot be read or used, when key and certificate do not
    /// belong together, or when the certificate has expired.
    pub fn load(files: &Files, alpn: Alpn) -> Result<Self, Error> {
        let live = Live::load(&files.all(), || server_config(files, alpn))?;
        Ok(Self { files: files.clone(), alpn, live })
    }

    /// Takes up changed files until shutdown. Without this task the material
    /// stays as it was loaded.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`crate::supervise::Tasks`].
    pub async fn watch(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { files, alpn, live } = self;
        live.watch(move || server_config(&files, alpn), shutdown).await;
        Ok(())
    }

    pub(crate) fn alpn(&self) -> Alpn {
        self.alpn
    }

    /// The configuration of this moment.
    pub fn rustls_config(&self) -> Arc<ServerConfig> {
        self.live.current()
    }
}

/// The TLS of a client.
#[derive(Debug, Clone)]
pub struct ClientTls {
    source: Source,
    live: Live<ClientConfig>,
}

/// What a client's TLS is made of.
#[derive(Debug, Clone)]
enum Source {
    Mutual(Files),
    /// Authorities only.
    Trusting(Arc<[PathBuf]>),
}

impl ClientTls {
    /// Loads the files.
    ///
    /// # Errors
    /// When a file cannot be read or used, when key and certificate do not
    /// belong together, or when the certificate has expired.
    pub fn load(files: &Files) -> Result<Self, Error> {
        let source = Source::Mutual(files.clone());
        let live = Live::load(&files.all(), || client_config(&source))?;
        Ok(Self { source, live })
    }

    /// A client without a certificate of its own, which trusts the authorities
    /// of all `bundles` together. A file of white space only is passed over.
    ///
    /// # Errors
    /// When a file cannot be read or used, or when there is no authority at all.
    pub fn trusting(bundles: &[PathBuf]) -> Result<Self, Error> {
        let source = Source::Trusting(bundles.into());
        let live = Live::load(bundles, || client_config(&source))?;
        Ok(Self { source, live })
    }

    /// The configuration of this moment, without an application protocol.
    pub fn rustls_config(&self) -> Arc<ClientConfig> {
        self.live.current()
    }

    /// Takes up changed files until shutdown. Without this task the material
    /// stays as it was loaded.
    ///
    /// # Errors
    /// Never; the result lets it be a task of [`crate::supervise::Tasks`].
    pub async fn watch(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { source, live } = self;
        live.watch(move || client_config(&source), shutdown).await;
        Ok(())
    }
}

/// Makes aws-lc-rs what rustls uses where it is not told, as in HTTP clients.
/// Harmless when done before.
pub fn install_provider() {
    let _already_installed = aws_lc_rs::default_provider().install_default();
}

/// Has the library gather its first randomness, on a thread of its own: on some
/// machines that takes longer than all the rest of a start, and the first
/// handshake would wait for it. Nobody waits for the thread; who needs randomness
/// meanwhile waits within the library.
pub(crate) fn gather_randomness() {
    let random = aws_lc_rs::default_provider().secure_random;
    // A failure is told to whoever needs it.
    let gather = move || _ = random.fill(&mut [0; 1]);
    let _no_thread = std::thread::Builder::new().name("randomness".to_owned()).spawn(gather);
}

fn server_config(files: &Files, alpn: Alpn) -> Result<Arc<ServerConfig>, Error> {
    let Material { roots, chain, key } = Material::load(files)?;
    let provider = Arc::new(server_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Error::authorities(files, error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .with_client_cert_verifier(Arc::new(refused::Noting(verifier)))
        .with_single_cert(chain, key)
        .map_err(|error| Error::pair(files, error))?;
    config.alpn_protocols = alpn.protocols();
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

fn client_config(source: &Source) -> Result<Arc<ClientConfig>, Error> {
    let config = match source {
        Source::Mutual(files) => {
            let Material { roots, chain, key } = Material::load(files)?;
            let config = client_builder(roots).with_client_auth_cert(chain, key);
            config.map_err(|error| Error::pair(files, error))?
        }
        Source::Trusting(bundles) => {
            client_builder(material::load_bundles(bundles)?).with_no_client_auth()
        }
    };
    Ok(Arc::new(config))
}

fn client_builder(
    roots: RootCertStore,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut provider = aws_lc_rs::default_provider();
    prefer_aes_128(&mut provider);
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .with_root_certificates(roots)
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

/// What the originals agree on, and a quarter faster than 256 bits.
fn prefer_aes_128(provider: &mut CryptoProvider) {
    let preferred = CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != preferred);
}
