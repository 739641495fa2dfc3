//! A development CA and its certificates, as PEM files.
//!
//! Every certificate is valid for both ends of a connection (serverAuth and
//! clientAuth), so that one pair of files serves a process in all its roles. Keys are
//! RSA: the original Locket clients support only TLS 1.2 with ECDHE-RSA
//! (docs/compatibility/locket.md#tls). Only the owner can read key files.
//!
//! Users: [`cloud_controller`](../cloud_controller/index.html),
//! [`cluster`](../cluster/index.html), [`load`](../load/index.html), and tests.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
};

const YEARS: i16 = 2;

/// Why a certificate cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{what} {path}")]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A name or key is invalid for a certificate.
    #[error("making the certificate of {name}")]
    Make {
        /// The certificate's name.
        name: String,
        /// The cause.
        source: rcgen::Error,
    },
}

/// The files of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The CA certificate.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl From<Files> for runtime::tls::Files {
    fn from(files: Files) -> Self {
        let Files { ca, cert, key } = files;
        Self { ca, cert, key }
    }
}

/// What makes a certificate unusable for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It expired yesterday.
    Expired,
    /// It is valid from the next year on.
    NotYetValid,
    /// Its only usage is serverAuth.
    ServerOnly,
    /// Its own key signed it, not the CA.
    SelfSigned,
}

/// A CA whose files are in one directory: `ca.crt`, `ca.key`, and `NAME.crt`,
/// `NAME.key` for each issued certificate.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Creates a new CA. Certificates of the CA that it replaces become invalid.
    pub fn create(directory: &Path) -> Result<Self, Error> {
        let name = "portcullis development CA";
        let making = |source| Error::Make { name: name.to_owned(), source };
        fs::create_dir_all(directory).map_err(|source| Error::File {
            what: "making the directory",
            path: directory.to_owned(),
            source,
        })?;
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).map_err(making)?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = distinguished(name, None);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut parameters);
        let certificate = parameters.self_signed(&key).map_err(making)?;
        write(&directory.join("ca.crt"), &certificate.pem(), 0o644)?;
        write(&directory.join("ca.key"), &key.serialize_pem(), 0o600)?;
        Ok(Self { directory: directory.to_owned(), issuer: Issuer::new(parameters, key) })
    }

    /// Opens the CA in the directory, or creates one.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
        if !certificate.exists() || !key.exists() {
            return Self::create(directory);
        }
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| Error::File {
                what: "reading",
                path: path.to_owned(),
                source,
            })
        };
        let making = |source| Error::Make { name: certificate.display().to_string(), source };
        let key =
            KeyPair::from_pem_and_sign_algo(&read(&key)?, &PKCS_RSA_SHA256).map_err(making)?;
        let issuer = Issuer::from_ca_cert_pem(&read(&certificate)?, key).map_err(making)?;
        Ok(Self { directory: directory.to_owned(), issuer })
    }

    /// The file of the CA certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Issues a certificate with `name` as common name and file name.
    ///
    /// `alternatives` are its DNS names and IP addresses.
    pub fn issue(&self, name: &str, alternatives: &[&str]) -> Result<Files, Error> {
        self.issue_in(None, name, alternatives, None)
    }

    /// Issues a certificate with an organizational unit, which identifies a cell.
    pub fn issue_in_unit(
        &self,
        unit: &str,
        name: &str,
        alternatives: &[&str],
    ) -> Result<Files, Error> {
        self.issue_in(Some(unit), name, alternatives, None)
    }

    /// Issues a certificate that expired yesterday.
    pub fn issue_expired(
        &self,
        unit: Option<&str>,
        name: &str,
        alternatives: &[&str],
    ) -> Result<Files, Error> {
        self.issue_in(unit, name, alternatives, Some(Flaw::Expired))
    }

    /// Issues a certificate that servers must refuse.
    pub fn issue_flawed(&self, name: &str, flaw: Flaw) -> Result<Files, Error> {
        self.issue_in(None, name, &[], Some(flaw))
    }

    fn issue_in(
        &self,
        unit: Option<&str>,
        name: &str,
        alternatives: &[&str],
        flaw: Option<Flaw>,
    ) -> Result<Files, Error> {
        let making = |source| Error::Make { name: name.to_owned(), source };
        let alternatives: Vec<String> = alternatives.iter().map(|&text| text.to_owned()).collect();
        let mut parameters = CertificateParams::new(alternatives).map_err(making)?;
        parameters.distinguished_name = distinguished(name, unit);
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut parameters);
        match flaw {
            Some(Flaw::Expired) => {
                parameters.not_after = parameters.not_before;
                parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
            }
            Some(Flaw::NotYetValid) => {
                let next = i32::from(Timestamp::now().to_zoned(TimeZone::UTC).year()) + 1;
                parameters.not_before = rcgen::date_time_ymd(next, 1, 1);
            }
            Some(Flaw::ServerOnly) => {
                parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
            Some(Flaw::SelfSigned) | None => {}
        }
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).map_err(making)?;
        let certificate = match flaw {
            Some(Flaw::SelfSigned) => parameters.self_signed(&key),
            _ => parameters.signed_by(&key, &self.issuer),
        };
        let certificate = certificate.map_err(making)?;
        let files = Files {
            ca: self.ca_file(),
            cert: self.directory.join(format!("{name}.crt")),
            key: self.directory.join(format!("{name}.key")),
        };
        write(&files.cert, &certificate.pem(), 0o644)?;
        write(&files.key, &key.serialize_pem(), 0o600)?;
        Ok(files)
    }
}

fn distinguished(name: &str, unit: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Portcullis");
    if let Some(unit) = unit {
        distinguished.push(DnType::OrganizationalUnitName, unit);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Valid from yesterday, for clocks that are behind, and for some years.
fn set_validity(parameters: &mut CertificateParams) {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let at = |date: jiff::civil::Date| {
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    parameters.not_before = at(today.yesterday().unwrap_or(today));
    let last = jiff::civil::Date::new(today.year() + YEARS, today.month(), 1).unwrap_or(today);
    parameters.not_after = at(last);
}

/// Writes a temporary file and renames it, so that a reader never sees a partial file.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let written = || {
        let _none = fs::remove_file(&beside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        drop(file);
        fs::rename(&beside, path)
    };
    written().map_err(|source| Error::File { what: "writing", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use runtime::tls::{Alpn, ClientTls, ServerTls};

    use super::*;

    #[test]
    fn certificates_serve_both_ends_and_keys_are_private() {
        runtime::tls::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(directory.path()).unwrap();
        let cell = authority.issue_in_unit("cell", "cell-1", &["cell-1", "127.0.0.1"]).unwrap();
        for key in [&cell.key, &directory.path().join("ca.key")] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let files = cell.into();
        ServerTls::load(&files, Alpn::None).unwrap();
        ClientTls::load(&files).unwrap();
    }

    #[test]
    fn flawed_certificates_differ_in_their_flaw() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(directory.path()).unwrap();
        for flaw in [Flaw::Expired, Flaw::NotYetValid] {
            let files = authority.issue_flawed("outside-its-time", flaw).unwrap();
            assert!(ClientTls::load(&files.into()).is_err(), "{flaw:?}");
        }
        for flaw in [Flaw::ServerOnly, Flaw::SelfSigned] {
            let files = authority.issue_flawed("flawed", flaw).unwrap();
            ClientTls::load(&files.into()).unwrap();
        }
    }

    #[test]
    fn an_opened_authority_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let first = Authority::open(directory.path()).unwrap();
        let text = fs::read(first.ca_file()).unwrap();
        let again = Authority::open(directory.path()).unwrap();
        assert_eq!(fs::read(again.ca_file()).unwrap(), text);
        again.issue("server", &["localhost"]).unwrap();
    }
}
