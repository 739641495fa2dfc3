//! gRPC servers: the service's own gRPC services, health and reflection.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use super::connections::{Limits, Protocol, Server};
use super::intake::{Arrived, Intake};
use super::{Error, Health, Listener, grpc_go_compat};
use crate::supervise::panic_text;
use crate::tls::{Peer, ServerTls};

/// Services that every gRPC server has.
const OWN_SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The reflection method, whose client may send more messages after the first response.
const REFLECTION_TALKS: &[&str] = &["ServerReflectionInfo"];

/// Maximum request message size: the default of tonic and of grpc-go.
const LARGEST: usize = 4 << 20;

/// Head of a call: what is known before its body is read.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Method name.
    pub method: &'a str,
    /// The metadata.
    pub headers: &'a HeaderMap,
    /// The peer, by its certificate.
    pub peer: &'a Peer,
}

/// Decides by the head whether a call is admitted; an error is the response.
type Judge = Box<dyn Fn(&Head<'_>) -> Result<(), Status> + Send + Sync>;

/// A service for [`Grpc::enter`], with the checks that run before the service gets a call.
pub struct Entry<S> {
    service: S,
    judge: Option<Judge>,
    talks: &'static [&'static str],
    large: Option<(&'static str, usize)>,
}

impl<S> From<S> for Entry<S> {
    /// Every peer may call the service.
    fn from(service: S) -> Self {
        Self { service, judge: None, talks: &[], large: None }
    }
}

impl<S> Entry<S> {
    /// Checks each call before its body is read.
    pub fn judged(
        service: S,
        judge: impl Fn(&Head<'_>) -> Result<(), Status> + Send + Sync + 'static,
    ) -> Self {
        Self { judge: Some(Box::new(judge)), ..Self::from(service) }
    }

    /// Methods whose handler starts before the first request message arrives. All others start with
    /// the first message.
    #[must_use]
    pub fn talks(self, methods: &'static [&'static str]) -> Self {
        Self { talks: methods, ..self }
    }

    /// Sets the maximum request size of the one method that accepts messages above 4 MiB. Its
    /// handler must have the same limit.
    #[must_use]
    pub fn large(self, method: &'static str, bytes: usize) -> Self {
        Self { large: Some((method, bytes)), ..self }
    }

    /// The service alone, without the checks.
    pub fn into_service(self) -> S {
        self.service
    }
}

/// A gRPC server with health, and reflection in v1 and v1alpha.
///
/// A handler that panics returns INTERNAL; a client's `grpc-timeout` is enforced; a client's pings
/// are never treated as abuse.
pub struct Grpc {
    server: Server,
    health: Health,
    routes: Routes,
    descriptors: Vec<&'static [u8]>,
}

impl Grpc {
    /// Creates a server without services on a bound listener. TLS needs
    /// [`Alpn::H2`](crate::tls::Alpn::H2).
    pub fn new(listener: Listener, tls: Option<ServerTls>, health: &Health) -> Self {
        Self {
            server: Server { listener, tls, protocol: Protocol::Http2, limits: Limits::default() },
            health: health.clone(),
            routes: Routes::new(),
            descriptors: vec![
                tonic_health::pb::FILE_DESCRIPTOR_SET,
                tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
                tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
            ],
        }
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> String {
        self.server.listener.local_addr()
    }

    /// Replaces the default limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.server.limits = limits;
        self
    }

    /// Adds an encoded descriptor set for reflection. It may describe more services than are added.
    #[must_use]
    pub fn descriptors(mut self, set: &'static [u8]) -> Self {
        self.descriptors.push(set);
        self
    }

    /// Adds a tonic-generated service.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "nobody adds servers with +")]
    pub fn add<S>(self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.enter(service.into())
    }

    /// Adds a service with its checks.
    #[must_use]
    pub fn enter<S>(mut self, entry: Entry<S>) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        add(&mut self.routes, entry);
        self
    }

    /// Serves until shutdown, and then lets open calls end for at most `drain`.
    /// Serves until shutdown; open calls then have `drain` to finish.
    /// # Errors
    /// When the descriptor sets are not valid.
    pub async fn serve(self, shutdown: CancellationToken, drain: Duration) -> Result<(), Error> {
        let Self { server, health, mut routes, descriptors } = self;
        let names: Vec<_> = routes.keys().copied().collect();
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let reflection_v1 = reflection(&names, &descriptors).build_v1()?;
        let reflection_v1alpha = reflection(&names, &descriptors).build_v1alpha()?;
        add(&mut routes, health_service.into());
        add(&mut routes, Entry::from(reflection_v1).talks(REFLECTION_TALKS));
        add(&mut routes, Entry::from(reflection_v1alpha).talks(REFLECTION_TALKS));
        let guarded = Guarded(Arc::new(Door { routes }));
        let report = report_health(&health, reporter, &names, &shutdown);
        tokio::select! {
            () = server.serve(guarded, shutdown.clone(), drain) => {}
            () = report => {}
        }
        Ok(())
    }
}

fn reflection<'a>(
    names: &[&'static str],
    descriptors: &'a [&'static [u8]],
) -> tonic_reflection::server::Builder<'a> {
    let mut builder =
        tonic_reflection::server::Builder::configure().include_reflection_service(false);
    for set in descriptors {
        builder = builder.register_encoded_file_descriptor_set(set);
    }
    for name in names.iter().chain(&OWN_SERVICES) {
        builder = builder.with_service_name(*name);
    }
    builder
}

/// Publishes `health` in the health service, for the server and each service. At shutdown all are
/// NOT_SERVING, and watch streams end so that they do not delay the drain. Never returns.
async fn report_health(
    health: &Health,
    mut reporter: HealthReporter,
    names: &[&'static str],
    shutdown: &CancellationToken,
) {
    let names: Vec<&str> = names.iter().copied().chain(OWN_SERVICES).chain([""]).collect();
    let follow = async {
        loop {
            let ready = health.is_ready();
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            set_all(&reporter, &names, status).await;
            health.wait_for(!ready).await;
        }
    };
    let _: Option<Infallible> = shutdown.run_until_cancelled(follow).await;
    set_all(&reporter, &names, ServingStatus::NotServing).await;
    for name in &names {
        reporter.clear_service_status(name).await;
    }
    std::future::pending::<()>().await;
}

async fn set_all(reporter: &HealthReporter, names: &[&str], status: ServingStatus) {
    for name in names {
        reporter.set_service_status(name, status).await;
    }
}

/// Deadline of a request, in the request's extensions if the client set one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Instant);

/// Services by name. A call goes straight to its service: a general router keeps the request in a
/// future of its own, which adds a tenth to the time of a small call.
type Routes = BTreeMap<&'static str, Entry<Box<dyn Route>>>;

fn add<S>(routes: &mut Routes, entry: Entry<S>)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let Entry { service, judge, talks, large } = entry;
    routes.insert(S::NAME, Entry { service: Box::new(service), judge, talks, large });
}

/// A tonic-generated service, which is always ready.
trait Route: Send + Sync {
    fn serve(&self, request: Request<Body>) -> Answer;
}

impl<S> Route for S
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + Sync,
    S::Future: Send + 'static,
{
    fn serve(&self, request: Request<Body>) -> Answer {
        Box::pin(self.clone().call(request))
    }
}

/// Routes whose panics and deadlines become statuses.
#[derive(Clone)]
struct Guarded(Arc<Door>);

struct Door {
    routes: Routes,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Service<Request<Arrived>> for Guarded {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Always ready; inner services are too.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Arrived>) -> Answer {
        if let Some(refusal) = grpc_go_compat::refuse(&request) {
            return Box::pin(async { Ok(refusal) });
        }
        let deadline = grpc_timeout(request.headers()).map(|timeout| Instant::now() + timeout);
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let door = Arc::clone(&self.0);
        Box::pin(async move {
            let uri = request.uri().clone();
            let known = |name: &str| door.routes.contains_key(name);
            let route = match door.route(&request) {
                Ok(route) => route,
                Err(status) => return Ok(grpc_go_compat::escape(status.into_http())),
            };
            let answer = AssertUnwindSafe(door.serve(route, request)).catch_unwind();
            let answer = match deadline {
                None => answer.await,
                Some(deadline) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(_elapsed) => return Ok(deadline_exceeded()),
                },
            };
            let answer = answer.unwrap_or_else(|panic| {
                let text = panic_text(panic.as_ref());
                tracing::error!(error = text, "handler-panicked");
                Ok(Status::internal("internal error").into_http())
            });
            answer.map(|answer| grpc_go_compat::translate(answer, uri.path(), known))
        })
    }
}

impl Door {
    /// Returns the called service if the peer may call it.
    fn route(&self, request: &Request<Arrived>) -> Result<&Entry<Box<dyn Route>>, Status> {
        let path = request.uri().path();
        let Some(route) = grpc_go_compat::service(path).and_then(|name| self.routes.get(name))
        else {
            let unknown = grpc_go_compat::unknown(path, |name| self.routes.contains_key(name));
            return Err(Status::unimplemented(unknown));
        };
        if let Some(judge) = &route.judge {
            let peer = &request.body().account.peer;
            judge(&Head { method: method(path), headers: request.headers(), peer })?;
        }
        Ok(route)
    }

    async fn serve(
        &self,
        route: &Entry<Box<dyn Route>>,
        request: Request<Arrived>,
    ) -> Result<Response<Body>, Infallible> {
        let (parts, Arrived { body, account }) = request.into_parts();
        let called = method(parts.uri.path());
        let largest = route.large.filter(|(large, _)| *large == called);
        let mut body = Intake::new(body, account, largest.map_or(LARGEST, |(_, bytes)| bytes));
        if !route.talks.contains(&called)
            && let Err(status) = body.first().await
        {
            return Ok(status.into_http());
        }
        route.service.serve(Request::from_parts(parts, Body::new(body))).await
    }
}

fn method(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, method)| method)
}

fn deadline_exceeded() -> Response<Body> {
    grpc_go_compat::escape(Status::deadline_exceeded("the call's deadline has passed").into_http())
}

/// The client's timeout for its call: at most eight digits and a unit (gRPC over HTTP/2,
/// "Timeout"). A malformed value is ignored.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let well_formed = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let amount: u64 = digits.parse().ok().filter(|_| well_formed)?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3_600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_says() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect(text));
            grpc_timeout(&headers)
        };
        assert_eq!(read("1H"), Some(Duration::from_secs(3_600)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("4998m"), Some(Duration::from_millis(4_998)));
        assert_eq!(read("5u"), Some(Duration::from_micros(5)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for malformed in ["", "S", "1", "1s", "+1S", "-1S", "1.5S", "999999999S", "1 S", "1\u{e9}"]
        {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
