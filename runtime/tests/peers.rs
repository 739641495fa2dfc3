//! Peers that reject connections, hang, or speak another protocol.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use net::testing::{drop_only, resolved, with_three_addresses};
use runtime::client::{self, Options};
use runtime::https;
use runtime::server::{Grpc, Health, Http, Limits, Listener};
use runtime::tls::{Alpn, ClientTls};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::certificates::{Authority, Leaf};
use crate::grpc::{Odd, Running, check, spawn};
use crate::wait;

const LONG: Duration = Duration::from_secs(3_600);
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_client_says_that_its_certificate_was_refused() {
    let running = Running::start(LONG).await;
    let stranger = Authority::new("another authority");
    let mut files = stranger.issue("client", &Leaf::new("operator"));
    files.ca = running.authority.path("ca.crt");
    let tls = ClientTls::load(&files).unwrap();
    // The alert and the end of the connection race.
    for _ in 0..20 {
        let channel = running.channel(Some(tls.clone()));
        let status = check(channel, "").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let text = client::describe(&status);
        let expected = format!(
            "connecting to {}: the server closed the connection right after TLS: it probably \
             refused this certificate (CN=operator, issuer CN=another authority); its log says why",
            running.address
        );
        assert!(text.contains(&expected), "{text}");
    }
}

#[tokio::test]
async fn a_server_of_other_http_is_not_grpc() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(|_: http::Request<Incoming>| async {
            let body = Full::<bytes::Bytes>::from(r#"{"links":{}}"#);
            Ok::<_, Infallible>(http::Response::new(body))
        });
        let builder = auto::Builder::new(TokioExecutor::new());
        let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
    });
    let channel = client::channel(&address, None, Options::default()).unwrap();
    let text = client::describe(&check(channel, "").await.unwrap_err());
    assert!(text.contains("not gRPC"), "{text}");
    timeout(PATIENCE, server).await.expect("the client is gone").unwrap();
}

#[tokio::test]
async fn a_server_of_http_1_with_tls_is_not_grpc() {
    let authority = Authority::new("test authority");
    let listener = Listener::tcp("http", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let server = Http::new(listener, Some(authority.server(Alpn::None)));
    let shutdown = CancellationToken::new();
    let server = spawn(server.serve(axum::Router::new(), shutdown.clone(), Duration::ZERO));
    let channel = client::channel(&address, Some(authority.client()), Options::default()).unwrap();
    let text = client::describe(&check(channel, "").await.unwrap_err());
    assert!(text.contains("not gRPC"), "{text}");
    shutdown.cancel();
    timeout(PATIENCE, server).await.expect("drained").unwrap();
}

/// Requests an endless response with the largest flow-control windows: SETTINGS for the stream
/// window, WINDOW_UPDATE for the connection, and a POST.
async fn ask_for_a_flood(stream: &mut (impl AsyncWrite + Unpin)) {
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff");
    sent.extend(b"\0\0\x04\x08\0\0\0\0\0\x7f\0\0\0");
    let mut head = b"\x83\x86\x04\x0f/test.Odd/Flood\x01\x01h\x0f\x10\x10application/grpc".to_vec();
    sent.extend([0, 0, u8::try_from(head.len()).unwrap(), 1, 4, 0, 0, 0, 1]);
    sent.append(&mut head);
    stream.write_all(&sent).await.unwrap();
}

/// Such as a stopped process.
#[tokio::test]
async fn a_client_that_reads_nothing_is_disconnected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    for unix in [false, true] {
        let listener = if unix {
            Listener::unix("grpc", &path).await
        } else {
            Listener::tcp("grpc", "127.0.0.1:0").await
        };
        let listener = listener.unwrap();
        let address = listener.local_addr();
        let limits = Limits {
            keepalive_interval: Duration::from_millis(300),
            keepalive_timeout: Duration::from_millis(300),
            // The next client needs the connection slot of the first one.
            connections: 1,
            ..Limits::default()
        };
        let odd = Odd::default();
        let server = Grpc::new(listener, None, &Health::new()).limits(limits).add(odd.clone());
        let shutdown = CancellationToken::new();
        let server = spawn(server.serve(shutdown.clone(), LONG));
        // Kept open without reading.
        let (mut tcp, mut local) = (None, None);
        if unix {
            ask_for_a_flood(local.insert(UnixStream::connect(&path).await.unwrap())).await;
        } else {
            ask_for_a_flood(tcp.insert(TcpStream::connect(&address).await.unwrap())).await;
        }
        let dropped = || async { odd.dropped.load(Ordering::SeqCst) };
        wait::until("the answer is given up", dropped).await;
        let next = if unix {
            client::unix(&path)
        } else {
            client::channel(&address, None, Options::default()).unwrap()
        };
        let served = timeout(PATIENCE, check(next, "")).await;
        served.unwrap_or_else(|_| panic!("unix: {unix}: the connection lives on")).unwrap();
        shutdown.cancel();
        timeout(PATIENCE, server).await.expect("drained").unwrap().unwrap();
    }
}

/// reqwest alone would try one address after another, each for a part of the connect timeout.
#[test]
fn an_http_client_skips_dead_addresses() {
    with_three_addresses(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let listener = Listener::tcp("http", "0.0.0.0:0").await.unwrap();
            let port = listener.local_addr().rsplit_once(':').unwrap().1.to_owned();
            let shutdown = CancellationToken::new();
            let router = axum::Router::new().route("/", axum::routing::get(async || "here"));
            let server = Http::new(listener, None);
            let server = spawn(server.serve(router, shutdown.clone(), Duration::ZERO));
            let url = format!("http://localhost:{port}");
            runtime::tls::install_provider();
            let client = https::builder("test", &https::Servers::new(&[&url])).build().unwrap();
            let addresses = resolved();
            let ask = async || {
                let began = Instant::now();
                let answer = client.get(&url).send().await;
                (answer.map(|answer| answer.status().as_u16()), began.elapsed())
            };

            drop_only(&addresses[..2]);
            let (answer, took) = ask().await;
            assert_eq!(answer.unwrap(), 200);
            // 250 ms per address, plus a margin for a busy machine.
            assert!(took < Duration::from_secs(2), "{took:?}");

            // The pooled connection dies: its request fails, the next one succeeds.
            drop_only(&addresses[2..]);
            let (_failed, took) = ask().await;
            assert!(took < Duration::from_secs(8), "{took:?}");
            let (answer, took) = ask().await;
            assert_eq!(answer.unwrap(), 200);
            assert!(took < Duration::from_secs(2), "{took:?}");
            shutdown.cancel();
            timeout(PATIENCE, server).await.expect("drained").unwrap();
        });
    });
}
