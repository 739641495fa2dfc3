//! A certificate authority for one test.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};
use runtime::tls::{Alpn, ClientTls, Files, ServerTls};
use tempfile::TempDir;

/// Issues certificates into a directory of its own.
pub(crate) struct Authority {
    folder: TempDir,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// Contents of a certificate.
pub(crate) struct Leaf {
    pub(crate) params: CertificateParams,
}

impl Leaf {
    /// A certificate for server and client use, with the names by which tests reach their servers.
    pub(crate) fn new(common_name: &str) -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Self { params }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        change(&mut self.params);
        self
    }

    pub(crate) fn name(self, san: SanType) -> Self {
        self.with(|params| params.subject_alt_names.push(san))
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let authority =
            Self { folder: TempDir::new().unwrap(), issuer: Issuer::new(params, key), certificate };
        fs::write(authority.path("ca.crt"), authority.pem()).unwrap();
        authority
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Issues a certificate; returns certificate and key in PEM.
    pub(crate) fn sign(&self, leaf: &Leaf, key: &KeyPair) -> (String, String) {
        let certificate = leaf.params.signed_by(key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes a certificate, its key and the CA certificate under `name`.
    pub(crate) fn issue(&self, name: &str, leaf: &Leaf) -> Files {
        self.issue_with(name, leaf, &KeyPair::generate().unwrap())
    }

    pub(crate) fn issue_with(&self, name: &str, leaf: &Leaf, key: &KeyPair) -> Files {
        let (cert, key) = self.sign(leaf, key);
        let files = Files {
            ca: self.path("ca.crt"),
            cert: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
        };
        replace(&files.cert, &cert);
        replace(&files.key, &key);
        files
    }

    pub(crate) fn server(&self, alpn: Alpn) -> ServerTls {
        let files = self.issue("server", &Leaf::new("server"));
        ServerTls::load(&files, alpn).unwrap()
    }

    pub(crate) fn client(&self) -> ClientTls {
        ClientTls::load(&self.issue("client", &Leaf::new("client"))).unwrap()
    }
}

/// Replaces a file atomically.
pub(crate) fn replace(path: &Path, text: &str) {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).unwrap();
    fs::rename(&temporary, path).unwrap();
}
