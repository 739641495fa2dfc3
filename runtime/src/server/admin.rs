//! Admin endpoint: plain HTTP on an address that only operators can reach.
//!
//! | request | response |
//! |---|---|
//! | `GET /metrics` | Prometheus text |
//! | `GET /healthz` | 200 while the process runs |
//! | `GET /readyz` | 200, or 503 with one reason a line |
//! | `POST /log-level` | sets the level; docs/compatibility/locket.md#debug-server |
//! | `/block-profile-rate`, `/mutex-profile-fraction` | Go's profiles: accepts an integer, without effect |
//!
//! All other requests return 404, and a body above 4 KiB 413.

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::{Method, StatusCode, header};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Health, Http, Listener};
use crate::lager::{Control, Level};
use crate::metrics::Handle;
use crate::process::Process;

/// Size limit of a request body: a log level, or a number. A client that never ends its body holds
/// this much memory, not axum's 2 MiB.
const LARGEST_BODY: usize = 4 << 10;

/// The admin server.
pub struct Admin {
    http: Http,
    router: Router,
}

impl Admin {
    /// Creates a server with metrics, health, and the routes of the originals' debug server.
    pub fn new(listener: Listener, process: &Process, health: &Health) -> Self {
        let log_level = any(set_log_level).with_state(process.log.clone());
        let debug_server = Router::new()
            .route("/block-profile-rate", any(profile))
            .route("/mutex-profile-fraction", any(profile))
            .route("/log-level", log_level);
        Self::without_debug_server(listener, process, health).merge(debug_server)
    }

    /// Creates a server with metrics and health, for a service whose original has another debug
    /// server.
    pub fn without_debug_server(listener: Listener, process: &Process, health: &Health) -> Self {
        let router = Router::new()
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(readyz).with_state(health.clone()))
            .route("/metrics", get(metrics).with_state(process.metrics.clone()));
        Self { http: Http::new(listener, None), router }
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> String {
        self.http.local_addr()
    }

    /// Adds a service's own routes.
    #[must_use]
    pub fn merge(mut self, router: Router) -> Self {
        self.router = self.router.merge(router);
        self
    }

    /// Serves in a separate task from now on, so that operators get responses while the service
    /// still loads its state. After shutdown, open requests have `drain` to finish.
    #[must_use]
    pub fn start(self, drain: Duration) -> RunningAdmin {
        let address = self.local_addr();
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        let router = self.router.layer(DefaultBodyLimit::max(LARGEST_BODY));
        task.spawn(self.http.serve(router, stop.clone(), drain));
        RunningAdmin { address, stop, task }
    }
}

/// A running admin server; dropping it stops the server.
pub struct RunningAdmin {
    address: String,
    stop: CancellationToken,
    /// Holds the server task only.
    task: JoinSet<()>,
}

impl RunningAdmin {
    /// The address it listens on.
    pub fn local_addr(&self) -> &str {
        &self.address
    }

    /// Serves until shutdown.
    ///
    /// # Errors
    /// The server panicked.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = shutdown.cancelled() => self.stop.cancel(),
            Some(ended) = self.task.join_next() => return Ok(ended?),
        }
        while let Some(ended) = self.task.join_next().await {
            ended?;
        }
        Ok(())
    }
}

async fn metrics(State(metrics): State<Handle>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, metrics.render()).into_response()
}

async fn readyz(State(health): State<Health>) -> Response {
    let reasons = health.reasons();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let lines = reasons.iter();
    let text: String = lines.map(|(name, reason)| format!("{name}: {reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Scripts for the originals may call this; the value has no effect, as there is no profiling.
async fn profile(body: String) -> Response {
    match body.trim().parse::<i64>() {
        Ok(_) => "there is no such profile here\n".into_response(),
        Err(_) => (StatusCode::BAD_REQUEST, "the body must be an integer\n").into_response(),
    }
}

async fn set_log_level(State(log): State<Control>, method: Method, body: String) -> Response {
    if method != Method::POST {
        let text = "send the level in the body of a POST\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    match Level::parse_loosely(&body) {
        Ok(level) => {
            log.set_level(level);
            tracing::info!(level = level.name(), "log-level-changed");
            format!("the log level is {}\n", level.name()).into_response()
        }
        Err(error) => {
            let text = format!("the level {error}, nor their first letters, nor 0 to 4\n");
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}
