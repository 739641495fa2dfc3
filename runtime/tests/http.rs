//! The HTTP server and the admin endpoint.

use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{Extension, Router};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use runtime::lager::{self, Level};
use runtime::process::Process;
use runtime::server::{Admin, Health, Http, Listener};
use runtime::tls::{Alpn, Peer};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::certificates::Authority;
use crate::grpc::spawn;

struct Running {
    address: String,
    process: Process,
    health: Health,
    shutdown: CancellationToken,
    server: JoinHandle<anyhow::Result<()>>,
    slow: Arc<Slow>,
}

/// A request that gets its response on a signal.
#[derive(Default)]
struct Slow {
    arrived: Notify,
    finish: Notify,
}

impl Running {
    async fn start() -> Self {
        let listener = Listener::tcp("admin", "127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let process = Process::detached();
        let health = Health::new();
        let slow = Arc::<Slow>::default();
        let asked = Arc::clone(&slow);
        let more = Router::new()
            .route(
                "/panic",
                get(|| async {
                    if true {
                        panic!("a mistake")
                    }
                }),
            )
            .route(
                "/slow",
                get(async move || {
                    asked.arrived.notify_one();
                    asked.finish.notified().await;
                    "slow but done"
                }),
            );
        let shutdown = CancellationToken::new();
        let admin = Admin::new(listener, &process, &health).merge(more);
        let server = spawn(admin.start(Duration::from_secs(3_600)).run(shutdown.clone()));
        Self { address, process, health, shutdown, server, slow }
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> (StatusCode, String) {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .body(Full::<bytes::Bytes>::from(body.to_owned()))
            .unwrap();
        let answer = client.request(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        self.ask(Method::GET, path, "").await
    }
}

#[tokio::test]
async fn liveness_and_readiness_differ() {
    let running = Running::start().await;
    assert_eq!(running.get("/readyz").await, (StatusCode::OK, "ready\n".into()));
    let store = running.health.component("store");
    let feed = running.health.component("feed");
    let expected = "feed: starting\nstore: starting\n".to_owned();
    assert_eq!(running.get("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, expected));
    assert_eq!(running.get("/healthz").await, (StatusCode::OK, "alive\n".into()));
    store.ready();
    feed.not_ready("no connection");
    let expected = "feed: no connection\n".to_owned();
    assert_eq!(running.get("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, expected));
    feed.ready();
    assert_eq!(running.get("/readyz").await.0, StatusCode::OK);
}

/// docs/compatibility/locket.md#debug-server.
#[tokio::test]
async fn the_log_level_is_set_as_in_the_originals() {
    let running = Running::start().await;
    for (body, level) in [
        ("debug", Level::Debug),
        ("I", Level::Info),
        ("2", Level::Warn),
        ("ERROR", Level::Error),
        ("f", Level::Fatal),
        ("info\n", Level::Info),
    ] {
        let (status, text) = running.ask(Method::POST, "/log-level", body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(text, format!("the log level is {}\n", level.name()));
        assert_eq!(running.process.log.level(), level, "{body}");
    }
    for (method, body) in [
        (Method::GET, "debug"),
        (Method::PUT, "debug"),
        (Method::DELETE, ""),
        (Method::POST, ""),
        (Method::POST, "verbose"),
        (Method::POST, "5"),
    ] {
        let (status, text) = running.ask(method.clone(), "/log-level", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {body}");
        assert!(!text.is_empty());
        assert_eq!(running.process.log.level(), Level::Info, "{method} {body}");
    }
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let running = Running::start().await;
    let (status, text) = running.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("# TYPE process_open_fds gauge\nprocess_open_fds "), "{text}");
}

#[tokio::test]
async fn everything_else_is_not_found() {
    let running = Running::start().await;
    for path in ["/", "/debug/pprof/", "/metrics/", "/block-profile"] {
        assert_eq!(running.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}

/// Runbooks set the rates; there is no Go runtime to sample with them.
#[tokio::test]
async fn the_rates_of_gos_profiles_take_numbers_only() {
    let running = Running::start().await;
    for path in ["/block-profile-rate", "/mutex-profile-fraction"] {
        assert_eq!(running.ask(Method::POST, path, "5").await.0, StatusCode::OK, "{path}");
        for wrong in ["", "often", "1.5"] {
            let (status, _) = running.ask(Method::POST, path, wrong).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {wrong:?}");
        }
    }
}

#[tokio::test]
async fn a_panic_is_a_500_and_nothing_more() {
    let (log, _control, _guard) = lager::capture(lager::Options {
        source: "test".into(),
        level: Level::Info,
        format: lager::TimeFormat::Rfc3339,
    });
    let running = Running::start().await;
    assert_eq!(running.get("/panic").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(running.get("/healthz").await.0, StatusCode::OK);
    assert_eq!(log.data_of("test.handler-panicked").unwrap()["error"], "a mistake");
}

/// docs/compatibility/policy-server-internal.md#listeners.
#[tokio::test]
async fn plain_http_on_a_tls_port_gets_an_answer() {
    let authority = Authority::new("test authority");
    let listener = Listener::tcp("https", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let router = Router::new().route(
        "/",
        get(|peer: Extension<Peer>| async move {
            peer.0.identity.unwrap().common_name.clone().unwrap()
        }),
    );
    let shutdown = CancellationToken::new();
    let server = Http::new(listener, Some(authority.server(Alpn::None)));
    let server = spawn(server.serve(router, shutdown.clone(), Duration::from_secs(5)));

    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    let expected =
        "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    assert_eq!(answer, expected);

    let stream = TcpStream::connect(&address).await.unwrap();
    // Additional ALPN protocols of the client are ignored.
    let mut config = (*authority.client().rustls_config().unwrap()).clone();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.0".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("client"), "{answer}");
    shutdown.cancel();
    server.await.unwrap();
}

#[tokio::test]
async fn open_requests_may_end_and_idle_connections_do_not_hold_up() {
    let running = Running::start().await;
    let mut idle = TcpStream::connect(&running.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let (slow, ()) = tokio::join!(running.get("/slow"), async {
        running.slow.arrived.notified().await;
        running.shutdown.cancel();
        // The server closes the idle connection, which shows that the drain has begun.
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.unwrap();
        running.slow.finish.notify_one();
    });
    assert_eq!(slow, (StatusCode::OK, "slow but done".into()));
    let drained = tokio::time::timeout(Duration::from_secs(20), running.server).await;
    drained.expect("drained").unwrap().unwrap();
}

#[tokio::test]
async fn a_long_body_is_refused() {
    let running = Running::start().await;
    let long = "1".repeat(5_000);
    for path in ["/log-level", "/block-profile-rate"] {
        let (status, _) = running.ask(Method::POST, path, &long).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
    }
    assert_eq!(running.ask(Method::POST, "/log-level", "info").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_long_head_is_refused() {
    let running = Running::start().await;
    let mut stream = TcpStream::connect(&running.address).await.unwrap();
    let field = format!("X-Long: {}\r\n", "a".repeat(8_000));
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    // The server may close before it has read everything.
    let _closed = stream.write_all(field.repeat(9).as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
}
