//! Listeners.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use runtime::client;
use runtime::server::{Error, Grpc, Health, Listener};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::grpc::{Odd, call, check, spawn};

#[tokio::test]
async fn a_taken_port_is_named_with_its_purpose() {
    let first = Listener::tcp("gRPC", "127.0.0.1:0").await.unwrap();
    let address = first.local_addr();
    let error = Listener::tcp("admin", &address).await.unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("admin: listening on {address}"));
    let chain = format!("{:#}", anyhow::Error::new(error));
    assert!(chain.contains("Address already in use"), "{chain}");
}

#[tokio::test]
async fn an_invalid_address_is_named() {
    for wrong in ["nowhere", "256.1.1.1:80", "127.0.0.1:http", "no.such.invalid:1"] {
        let error = Listener::tcp("gRPC", wrong).await.unwrap_err();
        assert_eq!(error.to_string(), format!("gRPC: resolving {wrong}"));
    }
    let error = Listener::tcp("gRPC", "192.0.2.1:0").await.unwrap_err();
    assert_eq!(error.to_string(), "gRPC: listening on 192.0.2.1:0");
}

#[tokio::test]
async fn no_host_means_all_interfaces() {
    for address in [":0", "", "0.0.0.0:0"] {
        let listener = Listener::tcp("gRPC", address).await.unwrap();
        let port = listener.local_addr().rsplit_once(':').unwrap().1.to_owned();
        assert_ne!(port, "0");
        let shutdown = CancellationToken::new();
        let server = Grpc::new(listener, None, &Health::new());
        let server = spawn(server.serve(shutdown.clone(), Duration::from_secs(5)));
        let here = format!("127.0.0.1:{port}");
        let channel = client::channel(&here, None, Default::default()).unwrap();
        assert_eq!(check(channel, "").await.unwrap(), ServingStatus::Serving, "{address:?}");
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_unix_socket_is_private_and_removed_at_the_end() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("control.sock");
    let listener = Listener::unix("control", &path).await.unwrap();
    assert_eq!(listener.local_addr(), path.display().to_string());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let shutdown = CancellationToken::new();
    let server = Grpc::new(listener, None, &Health::new()).add(Odd::default());
    let server = spawn(server.serve(shutdown.clone(), Duration::from_secs(5)));
    let status = call(client::unix(&path), "/test.Odd/Peer").await;
    assert_eq!(status.message(), "None None");

    let error = Listener::unix("control", &path).await.unwrap_err();
    let chain = format!("{:#}", anyhow::Error::new(error));
    assert!(chain.contains("Address already in use"), "{chain}");
    shutdown.cancel();
    server.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn only_the_stale_socket_of_a_killed_process_is_removed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("control.sock");
    // The standard library's listener leaves its socket file behind, as a crash does.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    Listener::unix("control", &path).await.unwrap();

    let file = folder.path().join("data");
    fs::write(&file, "precious").unwrap();
    Listener::unix("control", &file).await.unwrap_err();
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    Listener::unix("control", &folder.path().join("no/such/folder")).await.unwrap_err();
}
