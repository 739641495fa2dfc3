//! The bytes of docs/compatibility/locket.md#wire, and requests that the service lacks.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

use crate::support::{
    raw::{Answer, Raw},
    server::{Server, Site},
};

/// Key `wire`, value `val`, LOCK, 30 seconds, for owner `o1` or `o2`.
fn lock_by(owner: u8) -> Vec<u8> {
    let mut bytes = hex("00 00000015 0a11 0a0477697265 12026f31 1a0376616c 2801 101e");
    bytes[16] = owner;
    bytes
}

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

async fn started() -> (Site, Server, Raw) {
    let site = Site::new();
    let server = site.start();
    let raw = Raw::connect(&server.address, &site.authority.client()).await;
    (site, server, raw)
}

async fn call(raw: &mut Raw, method: &str, body: &[u8]) -> Answer {
    raw.post(&format!("/models.Locket/{method}"), body, |_| ()).await
}

/// A response with a message: headers, body, and status 0 in the trailers.
fn assert_answers(answer: &Answer, body: &str) {
    assert_eq!(answer.status, 200);
    assert_eq!(names_and_values(&answer.headers), [("content-type", "application/grpc")]);
    assert_eq!(answer.body, hex(body), "{answer:?}");
    let trailers = answer.trailers.as_ref().unwrap();
    assert_eq!(names_and_values(trailers), [("grpc-status", "0"), ("grpc-message", "")]);
}

fn assert_refuses(answer: &Answer, code: u32, text: &str) {
    assert_eq!(answer.status, 200);
    let code_text = code.to_string();
    let expected =
        [("content-type", "application/grpc"), ("grpc-status", &code_text), ("grpc-message", text)];
    assert_eq!(names_and_values(&answer.headers), expected);
    assert_eq!(answer.refusal(), (code, text.to_owned()));
}

/// In their order.
fn names_and_values(headers: &HeaderMap) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

#[tokio::test]
async fn answers_have_the_bytes_of_the_original() {
    let (_site, _server, mut raw) = started().await;
    let raw = &mut raw;
    // Field 1000 is the fencing token; everything else is the original's.
    assert_answers(&call(raw, "Lock", &lock_by(b'1')).await, "00 00000003 c03e01");
    assert_refuses(&call(raw, "Lock", &lock_by(b'2')).await, 6, "lock-collision");
    let wire = "0a0477697265 12026f31 1a0376616c 22046c6f636b 2801";
    let fetch = hex("00 00000006 0a0477697265");
    assert_answers(&call(raw, "Fetch", &fetch).await, &format!("00 00000019 0a17 {wire}"));
    let all = hex("00 00000002 1001");
    assert_answers(&call(raw, "FetchAll", &all).await, &format!("00 00000019 0a17 {wire}"));
    assert_refuses(&call(raw, "FetchAll", &hex("00 00000000")).await, 5, "invalid-type");
    // Key `wire` with an owner, as field 1 of the request.
    let release = |owner: &str| hex(&format!("00 0000000c 0a0a 0a0477697265 12026f{owner}"));
    assert_refuses(&call(raw, "Release", &release("32")).await, 6, "lock-collision");
    for _again in 0..2 {
        assert_answers(&call(raw, "Release", &release("31")).await, "00 00000000");
    }
    assert_refuses(&call(raw, "Fetch", &fetch).await, 5, "resource-not-found");
}

#[tokio::test]
async fn every_subtype_of_grpc_is_accepted() {
    let (_site, _server, mut raw) = started().await;
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc+x"] {
        let answer = raw
            .post("/models.Locket/FetchAll", &hex("00 00000002 1001"), |request| {
                let value = HeaderValue::from_static(content_type);
                request.headers_mut().insert("content-type", value);
            })
            .await;
        assert_answers(&answer, "00 00000000");
    }
}

#[tokio::test]
async fn what_is_no_request_gets_the_code_and_text_of_the_original() {
    let (_site, _server, mut raw) = started().await;
    let raw = &mut raw;
    let nothing = hex("00 00000000");
    let unknown = call(raw, "Steal", &nothing).await;
    assert_refuses(&unknown, 12, "unknown method Steal for service models.Locket");
    let unknown = raw.post("/models.Locker/Lock", &nothing, |_| ()).await;
    assert_refuses(&unknown, 12, "unknown service models.Locker");

    let (code, text) = call(raw, "Lock", &hex("00 00000003 ffffff")).await.refusal();
    assert_eq!(code, 13, "{text}");
    assert!(text.starts_with("grpc: error unmarshalling request: "), "{text}");

    let compressed = raw
        .post("/models.Locket/Fetch", &hex("01 00000000"), |request| {
            request.headers_mut().insert("grpc-encoding", HeaderValue::from_static("gzip"));
        })
        .await;
    let text = "grpc: Decompressor is not installed for grpc-encoding \"gzip\"";
    assert_eq!(compressed.refusal(), (12, text.to_owned()));

    let length = 5_u32 << 20;
    let mut huge = vec![0];
    huge.extend(length.to_be_bytes());
    huge.resize(5 + length as usize, b'k');
    let text = "grpc: received message larger than max (5242880 vs. 4194304)";
    assert_refuses(&call(raw, "Fetch", &huge).await, 8, text);

    let get = raw
        .post("/models.Locket/Fetch", &[], |request| {
            *request.method_mut() = Method::GET;
            request.headers_mut().remove("content-type");
        })
        .await;
    assert_eq!((get.status.as_u16(), get.refusal().0), (415, 3), "{get:?}");
    let put = raw.post("/models.Locket/Fetch", &nothing, |request| {
        *request.method_mut() = Method::PUT;
    });
    let put = put.await;
    assert_eq!((put.status.as_u16(), put.refusal().0), (405, 13), "{put:?}");

    // Whatever was wrong, the connection stays open.
    assert_answers(&call(raw, "FetchAll", &hex("00 00000002 1001")).await, "00 00000000");
    assert_eq!(call(raw, "Fetch", &Bytes::from(nothing)).await.refusal().0, 5);
}

/// grpc-go's default server would close such a connection with `too_many_pings`.
#[tokio::test]
async fn frequent_pings_are_not_held_against_a_client() {
    use proto::models::{FetchRequest, locket_client::LocketClient};
    use runtime::{client, tls::ClientTls};
    use std::time::Duration;

    let site = Site::new();
    let server = site.start();
    let tls = ClientTls::load(&site.authority.client()).unwrap();
    let options = client::Options {
        keepalive_interval: Some(Duration::from_millis(10)),
        ..client::Options::default()
    };
    let channel = client::channel(&server.address, Some(tls), options).unwrap();
    let mut watching = proto::lock_v1::lock_watch_client::LockWatchClient::new(channel.clone());
    let selector = Some(proto::lock_v1::watch_request::Selector::TypeCode(1));
    let request = proto::lock_v1::WatchRequest { selector };
    let mut stream = watching.watch(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some(), "the mark");
    // The open watch makes the client ping all the time.
    let quiet = tokio::time::timeout(Duration::from_millis(500), stream.message()).await;
    assert!(quiet.is_err(), "the stream ended: {quiet:?}");
    let key = "nobody's".to_owned();
    let fetched = LocketClient::new(channel).fetch(FetchRequest { key }).await;
    assert_eq!(fetched.unwrap_err().code(), tonic::Code::NotFound);
}
