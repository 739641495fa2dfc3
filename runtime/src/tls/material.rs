//! Certificates and keys, as they are read from files.

use std::fs;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::server::VerifierBuilderError;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Files;

/// Why TLS material cannot be used. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("reading {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The file has nothing of the kind that is needed.
    #[error("{} contains no {}", .0.display(), .1)]
    Empty(PathBuf, &'static str),
    /// The file is not PEM.
    #[error("parsing {}", .0.display())]
    Pem(PathBuf, #[source] pem::Error),
    /// An authority cannot be used.
    #[error("using the certificate authorities in {}", .0.display())]
    Authority(PathBuf, #[source] rustls::Error),
    /// No client could be checked against these authorities.
    #[error("using the certificate authorities in {}", .0.display())]
    Verifier(PathBuf, #[source] VerifierBuilderError),
    /// The certificate is not X.509.
    #[error("parsing the certificate in {}: {}", .0.display(), .1)]
    Certificate(PathBuf, String),
    /// The certificate is past its time.
    #[error("the certificate in {} expired at {}", .0.display(), .1)]
    Expired(PathBuf, jiff::Timestamp),
    /// Certificate and key cannot be used together.
    #[error("using the certificate in {} with the key in {}", .cert.display(), .key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

impl Error {
    pub(super) fn authorities(files: &Files, error: VerifierBuilderError) -> Self {
        Self::Verifier(files.ca.clone(), error)
    }

    pub(super) fn pair(files: &Files, source: rustls::Error) -> Self {
        Self::Pair { cert: files.cert.clone(), key: files.key.clone(), source }
    }
}

/// What the three files hold.
pub(super) struct Material {
    pub(super) roots: RootCertStore,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Material {
    pub(super) fn load(files: &Files) -> Result<Self, Error> {
        let Files { ca, cert, key } = files;
        let roots = load_roots(ca)?;
        let chain = load_certificates(cert)?;
        refuse_expired(cert, &chain[0])?;
        let key = load_key(key)?;
        Ok(Self { roots, chain, key })
    }
}

fn load_roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    add_roots(&mut roots, path)?;
    Ok(roots)
}

/// The authorities of several files, of which some may be blank, but not all.
pub(super) fn load_bundles(paths: &[PathBuf]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for path in paths {
        if !read(path)?.trim_ascii().is_empty() {
            add_roots(&mut roots, path)?;
        }
    }
    match paths.first() {
        Some(path) if roots.is_empty() => Err(Error::Empty(path.clone(), "certificate")),
        _ => Ok(roots),
    }
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), Error> {
    for certificate in load_certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| Error::Authority(path.into(), error))?;
    }
    Ok(())
}

/// At least one certificate.
fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = parsed.map_err(|error| Error::Pem(path.into(), error))?;
    if certificates.is_empty() {
        return Err(Error::Empty(path.into(), "certificate"));
    }
    Ok(certificates)
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => Error::Empty(path.into(), "private key"),
        error => Error::Pem(path.into(), error),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| Error::Read(path.into(), error))
}

/// The originals refuse to start with an expired certificate (contracts/locket.md
/// 4.2); it would fail with every client.
fn refuse_expired(path: &Path, certificate: &CertificateDer<'_>) -> Result<(), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| Error::Certificate(path.into(), error.to_string()))?;
    let seconds = parsed.validity().not_after.timestamp();
    match jiff::Timestamp::from_second(seconds) {
        Ok(end) if end < jiff::Timestamp::now() => Err(Error::Expired(path.into(), end)),
        _ => Ok(()),
    }
}
