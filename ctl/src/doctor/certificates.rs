//! Expiry of the own certificates and of those of the servers.

use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use runtime::client::{self, Options};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Check, State};
use crate::{
    connect::{Connection, tls},
    context::Server,
    field::span,
    stores::Store,
};

/// Remaining days that are worth a warning.
const DAYS: i64 = 14;

/// The certificates of this client; one check for each file.
pub(super) fn own(connection: &Connection, now: Timestamp) -> Vec<Check> {
    let servers = [connection.lock_server(), connection.policy_store()];
    let mut files: Vec<_> = servers.iter().filter_map(|server| server.cert.as_deref()).collect();
    files.dedup();
    let check = |file: &&Path| {
        let what = format!("own certificate {}", file.display());
        of(&what, read(file), now)
    };
    files.iter().map(check).collect()
}

fn read(file: &Path) -> anyhow::Result<i64> {
    let certificate = CertificateDer::from_pem_file(file).context("no certificate can be read")?;
    not_after(&certificate)
}

fn not_after(certificate: &CertificateDer<'_>) -> anyhow::Result<i64> {
    let parsed = X509Certificate::from_der(certificate.as_ref());
    let (_, parsed) = parsed.context("the certificate is malformed")?;
    Ok(parsed.validity().not_after.timestamp())
}

fn of(what: &str, end: anyhow::Result<i64>, now: Timestamp) -> Check {
    let advice = "Renew the certificate. Servers take up changed files by themselves.";
    let left = match end {
        Err(error) => return Check::new(State::Fail, what, format!("{error:#}"), advice),
        Ok(end) => end - now.as_second(),
    };
    let text = span(left.unsigned_abs());
    if left < 0 {
        return Check::new(State::Fail, what, format!("expired {text} ago"), advice);
    }
    let state = if left < DAYS * 86_400 { State::Warn } else { State::Ok };
    Check::new(state, what, format!("valid for {text}"), advice)
}

/// The lock server's certificate; `None` if it cannot be reached, which another check reports.
pub(super) async fn of_lock_server(connection: &Connection, now: Timestamp) -> Option<Check> {
    let server = connection.lock_server();
    let address = server.address.as_deref()?;
    check(server, "certificate of the lock server", address, now).await
}

/// The certificate of an instance of the policy store, if it has an address of its own.
pub(super) async fn of_store(
    connection: &Connection,
    store: &Store,
    now: Timestamp,
) -> Option<Check> {
    let what = format!("certificate of the policy store {}", store.address);
    let address = store.name_and_port();
    check(connection.policy_store(), &what, &address, now).await
}

async fn check(server: &Server, what: &str, address: &str, now: Timestamp) -> Option<Check> {
    let tls = tls(server).ok()?;
    let stream = client::open(address, &tls, Options::default()).await.ok()?;
    let (_, session) = stream.get_ref();
    let end = match session.peer_certificates().and_then(|chain| chain.first()) {
        Some(certificate) => not_after(certificate),
        None => Err(anyhow::anyhow!("the server sent no certificate")),
    };
    Some(of(what, end, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_ends_soon_is_a_warning() {
        let now = Timestamp::from_second(1_000).unwrap();
        for (end, state) in [
            (Ok(1_000 + 15 * 86_400), State::Ok),
            (Ok(1_000 + 13 * 86_400), State::Warn),
            (Ok(999), State::Fail),
            (Err(anyhow::anyhow!("unreadable")), State::Fail),
        ] {
            assert_eq!(of("x", end, now).state, state);
        }
    }
}
