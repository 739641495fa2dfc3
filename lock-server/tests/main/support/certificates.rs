//! A certificate authority for one test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use runtime::tls::Files;

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
    name: &'static str,
}

impl Authority {
    /// Writes its files to `directory`, with names that begin with `name`.
    pub(crate) fn new(directory: &Path, name: &'static str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, directory: directory.to_owned(), name };
        fs::write(authority.ca(), authority.issuer.pem()).unwrap();
        authority
    }

    fn ca(&self) -> PathBuf {
        self.directory.join(format!("{}-ca.crt", self.name))
    }

    pub(crate) fn server(&self) -> Files {
        self.issue("server", ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub(crate) fn client(&self) -> Files {
        self.issue("client", ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, who: &str, purpose: ExtendedKeyUsagePurpose) -> Files {
        self.issue_with(who, |params| params.extended_key_usages = vec![purpose])
    }

    /// A certificate for the host names that tests use, with a change.
    pub(crate) fn issue_with(
        &self,
        who: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Files {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, who);
        change(&mut params);
        let pair = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&pair, &self.issuer).unwrap();
        let file = |end| self.directory.join(format!("{}-{who}.{end}", self.name));
        let files = Files { ca: self.ca(), cert: file("crt"), key: file("key") };
        fs::write(&files.cert, certificate.pem()).unwrap();
        fs::write(&files.key, pair.serialize_pem()).unwrap();
        files
    }
}
