//! Fuzz test of the gRPC services: framing, decoding, handler and encoding.
//!
//! An input is a byte that selects the method, and the body of a request. Allowed results are a
//! list of codes, and a call with an error changes no lock.

use ::fuzz::{Bounds, Fuzz, Language, grpc};
use bytes::Bytes;
use lock_server::{
    feed::Feed,
    grpc::{PreEncoded, Service},
    locks::Locks,
    store::testing::Memory,
};
use proto::{lock_v1::lock_watch_server::LockWatchServer, models::locket_server::LocketServer};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use crate::support::PATIENCE;

const METHODS: [&str; 6] = [
    "/models.Locket/Lock",
    "/models.Locket/Fetch",
    "/models.Locket/Release",
    "/models.Locket/FetchAll",
    "/portcullis.lock.v1.LockWatch/Watch",
    "/models.Locket/Steal",
];
const FETCH_ALL: &str = METHODS[3];
const WATCH: &str = METHODS[4];
/// Codes that clients may get for any input.
const EXPECTED: [Code; 8] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::Unimplemented,
    Code::Internal,
    // A frame whose length exceeds 4 MiB; the server in front returns
    // RESOURCE_EXHAUSTED.
    Code::OutOfRange,
    // A body that ends in the middle of a frame.
    Code::Unknown,
];
/// The locks are discarded after this number of inputs.
const LIFE: u32 = 500;

struct Target {
    locket: PreEncoded<LocketServer<Service<Memory>>>,
    watch: LockWatchServer<Service<Memory>>,
}

impl Target {
    fn new() -> Self {
        let store = Memory::new(Feed::default());
        let service = Service::new(Locks::new(store, PATIENCE), CancellationToken::new());
        let (locket, watch) = service.servers();
        Self { locket: locket.into_service(), watch: watch.into_service() }
    }

    async fn call(&self, path: &str, body: &[u8]) -> (Option<Status>, Bytes) {
        let request = grpc::request(path, body);
        let response = match path {
            WATCH => self.watch.clone().oneshot(request).await.unwrap(),
            _ => self.locket.clone().oneshot(request).await.unwrap(),
        };
        grpc::answer(response).await
    }

    /// All locks and presences.
    async fn all(&self) -> [Bytes; 2] {
        let (_, locks) = self.call(FETCH_ALL, b"\0\0\0\0\x02\x10\x01").await;
        let (_, presences) = self.call(FETCH_ALL, b"\0\0\0\0\x02\x10\x02").await;
        [locks, presences]
    }
}

#[test]
fn bytes_hurt_nobody() {
    let runtime = grpc::runtime();
    let _entered = runtime.enter();
    let (mut target, mut all, mut age) = (Target::new(), [Bytes::new(), Bytes::new()], LIFE);
    // Responses to FetchAll have all locks of the inputs before; tonic allocates a message of up
    // to 4 MiB when it reads the prefix, which the server in front bounds for all connections.
    let bounds = Bounds { allocations: (10_000, 20), bytes: (6 << 20, 200), ..Bounds::default() };
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "lock_grpc", Language::Grpc).bounds(bounds);
    let fuzz = fuzz.tokens(&["lock", "presence", "locks", "cell-1", "owner", "bbs"]).expects(&[
        "/models.Locket/Lock Ok",
        "/models.Locket/Lock InvalidArgument",
        "/models.Locket/Lock AlreadyExists",
        "/models.Locket/Fetch NotFound",
        "/models.Locket/FetchAll Ok",
        "/portcullis.lock.v1.LockWatch/Watch goes on",
        "/models.Locket/Steal Unimplemented",
    ]);
    fuzz.run(|input| {
        let (first, body) = input.split_first().unwrap_or((&0, &[]));
        let path = METHODS[usize::from(*first) % METHODS.len()];
        runtime.block_on(async {
            age += 1;
            if age > LIFE {
                (target, age) = (Target::new(), 0);
                all = target.all().await;
            }
            let (status, _) = target.call(path, body).await;
            let before = std::mem::replace(&mut all, target.all().await);
            let is_error = status.as_ref().is_some_and(|status| status.code() != Code::Ok);
            assert!(!is_error || all == before, "{path}: {status:?}, but the locks changed");
            grpc::outcome(path, status.as_ref(), &EXPECTED)
        })
    });
}
