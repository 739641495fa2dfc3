//! Which clients a server accepts, and which files are rejected.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PKCS_RSA_SHA256, date_time_ymd};
use runtime::tls::{Alpn, ClientTls, Files, ServerTls};
use rustls::crypto::aws_lc_rs;
use rustls::{CipherSuite, ClientConfig, ProtocolVersion, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::certificates::{Authority, Leaf, replace};
use crate::grpc::{Running, check};

const DRAIN: Duration = Duration::from_secs(5);

async fn running() -> Running {
    Running::start(DRAIN).await
}

async fn assert_refused(running: &Running, tls: Option<ClientTls>, why: &str) {
    let refused = check(running.channel(tls), "").await;
    assert!(refused.is_err(), "{why}");
    let served = check(running.trusted(), "").await;
    assert_eq!(served.unwrap(), ServingStatus::Serving, "others are still served after: {why}");
}

#[tokio::test]
async fn unknown_clients_are_rejected() {
    let running = running().await;
    assert_refused(&running, None, "a client without TLS").await;

    let stranger = Authority::new("another authority");
    let mut files = stranger.issue("client", &Leaf::new("client"));
    files.ca = running.authority.path("ca.crt");
    let tls = ClientTls::load(&files).unwrap();
    assert_refused(&running, Some(tls), "a certificate of another authority").await;

    let server_only = Leaf::new("client")
        .with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let files = running.authority.issue("server-only", &server_only);
    let tls = ClientTls::load(&files).unwrap();
    assert_refused(&running, Some(tls), "a certificate for servers only").await;
}

#[tokio::test]
async fn a_certificate_without_key_usages_is_good_for_both_sides() {
    let authority = Authority::new("test authority");
    let plain = || Leaf::new("plain").with(|params| params.extended_key_usages.clear());
    let server = ServerTls::load(&authority.issue("server", &plain()), Alpn::H2).unwrap();
    let client = ClientTls::load(&authority.issue("client", &plain())).unwrap();
    let running = Running::start_with(authority, Some(server), DRAIN).await;
    check(running.channel(Some(client)), "").await.unwrap();
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let running = running().await;
    let config = builder(&running).with_no_client_auth();
    assert!(exchange(&running, with_h2(config)).await.is_err());
}

#[tokio::test]
async fn clients_check_the_server() {
    let running = running().await;
    let stranger = Authority::new("another authority");
    let mut files = running.authority.issue("client", &Leaf::new("client"));
    files.ca = stranger.path("ca.crt");
    let tls = ClientTls::load(&files).unwrap();
    assert_refused(&running, Some(tls), "a server of an unknown authority").await;

    let authority = Authority::new("test authority");
    let other_name = Leaf::new("server").with(|params| params.subject_alt_names.clear());
    let server = ServerTls::load(&authority.issue("server", &other_name), Alpn::H2).unwrap();
    let running = Running::start_with(authority, Some(server), DRAIN).await;
    let refused = check(running.trusted(), "").await;
    assert!(refused.is_err(), "the certificate does not name the host");
}

#[tokio::test]
async fn names_work_as_well_as_addresses() {
    let mut running = running().await;
    check(running.trusted(), "").await.unwrap();
    running.address = running.address.replace("127.0.0.1", "localhost");
    check(running.trusted(), "").await.unwrap();
}

#[tokio::test]
async fn http2_must_be_offered() {
    let running = running().await;
    let config = || client_config(&running, builder(&running));
    assert!(exchange(&running, with_h2(config())).await.is_ok());
    let error = exchange(&running, config()).await.expect_err("no protocol was offered");
    assert!(error.contains("closed"), "{error}");
    let mut http1 = config();
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    let error = exchange(&running, http1).await.expect_err("only HTTP/1.1 was offered");
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}

#[tokio::test]
async fn tls_1_2_has_two_suites_with_rsa_certificates() {
    let authority = Authority::new("test authority");
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let files = authority.issue_with("server", &Leaf::new("server"), &key);
    let tls = ServerTls::load(&files, Alpn::H2).unwrap();
    let running = Running::start_with(authority, Some(tls), DRAIN).await;
    for (suite, allowed) in [
        (CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, true),
        (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, true),
        (CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, false),
        (CipherSuite::TLS13_AES_128_GCM_SHA256, true),
        (CipherSuite::TLS13_AES_256_GCM_SHA384, true),
        (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, true),
    ] {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|known| known.suite() == suite);
        let tls13 = provider.cipher_suites[0].tls13().is_some();
        let versions: &[_] =
            if tls13 { &[&rustls::version::TLS13] } else { &[&rustls::version::TLS12] };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots(&running));
        let config = with_h2(client_config(&running, builder));
        let agreed = exchange(&running, config).await;
        assert_eq!(agreed.is_ok(), allowed, "{suite:?}: {agreed:?}");
        if let Ok((version, used)) = agreed {
            assert_eq!(used, suite);
            assert_eq!(version == ProtocolVersion::TLSv1_3, tls13);
        }
    }
}

#[tokio::test]
async fn a_slow_handshake_does_not_delay_others() {
    let running = running().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(&running.address).await.unwrap());
    }
    let mut garbage = TcpStream::connect(&running.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    check(running.trusted(), "").await.unwrap();
    let mut answer = Vec::new();
    let _alert = garbage.read_to_end(&mut answer).await;
    drop(silent);
}

#[test]
fn bad_files_are_named() {
    let authority = Authority::new("test authority");
    let good = authority.issue("good", &Leaf::new("good"));
    let other = authority.issue("other", &Leaf::new("other"));
    let missing = authority.path("missing");
    let empty = authority.path("empty");
    fs::write(&empty, "nothing here\n").unwrap();
    let torn = authority.path("torn");
    fs::write(&torn, "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    let nonsense = authority.path("nonsense");
    fs::write(&nonsense, pem("CERTIFICATE", "AAAA")).unwrap();
    let expired = Leaf::new("old").with(|params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 2, 2);
    });
    let expired = authority.issue("expired", &expired);

    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = good.clone();
        change(&mut files);
        files
    };
    for (files, named, reason) in [
        (with(&|files| files.ca = missing.clone()), "missing", "No such file"),
        (with(&|files| files.cert = missing.clone()), "missing", "No such file"),
        (with(&|files| files.key = missing.clone()), "missing", "No such file"),
        (with(&|files| files.ca = empty.clone()), "empty", "contains no certificate"),
        (with(&|files| files.cert = empty.clone()), "empty", "contains no certificate"),
        (with(&|files| files.key = empty.clone()), "empty", "contains no private key"),
        (with(&|files| files.ca = torn.clone()), "torn", "parsing"),
        (with(&|files| files.ca = nonsense.clone()), "nonsense", "authorities"),
        (with(&|files| files.cert = nonsense.clone()), "nonsense", "parsing the certificate"),
        (with(&|files| files.key = good.cert.clone()), "good.crt", "contains no private key"),
        (with(&|files| files.key = other.key.clone()), "other.key", "good.crt"),
        (expired, "expired.crt", "expired at 2002-02-02T00:00:00Z"),
    ] {
        let server = ServerTls::load(&files, Alpn::H2).map(|_| ());
        let client = ClientTls::load(&files).map(|_| ());
        for error in [server, client].map(|loaded| loaded.expect_err(reason)) {
            let text = format!("{:#}", anyhow::Error::new(error));
            assert!(text.contains(named) && text.contains(reason), "{text}");
        }
    }
}

#[test]
fn one_file_may_contain_several_ca_certificates() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let files = first.issue("server", &Leaf::new("server"));
    replace(&files.ca, &format!("# both\n{}\n{}", first.pem(), second.pem()));
    ServerTls::load(&files, Alpn::None).unwrap();
}

fn pem(label: &str, base64: &str) -> String {
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n")
}

fn roots(running: &Running) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let pem = running.authority.pem();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    roots
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder(running: &Running) -> Builder {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(running))
}

fn client_config(running: &Running, builder: Builder) -> ClientConfig {
    let (cert, key) = running.authority.sign(&Leaf::new("client"), &KeyPair::generate().unwrap());
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    builder.with_client_auth_cert(chain, key).unwrap()
}

fn with_h2(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connects and waits for the server's first bytes, since in TLS 1.3 a client's handshake completes
/// before the server has verified its certificate.
async fn exchange(
    running: &Running,
    config: ClientConfig,
) -> Result<(ProtocolVersion, CipherSuite), String> {
    let stream = TcpStream::connect(&running.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.map_err(|error| format!("{error:?}"))?;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).await.map_err(|error| format!("closed: {error:?}"))?;
    stream.flush().await.map_err(|error| format!("closed: {error:?}"))?;
    match stream.read(&mut [0; 9]).await {
        Ok(0) => Err("closed".into()),
        Ok(_) => {
            let connection = stream.get_ref().1;
            let suite = connection.negotiated_cipher_suite().unwrap().suite();
            Ok((connection.protocol_version().unwrap(), suite))
        }
        Err(error) => Err(format!("{error:?} closed")),
    }
}
