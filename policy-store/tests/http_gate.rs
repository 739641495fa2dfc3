//! Admission control: too many readers, readers that disconnect, readers that stall.

use std::{sync::Arc, time::Duration};

use policy_store::{
    access::{Access, CellIdentity},
    groups::{current::SnapshotPublisher, snapshot::Snapshot},
    http::{Api, admission::Admission, tags::Tags},
    store::{Store as _, testing::Memory},
};
use reqwest::{Method, Response, StatusCode};
use runtime::{
    server::{Http, Limits, Listener},
    tls::{Alpn, ServerTls},
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::support::{
    http::Poller,
    sets::{named, replacement},
    site::Site,
};

const GROUPS: &str = "/networking/v1/internal/security_groups";

/// One permit, and more text than sockets and buffers hold.
struct Crowded {
    site: Site,
    address: String,
    running: JoinSet<()>,
}

impl Crowded {
    async fn start(patience: Duration, stall: Duration) -> Self {
        let site = Site::new();
        let store = Memory::default();
        let mut groups = named(40, &"x".repeat(400_000));
        for group in groups.values_mut() {
            Arc::make_mut(group).running.everywhere = true;
        }
        store.replace(Arc::new(replacement(&groups))).await.unwrap();
        let snapshot = Snapshot::from(store.load(None).await.unwrap());
        let board = Arc::new(SnapshotPublisher::new(snapshot, Instant::now()));
        let access = Access {
            writers: Vec::new(),
            cells: Vec::new(),
            operators: Vec::new(),
            pollers: None,
            cell_identity: CellIdentity::CommonName,
        };
        let router = Api::new(access, board, Admission::new(1, patience), Tags::new(2)).router();
        let tls = ServerTls::load(&site.certificate("server", None), Alpn::None).unwrap();
        let listener = Listener::tcp("internal API", "127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let limits = Limits { stall, buffer: 96 << 10, ..Limits::default() };
        let server = Http::new(listener, Some(tls)).limits(limits);
        let mut running = JoinSet::new();
        running.spawn(server.serve(router, CancellationToken::new(), Duration::ZERO));
        Self { site, address, running }
    }

    /// A client with a connection of its own.
    fn poller(&self) -> Poller {
        Poller::new(&self.site, &self.address, "agent")
    }

    async fn list(&self) -> Response {
        self.poller().get(GROUPS).await
    }
}

const LONG: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn who_finds_no_place_is_told_so() {
    let mut crowded = Crowded::start(Duration::from_millis(200), LONG).await;
    let taken = crowded.list().await;
    assert_eq!(taken.status(), StatusCode::OK);
    let refused = crowded.list().await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.text().await.unwrap(), r#"{"error": "too many requests"}"#);
    // Routes without a permit are still served.
    let stamp = crowded.poller().text(&format!("{GROUPS}_last_updated")).await;
    assert!(stamp.parse::<i64>().unwrap() > 0);
    // Read to the end, the list releases its permit.
    let text = taken.bytes().await.unwrap();
    assert!(text.len() > 30_000_000 && text.ends_with(b"]}"), "{}", text.len());
    assert_eq!(crowded.list().await.status(), StatusCode::OK);
    crowded.running.shutdown().await;
}

/// No list here ends by itself: permits are released only because clients disconnected,
/// during the response and in the queue.
#[tokio::test]
async fn nobody_works_for_clients_that_left() {
    let mut crowded = Crowded::start(LONG, LONG).await;
    for _ in 0..3 {
        let taken = crowded.list().await;
        assert_eq!(taken.status(), StatusCode::OK);
        // The maximum number of waiting requests.
        let short = Duration::from_millis(300);
        let pollers: Vec<Poller> = (0..4).map(|_| crowded.poller()).collect();
        let waiting =
            pollers.iter().map(|poller| poller.request(Method::GET, GROUPS).timeout(short).send());
        for outcome in futures_util::future::join_all(waiting).await {
            assert!(outcome.unwrap_err().is_timeout());
        }
        drop((taken, pollers));
    }
    assert_eq!(crowded.list().await.status(), StatusCode::OK);
    crowded.running.shutdown().await;
}

#[tokio::test]
async fn who_does_not_read_is_cut_off() {
    let mut crowded = Crowded::start(LONG, Duration::from_millis(500)).await;
    let stalled = crowded.list().await;
    assert_eq!(stalled.status(), StatusCode::OK);
    assert_eq!(crowded.list().await.status(), StatusCode::OK, "its place is free again");
    stalled.bytes().await.unwrap_err();
    crowded.running.shutdown().await;
}
