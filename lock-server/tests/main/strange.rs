//! Malformed bytes and fields: error responses, never a panic.

use lock_server::{feed::Feed, grpc::Service, locks::Locks, store::testing::Memory};
use proptest::prelude::*;
use prost::Message;
use proto::{
    lock_v1::{WatchRequest, lock_watch_server::LockWatch},
    models::{
        FetchAllRequest, FetchRequest, LockRequest, ReleaseRequest, Resource, locket_server::Locket,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_prost::ProstCodec;

use crate::support::{PATIENCE, server::Site};

fn service() -> Service<Memory> {
    let store = Memory::new(Feed::default());
    Service::new(Locks::new(store, PATIENCE), CancellationToken::new())
}

/// Allowed codes for a request that the server could decode.
fn expected<T>(answer: &Result<Response<T>, Status>) -> bool {
    match answer {
        Ok(_) => true,
        Err(status) => {
            matches!(status.code(), Code::InvalidArgument | Code::NotFound | Code::AlreadyExists)
        }
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        Just("k".to_owned()),
        (0..5_000_usize).prop_map(|length| "ü".repeat(length)),
    ]
}

#[expect(deprecated, reason = "clients still send `type`")]
fn resource() -> impl Strategy<Value = Option<Resource>> {
    let fields = (text(), text(), text(), any::<String>(), prop_oneof![0..4, any::<i32>()]);
    let resource = fields.prop_map(|(key, owner, value, r#type, type_code)| Resource {
        key,
        owner,
        value,
        r#type,
        type_code,
    });
    prop::option::weighted(0.95, resource)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

proptest! {
    #[test]
    fn any_fields(
        requests in prop::collection::vec((resource(), any::<i64>(), any::<i64>()), 1..8),
    ) {
        block_on(async {
            let service = service();
            for (resource, ttl, small) in requests {
                for ttl_in_seconds in [ttl, small % 3] {
                    let request = LockRequest { resource: resource.clone(), ttl_in_seconds };
                    assert!(expected(&service.lock(Request::new(request)).await));
                }
                let key = resource.clone().unwrap_or_default().key;
                assert!(expected(&service.fetch(Request::new(FetchRequest { key })).await));
                let request = ReleaseRequest { resource };
                assert!(expected(&service.release(Request::new(request)).await));
            }
        });
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        block_on(async {
            let service = service();
            if let Ok(request) = LockRequest::decode(bytes.as_slice()) {
                assert!(expected(&service.lock(Request::new(request)).await));
            }
            if let Ok(request) = ReleaseRequest::decode(bytes.as_slice()) {
                assert!(expected(&service.release(Request::new(request)).await));
            }
            if let Ok(request) = FetchRequest::decode(bytes.as_slice()) {
                assert!(expected(&service.fetch(Request::new(request)).await));
            }
            if let Ok(request) = FetchAllRequest::decode(bytes.as_slice()) {
                assert!(expected(&service.fetch_all(Request::new(request)).await));
            }
            if let Ok(request) = WatchRequest::decode(bytes.as_slice()) {
                assert!(expected(&service.watch(Request::new(request)).await));
            }
        });
    }
}

/// Sends `bytes` as field 1 of a message to any method.
async fn send(channel: &Channel, path: &'static str, bytes: Vec<u8>) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    // A byte vector encodes like a message whose field 1 holds the bytes.
    let codec = ProstCodec::<Vec<u8>, ()>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    client.unary(Request::new(bytes), path, codec).await.unwrap_err()
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_and_hurts_nobody() {
    let site = Site::new();
    let server = site.start();
    let channel = site.channel(&server.address);
    let malformed = send(&channel, "/models.Locket/Lock", vec![0xff; 3]).await;
    assert_eq!(malformed.code(), Code::Internal, "{malformed}");
    let huge = send(&channel, "/models.Locket/Fetch", vec![b'k'; 5 << 20]).await;
    assert_eq!(huge.code(), Code::ResourceExhausted, "{huge}");
    let unknown = send(&channel, "/models.Locket/Steal", vec![]).await;
    assert_eq!(unknown.code(), Code::Unimplemented, "{unknown}");
    let mut client = site.client(&server.address);
    let nobody = client.fetch(FetchRequest { key: "k".to_owned() }).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
}
