//! TLS verification of the database server.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

use trust::ServerVerifier;

use super::fault::Fault;
use crate::Kind;

/// Level of TLS protection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// No TLS.
    Plain,
    /// TLS if the server offers it; any certificate.
    IfOffered,
    /// TLS; any certificate.
    AnyCertificate,
    /// TLS; the certificate must chain to this CA, and with `identity` match the requested host.
    Verified { ca: std::path::PathBuf, identity: bool },
}

/// TLS configuration of a new connection. Files are read each time, so that a new CA is used
/// without a restart.
pub(super) fn client_config(trust: &Trust) -> Result<ClientConfig, Fault> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Plain | Trust::IfOffered | Trust::AnyCertificate => {
            Arc::new(Lenient { chain: None, provider: Arc::clone(&provider) })
        }
        Trust::Verified { ca, identity } => {
            let Authorities { roots, certificates } = authorities(ca)?;
            let webpki =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .build()
                    .map_err(|error| Fault::new(Kind::Refused, error.to_string()))?;
            let chain = Arc::new(ServerVerifier::new(webpki, certificates));
            if *identity {
                chain
            } else {
                Arc::new(Lenient { chain: Some(chain), provider: Arc::clone(&provider) })
            }
        }
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::new(Kind::Other, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

/// The certificates that the server's certificate must chain to.
pub(super) struct Authorities {
    roots: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

/// Loads the CA certificates of a PEM file.
pub(super) fn authorities(ca: &Path) -> Result<Authorities, Fault> {
    let refuse = |what: String| Fault::new(Kind::Refused, format!("{}: {what}", ca.display()));
    let pem = fs::read(ca).map_err(|error| refuse(error.to_string()))?;
    let (mut roots, mut certificates) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
        roots.add(certificate.clone()).map_err(|error| refuse(error.to_string()))?;
        certificates.push(certificate);
    }
    if roots.is_empty() {
        return Err(refuse("no certificate in it".to_owned()));
    }
    Ok(Authorities { roots, certificates })
}

/// Accepts certificates for any host: all of them, or those that pass `chain`.
#[derive(Debug)]
struct Lenient {
    chain: Option<Arc<ServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        // The name is verified last: a certificate that fails there has passed all other checks.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
