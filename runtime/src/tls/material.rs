//! Loads certificates and keys from files.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::server::VerifierBuilderError;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Files;
use super::expiry::{Invalid, Validity};

/// Error for unusable TLS material. Each variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("reading {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The file contains no certificate or no key.
    #[error("{} contains no {}", .0.display(), .1)]
    Empty(PathBuf, &'static str),
    /// The file is not PEM.
    #[error("parsing {}", .0.display())]
    Pem(PathBuf, #[source] pem::Error),
    /// A CA certificate cannot be used.
    #[error("using the certificate authorities in {}", .0.display())]
    Authority(PathBuf, #[source] rustls::Error),
    /// No verifier can be built from these CA certificates.
    #[error("using the certificate authorities in {}", .0.display())]
    Verifier(PathBuf, #[source] VerifierBuilderError),
    /// The certificate is not X.509.
    #[error("parsing the certificate in {}: {}", .0.display(), .1)]
    Certificate(PathBuf, String),
    /// The certificate is not valid now.
    #[error("the certificate in {} {}", .0.display(), .1)]
    Invalid(PathBuf, Invalid),
    /// Certificate and key cannot be used together.
    #[error("using the certificate in {} with the key in {}", .cert.display(), .key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
}

impl Error {
    pub(super) fn authorities(path: &Path, error: VerifierBuilderError) -> Self {
        Self::Verifier(path.to_owned(), error)
    }

    pub(super) fn pair(files: &Files, source: rustls::Error) -> Self {
        Self::Pair { cert: files.cert.clone(), key: files.key.clone(), source }
    }
}

/// Contents of the three files.
pub(super) struct Material {
    pub(super) authorities: Authorities,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) facts: Facts,
}

/// CA certificates that peers' certificates must chain to.
pub(super) struct Authorities {
    pub(super) roots: RootCertStore,
    /// The same certificates in DER.
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// Names and validity periods of loaded certificates, for logs and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The own certificate; `None` for a client without one.
    pub(super) own: Option<Own>,
    /// Earliest expiry among the CA certificates; see [`first_end`].
    pub(super) authorities: Option<Expiry>,
}

/// The own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) subject: String,
    pub(super) serial: String,
    pub(super) validity: Validity,
    /// Earliest expiry in the file, intermediates included.
    pub(super) expiry: Expiry,
}

/// Expiry of a file's certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expiry {
    pub(super) path: PathBuf,
    pub(super) subject: String,
    pub(super) not_after: Timestamp,
}

impl Material {
    pub(super) fn load(files: &Files) -> Result<Self, Error> {
        let Files { ca, cert, key } = files;
        let mut authorities = Authorities::empty();
        let ca_end = authorities.add(ca)?;
        let chain = load_certificates(cert)?;
        let own = own(cert, &chain)?;
        let key = load_key(key)?;
        let facts = Facts { own: Some(own), authorities: ca_end };
        Ok(Self { authorities, chain, key, facts })
    }
}

impl Facts {
    /// Why the own certificate is not valid at `now`; `None` when valid.
    pub(super) fn problem(&self, now: Timestamp) -> Option<Error> {
        let own = self.own.as_ref()?;
        let invalid = own.validity.problem(now)?;
        Some(Error::Invalid(own.expiry.path.clone(), invalid))
    }
}

/// Loads the CA certificates of several files; some files may be blank, but not all.
pub(super) fn load_bundles(paths: &[PathBuf]) -> Result<(Authorities, Facts), Error> {
    let mut authorities = Authorities::empty();
    let mut ends = Vec::new();
    for path in paths {
        if !read(path)?.trim_ascii().is_empty() {
            ends.extend(authorities.add(path)?);
        }
    }
    match paths.first() {
        Some(path) if authorities.certificates.is_empty() => {
            Err(Error::Empty(path.clone(), "certificate"))
        }
        _ => {
            let end = first_end(ends, Timestamp::now());
            Ok((authorities, Facts { own: None, authorities: end }))
        }
    }
}

impl Authorities {
    fn empty() -> Self {
        Self { roots: RootCertStore::empty(), certificates: Vec::new() }
    }

    /// Adds the certificates of a file; returns their earliest expiry.
    fn add(&mut self, path: &Path) -> Result<Option<Expiry>, Error> {
        let mut ends = Vec::new();
        for certificate in load_certificates(path)? {
            // A CA certificate that only webpki can parse has no known expiry.
            ends.extend(parse(path, &certificate).map(|parsed| expiry(path, &parsed)));
            let added = self.roots.add(certificate.clone());
            added.map_err(|error| Error::Authority(path.into(), error))?;
            self.certificates.push(certificate);
        }
        Ok(first_end(ends, Timestamp::now()))
    }
}

/// The earliest expiry among certificates that are still valid at `now`: an old CA certificate left
/// in a bundle after a rotation is no reason to warn. When all have expired, the latest expiry.
fn first_end(mut ends: Vec<Expiry>, now: Timestamp) -> Option<Expiry> {
    ends.sort_by_key(|end| end.not_after);
    match ends.iter().position(|end| end.not_after >= now) {
        Some(first) => Some(ends.swap_remove(first)),
        None => ends.pop(),
    }
}

/// Loads at least one certificate.
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

fn own(path: &Path, chain: &[CertificateDer<'static>]) -> Result<Own, Error> {
    let leaf = parse(path, &chain[0])?;
    let mut first = expiry(path, &leaf);
    for intermediate in &chain[1..] {
        // Peers verify intermediates; an unusual one is no reason to reject the file.
        let Ok(parsed) = parse(path, intermediate) else { continue };
        let end = expiry(path, &parsed);
        if end.not_after < first.not_after {
            first = end;
        }
    }
    Ok(Own {
        subject: leaf.subject().to_string(),
        serial: leaf.raw_serial_as_string(),
        validity: validity(&leaf),
        expiry: first,
    })
}

fn parse<'a>(
    path: &Path,
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|error| Error::Certificate(path.into(), error.to_string()))
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity {
        not_before: moment(validity.not_before.timestamp()),
        not_after: moment(validity.not_after.timestamp()),
    }
}

fn expiry(path: &Path, certificate: &X509Certificate<'_>) -> Expiry {
    Expiry {
        path: path.to_owned(),
        subject: certificate.subject().to_string(),
        not_after: validity(certificate).not_after,
    }
}

/// Certificates may have years after the range of [`Timestamp`], never before it.
fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(seconds: &[i64]) -> Vec<Expiry> {
        let end = |&seconds| Expiry {
            path: "ca".into(),
            subject: String::new(),
            not_after: moment(seconds),
        };
        seconds.iter().map(end).collect()
    }

    #[test]
    fn an_expired_ca_beside_a_valid_one_is_ignored() {
        let first = |seconds: &[i64]| {
            first_end(ends(seconds), moment(100)).map(|end| end.not_after.as_second())
        };
        assert_eq!(first(&[]), None);
        assert_eq!(first(&[300, 200]), Some(200));
        assert_eq!(first(&[50, 300, 200]), Some(200));
        assert_eq!(first(&[50, 90]), Some(90));
    }
}

#[cfg(test)]
#[path = "material_fuzz_tests.rs"]
mod fuzz_tests;
