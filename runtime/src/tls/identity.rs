//! Address and identity of the peer of a connection.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// The peer of a connection, in the extensions of every request.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Address of the peer; `None` on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Identity of the peer; `None` without TLS.
    pub identity: Option<Arc<Identity>>,
}

/// The names in a client certificate whose chain was verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The subject's common name.
    pub common_name: Option<String>,
    /// Organizational units of the subject, in certificate order.
    pub organizational_units: Vec<String>,
    /// DNS names of the subject alternative name.
    pub dns_names: Vec<String>,
    /// IP addresses of the subject alternative name.
    pub ip_addresses: Vec<IpAddr>,
    /// URIs of the subject alternative name.
    pub uris: Vec<String>,
}

/// Returns the peer of a gRPC request. Empty when the request did not come through a server of this
/// crate, as in a handler's unit test.
pub fn peer<T>(request: &tonic::Request<T>) -> Peer {
    request.extensions().get::<Peer>().cloned().unwrap_or_default()
}

impl Peer {
    /// A peer without an identity.
    pub(crate) fn at(address: Option<SocketAddr>) -> Self {
        Self { address, identity: None }
    }
}

impl Identity {
    /// Parses the names of a certificate. Names that are not text are skipped; a certificate that
    /// cannot be parsed has no names.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return Self::default();
        };
        let subject = parsed.subject();
        let mut identity = Self {
            common_name: subject.iter_common_name().find_map(text),
            organizational_units: subject.iter_organizational_unit().filter_map(text).collect(),
            ..Self::default()
        };
        if let Ok(Some(extension)) = parsed.subject_alternative_name() {
            for name in &extension.value.general_names {
                identity.add(name);
            }
        }
        identity
    }

    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => self.ip_addresses.extend(ip_address(bytes)),
            _ => {}
        }
    }
}

/// Access denied; names the peer, so that the log and the peer see the same text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{peer} may not {action}")]
pub struct Denied<A: Display> {
    /// The peer, as [`describe`] names it.
    pub peer: String,
    /// Denied action, such as `write locks`.
    pub action: A,
}

/// Describes a client by the names in its certificate.
pub fn describe(identity: Option<&Identity>) -> String {
    match identity.map(ToString::to_string).as_deref() {
        None => "a peer without a certificate".to_owned(),
        Some("") => "a peer whose certificate names nobody".to_owned(),
        Some(names) => format!("the peer {names}"),
    }
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    attribute.as_str().ok().map(str::to_owned)
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    let v6 = <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into());
    v4.or(v6).ok()
}

#[cfg(test)]
#[path = "identity_fuzz_tests.rs"]
mod fuzz_tests;
