//! Rejected connections and denied calls, and their log lines.

use proto::models::{
    FetchAllRequest, FetchRequest, LockRequest, ReleaseRequest, Resource,
    locket_client::LocketClient,
};
use rcgen::{DnType, ExtendedKeyUsagePurpose, date_time_ymd};
use runtime::tls::Files;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use crate::support::{
    PATIENCE,
    certificates::Authority,
    raw::{shake_hands, tls},
    server::{Server, Site, channel},
};

/// Tries to connect; returns the local address of the attempt.
async fn attempt(address: &str, config: Option<rustls::ClientConfig>) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let from = stream.local_addr().unwrap().to_string();
    let mut rest = Vec::new();
    let tried = async {
        match config {
            // How an HTTP/2 client without TLS begins.
            None => {
                let mut stream = stream;
                stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
                stream.read_to_end(&mut rest).await
            }
            // In TLS 1.3 the client learns of the rejection only now.
            Some(config) => shake_hands(stream, config).await?.read_to_end(&mut rest).await,
        }
    };
    let tried = timeout(PATIENCE, tried).await.expect("an end");
    assert!(tried.is_err() || rest.len() < 64, "it is served: {rest:?}");
    from
}

fn refusal(server: &mut Server, from: &str) -> Value {
    let line = server.line_where(|line| {
        line["message"] == "locket.tls-handshake-failed" && line["data"]["peer"] == from
    });
    line.unwrap_or_else(|| panic!("no line about {from}"))
}

#[tokio::test]
async fn the_log_says_who_was_refused_and_why() {
    let site = Site::new();
    let mut server = site.start();
    let good = site.authority.client();

    let foreign = Authority::new(site.directory.path(), "foreign");
    let stranger = Files { ca: good.ca.clone(), ..foreign.client() };
    let expired = site.authority.issue_with("expired", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let server_only = site.authority.issue_with("server-only", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name.push(DnType::OrganizationalUnitName, "diego");
    });
    let names = "dns=localhost";
    let table = [
        (Some(tls(&stranger, true)), "UnknownIssuer", Some(format!("cn=client,{names}"))),
        (Some(tls(&expired, true)), "expired", Some(format!("cn=expired,{names}"))),
        (
            Some(tls(&server_only, true)),
            "client authentication",
            Some(format!("cn=server-only,ou=diego,{names}")),
        ),
        (Some(tls(&good, false)), "certificate", None),
        (None, "corrupt message", None),
    ];
    for (config, why, who) in table {
        let from = attempt(&server.address, config).await;
        let line = refusal(&mut server, &from);
        assert_eq!(line["level"], "info");
        assert_eq!(line["data"]["server"], "grpc");
        let error = line["data"]["error"].as_str().unwrap();
        assert!(error.contains(why), "{why}: {line}");
        let names = line["data"].get("certificate").and_then(Value::as_str);
        assert!(names.is_none_or(|names| !names.is_empty()) && names == who.as_deref(), "{line}");
    }
    // Other clients are served meanwhile.
    let mut client = site.client(&server.address);
    let nobody = client.fetch(FetchRequest { key: "k".to_owned() }).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
}

#[tokio::test]
async fn without_h2_there_is_no_conversation() {
    let site = Site::new();
    let mut server = site.start();
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let mut config = tls(&site.authority.client(), true);
        config.alpn_protocols = protocols;
        let from = attempt(&server.address, Some(config)).await;
        refusal(&mut server, &from);
    }
}

fn resource() -> Option<Resource> {
    let (key, owner) = ("k".to_owned(), "o".to_owned());
    Some(Resource { key, owner, type_code: 1, ..Resource::default() })
}

#[tokio::test]
async fn only_listed_certificates_may_write() {
    let site = Site::new();
    let mut config = site.config();
    config["writer_identities"] = json!(["cn=nobody", "cn=client,dns=local*"]);
    let mut server = Server::start(site.command(&config));
    let other = site.authority.issue_with("other", |_| ());
    let mut writer = site.client(&server.address);
    let mut reader = LocketClient::new(channel(&server.address, &other));

    let lock = LockRequest { resource: resource(), ttl_in_seconds: 60 };
    let text = "the peer cn=other,dns=localhost may not write locks";
    let refused = reader.lock(lock.clone()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, text));
    // A client without write access gets no validation error either.
    let nothing = LockRequest::default();
    assert_eq!(reader.lock(nothing).await.unwrap_err().code(), Code::PermissionDenied);
    writer.lock(lock).await.unwrap();
    let release = ReleaseRequest { resource: resource() };
    let refused = reader.release(release.clone()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, text));

    // Reads are open to all.
    let all = FetchAllRequest { type_code: 1, ..FetchAllRequest::default() };
    assert_eq!(reader.fetch_all(all).await.unwrap().into_inner().resources.len(), 1);
    writer.release(release).await.unwrap();
    for message in ["locket.lock.permission-denied", "locket.release.permission-denied"] {
        let line = server.line(message);
        assert_eq!(line["level"], "error");
        let error = format!("rpc error: code = PermissionDenied desc = {text}");
        assert_eq!(line["data"]["error"], error);
    }
}

#[tokio::test]
async fn reading_may_have_a_list_of_its_own() {
    use proto::lock_v1::{
        WatchRequest, lock_watch_client::LockWatchClient, watch_request::Selector,
    };
    let site = Site::new();
    let mut config = site.config();
    config["reader_identities"] = json!(["cn=somebody else"]);
    let server = Server::start(site.command(&config));
    let channel = site.channel(&server.address);
    let mut client = LocketClient::new(channel.clone());
    client.lock(LockRequest { resource: resource(), ttl_in_seconds: 60 }).await.unwrap();
    let fetched = client.fetch(FetchRequest { key: "k".to_owned() }).await.unwrap_err();
    let all = FetchAllRequest { type_code: 1, ..FetchAllRequest::default() };
    let all = client.fetch_all(all).await.unwrap_err();
    let selector = Some(Selector::TypeCode(1));
    let watched = LockWatchClient::new(channel).watch(WatchRequest { selector }).await;
    for refused in [fetched, all, watched.map(drop).unwrap_err()] {
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
}

/// `max_lock_ttl` and `key_identities`; without them the behaviour equals Locket's.
#[tokio::test]
async fn keys_and_times_to_live_can_have_bounds() {
    let site = Site::new();
    let mut config = site.config();
    config["max_lock_ttl"] = json!("1m");
    config["key_identities"] = json!([{ "keys": "sync*", "identities": ["cn=syncer"] }]);
    let mut server = Server::start(site.command(&config));
    let syncer = site.authority.issue_with("syncer", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let mut other = site.client(&server.address);
    let mut syncer = LocketClient::new(channel(&server.address, &syncer));
    let resource = |key: &str| {
        let (key, owner) = (key.to_owned(), "o".to_owned());
        Some(Resource { key, owner, type_code: 1, ..Resource::default() })
    };
    let lock = |key: &str, ttl| LockRequest { resource: resource(key), ttl_in_seconds: ttl };
    let release = |key: &str| ReleaseRequest { resource: resource(key) };

    let century = 100 * 365 * 24 * 60 * 60;
    for (ttl, shown) in [(61, 61), (century, century), (i64::MAX, century)] {
        let error = other.lock(lock("k", ttl)).await.unwrap_err();
        let text = format!("ttl_in_seconds is {shown}, at most 60 is allowed (max_lock_ttl)");
        assert_eq!((error.code(), error.message()), (Code::InvalidArgument, &*text));
    }
    let key = FetchRequest { key: "k".to_owned() };
    assert_eq!(other.fetch(key).await.unwrap_err().code(), Code::NotFound);
    other.lock(lock("k", 60)).await.unwrap();
    // Also a refresh on the fast path.
    assert_eq!(other.lock(lock("k", 61)).await.unwrap_err().code(), Code::InvalidArgument);

    syncer.lock(lock("syncer", 60)).await.unwrap();
    let text = "the peer cn=client,dns=localhost may not write the lock \"syncer\"";
    for error in [
        other.lock(lock("syncer", 60)).await.unwrap_err(),
        other.release(release("syncer")).await.unwrap_err(),
    ] {
        assert_eq!((error.code(), error.message()), (Code::PermissionDenied, text));
    }
    let line = server.line_where(|line| {
        line["message"] == "locket.release.permission-denied"
            && line["data"]["error"].as_str().is_some_and(|error| error.ends_with(text))
    });
    assert!(line.is_some(), "the log names the peer and the key");
    syncer.release(release("syncer")).await.unwrap();
}
