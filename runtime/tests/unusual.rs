//! Certificates that OpenSSL and Go accept and webpki does not: accepted where that is safe,
//! otherwise an error says what to change.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use runtime::client::describe;
use runtime::error::chain;
use runtime::https::{Servers, TlsClient};
use runtime::lager;
use runtime::server::{Http, Listener};
use runtime::tls::{Alpn, ClientTls, Files, ServerTls};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::certificates::{Authority, Leaf, replace};
use crate::grpc::{Running, check, spawn};
use crate::wait;

const DRAIN: Duration = Duration::from_secs(5);

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../trust/fixtures")).join(name)
}

fn authority(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

/// Certificate and key as `openssl req -x509` creates them: self-signed.
fn self_signed(folder: &Authority, name: &str, leaf: Leaf) -> Files {
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.with(authority).params.self_signed(&key).unwrap();
    let path = |end: &str| folder.path(&format!("{name}.{end}"));
    let files = Files { ca: folder.path("ca.crt"), cert: path("crt"), key: path("key") };
    replace(&files.cert, &certificate.pem());
    replace(&files.key, &key.serialize_pem());
    files
}

fn capture() -> (lager::Capture, lager::Control, tracing::subscriber::DefaultGuard) {
    lager::capture(lager::Options {
        source: "test".into(),
        level: lager::Level::Info,
        format: lager::TimeFormat::Rfc3339,
    })
}

/// Waits for the server's log line about a rejected client.
async fn refusal(log: &lager::Capture) -> String {
    let said = || async { log.data_of("test.tls-handshake-failed").is_some() };
    wait::until("the server's line", said).await;
    let line = log.data_of("test.tls-handshake-failed").unwrap();
    line["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_self_signed_server_in_the_ca_file_is_accepted() {
    let folder = Authority::new("clients' authority");
    let server_files = self_signed(&folder, "own", Leaf::new("server"));
    let server = ServerTls::load(&server_files, Alpn::H2).unwrap();
    let trusting = Files { ca: server_files.cert.clone(), ..folder.issue("c", &Leaf::new("c")) };
    let client = ClientTls::load(&trusting).unwrap();
    let running = Running::start_with(folder, Some(server), DRAIN).await;
    check(running.channel(Some(client)), "").await.unwrap();

    let stranger = describe(&check(running.trusted(), "").await.unwrap_err());
    assert!(stranger.contains("CA:FALSE") && !stranger.contains("Other("), "{stranger}");
}

#[tokio::test]
async fn a_self_signed_certificate_must_allow_its_use() {
    type Change = fn(&mut CertificateParams);
    let elsewhere: Change = |params| {
        params.subject_alt_names = vec![SanType::DnsName("elsewhere".try_into().unwrap())];
    };
    let table: [(Change, &str); 4] = [
        (elsewhere, "not valid for name"),
        (|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign], "digitalSignature"),
        (
            |params| {
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            },
            "serverAuth",
        ),
        (|params| params.not_after = rcgen::date_time_ymd(2002, 2, 2), "expired"),
    ];
    for (change, part) in table {
        let folder = Authority::new("clients' authority");
        let files = self_signed(&folder, "own", Leaf::new("server").with(change));
        let role = runtime::tls::Role { service: "test", name: "server" };
        let server = ServerTls::follow(role, &files, Alpn::H2);
        let trusting = Files { ca: files.cert, ..folder.issue("c", &Leaf::new("c")) };
        let client = ClientTls::load(&trusting).unwrap();
        let running = Running::start_with(folder, Some(server), DRAIN).await;
        let refused = check(running.channel(Some(client)), "").await.expect_err(part);
        assert!(describe(&refused).contains(part), "{}", describe(&refused));
    }
}

#[tokio::test]
async fn a_self_signed_client_in_the_ca_file_is_accepted() {
    let (log, _control, _guard) = capture();
    let folder = Authority::new("authority");
    let own = self_signed(&folder, "own", Leaf::new("operator"));
    let both = format!("{}{}", folder.pem(), fs::read_to_string(&own.cert).unwrap());
    let bundle = folder.path("bundle.crt");
    fs::write(&bundle, both).unwrap();
    let server_files = Files { ca: bundle, ..folder.issue("server", &Leaf::new("server")) };
    let stranger = self_signed(&folder, "stranger", Leaf::new("stranger"));
    let server = ServerTls::load(&server_files, Alpn::H2).unwrap();
    let running = Running::start_with(folder, Some(server), DRAIN).await;
    check(running.channel(Some(ClientTls::load(&own).unwrap())), "").await.unwrap();

    let refused = check(running.channel(Some(ClientTls::load(&stranger).unwrap())), "").await;
    assert!(refused.is_err());
    let text = refusal(&log).await;
    assert!(text.contains("CA:FALSE") && !text.contains("Other("), "{text}");
}

/// As `openssl req -x509 -CA` creates it: verifying it would require following its signature.
#[tokio::test]
async fn a_leaf_marked_as_a_ca_is_rejected_with_an_explanation() {
    let (log, _control, _guard) = capture();
    let folder = Authority::new("authority");
    let server = folder.issue("marked", &Leaf::new("server").with(authority));
    let client = folder.issue("client", &Leaf::new("client").with(authority));
    let good = folder.server(Alpn::H2);
    let bad = ServerTls::load(&server, Alpn::H2).unwrap();
    let running = Running::start_with(folder, Some(good), DRAIN).await;
    let refused = check(running.channel(Some(ClientTls::load(&client).unwrap())), "").await;
    assert!(refused.is_err());
    let text = refusal(&log).await;
    assert!(text.contains("issue it with CA:FALSE"), "{text}");

    let Running { authority, .. } = running;
    let running = Running::start_with(authority, Some(bad), DRAIN).await;
    let text = describe(&check(running.trusted(), "").await.unwrap_err());
    assert!(text.contains("issue it with CA:FALSE") && !text.contains("Other("), "{text}");
}

#[tokio::test]
async fn a_chain_may_include_the_root() {
    let folder = Authority::new("authority");
    let with_root = |name: &str| {
        let files = folder.issue(name, &Leaf::new(name));
        let own = fs::read_to_string(&files.cert).unwrap();
        replace(&files.cert, &format!("{own}{}", folder.pem()));
        files
    };
    let server = ServerTls::load(&with_root("server"), Alpn::H2).unwrap();
    let client = ClientTls::load(&with_root("client")).unwrap();
    let running = Running::start_with(folder, Some(server), DRAIN).await;
    check(running.channel(Some(client)), "").await.unwrap();
}

fn only_common_name(folder: &Authority) -> Files {
    let leaf = Leaf::new("localhost").with(|params| params.subject_alt_names.clear());
    folder.issue("only-cn", &leaf)
}

#[tokio::test]
async fn a_server_with_only_a_common_name_is_rejected_with_an_explanation() {
    let folder = Authority::new("authority");
    let server = ServerTls::load(&only_common_name(&folder), Alpn::H2).unwrap();
    let mut running = Running::start_with(folder, Some(server), DRAIN).await;
    running.address = running.address.replace("127.0.0.1", "localhost");
    let text = describe(&check(running.trusted(), "").await.unwrap_err());
    assert!(text.contains("subject alternative name localhost"), "{text}");
}

#[tokio::test]
async fn https_clients_explain_errors_too() {
    let folder = Authority::new("authority");
    let server = ServerTls::load(&only_common_name(&folder), Alpn::None).unwrap();
    let listener = Listener::tcp("test", "127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().rsplit_once(':').unwrap().1.to_owned();
    let stop = CancellationToken::new();
    let token = stop.clone();
    let serving = spawn(async move {
        Http::new(listener, Some(server)).serve(axum::Router::new(), token, DRAIN).await;
    });
    let client =
        TlsClient::new(folder.client(), "test".into(), Servers::default(), |builder| builder);
    let answer = client.client().unwrap().get(format!("https://localhost:{port}/")).send().await;
    let text = chain(&answer.unwrap_err());
    assert!(text.contains("subject alternative name localhost"), "{text}");
    stop.cancel();
    serving.await.unwrap();
}

#[test]
fn own_files_of_version_1_are_refused_with_a_sentence() {
    let files = Files { ca: fixture("ca.crt"), cert: fixture("v1.crt"), key: fixture("v1.key") };
    let server = ServerTls::load(&files, Alpn::H2).map(|_| ());
    let client = ClientTls::load(&files).map(|_| ());
    for error in [server, client].map(|loaded| loaded.unwrap_err()) {
        let text = chain(&error);
        assert!(text.contains("v1.crt") && text.contains("X.509 version 1"), "{text}");
    }
}

/// Presents a certificate that rustls would not load.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_client_of_version_1_is_refused_with_a_sentence() {
    let (log, _control, _guard) = capture();
    let folder = Authority::new("authority");
    let server = Files { ca: fixture("ca.crt"), ..folder.issue("server", &Leaf::new("server")) };
    let server = ServerTls::load(&server, Alpn::H2).unwrap();
    let running = Running::start_with(folder, Some(server), DRAIN).await;

    let key = PrivateKeyDer::from_pem_file(fixture("v1.key")).unwrap();
    let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let certificate = CertificateDer::from_pem_file(fixture("v1.crt")).unwrap();
    let shown = Shown(Arc::new(CertifiedKey::new(vec![certificate], key)));
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(running.authority.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(&running.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let read = stream.read(&mut [0; 64]).await;
    assert!(read.is_err(), "{read:?}");
    let text = refusal(&log).await;
    assert!(text.contains("X.509 version 1") && !text.contains("Other("), "{text}");
}
