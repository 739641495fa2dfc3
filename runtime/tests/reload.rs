//! Certificates that change while a server and its clients run.

use std::fs;
use std::time::Duration;

use runtime::lager;
use runtime::tls::{Alpn, ClientTls, Files, ServerTls};
use tokio_util::sync::CancellationToken;

use crate::certificates::{Authority, Leaf, replace};
use crate::grpc::{Running, check, spawn};
use crate::wait;

const DRAIN: Duration = Duration::from_secs(5);

fn capture() -> (lager::Capture, lager::Control, tracing::subscriber::DefaultGuard) {
    lager::capture(lager::Options {
        source: "test".into(),
        level: lager::Level::Info,
        format: lager::TimeFormat::Rfc3339,
    })
}

/// Moves files to another authority, one after the other.
fn move_to(authority: &Authority, files: &Files) {
    let fresh = authority.issue("moved", &Leaf::new("moved"));
    for (from, to) in [(&fresh.ca, &files.ca), (&fresh.cert, &files.cert), (&fresh.key, &files.key)]
    {
        replace(to, &fs::read_to_string(from).unwrap());
    }
}

#[tokio::test]
async fn both_sides_take_up_new_authorities_without_a_restart() {
    let (log, _control, _guard) = capture();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let server_files = old.issue("server", &Leaf::new("server"));
    let server = ServerTls::load(&server_files, Alpn::H2).unwrap();
    let client_files =
        Files { ca: old.path("client-ca.crt"), ..old.issue("client", &Leaf::new("client")) };
    fs::copy(old.path("ca.crt"), &client_files.ca).unwrap();
    let client = ClientTls::load(&client_files).unwrap();
    let stop = CancellationToken::new();
    let watching_server = spawn(server.clone().watch(stop.clone()));
    let watching_client = spawn(client.clone().watch(stop.clone()));
    let running = Running::start_with(old, Some(server), DRAIN).await;

    let open = running.channel(Some(client.clone()));
    check(open.clone(), "").await.unwrap();
    let new_client = new.client();
    assert!(check(running.channel(Some(new_client.clone())), "").await.is_err());

    move_to(&new, &server_files);
    wait::until("the server trusts the new authority", || async {
        check(running.channel(Some(new_client.clone())), "").await.is_ok()
    })
    .await;
    check(open, "").await.expect("open connections go on");
    let stale = check(running.channel(Some(client.clone())), "").await;
    assert!(stale.is_err(), "the old authority is out");

    move_to(&new, &client_files);
    wait::until("the client has taken up its new files", || async {
        check(running.channel(Some(client.clone())), "").await.is_ok()
    })
    .await;
    let data = log.data_of("test.tls-files-reloaded").expect("a log line");
    let Files { ca, cert, key } = &server_files;
    let files = [ca, cert, key].map(|path| path.display().to_string());
    assert_eq!(data["files"], files.join(" "));
    stop.cancel();
    watching_server.await.unwrap().unwrap();
    watching_client.await.unwrap().unwrap();
}

#[tokio::test]
async fn bad_files_are_reported_and_change_nothing() {
    let (log, _control, _guard) = capture();
    let authority = Authority::new("test authority");
    let files = authority.issue("server", &Leaf::new("server"));
    let server = ServerTls::load(&files, Alpn::H2).unwrap();
    let stop = CancellationToken::new();
    let watching = spawn(server.clone().watch(stop.clone()));
    let running = Running::start_with(authority, Some(server), DRAIN).await;
    let rejected = |reason: &'static str| {
        let log = log.clone();
        move || {
            let lines = log.lines().into_iter();
            let found = lines
                .filter(|line| line["message"] == "test.tls-files-rejected")
                .any(|line| line["data"]["error"].as_str().unwrap().contains(reason));
            std::future::ready(found)
        }
    };

    fs::write(&files.key, "torn").unwrap();
    wait::until("a torn key is reported", rejected("server.key contains no private key")).await;
    check(running.trusted(), "").await.expect("the old material serves on");

    fs::remove_file(&files.cert).unwrap();
    wait::until("a missing file is reported", rejected("server.crt: No such file")).await;
    check(running.trusted(), "").await.expect("the old material serves on");

    let fresh = running.authority.issue("fresh", &Leaf::new("server"));
    replace(&files.key, &fs::read_to_string(&fresh.key).unwrap());
    replace(&files.cert, &fs::read_to_string(&fresh.cert).unwrap());
    let reloaded = || async { log.data_of("test.tls-files-reloaded").is_some() };
    wait::until("good files are taken up", reloaded).await;
    check(running.trusted(), "").await.unwrap();

    stop.cancel();
    watching.await.unwrap().unwrap();
}
