//! gRPC servers: the given services, and health and reflection beside them.

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
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use super::connections::{Limits, Protocol, Server};
use super::{Error, Health, Listener, manners};
use crate::supervise::panic_text;
use crate::tls::ServerTls;

/// Names of the services that every gRPC server of ours has.
const OWN_SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// A gRPC server with health, and reflection in v1 and v1alpha.
///
/// A handler that panics answers INTERNAL; a `grpc-timeout` that a client sends
/// is kept; a client's pings are never held against it.
pub struct Grpc {
    server: Server,
    health: Health,
    routes: Routes,
    descriptors: Vec<&'static [u8]>,
}

impl Grpc {
    /// A server without services on a bound listener. TLS needs
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

    /// Where it listens.
    pub fn local_addr(&self) -> String {
        self.server.listener.local_addr()
    }

    /// Other bounds than the default ones.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.server.limits = limits;
        self
    }

    /// Adds an encoded descriptor set that reflection answers from. It may
    /// describe more services than are added.
    #[must_use]
    pub fn descriptors(mut self, set: &'static [u8]) -> Self {
        self.descriptors.push(set);
        self
    }

    /// Adds a service, as tonic generates it.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "nobody adds servers with +")]
    pub fn add<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        add(&mut self.routes, service);
        self
    }

    /// Serves until shutdown, and then lets open calls end for at most `drain`.
    ///
    /// # Errors
    /// When the descriptor sets are not valid.
    pub async fn serve(self, shutdown: CancellationToken, drain: Duration) -> Result<(), Error> {
        let Self { server, health, mut routes, descriptors } = self;
        let names: Vec<_> = routes.keys().copied().collect();
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let reflection_v1 = reflection(&names, &descriptors).build_v1()?;
        let reflection_v1alpha = reflection(&names, &descriptors).build_v1alpha()?;
        add(&mut routes, health_service);
        add(&mut routes, reflection_v1);
        add(&mut routes, reflection_v1alpha);
        let guarded = Guarded { routes: routes.into() };
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

/// Tells the health service about `health`, for the server and each service. At
/// shutdown nothing is serving, and watchers' streams end so that they do not
/// hold up the drain. Never ends by itself.
async fn report_health(
    health: &Health,
    mut reporter: HealthReporter,
    names: &[&'static str],
    shutdown: &CancellationToken,
) {
    let names: Vec<&str> = names.iter().copied().chain([""]).collect();
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

/// Until when the client waits for its answer. A request whose client set a
/// deadline has it in its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Instant);

/// Services by their names. A call goes straight to its service: a general router
/// keeps the request in a future of its own meanwhile, which costs a small call a
/// tenth of its time.
type Routes = BTreeMap<&'static str, Box<dyn Route>>;

fn add<S>(routes: &mut Routes, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    routes.insert(S::NAME, Box::new(service));
}

/// A service, as tonic generates it: it is always ready.
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
struct Guarded {
    routes: Arc<Routes>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Service<Request<Incoming>> for Guarded {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // So are the services.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Answer {
        if let Some(refusal) = manners::refuse(&request) {
            return Box::pin(async { Ok(refusal) });
        }
        let deadline = grpc_timeout(request.headers()).map(|timeout| Instant::now() + timeout);
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let routes = Arc::clone(&self.routes);
        let uri = request.uri().clone();
        let Some(route) = manners::service(uri.path()).and_then(|name| self.routes.get(name))
        else {
            let unknown = manners::unknown(uri.path(), |name| routes.contains_key(name));
            let response = manners::escape(Status::unimplemented(unknown).into_http());
            return Box::pin(async { Ok(response) });
        };
        let answer = AssertUnwindSafe(route.serve(request.map(Body::new))).catch_unwind();
        Box::pin(async move {
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
            let known = |name: &str| routes.contains_key(name);
            answer.map(|answer| manners::translate(answer, uri.path(), known))
        })
    }
}

fn deadline_exceeded() -> Response<Body> {
    manners::escape(Status::deadline_exceeded("the call's deadline has passed").into_http())
}

/// The time a client gives its call: at most eight digits and a unit (gRPC over
/// HTTP/2, "Timeout"). A malformed one does not count.
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
