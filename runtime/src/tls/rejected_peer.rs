//! Records the identity of a rejected client.
//!
//! rustls drops a certificate that it rejects, and with it the name of the client, which a server
//! should log. The verifier therefore records the names for the task that runs the handshake. The
//! names are unverified claims of the client.

use std::cell::RefCell;

use rustls::pki_types::CertificateDer;

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

/// Records the names of a client's certificate that the verifier rejects.
pub(super) fn record(certificate: &CertificateDer<'_>) {
    let identity = Identity::of(certificate);
    // Outside of `record_rejected` the names are not needed.
    let _unasked = REFUSED.try_with(|refused| refused.replace(Some(identity)));
}
