//! A gRPC server over mutual TLS, called by real clients.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rcgen::{DnType, SanType};
use runtime::client::{self, Options};
use runtime::lager;
use runtime::server::{Grpc, Health, Listener};
use runtime::tls::{Alpn, ClientTls, Peer, ServerTls};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use crate::certificates::{Authority, Leaf};
use crate::wait;

/// A hand-written service whose methods misbehave in ways worth testing.
#[derive(Clone, Default)]
pub(crate) struct Odd {
    /// Whether a `Hang` call has started, and whether it was dropped.
    pub(crate) hanging: Arc<AtomicBool>,
    pub(crate) dropped: Arc<AtomicBool>,
}

impl NamedService for Odd {
    const NAME: &'static str = "test.Odd";
}

impl tower::Service<http::Request<Body>> for Odd {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let odd = self.clone();
        Box::pin(async move {
            match request.uri().path() {
                "/test.Odd/Panic" => panic!("a handler's mistake"),
                "/test.Odd/Peer" => Ok(tell_peer(request).into_http()),
                "/test.Odd/Hang" => odd.hang().await,
                "/test.Odd/Flood" => Ok(odd.flood()),
                "/test.Odd/Slow" => {
                    odd.hanging.store(true, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    Ok(Status::already_exists("slow but done").into_http())
                }
                path => Ok(Status::unimplemented(path).into_http()),
            }
        })
    }
}

/// Sets its flag on drop.
struct Note(Arc<AtomicBool>);

impl Drop for Note {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Odd {
    /// An endless response.
    fn flood(self) -> http::Response<Body> {
        let note = Note(self.dropped);
        let pieces = tokio_stream::iter(std::iter::repeat_with(move || {
            let _kept = &note;
            Ok::<_, Infallible>(bytes::Bytes::from_static(&[0; 16 << 10]))
        }));
        let body = axum::body::Body::from_stream(pieces);
        let response = http::Response::builder().header("content-type", "application/grpc");
        response.body(Body::new(body)).unwrap()
    }

    async fn hang(self) -> Result<http::Response<Body>, Infallible> {
        let _note = Note(self.dropped);
        self.hanging.store(true, Ordering::SeqCst);
        pending().await
    }
}

fn tell_peer(request: http::Request<Body>) -> Status {
    let (mut parts, body) = request.into_parts();
    let mut request = Request::new(body);
    *request.extensions_mut() = std::mem::take(&mut parts.extensions);
    let Peer { address, identity } = runtime::tls::peer(&request);
    let address = address.map(|address| address.ip());
    Status::failed_precondition(format!("{address:?} {identity:?}"))
}

/// A running server and the credentials to call it.
pub(crate) struct Running {
    pub(crate) authority: Authority,
    pub(crate) address: String,
    pub(crate) health: Health,
    pub(crate) odd: Odd,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<Result<(), runtime::server::Error>>,
}

impl Running {
    pub(crate) async fn start(drain: Duration) -> Self {
        let authority = Authority::new("test authority");
        let tls = authority.server(Alpn::H2);
        Self::start_with(authority, Some(tls), drain).await
    }

    pub(crate) async fn start_with(
        authority: Authority,
        tls: Option<ServerTls>,
        drain: Duration,
    ) -> Self {
        let listener = Listener::tcp("grpc", "127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let health = Health::new();
        let odd = Odd::default();
        let shutdown = CancellationToken::new();
        let server = Grpc::new(listener, tls, &health).add(odd.clone());
        let server = spawn(server.serve(shutdown.clone(), drain));
        Self { authority, address, health, odd, shutdown, server }
    }

    pub(crate) fn channel(&self, tls: Option<ClientTls>) -> Channel {
        client::channel(&self.address, tls, Options::default()).unwrap()
    }

    pub(crate) fn trusted(&self) -> Channel {
        self.channel(Some(self.authority.client()))
    }
}

#[expect(clippy::disallowed_methods, reason = "the test waits for what it spawns")]
pub(crate) fn spawn<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(future)
}

/// Calls a method of [`Odd`], which never returns OK.
pub(crate) async fn call(channel: Channel, path: &'static str) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    if let Err(error) = client.ready().await {
        return Status::unavailable(error.to_string());
    }
    let codec = ProstCodec::<(), ()>::default();
    let path = PathAndQuery::from_static(path);
    let answer = client.unary(Request::new(()), path, codec).await;
    answer.expect_err("no method answers OK")
}

pub(crate) async fn check(channel: Channel, service: &str) -> Result<ServingStatus, Status> {
    let request = HealthCheckRequest { service: service.into() };
    let answer = HealthClient::new(channel).check(request).await?;
    Ok(answer.into_inner().status.try_into().unwrap_or(ServingStatus::Unknown))
}

const DRAIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn calls_are_answered_over_mutual_tls() {
    let running = Running::start(DRAIN).await;
    let status = check(running.trusted(), "").await;
    assert_eq!(status.unwrap(), ServingStatus::Serving);
    running.shutdown.cancel();
    running.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn health_follows_the_components() {
    let running = Running::start(DRAIN).await;
    let channel = running.trusted();
    let store = running.health.component("store");
    let feed = running.health.component("feed");
    for service in ["", "test.Odd"] {
        let is = |expected: ServingStatus| {
            let channel = channel.clone();
            move || {
                let channel = channel.clone();
                async move { check(channel, service).await.unwrap() == expected }
            }
        };
        store.not_ready("starting");
        feed.ready();
        wait::until("not serving", is(ServingStatus::NotServing)).await;
        store.ready();
        wait::until("serving", is(ServingStatus::Serving)).await;
        feed.not_ready("behind");
        wait::until("not serving again", is(ServingStatus::NotServing)).await;
    }
    assert_eq!(running.health.reasons(), [("feed", "behind".to_owned())]);
    let unknown = check(channel, "no.Such").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn a_handler_knows_who_called() {
    let running = Running::start(DRAIN).await;
    let leaf = Leaf::new("cell 7")
        .with(|params| {
            let name = &mut params.distinguished_name;
            name.push(DnType::OrganizationalUnitName, "organization:o1");
        })
        .name(SanType::URI("spiffe://cf/cell".try_into().unwrap()))
        .name(SanType::IpAddress("fd00::7".parse().unwrap()));
    let files = running.authority.issue("cell", &leaf);
    let channel = running.channel(Some(ClientTls::load(&files).unwrap()));
    let status = call(channel, "/test.Odd/Peer").await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    let expected = "Some(127.0.0.1) Some(Identity { common_name: Some(\"cell 7\"), \
        organizational_units: [\"organization:o1\"], dns_names: [\"localhost\"], \
        ip_addresses: [127.0.0.1, fd00::7], uris: [\"spiffe://cf/cell\"] })";
    assert_eq!(status.message(), expected);
}

#[tokio::test]
async fn without_tls_there_is_an_address_and_no_identity() {
    let authority = Authority::new("unused");
    let running = Running::start_with(authority, None, DRAIN).await;
    let status = call(running.channel(None), "/test.Odd/Peer").await;
    assert_eq!(status.message(), "Some(127.0.0.1) None");
}

#[tokio::test]
async fn a_panic_is_only_an_internal_error() {
    let (log, _control, _guard) = lager::capture(lager::Options {
        source: "test".into(),
        level: lager::Level::Info,
        format: lager::TimeFormat::Rfc3339,
    });
    let running = Running::start(DRAIN).await;
    let channel = running.trusted();
    let status = call(channel.clone(), "/test.Odd/Panic").await;
    assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
    let data = log.data_of("test.handler-panicked").expect("a log line");
    assert_eq!(data["error"], "a handler's mistake");
    assert_eq!(check(channel, "").await.unwrap(), ServingStatus::Serving);
}

#[tokio::test]
async fn the_deadline_of_a_call_is_kept() {
    let running = Running::start_with(Authority::new("unused"), None, DRAIN).await;
    // Uses an HTTP client, since a gRPC client would time out by itself.
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = http::Request::post(format!("http://{}/test.Odd/Hang", running.address))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "50m")
        .body(Full::<bytes::Bytes>::from(vec![0; 5]))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4");
    assert!(running.odd.dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn unknown_methods_are_unimplemented() {
    let running = Running::start(DRAIN).await;
    let status = call(running.trusted(), "/no.Such/Method").await;
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn reflection_speaks_both_versions() {
    use tokio_stream::{StreamExt, once};
    let running = Running::start(DRAIN).await;
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "test.Odd",
    ];
    macro_rules! check_version {
        ($version:ident) => {
            use pb::server_reflection_request::MessageRequest;
            use pb::server_reflection_response::MessageResponse;
            use tonic_reflection::pb::$version as pb;
            let ask = async |question| {
                let request = pb::ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(question),
                };
                let channel = running.trusted();
                let mut client = pb::server_reflection_client::ServerReflectionClient::new(channel);
                let answer = client.server_reflection_info(once(request)).await.unwrap();
                let first = answer.into_inner().next().await.unwrap().unwrap();
                first.message_response.unwrap()
            };
            let list = ask(MessageRequest::ListServices(String::new())).await;
            let MessageResponse::ListServicesResponse(list) = list else { panic!("{list:?}") };
            let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            names.sort();
            assert_eq!(names, expected);
            let symbol = "grpc.health.v1.Health".to_owned();
            let file = ask(MessageRequest::FileContainingSymbol(symbol)).await;
            assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)), "{file:?}");
        };
    }
    {
        check_version!(v1);
    }
    {
        check_version!(v1alpha);
    }
}

#[tokio::test]
async fn a_channel_connects_again_after_the_server_was_away() {
    let running = Running::start(DRAIN).await;
    let channel = running.trusted();
    check(channel.clone(), "").await.unwrap();
    let Running { authority, address, shutdown, server, .. } = running;
    shutdown.cancel();
    server.await.unwrap().unwrap();
    let gone = check(channel.clone(), "").await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone:?}");

    let listener = Listener::tcp("grpc", &address).await.unwrap();
    let tls = authority.server(Alpn::H2);
    let back = Grpc::new(listener, Some(tls), &Health::new()).add(Odd::default());
    let shutdown = CancellationToken::new();
    let server = spawn(back.serve(shutdown.clone(), DRAIN));
    wait::until("the channel connects again", || {
        let channel = channel.clone();
        async move { check(channel, "").await.is_ok() }
    })
    .await;
    shutdown.cancel();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_channel_without_a_server_fails_soon_and_says_why() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap().to_string();
    drop(unused);
    let channel = client::channel(&address, None, Options::default()).unwrap();
    let status = check(channel, "").await.unwrap_err();
    let expected = format!(
        "rpc error: code = Unavailable desc = connecting to {address}: \
         Connection refused (os error 111)"
    );
    assert_eq!(client::describe(&status), expected);
}

#[tokio::test]
async fn statuses_are_formatted_as_in_go() {
    let text = client::describe(&Status::already_exists("lock-collision"));
    assert_eq!(text, "rpc error: code = AlreadyExists desc = lock-collision");
    let text = client::describe(&Status::cancelled(""));
    assert_eq!(text, "rpc error: code = Canceled desc = ");

    let running = Running::start(DRAIN).await;
    let stranger = Authority::new("another authority");
    let mut files = stranger.issue("client", &Leaf::new("client"));
    files.ca = running.authority.path("ca.crt");
    let channel = running.channel(Some(ClientTls::load(&files).unwrap()));
    let text = client::describe(&check(channel, "").await.unwrap_err());
    // The cause depends on whether the alert or the end of the stream comes first.
    assert!(!text.ends_with("transport error"), "{text}");
}

#[tokio::test]
async fn a_channel_does_not_wait_for_a_silent_server() {
    // Accepts connections through the kernel's queue, and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let authority = Authority::new("test authority");
    let options = Options { connect_timeout: Duration::from_millis(100), ..Options::default() };
    let channel = client::channel(&address, Some(authority.client()), options).unwrap();
    assert_eq!(check(channel, "").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn an_invalid_address_is_rejected() {
    for wrong in ["localhost", "localhost:http", "localhost:70000", "", "a b:80", "::1:80x"] {
        let refused = client::channel(wrong, None, Options::default());
        assert!(refused.is_err(), "{wrong}");
    }
}
