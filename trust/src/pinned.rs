//! Pinned certificates: peer certificates that are themselves in the CA file.
//!
//! webpki rejects every peer certificate that is marked as a CA (`CaUsedAsEndEntity`), even if the
//! operator trusts exactly this certificate. Such a certificate is accepted when it equals one of
//! the configured ones byte for byte, since no signature needs to be verified then. All other
//! checks apply as for any certificate: validity period, critical extensions, key usage, extended
//! key usage, the server's name, and in the handshake the possession of the key.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::extensions::{ExtendedKeyUsage, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Verifies servers: with webpki, or by the pinned certificate.
#[derive(Debug)]
pub struct ServerVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Pinned,
}

/// Verifies clients: with another verifier, or by the pinned certificate.
#[derive(Debug)]
pub struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    pinned: Pinned,
    on_rejected: fn(&CertificateDer<'_>),
}

/// The certificates of the CA file.
#[derive(Debug)]
struct Pinned(Vec<CertificateDer<'static>>);

/// The side of a connection that presents a certificate.
#[derive(Debug, Clone, Copy)]
enum Side {
    Server,
    Client,
}

impl ServerVerifier {
    /// `authorities` are the certificates that `webpki` has as roots.
    #[must_use]
    pub fn new(
        webpki: Arc<WebPkiServerVerifier>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self { webpki, pinned: Pinned(authorities) }
    }
}

impl ClientVerifier {
    /// `authorities` are the certificates that `webpki` has as roots. `on_rejected` gets each
    /// rejected certificate, which rustls drops.
    #[must_use]
    pub fn new(
        webpki: Arc<dyn ClientCertVerifier>,
        authorities: Vec<CertificateDer<'static>>,
        on_rejected: fn(&CertificateDer<'_>),
    ) -> Self {
        Self { webpki, pinned: Pinned(authorities), on_rejected }
    }
}

impl Pinned {
    /// `refused` is webpki's error; only a certificate that webpki rejects for being a CA is
    /// checked here.
    fn verify(
        &self,
        refused: Error,
        certificate: &CertificateDer<'_>,
        side: Side,
        now: UnixTime,
    ) -> Result<(), Error> {
        if !is_authority(&refused) || !self.0.iter().any(|pinned| pinned == certificate) {
            return Err(refused);
        }
        let (rest, parsed) = X509Certificate::from_der(certificate)
            .map_err(|_| Error::from(CertificateError::BadEncoding))?;
        if !rest.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        in_time(&parsed, now)?;
        fit_for(&parsed, side)
    }
}

fn is_authority(refused: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = refused else { return false };
    matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

fn in_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let validity = certificate.validity();
    let moment = |seconds: i64| {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(seconds).unwrap_or_default(),
        ))
    };
    let not_before = moment(validity.not_before.timestamp());
    let not_after = moment(validity.not_after.timestamp());
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if not_after < now {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    Ok(())
}

/// Whether the certificate's extensions allow its use; an unknown critical extension does not.
fn fit_for(certificate: &X509Certificate<'_>, side: Side) -> Result<(), Error> {
    let purpose = || Error::from(CertificateError::InvalidPurpose);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(_) | ParsedExtension::SubjectAlternativeName(_) => {}
            ParsedExtension::KeyUsage(usage) if usage.digital_signature() => {}
            ParsedExtension::ExtendedKeyUsage(usage) if allows(usage, side) => {}
            ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {
                return Err(purpose());
            }
            _ if extension.critical => {
                return Err(CertificateError::UnhandledCriticalExtension.into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn allows(usage: &ExtendedKeyUsage<'_>, side: Side) -> bool {
    match side {
        Side::Server => usage.server_auth,
        Side::Client => usage.client_auth,
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let webpki = &self.webpki;
        let verified =
            webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let Err(refused) = verified else { return verified };
        self.pinned.verify(refused, end_entity, Side::Server, now)?;
        // Verified last, as in webpki.
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.webpki.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, now);
        let Err(refused) = verified else { return verified };
        self.pinned
            .verify(refused, end_entity, Side::Client, now)
            .inspect_err(|_| (self.on_rejected)(end_entity))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
