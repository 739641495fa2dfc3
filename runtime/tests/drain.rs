//! Drain of servers at shutdown.

use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::server::{GOAWAY_INTERVAL, Grpc, Health, Limits, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::grpc::{Odd, Running, call, check, spawn};
use crate::wait;

/// Longer than any test runs, so waiting for this long fails the test.
const LONG: Duration = Duration::from_secs(3_600);
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn open_calls_may_end_and_new_connections_are_refused() {
    let running = Running::start(LONG).await;
    let slow = spawn(call(running.trusted(), "/test.Odd/Slow"));
    let begun = || async { running.odd.hanging.load(Ordering::SeqCst) };
    wait::until("the slow call has begun", begun).await;
    running.shutdown.cancel();
    let status = timeout(PATIENCE, slow).await.expect("an answer").unwrap();
    assert_eq!((status.code(), status.message()), (Code::AlreadyExists, "slow but done"));
    let address = running.address.clone();
    timeout(PATIENCE, running.server).await.expect("drained").unwrap().unwrap();
    let refused = TcpStream::connect(&address).await;
    assert!(refused.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn calls_that_outlast_the_drain_are_aborted() {
    let running = Running::start(Duration::from_millis(200)).await;
    let stuck = spawn(call(running.trusted(), "/test.Odd/Hang"));
    let begun = || async { running.odd.hanging.load(Ordering::SeqCst) };
    wait::until("the stuck call has begun", begun).await;
    let start = Instant::now();
    running.shutdown.cancel();
    timeout(PATIENCE, running.server).await.expect("cut off").unwrap().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(running.odd.dropped.load(Ordering::SeqCst), "no handler outlives its server");
    let status = timeout(PATIENCE, stuck).await.expect("cut off").unwrap();
    assert_ne!(status.code(), Code::Ok);
}

#[tokio::test]
async fn idle_connections_and_health_watchers_do_not_delay_the_drain() {
    let running = Running::start(LONG).await;
    let idle = running.trusted();
    check(idle.clone(), "").await.unwrap();
    let request = HealthCheckRequest { service: "test.Odd".into() };
    let mut client = HealthClient::new(running.trusted());
    let mut watcher = client.watch(request).await.unwrap().into_inner();
    let mut next = async || {
        let next = timeout(PATIENCE, watcher.next()).await.expect("an answer or the end");
        next.map(|next| next.unwrap().status)
    };
    assert_eq!(next().await, Some(ServingStatus::Serving as i32));
    running.shutdown.cancel();
    assert_eq!(next().await, Some(ServingStatus::NotServing as i32));
    assert_eq!(next().await, None);
    timeout(PATIENCE, running.server).await.expect("drained").unwrap().unwrap();
}

#[tokio::test]
async fn handshakes_do_not_delay_the_drain() {
    let running = Running::start(LONG).await;
    let _silent = TcpStream::connect(&running.address).await.unwrap();
    // Connections are accepted in order: once a later one is served, the silent one is accepted
    // too.
    check(running.trusted(), "").await.unwrap();
    running.shutdown.cancel();
    timeout(PATIENCE, running.server).await.expect("drained").unwrap().unwrap();
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_their_turn() {
    let listener = Listener::tcp("grpc", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = Grpc::new(listener, None, &Health::new()).limits(limits).add(Odd::default());
    let shutdown = CancellationToken::new();
    let server = spawn(server.serve(shutdown.clone(), LONG));
    let channel = || runtime::client::channel(&address, None, Default::default()).unwrap();
    let first = channel();
    check(first.clone(), "").await.unwrap();
    let second = spawn(check(channel(), ""));
    let waited = timeout(Duration::from_millis(200), check(channel(), "")).await;
    assert!(waited.is_err(), "there is no place for a third");
    assert!(!second.is_finished(), "nor for a second");
    drop(first);
    timeout(PATIENCE, second).await.expect("its turn").unwrap().unwrap();
    shutdown.cancel();
    timeout(PATIENCE, server).await.expect("drained").unwrap().unwrap();
}

/// After the TLS handshake, here without one, a client must speak; a part of the preface is not
/// enough.
#[tokio::test]
async fn a_client_that_never_speaks_is_disconnected() {
    let listener = Listener::tcp("grpc", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let limits = Limits { handshake: Duration::from_millis(500), ..Limits::default() };
    let server = Grpc::new(listener, None, &Health::new()).limits(limits).add(Odd::default());
    let shutdown = CancellationToken::new();
    let server = spawn(server.serve(shutdown.clone(), LONG));
    for first in [&b""[..], &PREFACE[..23]] {
        let mut silent = TcpStream::connect(&address).await.unwrap();
        silent.write_all(first).await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, silent.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "connected for ever after {} bytes", first.len());
    }
    let mut speaks = TcpStream::connect(&address).await.unwrap();
    speaks.write_all(PREFACE).await.unwrap();
    let open =
        timeout(Duration::from_secs(1), async { while frame(&mut speaks).await.is_some() {} });
    assert!(open.await.is_err(), "a client that has spoken stays");
    shutdown.cancel();
    timeout(PATIENCE, server).await.expect("drained").unwrap().unwrap();
}

/// HTTP/2 connection preface and empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Reads the type of the next HTTP/2 frame from the server.
async fn frame(stream: &mut TcpStream) -> Option<u8> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut rest = vec![0; length as usize];
    stream.read_exact(&mut rest).await.ok()?;
    Some(head[3])
}

#[tokio::test]
async fn goaways_are_staggered() {
    const GO_AWAY: u8 = 7;
    // So many that a late read of the first GOAWAY is a small part of the whole time.
    const COUNT: u32 = 1_000;
    for (spread, apart) in
        [(LONG, GOAWAY_INTERVAL), (GOAWAY_INTERVAL * COUNT / 5, GOAWAY_INTERVAL / 5)]
    {
        let limits = Limits { spread, ..Limits::default() };
        let listener = Listener::tcp("grpc", "127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let server = Grpc::new(listener, None, &Health::new()).limits(limits).add(Odd::default());
        let shutdown = CancellationToken::new();
        let server = spawn(server.serve(shutdown.clone(), LONG));
        let mut clients = Vec::new();
        for _ in 0..COUNT {
            let mut client = TcpStream::connect(&address).await.unwrap();
            client.write_all(PREFACE).await.unwrap();
            // The connection is served.
            frame(&mut client).await.unwrap();
            clients.push(client);
        }
        let began = Instant::now();
        shutdown.cancel();
        let told = clients.into_iter().map(|mut client| async move {
            while frame(&mut client).await.expect("a GOAWAY comes first") != GO_AWAY {}
            began.elapsed()
        });
        let told = timeout(PATIENCE, futures_util::future::join_all(told));
        let mut told = told.await.expect("everybody is told");
        told.sort_unstable();
        for (before, at) in (0..COUNT).zip(&told) {
            assert!(*at >= apart * before, "the {before}th after {at:?}");
        }
        // GOAWAYs are not sent all at once at the end either.
        let (expected, first, last) = (apart * COUNT, told[0], told[told.len() - 1]);
        assert!(last - first >= expected * 9 / 10, "{:?} instead of {expected:?}", last - first);
        let early = told.iter().filter(|at| **at - first < expected / 2).count();
        assert!(early <= COUNT as usize * 6 / 10, "{early} of {COUNT} in the first half");
        timeout(PATIENCE, server).await.expect("drained").unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_dropped_cuts_its_connections() {
    let running = Running::start(LONG).await;
    let stuck = spawn(call(running.trusted(), "/test.Odd/Hang"));
    let begun = || async { running.odd.hanging.load(Ordering::SeqCst) };
    wait::until("the stuck call has begun", begun).await;
    running.server.abort();
    let status = timeout(PATIENCE, stuck).await.expect("cut off").unwrap();
    assert_ne!(status.code(), Code::Ok);
    let dropped = || async { running.odd.dropped.load(Ordering::SeqCst) };
    wait::until("the handler is gone", dropped).await;
}

#[tokio::test]
async fn a_silent_client_is_disconnected_and_a_busy_one_is_not() {
    let listener = Listener::tcp("grpc", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let limits = Limits {
        keepalive_interval: Duration::from_millis(100),
        keepalive_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Grpc::new(listener, None, &Health::new()).limits(limits).add(Odd::default());
    let shutdown = CancellationToken::new();
    let server = spawn(server.serve(shutdown.clone(), LONG));

    // A real client answers pings, and in this test sends many of its own.
    let options = runtime::client::Options {
        keepalive_interval: Some(Duration::from_millis(10)),
        ..Default::default()
    };
    let channel = runtime::client::channel(&address, None, options).unwrap();
    let status = call(channel, "/test.Odd/Slow").await;
    assert_eq!(status.message(), "slow but done", "{status:?}");

    // This client sends only the preface.
    let mut silent = TcpStream::connect(&address).await.unwrap();
    silent.write_all(PREFACE).await.unwrap();
    let mut received = Vec::new();
    let ended = timeout(PATIENCE, silent.read_to_end(&mut received)).await;
    let _reset_or_closed = ended.expect("the server gives it up");
    shutdown.cancel();
    timeout(PATIENCE, server).await.expect("drained").unwrap().unwrap();
}

/// A stopped client answers no ping and sends nothing.
#[tokio::test]
async fn a_frozen_client_does_not_delay_the_drain() {
    let listener = Listener::tcp("grpc", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let odd = Odd::default();
    let server = Grpc::new(listener, None, &Health::new()).add(odd.clone());
    let shutdown = CancellationToken::new();
    let server = spawn(server.serve(shutdown.clone(), LONG));
    let mut frozen = TcpStream::connect(&address).await.unwrap();
    frozen.write_all(PREFACE).await.unwrap();
    // The SETTINGS of the server show that it serves the connection.
    assert_eq!(frame(&mut frozen).await, Some(4));
    let channel = runtime::client::channel(&address, None, Default::default()).unwrap();
    let slow = spawn(call(channel, "/test.Odd/Slow"));
    wait::until("the slow call has begun", || async { odd.hanging.load(Ordering::SeqCst) }).await;
    shutdown.cancel();
    let status = timeout(PATIENCE, slow).await.expect("an answer").unwrap();
    assert_eq!(status.message(), "slow but done", "a client that is alive gets its answer");
    timeout(PATIENCE, server).await.expect("drained").unwrap().unwrap();
    drop(frozen);
}
