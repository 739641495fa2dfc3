//! Fake servers on loopback for a syncer.

pub(crate) mod certificates;
pub(crate) mod cloud;
pub(crate) mod leader;
pub(crate) mod locket;
pub(crate) mod process;
pub(crate) mod store;

use std::{net::SocketAddr, time::Duration};

use axum::Router;
use runtime::{
    client, lager,
    server::{Grpc, Health, Listener},
    tls::ServerTls,
};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// A free port.
pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A gRPC server on a free port.
async fn grpc(tls: Option<ServerTls>) -> (Grpc, String) {
    let listener = Listener::tcp("twin", "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    (Grpc::new(listener, tls, &Health::new()), address)
}

/// An HTTP server on a free port, which stops on drop. Returns its URL as well.
pub(crate) async fn serve_http(router: Router) -> (String, JoinSet<()>) {
    let (listener, address) = listen().await;
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (format!("http://{address}"), server)
}

/// A server that stops on drop.
fn serve(grpc: Grpc) -> JoinSet<()> {
    let mut server = JoinSet::new();
    server.spawn(async move {
        grpc.serve(CancellationToken::new(), Duration::ZERO).await.unwrap();
    });
    server
}

/// A channel to a fake server.
pub(crate) fn channel(address: &str) -> Channel {
    client::channel(address, None, client::Options::default()).unwrap()
}

/// Waits until `condition` holds, at most ten seconds.
pub(crate) async fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(Duration::from_secs(10), what, condition).await;
}

/// Waits until `condition` holds, at most for `patience`.
pub(crate) async fn until_within(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Result of the task, within ten seconds.
pub(crate) async fn ended<T: 'static>(task: &mut JoinSet<T>) -> T {
    let ended = timeout(Duration::from_secs(10), task.join_next()).await;
    ended.expect("the task does not end").unwrap().unwrap()
}

/// The log of a syncer at `level`.
pub(crate) fn log_options(level: lager::Level) -> lager::Options {
    lager::Options {
        source: "cfnetworking.policy-server-asg-syncer".to_owned(),
        level,
        format: lager::TimeFormat::Rfc3339,
    }
}

/// The data of each line with this message, without the common prefix.
pub(crate) fn data_of(lines: &lager::Capture, action: &str) -> Vec<serde_json::Value> {
    let message = format!("cfnetworking.policy-server-asg-syncer.{action}");
    let mine = |line: &serde_json::Value| line["message"] == message.as_str();
    lines.lines().into_iter().filter(mine).map(|line| line["data"].clone()).collect()
}
