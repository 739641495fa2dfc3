//! Records the identity of a rejected client.
//!
//! rustls drops a certificate that it rejects, and with it the name of the client, which a server
//! should log. The verifier therefore records the names for the task that runs the handshake. The
//! names are unverified claims of the client.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::Identity;

tokio::task_local! {
    static REFUSED: RefCell<Option<Identity>>;
}

/// Runs `work`; also returns the names in the certificate that was rejected during `work`, if any.
pub(crate) async fn record_rejected<T>(work: impl Future<Output = T>) -> (T, Option<Identity>) {
    let noted = async {
        let done = work.await;
        (done, REFUSED.with(RefCell::take))
    };
    REFUSED.scope(RefCell::default(), noted).await
}

/// Delegates to another verifier, and records the identities that the verifier rejects.
#[derive(Debug)]
pub(super) struct RecordRejected(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for RecordRejected {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, now).inspect_err(|_| {
            let identity = Identity::of(end_entity);
            // Outside of `record_rejected` the names are not needed.
            let _unasked = REFUSED.try_with(|refused| refused.replace(Some(identity)));
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
