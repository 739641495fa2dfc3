//! Certificates that change while a server and its clients run.

use std::fs;
use std::time::Duration;

use runtime::lager;
use runtime::server::Health;
use runtime::tls::{Alpn, ClientTls, Files, Role, ServerTls};
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

/// Switches the files to another CA, one file after the other.
fn move_to(authority: &Authority, files: &Files) {
    let fresh = authority.issue("moved", &Leaf::new("moved"));
    for (from, to) in [(&fresh.ca, &files.ca), (&fresh.cert, &files.cert), (&fresh.key, &files.key)]
    {
        replace(to, &fs::read_to_string(from).unwrap());
    }
}

#[tokio::test]
async fn both_sides_reload_ca_files_without_a_restart() {
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

/// Broken states of a file, caused by a failing disk, a slow tool or a late operator.
#[derive(Debug, Clone, Copy)]
enum Broken {
    Missing,
    Garbage,
    HalfWritten,
    OtherKey,
    Expired,
}

impl Broken {
    const ALL: [Self; 5] =
        [Self::Missing, Self::Garbage, Self::HalfWritten, Self::OtherKey, Self::Expired];

    /// Creates the broken files under `name`.
    fn files(self, authority: &Authority, name: &str) -> Files {
        let expired = Leaf::new("expired").with(|params| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 2, 2);
        });
        let leaf = if let Self::Expired = self { expired } else { Leaf::new(name) };
        let files = authority.issue(name, &leaf);
        match self {
            Self::Missing => fs::remove_file(&files.cert).unwrap(),
            Self::Garbage => fs::write(&files.key, "garbage").unwrap(),
            Self::HalfWritten => {
                let text = fs::read_to_string(&files.cert).unwrap();
                fs::write(&files.cert, &text[..text.len() / 2]).unwrap();
            }
            Self::OtherKey => {
                let other = authority.issue("other", &Leaf::new("other"));
                fs::copy(other.key, &files.key).unwrap();
            }
            Self::Expired => {}
        }
        files
    }

    /// Expected part of the log line.
    fn reason(self) -> &'static str {
        match self {
            Self::Missing => "No such file",
            Self::Garbage => "contains no private key",
            Self::HalfWritten => "parsing",
            Self::OtherKey => "with the key in",
            Self::Expired => "expired at 2002-02-02T00:00:00Z",
        }
    }
}

const SERVER: Role = Role { service: "probe", name: "server" };
const CLIENT: Role = Role { service: "probe", name: "client" };

#[tokio::test]
async fn a_server_without_a_valid_certificate_waits_for_one() {
    for broken in Broken::ALL {
        let (log, _control, _guard) = capture();
        let authority = Authority::new("test authority");
        let files = broken.files(&authority, "server");
        let health = Health::new();
        let tls = ServerTls::follow(SERVER, &files, Alpn::H2).telling(health.component("tls"));
        let [(_, reason)] = &health.reasons()[..] else { panic!("{broken:?}: it is ready") };
        assert!(reason.contains(broken.reason()), "{broken:?}: {reason}");
        let stop = CancellationToken::new();
        let watching = spawn(tls.clone().watch(stop.clone()));
        let running = Running::start_with(authority, Some(tls), DRAIN).await;
        let refused = check(running.trusted(), "").await.expect_err("no valid certificate");
        let text = runtime::client::describe(&refused);
        let alert =
            if let Broken::Expired = broken { "certificate expired" } else { "AccessDenied" };
        assert!(text.contains(alert), "{broken:?}: {text}");
        let said = || async { log.data_of("test.certificate-unusable").is_some() };
        wait::until("the log says so", said).await;
        let line = log.data_of("test.certificate-unusable").unwrap();
        assert_eq!(line["tls"], "server");
        assert!(line["error"].as_str().unwrap().contains(broken.reason()), "{line}");

        let fresh = running.authority.issue("fresh", &Leaf::new("fresh"));
        replace(&files.cert, &fs::read_to_string(&fresh.cert).unwrap());
        replace(&files.key, &fs::read_to_string(&fresh.key).unwrap());
        wait::until("the replaced files serve", || async {
            check(running.trusted(), "").await.is_ok() && health.is_ready()
        })
        .await;
        let line = log.data_of("test.tls-files-reloaded").unwrap();
        assert_eq!(line["tls"], "server");
        assert!(line["subject"].as_str().unwrap().contains("CN=fresh"), "{line}");
        assert!(line["serial"].as_str().unwrap().contains(':'), "{line}");
        assert!(line["not_after"].as_str().unwrap().ends_with("T00:00:00Z"), "{line}");
        stop.cancel();
        watching.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_client_without_a_valid_certificate_waits_for_one() {
    for broken in Broken::ALL {
        let (log, _control, _guard) = capture();
        let running = Running::start(DRAIN).await;
        let files = broken.files(&running.authority, "client");
        let health = Health::new();
        let tls = ClientTls::follow(CLIENT, &files).telling(health.component("tls"));
        assert!(!health.is_ready(), "{broken:?}");
        let stop = CancellationToken::new();
        let watching = spawn(tls.clone().watch(stop.clone()));
        let channel = running.channel(Some(tls));
        let refused = check(channel.clone(), "").await.expect_err("no valid certificate");
        let text = runtime::client::describe(&refused);
        // An expired certificate is presented; the server rejects it by its own clock.
        let is_local = !matches!(broken, Broken::Expired);
        assert_eq!(text.contains(broken.reason()), is_local, "{broken:?}: {text}");

        let fresh = running.authority.issue("fresh", &Leaf::new("fresh"));
        replace(&files.cert, &fs::read_to_string(&fresh.cert).unwrap());
        replace(&files.key, &fs::read_to_string(&fresh.key).unwrap());
        wait::until("the same channel connects", || async {
            check(channel.clone(), "").await.is_ok() && health.is_ready()
        })
        .await;
        let line = log.data_of("test.certificate-unusable").unwrap();
        assert!(line["error"].as_str().unwrap().contains(broken.reason()), "{line}");
        stop.cancel();
        watching.await.unwrap().unwrap();
    }
}

/// The new certificate of a rotation may not be valid yet, or arrive too late.
#[tokio::test]
async fn a_valid_certificate_is_not_replaced_by_an_expired_one() {
    let (log, _control, _guard) = capture();
    let authority = Authority::new("test authority");
    let files = authority.issue("server", &Leaf::new("server"));
    let health = Health::new();
    let tls = ServerTls::follow(SERVER, &files, Alpn::H2).telling(health.component("tls"));
    let stop = CancellationToken::new();
    let watching = spawn(tls.clone().watch(stop.clone()));
    let running = Running::start_with(authority, Some(tls), DRAIN).await;
    let expired = Broken::Expired.files(&running.authority, "expired");
    replace(&files.cert, &fs::read_to_string(&expired.cert).unwrap());
    replace(&files.key, &fs::read_to_string(&expired.key).unwrap());
    let rejected = || async { log.data_of("test.tls-files-rejected").is_some() };
    wait::until("the expired one is rejected", rejected).await;
    let line = log.data_of("test.tls-files-rejected").unwrap();
    assert!(line["error"].as_str().unwrap().contains("expired at 2002"), "{line}");
    check(running.trusted(), "").await.expect("the valid one serves on");
    assert!(health.is_ready());
    stop.cancel();
    watching.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_a_warning() {
    let (log, _control, _guard) = capture();
    let authority = Authority::new("test authority");
    let soon = Leaf::new("soon").with(|params| {
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
        let end = Duration::from_secs(now + 5 * 86_400);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end;
    });
    let files = authority.issue("soon", &soon);
    let stop = CancellationToken::new();
    let watching = spawn(ClientTls::follow(CLIENT, &files).watch(stop.clone()));
    let warned = || async { log.data_of("test.certificate-expires-soon").is_some() };
    wait::until("a warning at the start", warned).await;
    let line = log.data_of("test.certificate-expires-soon").unwrap();
    assert_eq!((&line["tls"], &line["within_days"]), (&"client".into(), &7.into()));
    assert_eq!(line["file"], files.cert.display().to_string());
    stop.cancel();
    watching.await.unwrap().unwrap();
}
