//! The services over mutual TLS on the loopback: every code and text of
//! docs/compatibility/locket.md#errors, and LockWatch.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    lock_v1::{
        WatchRequest, WatchResponse, lock_watch_client::LockWatchClient,
        watch_request::Selector as Wanted, watch_response::Kind,
    },
    models::{
        FetchAllRequest, FetchRequest, LockRequest, ReleaseRequest, Resource, TypeCode,
        locket_client::LocketClient,
    },
};
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue, transport::Channel};

use crate::support::{
    PATIENCE,
    certificates::Authority,
    server::{Site, channel},
};

type Client = LocketClient<Channel>;

#[expect(deprecated, reason = "clients still send `type`")]
fn resource(key: &str, owner: &str, value: &str, code: i32) -> Resource {
    Resource {
        key: key.to_owned(),
        owner: owner.to_owned(),
        value: value.to_owned(),
        r#type: "whut".to_owned(),
        type_code: code,
    }
}

fn request(resource: Resource, ttl: i64) -> LockRequest {
    LockRequest { resource: Some(resource), ttl_in_seconds: ttl }
}

async fn lock(client: &mut Client, key: &str, owner: &str) -> Result<u64, Status> {
    let answer = client.lock(request(resource(key, owner, "v", 1), 60)).await?;
    Ok(answer.into_inner().fencing_token)
}

async fn release(client: &mut Client, key: &str, owner: &str) -> Result<(), Status> {
    let resource = Some(resource(key, owner, "other", 0));
    client.release(ReleaseRequest { resource }).await.map(drop)
}

async fn fetch(client: &mut Client, key: &str) -> Result<Resource, Status> {
    let answer = client.fetch(FetchRequest { key: key.to_owned() }).await?;
    Ok(answer.into_inner().resource.expect("it is always there"))
}

#[expect(deprecated, reason = "clients still send `type`")]
async fn fetch_all(client: &mut Client, code: i32) -> Result<Vec<Resource>, Status> {
    let request = FetchAllRequest { r#type: "presence".to_owned(), type_code: code };
    Ok(client.fetch_all(request).await?.into_inner().resources)
}

/// Code and text of an error response.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}

fn is(code: Code, text: &str) -> (Code, String) {
    (code, text.to_owned())
}

#[tokio::test]
#[expect(deprecated, reason = "`type` is part of the answers")]
async fn the_recorded_conversation() {
    let site = Site::new();
    let server = site.start();
    let mut client = site.client(&server.address);

    assert_eq!(lock(&mut client, "k1", "o1").await.unwrap(), 1);
    let again = client.lock(request(resource("k1", "o1", "v2", 1), 60)).await.unwrap();
    assert_eq!(again.into_inner().fencing_token, 1);
    assert_eq!(
        refused(lock(&mut client, "k1", "o2").await),
        is(Code::AlreadyExists, "lock-collision")
    );
    let expected = Resource { r#type: "lock".to_owned(), ..resource("k1", "o1", "v2", 1) };
    assert_eq!(fetch(&mut client, "k1").await.unwrap(), expected);
    assert_eq!(refused(fetch(&mut client, "nope").await), is(Code::NotFound, "resource-not-found"));
    assert_eq!(fetch_all(&mut client, 1).await.unwrap(), [expected]);
    assert_eq!(fetch_all(&mut client, 2).await.unwrap(), []);
    assert_eq!(
        refused(release(&mut client, "k1", "o2").await),
        is(Code::AlreadyExists, "lock-collision")
    );
    release(&mut client, "k1", "o1").await.unwrap();
    release(&mut client, "k1", "o1").await.unwrap();
    assert_eq!(lock(&mut client, "k1", "o2").await.unwrap(), 2);
}

/// Every error response, in the order of the original's checks.
#[tokio::test]
async fn refusals() {
    let site = Site::new();
    let server = site.start();
    let mut client = site.client(&server.address);
    let long = "ü".repeat(256);
    let too_long = |field: &str| {
        is(Code::InvalidArgument, &format!("{field} has 256 characters, at most 255 are allowed"))
    };
    let invalid_type = is(Code::NotFound, "invalid-type");
    let table = [
        (request(resource("k", "", "v", 0), 0), invalid_type.clone()),
        (request(resource("k", "o", "v", 3), 60), invalid_type.clone()),
        (request(resource("k", "o", "v", -1), 60), invalid_type.clone()),
        (request(resource("k", "", "v", 1), 0), is(Code::InvalidArgument, "invalid-ttl")),
        (request(resource("k", "", "v", 2), i64::MIN), is(Code::InvalidArgument, "invalid-ttl")),
        (request(resource("k", "", "v", 1), 1), is(Code::InvalidArgument, "invalid-owner")),
        (request(resource(&long, "o", "v", 1), 1), too_long("key")),
        (request(resource("k", &long, "v", 1), 1), too_long("owner")),
        (
            request(resource("k", "o", &"v".repeat(4097), 1), 1),
            is(Code::InvalidArgument, "value has 4097 characters, at most 4096 are allowed"),
        ),
        (LockRequest::default(), is(Code::InvalidArgument, "invalid-request")),
    ];
    for (request, expected) in table {
        let answer = client.lock(request.clone()).await;
        assert_eq!(refused(answer), expected, "{request:?}");
    }
    let none = client.release(ReleaseRequest { resource: None }).await;
    assert_eq!(refused(none), is(Code::InvalidArgument, "invalid-request"));
    for code in [0, 3, -1] {
        assert_eq!(refused(fetch_all(&mut client, code).await), invalid_type);
    }
    assert_eq!(refused(fetch(&mut client, &long).await), is(Code::NotFound, "resource-not-found"));
    // No request took effect, and the server still works.
    assert_eq!(fetch_all(&mut client, 1).await.unwrap(), []);
    release(&mut client, &long, "").await.unwrap();
    release(&mut client, "k", "").await.unwrap();
    lock(&mut client, "k", "o").await.unwrap();
    for nobody in ["", &long] {
        let collision = is(Code::AlreadyExists, "lock-collision");
        assert_eq!(refused(release(&mut client, "k", nobody).await), collision);
    }
}

/// State of a key before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    NeverHeld,
    GivenBack,
    Mine,
    MyPresence,
    Theirs,
    TheirPresence,
}

impl State {
    const ALL: [Self; 6] = [
        Self::NeverHeld,
        Self::GivenBack,
        Self::Mine,
        Self::MyPresence,
        Self::Theirs,
        Self::TheirPresence,
    ];

    async fn make(self, client: &mut Client, key: &str) {
        let (owner, code) = match self {
            Self::NeverHeld => return,
            Self::GivenBack | Self::Mine => ("me", 1),
            Self::MyPresence => ("me", 2),
            Self::Theirs => ("they", 1),
            Self::TheirPresence => ("they", 2),
        };
        client.lock(request(resource(key, owner, "v", code), 60)).await.unwrap();
        if matches!(self, Self::GivenBack) {
            release(client, key, owner).await.unwrap();
        }
    }
}

fn outcome<T>(answer: Result<T, Status>) -> (Code, String) {
    match answer {
        Ok(_) => is(Code::Ok, ""),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}

/// Contracts/locket.md 1.1: the response to each request in each state of the key.
#[tokio::test]
async fn every_request_in_every_state() {
    let site = Site::new();
    let server = site.start();
    let mut client = site.client(&server.address);
    let (fine, collision) = (is(Code::Ok, ""), is(Code::AlreadyExists, "lock-collision"));
    let absent = is(Code::NotFound, "resource-not-found");
    let (no_type, no_ttl) =
        (is(Code::NotFound, "invalid-type"), is(Code::InvalidArgument, "invalid-ttl"));
    let no_owner = is(Code::InvalidArgument, "invalid-owner");
    for state in State::ALL {
        // Lock as a lock and as a presence, Fetch, Release; a malformed request never reads
        // the key.
        let (locked, fetched, released) = match state {
            State::NeverHeld | State::GivenBack => (&fine, &absent, &fine),
            State::Mine | State::MyPresence => (&fine, &fine, &fine),
            State::Theirs | State::TheirPresence => (&collision, &fine, &collision),
        };
        let locks = [
            ("me", 1, 60, locked),
            ("me", 2, 60, locked),
            ("me", 0, 60, &no_type),
            ("me", 3, 60, &no_type),
            ("me", 1, 0, &no_ttl),
            ("me", 2, -1, &no_ttl),
            ("", 1, 60, &no_owner),
        ];
        for (number, (owner, code, ttl, expected)) in locks.into_iter().enumerate() {
            let key = format!("lock {state:?} {number}");
            state.make(&mut client, &key).await;
            let answer = client.lock(request(resource(&key, owner, "w", code), ttl)).await;
            assert_eq!(&outcome(answer), expected, "Lock {owner:?} {code} {ttl} {state:?}");
        }
        let key = format!("other {state:?}");
        state.make(&mut client, &key).await;
        assert_eq!(&outcome(fetch(&mut client, &key).await), fetched, "Fetch {state:?}");
        for (code, kind) in
            [(1, [State::Mine, State::Theirs]), (2, [State::MyPresence, State::TheirPresence])]
        {
            let all = fetch_all(&mut client, code).await.unwrap();
            let is_there = all.iter().any(|resource| resource.key == key);
            assert_eq!(is_there, kind.contains(&state), "FetchAll {code} {state:?}");
        }
        for code in [0, 3] {
            assert_eq!(outcome(fetch_all(&mut client, code).await), no_type);
        }
        let nobodys = release(&mut client, &key, "nobody").await;
        let expected = if fetched == &absent { &fine } else { &collision };
        assert_eq!(&outcome(nobodys), expected, "Release by nobody {state:?}");
        let answer = release(&mut client, &key, "me").await;
        assert_eq!(&outcome(answer), released, "Release {state:?}");
    }
}

#[tokio::test]
async fn legal_if_odd() {
    let site = Site::new();
    let server = site.start();
    let mut client = site.client(&server.address);
    lock(&mut client, "", "o").await.unwrap();
    assert_eq!(fetch(&mut client, "").await.unwrap().key, "");
    lock(&mut client, "nul\0", "o").await.unwrap();
    assert_eq!(fetch(&mut client, "nul\0").await.unwrap().key, "nul\0");
    let longest = request(resource(&"ü".repeat(255), &"ü".repeat(255), &"ü".repeat(4096), 2), 1);
    client.lock(longest).await.unwrap();
    // The original expires this one at once.
    client.lock(request(resource("for ever", "o", "", 1), i64::MAX)).await.unwrap();
    lock(&mut client, "later", "o").await.unwrap();
    assert_eq!(fetch(&mut client, "for ever").await.unwrap().owner, "o");
    // The owner may change the kind.
    client.lock(request(resource("", "o", "v", 2), 60)).await.unwrap();
    assert_eq!(fetch(&mut client, "").await.unwrap().type_code, 2);
}

#[tokio::test]
async fn a_lock_expires_and_its_next_owner_has_a_higher_token() {
    let site = Site::new();
    let mut server = site.start();
    let mut client = site.client(&server.address);
    let mut short = Request::new(request(resource("k", "o", "v", 2), 1));
    short.metadata_mut().insert("uuid", MetadataValue::from_static("not a real uuid"));
    let first = client.lock(short).await.unwrap().into_inner().fencing_token;
    let second = timeout(PATIENCE, async {
        loop {
            match lock(&mut client, "k", "p").await {
                Ok(token) => return token,
                Err(status) => assert_eq!(status.code(), Code::AlreadyExists),
            }
        }
    });
    assert_eq!(second.await.unwrap(), first + 1);

    let line = server.line("locket.lock.register-ttl.lock-expired");
    assert_eq!(line["level"], "info");
    let data: BTreeMap<_, _> =
        line["data"].as_object().unwrap().iter().filter(|(name, _)| *name != "session").collect();
    let expected = serde_json::json!({
        "key": "k", "modified-index": 1, "request-uuid": "not a real uuid", "type": "presence",
    });
    assert_eq!(data, expected.as_object().unwrap().iter().collect());
}

async fn watch(channel: &Channel, wanted: Wanted) -> Streaming<WatchResponse> {
    let request = WatchRequest { selector: Some(wanted) };
    LockWatchClient::new(channel.clone()).watch(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<WatchResponse>) -> (Kind, String, u64) {
    let response = timeout(PATIENCE, stream.message()).await.unwrap().unwrap().expect("goes on");
    let owner = response.resource.map(|resource| resource.owner).unwrap_or_default();
    (Kind::try_from(response.kind).unwrap(), owner, response.fencing_token)
}

fn event(kind: Kind, owner: &str, token: u64) -> (Kind, String, u64) {
    (kind, owner.to_owned(), token)
}

#[tokio::test]
async fn a_watcher_learns_of_everything_in_its_order() {
    let site = Site::new();
    let server = site.start();
    let channel = site.channel(&server.address);
    let mut client = LocketClient::new(channel.clone());
    lock(&mut client, "k", "a").await.unwrap();

    let mut one = watch(&channel, Wanted::Key("k".to_owned())).await;
    let mut none = watch(&channel, Wanted::Key("absent".to_owned())).await;
    let mut locks = watch(&channel, Wanted::TypeCode(TypeCode::Lock.into())).await;
    assert_eq!(next(&mut none).await, event(Kind::Synced, "", 0));
    for stream in [&mut one, &mut locks] {
        assert_eq!(next(stream).await, event(Kind::Existing, "a", 1));
        assert_eq!(next(stream).await, event(Kind::Synced, "", 0));
    }
    lock(&mut client, "k", "a").await.unwrap();
    client.lock(request(resource("k", "a", "other", 1), 60)).await.unwrap();
    release(&mut client, "k", "a").await.unwrap();
    client.lock(request(resource("k", "b", "v", 1), 1)).await.unwrap();
    for stream in [&mut one, &mut locks] {
        assert_eq!(next(stream).await, event(Kind::Updated, "a", 1));
        assert_eq!(next(stream).await, event(Kind::Released, "a", 1));
        assert_eq!(next(stream).await, event(Kind::Acquired, "b", 2));
        assert_eq!(next(stream).await, event(Kind::Expired, "b", 2));
    }
    let quiet = timeout(Duration::from_millis(50), none.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");

    let nothing = WatchRequest { selector: None };
    let answer = LockWatchClient::new(channel).watch(nothing).await.map(drop);
    assert_eq!(refused(answer), is(Code::InvalidArgument, "selector is missing"));
}

#[tokio::test]
async fn only_certificates_of_the_authority_are_served() {
    let site = Site::new();
    let server = site.start();
    let foreign = Authority::new(site.directory.path(), "foreign");
    let mut files = foreign.client();
    files.ca = site.authority.client().ca;
    let mut stranger = LocketClient::new(channel(&server.address, &files));
    assert_ne!(refused(fetch(&mut stranger, "k").await).0, Code::NotFound);

    let server_only = site.authority.server();
    let mut no_client = LocketClient::new(channel(&server.address, &server_only));
    assert_ne!(refused(fetch(&mut no_client, "k").await).0, Code::NotFound);

    let plain = runtime::client::channel(&server.address, None, Default::default()).unwrap();
    assert_ne!(refused(fetch(&mut LocketClient::new(plain), "k").await).0, Code::NotFound);

    let mut client = site.client(&server.address);
    assert_eq!(refused(fetch(&mut client, "k").await).0, Code::NotFound);
}

#[tokio::test]
async fn log_lines_have_the_names_and_data_of_the_original() {
    let site = Site::new();
    let mut server = site.start();
    let mut client = site.client(&server.address);
    let mut with_uuid = Request::new(request(resource("k", "o", "v", 1), 60));
    with_uuid.metadata_mut().insert("uuid", MetadataValue::from_static("u-1"));
    client.lock(with_uuid).await.unwrap();
    lock(&mut client, "k", "o").await.unwrap();
    refused(lock(&mut client, "k", "p").await);
    refused(lock(&mut client, "k", "").await);
    refused(release(&mut client, "k", "p").await);
    release(&mut client, "k", "o").await.unwrap();
    release(&mut client, "k", "o").await.unwrap();
    refused(fetch(&mut client, "k").await);
    refused(fetch_all(&mut client, 0).await);

    let shown = |line: &serde_json::Value| {
        let mut data = line["data"].clone();
        let session = data.as_object_mut().unwrap().remove("session");
        assert!(session.is_some(), "{line}");
        (line["level"].as_str().unwrap().to_owned(), data)
    };
    let expected = [
        (
            "lock.lock.acquired-lock",
            "info",
            serde_json::json!({"key": "k", "owner": "o", "request-uuid": "u-1", "type-code": 1}),
        ),
        (
            "lock.invalid-request",
            "error",
            serde_json::json!({
                "error": "rpc error: code = InvalidArgument desc = invalid-owner", "typeCode": 1,
            }),
        ),
        (
            "release.release-lock.cannot-release-lock",
            "info",
            serde_json::json!({"key": "k", "owner": "p", "type-code": 0}),
        ),
        (
            "release.release-lock.released-lock",
            "info",
            serde_json::json!({"key": "k", "owner": "o", "type-code": 0}),
        ),
        (
            "release.release-lock.lock-does-not-exist",
            "debug",
            serde_json::json!({"key": "k", "owner": "o", "type-code": 0}),
        ),
        (
            "fetch.fetch-lock.failed-to-fetch-lock",
            "debug",
            serde_json::json!({
                "error": "rpc error: code = NotFound desc = resource-not-found", "key": "k",
            }),
        ),
        (
            "fetch-all.invalid-request",
            "error",
            serde_json::json!({
                "error": "rpc error: code = NotFound desc = invalid-type", "typeCode": 0,
            }),
        ),
        ("lock.started", "debug", serde_json::json!({})),
        ("fetch-all.complete", "debug", serde_json::json!({})),
    ];
    for (message, level, data) in expected {
        let line = server.line(&format!("locket.{message}"));
        assert_eq!(shown(&line), (level.to_owned(), data), "{message}");
    }
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (status, lines) = server.end().await;
    assert_eq!(status.code(), Some(0));
    let count = |message| lines.iter().filter(|line| line["message"] == message).count();
    assert_eq!(count("locket.lock.lock.acquired-lock"), 1, "refreshes are silent");
    assert_eq!(count("locket.lock.failed-locking-lock"), 0, "a collision is no failure");
}
