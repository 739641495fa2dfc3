//! Clients that disconnect, stores that hang, and the resulting metrics and logs.

use std::time::Duration;

use lock_server::{
    feed::{Feed, Subscription},
    grpc::Service,
    lock_version::{LockList, LockVersion, Request},
    locks::Locks,
    store::{Claimed, Error, Expired, Released, Store, testing::Memory},
};
use model::lock::{Claim, LockKey, Owner, Selector};
use proto::models::{LockRequest, Resource, locket_server::Locket};
use runtime::lager;
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, metadata::MetadataValue};

/// A store that never answers a claim.
#[derive(Clone)]
struct Hanging(Memory);

impl Store for Hanging {
    async fn claim(&self, _: Claim, _: Request) -> Result<Claimed, Error> {
        std::future::pending().await
    }

    async fn release(&self, key: &LockKey, owner: &Owner) -> Result<Released, Error> {
        self.0.release(key, owner).await
    }

    async fn expire(&self, seen: &LockVersion) -> Result<Expired, Error> {
        self.0.expire(seen).await
    }

    async fn select(&self, selector: &Selector) -> Result<LockList, Error> {
        self.0.select(selector).await
    }

    async fn watch(&self, selector: &Selector) -> Result<(LockList, Subscription), Error> {
        self.0.watch(selector).await
    }
}

fn service() -> Service<Hanging> {
    let store = Hanging(Memory::new(Feed::default()));
    Service::new(Locks::new(store, Duration::from_secs(10)), CancellationToken::new())
}

fn request() -> tonic::Request<LockRequest> {
    let resource = Resource {
        key: "k".to_owned(),
        owner: "o".to_owned(),
        type_code: 2,
        ..Resource::default()
    };
    let mut request =
        tonic::Request::new(LockRequest { resource: Some(resource), ttl_in_seconds: 15 });
    request.metadata_mut().insert("uuid", MetadataValue::from_static("u-1"));
    request
}

fn options() -> lager::Options {
    lager::Options {
        source: "locket".to_owned(),
        level: lager::Level::Info,
        format: lager::TimeFormat::Rfc3339,
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_the_operation_timeout() {
    let (log, _control, _guard) = lager::capture(options());
    let begun = tokio::time::Instant::now();
    let status = service().lock(request()).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(
        (status.code(), status.message()),
        (Code::DeadlineExceeded, "context deadline exceeded")
    );
    let data = log.data_of("locket.lock.failed-locking-lock").unwrap();
    assert_eq!(
        data,
        json!({
            "error": "context deadline exceeded", "key": "k", "owner": "o",
            "request-uuid": "u-1", "session": "1",
        })
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_is_named() {
    let (log, _control, _guard) = lager::capture(options());
    let service = service();
    let call = timeout(Duration::from_secs(1), service.lock(request())).await;
    assert!(call.is_err());
    assert_eq!(
        log.data_of("locket.context-cancelled").unwrap(),
        json!({
            "request-id": "u-1", "request-type": "Lock",
            "resource-key": "k", "resource-owner": "o",
        })
    );
}
