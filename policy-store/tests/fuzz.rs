//! Fuzz tests of what clients and databases send.

use std::{collections::BTreeSet, io::Read as _, sync::Arc, time::Duration};

use ::fuzz::{Bounds, Fuzz, Language, grpc};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{Request, StatusCode, header::CONTENT_ENCODING};
use model::{group::SecurityGroup, trace::TraceContext};
use policy_store::{
    access::{Access, CellIdentity, Pattern},
    config::Replaces,
    groups::snapshot::Snapshot,
    grpc::{Foundation, PolicyStore},
    http::{Api, admission::Admission, tags::Tags},
};
use prost::Message as _;
use proto::policy_v1::{
    foundation_server::FoundationServer, policy_store_server::PolicyStoreServer,
};
use runtime::tls::{Identity, Peer};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::support::{
    http::Answer,
    served::Served,
    sets::{Set, bound, global, set},
};

/// The state is discarded after this number of inputs.
const LIFE: u32 = 200;
/// Codes that clients may get for any input.
const EXPECTED: [Code; 9] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    Code::FailedPrecondition,
    Code::Unavailable,
    Code::Unimplemented,
    // A body that is not protobuf, or ends in the middle of a message.
    Code::Internal,
    Code::Unknown,
    // A frame whose length exceeds the limit; the server in front returns RESOURCE_EXHAUSTED.
    Code::OutOfRange,
];

/// Paths of all methods, and of one that does not exist; an input selects one by its first byte.
fn paths() -> Vec<String> {
    let descriptors = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let files = descriptors.file.iter().filter(|file| file.package() == "portcullis.policy.v1");
    let methods = files.flat_map(|file| &file.service).flat_map(|service| {
        let path = |method: &prost_types::MethodDescriptorProto| {
            format!("/portcullis.policy.v1.{}/{}", service.name(), method.name())
        };
        service.method.iter().map(path)
    });
    methods.chain(["/portcullis.policy.v1.PolicyStore/Steal".to_owned()]).collect()
}

/// Names of all fields, in lower case.
fn fields() -> BTreeSet<String> {
    fn add(names: &mut BTreeSet<String>, message: &prost_types::DescriptorProto) {
        names.extend(message.field.iter().map(|field| field.name().to_ascii_lowercase()));
        message.nested_type.iter().for_each(|nested| add(names, nested));
    }
    let descriptors = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let mut names = BTreeSet::new();
    let messages = descriptors.file.iter().flat_map(|file| &file.message_type);
    messages.for_each(|message| add(&mut names, message));
    names
}

fn groups() -> Set {
    set([global("g1", "one"), bound("g2", "two", &["s1"]), bound("g3", "three", &["s1", "s2"])])
}

fn peer() -> Peer {
    let identity = Identity { common_name: Some("fuzz".to_owned()), ..Identity::default() };
    Peer { identity: Some(Arc::new(identity)), ..Peer::default() }
}

/// Admits everybody to everything.
fn access() -> Access {
    let all: Vec<Pattern> = vec!["cn=fuzz".parse().unwrap()];
    Access {
        writers: all.clone(),
        cells: all.clone(),
        operators: all,
        pollers: None,
        cell_identity: CellIdentity::Unproven,
    }
}

struct Target {
    served: Served,
    store: PolicyStoreServer<PolicyStore>,
    foundation: FoundationServer<Foundation>,
}

impl Target {
    async fn new() -> Self {
        let served = Served::start();
        served.replace(&groups()).await;
        let feed = served.feed(&CancellationToken::new());
        let bounds = Replaces { timeout: Duration::from_secs(60), token_step: None };
        let store = Arc::new(served.store.clone());
        let store = PolicyStore::new(access(), feed, served.commits.clone(), store, bounds);
        let foundation = FoundationServer::new(store.foundation());
        Self { served, store: PolicyStoreServer::new(store), foundation }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.served.board.current()
    }

    async fn call(&mut self, path: &str, body: &[u8]) -> (Option<Status>, Bytes) {
        let mut request = grpc::request(path, body);
        request.extensions_mut().insert(peer());
        let Ok(response) = match path.contains("Foundation") {
            true => tower::Service::call(&mut self.foundation, request).await,
            false => tower::Service::call(&mut self.store, request).await,
        };
        grpc::answer(response).await
    }
}

/// An error is one of the expected codes and names a field; after an error of a unary call or of
/// a Replace the groups are the same.
#[test]
fn requests() {
    let runtime = grpc::runtime();
    let _entered = runtime.enter();
    let (paths, fields) = (paths(), fields());
    let mut target = runtime.block_on(Target::new());
    let mut age = 0;
    // Responses have the groups of all inputs before; tonic allocates a message of up to 4 MiB
    // when it reads the prefix, which the server in front bounds for all connections.
    let bounds = Bounds { allocations: (50_000, 50), bytes: (6 << 20, 400), ..Bounds::default() };
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "store_grpc", Language::Grpc).bounds(bounds);
    let fuzz = fuzz.tokens(&[
        "g1",
        "g2",
        "g3",
        "s1",
        "s2",
        "cell-1",
        "c1",
        "tcp",
        "udp",
        "icmp",
        "all",
        "10.0.0.1",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "::1",
        "1-65535",
        "443",
        "syncer-a",
        "app-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ]);
    let fuzz = fuzz.expects(&[
        "/portcullis.policy.v1.PolicyStore/Replace Ok",
        "/portcullis.policy.v1.PolicyStore/Watch goes on",
        "/portcullis.policy.v1.PolicyStore/List Ok",
        "/portcullis.policy.v1.PolicyStore/Status Ok",
        "/portcullis.policy.v1.PolicyStore/Steal Unimplemented",
        "/portcullis.policy.v1.Foundation/Explain Ok",
        "/portcullis.policy.v1.Foundation/Reach Ok",
        "/portcullis.policy.v1.Foundation/Cells Ok",
        "/portcullis.policy.v1.Foundation/Containers Ok",
        "/portcullis.policy.v1.Foundation/Changes Ok",
        "/portcullis.policy.v1.Foundation/Changes goes on",
        "/portcullis.policy.v1.Foundation/Freeze Ok",
        "/portcullis.policy.v1.Foundation/Unfreeze Ok",
        "/portcullis.policy.v1.Foundation/FinishRollout",
        "/portcullis.policy.v1.Foundation/AskCell",
        "/portcullis.policy.v1.Foundation/WhatIf Ok",
        "/portcullis.policy.v1.Foundation/AcceptRemoval",
        "/portcullis.policy.v1.Foundation/History Ok",
        "/portcullis.policy.v1.Foundation/Difference Ok",
        "/portcullis.policy.v1.Foundation/Unused Ok",
    ]);
    fuzz.run(|input| {
        let (first, body) = input.split_first().unwrap_or((&0, &[]));
        let path = &paths[usize::from(*first) % paths.len()];
        runtime.block_on(async {
            age += 1;
            if age > LIFE {
                (target, age) = (Target::new().await, 0);
            }
            let before = target.snapshot();
            let (status, body) = target.call(path, body).await;
            let _whole = grpc::messages(&body);
            if let Some(status) = status.as_ref().filter(|status| status.code() != Code::Ok) {
                let same = Arc::ptr_eq(&before, &target.snapshot());
                assert!(same, "{path}: {status:?}, but the groups changed");
                let mut words = status.message().split(|c: char| c != '_' && !c.is_alphanumeric());
                let names = words.any(|word| fields.contains(&word.to_ascii_lowercase()));
                let is_argument = status.code() == Code::InvalidArgument;
                assert!(names || !is_argument, "{path}: no field in {:?}", status.message());
            }
            grpc::outcome(path, status.as_ref(), &EXPECTED)
        })
    });
}

/// A request as a text: method and target, headers, an empty line, and the body.
fn http_request(input: &[u8]) -> Option<Request<axum::body::Body>> {
    let end = input.windows(2).position(|bytes| bytes == b"\n\n").unwrap_or(input.len());
    let (head, body) = input.split_at(end);
    let mut lines = std::str::from_utf8(head).ok()?.lines();
    let (method, target) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(target).extension(peer());
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    let body = Bytes::copy_from_slice(body.get(2..).unwrap_or_default());
    request.body(body.into()).ok()
}

/// A response with groups is the JSON that a polling agent reads, also compressed; an error has a
/// JSON text.
#[test]
fn http_queries() {
    let runtime = grpc::runtime();
    let _entered = runtime.enter();
    let served = Served::start();
    runtime.block_on(served.replace(&groups()));
    let gate = Admission::new(8, Duration::from_secs(1));
    let api = Api::new(access(), Arc::clone(&served.board), gate, Tags::new(2));
    let router = api.router();
    // The compressor has tables of some 300 KB.
    let bounds = Bounds { bytes: (1 << 20, 200), ..Bounds::default() };
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "store_http", Language::Text).bounds(bounds);
    let fuzz = fuzz.tokens(&[
        "/networking/v1/internal/security_groups",
        "space_guids",
        "per_page",
        "limit",
        "from",
        "s1,s2",
        "%2c",
        "%",
        "+",
        "GET",
        "PUT",
        "Accept-Encoding",
        "gzip;q=0",
        "identity",
        "*",
        "X-Vcap-Request-Id",
        "id",
        "type",
        "{\"id\":\"a\",\"type\":\"router\"}",
    ]);
    let fuzz = fuzz.expects(&["200 {\"next\"", "200 1", "200 {\"id\"", "404", "405", "400", "500"]);
    fuzz.run(|input| {
        let Some(request) = http_request(input) else { return "no request".to_owned() };
        let is_list = request.uri().path().contains("security_groups");
        runtime.block_on(async {
            let Ok(response) = tower::ServiceExt::oneshot(router.clone(), request).await;
            let status = response.status();
            let is_zipped = response.headers().contains_key(CONTENT_ENCODING);
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            let mut text = String::new();
            match is_zipped {
                true => drop(MultiGzDecoder::new(&*body).read_to_string(&mut text).unwrap()),
                false => text.push_str(std::str::from_utf8(&body).unwrap()),
            }
            if status == StatusCode::OK && is_list && text.starts_with('{') {
                let answer: Answer = serde_json::from_str(&text).unwrap();
                assert!(answer.security_groups.len() <= 3, "{text}");
            } else if status.is_server_error() || status == StatusCode::BAD_REQUEST {
                let error: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert!(error["error"].is_string(), "{text}");
            }
            format!("{} {text}", status.as_u16())
        })
    });
}

/// A group that is valid stays the same on its way through model, wire and JSON; the error of an
/// invalid one names the field.
#[test]
fn stored_groups() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "group", Language::Message);
    fuzz.expects(&["group", "guid", "error: group"]).run(|input| {
        let message = match proto::decode_group(Bytes::copy_from_slice(input)) {
            Ok(message) => message,
            Err(error) => return format!("error: {error}"),
        };
        let json = policy_store::groups::json::to_text(&message);
        let _valid: crate::support::http::Group = serde_json::from_str(&json).unwrap();
        let group = match SecurityGroup::try_from(message) {
            Ok(group) => group,
            Err(error) => return error.to_string(),
        };
        let encoded = proto::encode_group(group.clone());
        assert_eq!(proto::group_name(encoded.clone()), group.name);
        let back = SecurityGroup::try_from(proto::decode_group(encoded).unwrap()).unwrap();
        assert_eq!(back.content_hash(), group.content_hash());
        assert_eq!(back, group);
        "group".to_owned()
    });
}

/// A trace context that is accepted is written as it was read.
#[test]
fn trace_contexts() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "traceparent", Language::Text);
    fuzz.tokens(&["00", "ff", "-", "01"]).expects(&["trace", "none"]).run(|input| {
        let text = String::from_utf8_lossy(input);
        let Some(trace) = TraceContext::parse(&text) else { return "none".to_owned() };
        assert_eq!(TraceContext::parse(&trace.to_string()), Some(trace));
        "trace".to_owned()
    });
}
