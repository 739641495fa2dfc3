//! The lock server as an operator uses it: a process, certificates, grpcurl.

use integration_tests::{
    grpcurl::{self, Answer, Target},
    services::{LockServer, Site},
};
use nix::sys::signal::Signal;

fn lock(server: &LockServer, owner: &str, ttl: u32) -> Answer {
    let request = format!(
        r#"{{"resource":{{"key":"k","owner":"{owner}","value":"v","type_code":"LOCK"}},"ttl_in_seconds":{ttl}}}"#
    );
    let target = Target::Tls(&server.address, &server.files);
    grpcurl::run(&target, Some(&request), &["models.Locket/Lock"])
}

/// The recorded calls of a genuine Locket, repeated with a real grpcurl.
#[test]
fn grpcurl_lists_describes_and_calls() {
    let site = Site::new();
    let server = LockServer::start(&site);
    let target = Target::Tls(&server.address, &server.files);

    let list = grpcurl::run(&target, None, &["list"]);
    for service in ["models.Locket", "portcullis.lock.v1.LockWatch", "grpc.health.v1.Health"] {
        assert!(list.stdout.contains(service), "{list:?}");
    }
    let described = grpcurl::run(&target, None, &["describe", "models.Resource"]);
    assert!(described.stdout.contains("string owner = 2"), "{described:?}");

    let taken = lock(&server, "o1", 60);
    assert!(taken.success && taken.stdout.contains(r#""fencingToken": "1""#), "{taken:?}");
    let refused = lock(&server, "o2", 60);
    assert!(!refused.success && refused.stderr.contains("Code: AlreadyExists"), "{refused:?}");
    assert!(refused.stderr.contains("Message: lock-collision"), "{refused:?}");

    let fetch = || grpcurl::run(&target, Some(r#"{"key":"k"}"#), &["models.Locket/Fetch"]);
    let fetched = fetch();
    for part in [r#""key": "k""#, r#""owner": "o1""#, r#""type": "lock""#, r#""typeCode": "LOCK""#]
    {
        assert!(fetched.success && fetched.stdout.contains(part), "{part}: {fetched:?}");
    }
    let all = |kind: &str| {
        let request = format!(r#"{{"type_code":"{kind}"}}"#);
        grpcurl::run(&target, Some(&request), &["models.Locket/FetchAll"])
    };
    let (locks, presences) = (all("LOCK"), all("PRESENCE"));
    assert!(locks.stdout.contains(r#""owner": "o1""#), "{locks:?}");
    assert!(presences.success && !presences.stdout.contains("owner"), "{presences:?}");
    let unknown = all("UNKNOWN");
    assert!(unknown.stderr.contains("Code: NotFound"), "{unknown:?}");
    assert!(unknown.stderr.contains("Message: invalid-type"), "{unknown:?}");

    let missing = grpcurl::run(&target, Some(r#"{"key":"nope"}"#), &["models.Locket/Fetch"]);
    assert!(missing.stderr.contains("Message: resource-not-found"), "{missing:?}");
    let nothing = grpcurl::run(&target, Some("{}"), &["models.Locket/Lock"]);
    assert!(nothing.stderr.contains("Code: InvalidArgument"), "{nothing:?}");
    for service in ["", "models.Locket", "portcullis.lock.v1.LockWatch", "grpc.health.v1.Health"] {
        let request = format!(r#"{{"service":"{service}"}}"#);
        let health = grpcurl::run(&target, Some(&request), &["grpc.health.v1.Health/Check"]);
        assert!(health.stdout.contains("SERVING"), "{service}: {health:?}");
    }
    let watch = ["portcullis.lock.v1.LockWatch/Watch"];
    let events = grpcurl::run_for(3, &target, Some(r#"{"type_code":"LOCK"}"#), &watch);
    assert!(events.stdout.contains("EXISTING") && events.stdout.contains("SYNCED"), "{events:?}");

    let release = |owner: &str| {
        let request = format!(r#"{{"resource":{{"key":"k","owner":"{owner}"}}}}"#);
        grpcurl::run(&target, Some(&request), &["models.Locket/Release"])
    };
    assert!(release("o2").stderr.contains("Message: lock-collision"));
    for _again in 0..2 {
        let released = release("o1");
        assert!(released.success, "{released:?}");
    }
    assert!(fetch().stderr.contains("Message: resource-not-found"));
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let site = Site::new();
    let server = LockServer::start(&site);
    let answer =
        grpcurl::run(&Target::TlsWithoutClient(&server.address, &server.files), None, &["list"]);
    assert!(!answer.success, "{answer:?}");
    let other = Site::new();
    let stranger = other.certificate("stranger");
    let files = certificates::Files { ca: server.files.ca.clone(), ..stranger };
    let answer = grpcurl::run(&Target::Tls(&server.address, &files), None, &["list"]);
    assert!(!answer.success, "{answer:?}");
}

/// Laws 1 and 2 across kill -9: acknowledged locks are kept, and tokens continue.
#[test]
fn an_acknowledged_lock_survives_kill_9() {
    let site = Site::new();
    let mut server = LockServer::start(&site);
    assert!(lock(&server, "o1", 60).success);
    server.process.kill();
    server.restart();
    assert!(lock(&server, "o2", 60).stderr.contains("lock-collision"));

    let release = r#"{"resource":{"key":"k","owner":"o1"}}"#;
    let target = Target::Tls(&server.address, &server.files);
    assert!(grpcurl::run(&target, Some(release), &["models.Locket/Release"]).success);
    server.process.kill();
    server.restart();
    let taken = lock(&server, "o2", 60);
    assert!(taken.stdout.contains(r#""fencingToken": "2""#), "{taken:?}");
}

#[test]
fn sigterm_ends_it_with_0_and_keeps_the_locks() {
    let site = Site::new();
    let mut server = LockServer::start(&site);
    assert!(lock(&server, "o1", 60).success);
    assert_eq!(server.process.terminate().code(), Some(0));
    server.restart();
    assert!(lock(&server, "o2", 60).stderr.contains("lock-collision"));
    server.process.signal(Signal::SIGINT);
    assert_eq!(server.process.wait().code(), Some(0));
}
