//! Detects servers that reject a client after TLS, or that are not gRPC servers.
//!
//! In TLS 1.3 the client's handshake completes before the server has seen the client's certificate.
//! A rejection arrives as the first event on the connection: an alert, or only the end of the
//! stream. HTTP/2 would report a cancelled call. A gRPC server that accepts the client sends its
//! SETTINGS first (RFC 9113, section 3.4), so the connector waits for the first bytes.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, ClientConfig};
use tokio::io::AsyncBufReadExt as _;
use tokio::time::timeout;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Stream;

/// Timeout for the first bytes. An HTTP/2 server may itself wait for the first bytes of the client.
const GREETING: Duration = Duration::from_secs(1);

/// Waits until the server sends bytes, without consuming them.
pub(super) async fn greeting(stream: &mut Stream, config: &ClientConfig) -> io::Result<()> {
    let agreed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    match timeout(GREETING, stream.fill_buf()).await {
        Ok(Ok([])) => Err(closed(None, config)),
        Ok(Err(error)) => match alert(&error) {
            Some(alert) => Err(closed(Some(alert), config)),
            None if error.kind() == io::ErrorKind::ConnectionReset => Err(closed(None, config)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Err(closed(None, config)),
            None => Err(error),
        },
        Ok(Ok(_)) => Ok(()),
        Err(_elapsed) if agreed => Ok(()),
        Err(_elapsed) => Err(io::Error::other("the server does not speak HTTP/2: it is not gRPC")),
    }
}

/// Adds the names of the client certificate to a handshake error that says the server rejected that
/// certificate, as in TLS 1.2.
pub(super) fn in_handshake(error: io::Error, config: &ClientConfig) -> io::Error {
    let Some(alert) = alert(&error).filter(|alert| concerns_certificate(*alert)) else {
        return error;
    };
    let sentence = refused("the server refused", "the server wants a client certificate", config);
    io::Error::new(error.kind(), format!("{sentence} (TLS alert {alert:?})"))
}

fn closed(alert: Option<AlertDescription>, config: &ClientConfig) -> io::Error {
    let mut text = "the server closed the connection right after TLS: ".to_owned();
    text.push_str(&refused(
        "it probably refused",
        "it probably wants a client certificate",
        config,
    ));
    if let Some(alert) = alert {
        text.push_str(&format!(" (TLS alert {alert:?})"));
    }
    io::Error::new(io::ErrorKind::ConnectionAborted, text)
}

/// `refused` is the message when a client certificate is configured, `missing` when there is none.
fn refused(refused: &str, missing: &str, config: &ClientConfig) -> String {
    match own_names(config) {
        Some(names) => format!("{refused} this certificate ({names}); its log says why"),
        None => format!("{missing}; its log says why"),
    }
}

/// Subject and issuer of the client certificate.
fn own_names(config: &ClientConfig) -> Option<String> {
    let own = config.client_auth_cert_resolver.resolve(&[], &[])?;
    let (_, certificate) = X509Certificate::from_der(own.cert.first()?).ok()?;
    Some(format!("{}, issuer {}", certificate.subject(), certificate.issuer()))
}

fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref() {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    }
}

fn concerns_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}
