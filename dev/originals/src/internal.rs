//! policy-server-internal, docs/compatibility/policy-server-internal.md: `security_groups`
//! and its stamp from the database, at each request. There are no container-to-container
//! policies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use runtime::server::{Http, Listener};
use runtime::tls::{Alpn, ServerTls};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::groups;
use crate::log::Log;
use crate::sql::Database;

/// Open requests at a stop have up to a minute.
const DRAIN: Duration = Duration::from_secs(60);

struct Api {
    database: Database,
    log: Log,
    began: Instant,
}

pub(crate) async fn serve(
    config: &Config,
    log: &Log,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let database = Database::of_job(config)?;
    database.run("SELECT 1", &[]).await.context("db connect")?;
    let api = Arc::new(Api { database, log: log.clone(), began: Instant::now() });
    let files = config.files("ca_cert_file", "server_cert_file", "server_key_file")?;
    let tls = ServerTls::load(&files, Alpn::None)?;
    let (host, port) = (config.text("listen_host")?, config.port("internal_listen_port")?);
    let listener = Listener::tcp("api", &format!("{host}:{port}")).await?;
    let checks = format!("127.0.0.1:{}", config.port("health_check_port")?);
    let checks = Listener::tcp("health", &checks).await?;
    let routes = Router::new()
        .route("/networking/{version}/internal/security_groups", get(security_groups))
        .route("/networking/{version}/internal/security_groups_last_updated", get(last_updated))
        .route("/networking/{version}/internal/policies", get(policies))
        .route("/networking/{version}/internal/policies_last_updated", get(last_updated))
        .with_state(Arc::clone(&api));
    let health = Router::new()
        .route("/", get(uptime))
        .route("/health", get(check))
        .with_state(Arc::clone(&api));
    log.info("starting internal server", &json!({ "listen-address": host, "port": port }));
    let http = Http::new(listener, Some(tls)).serve(routes, shutdown.clone(), DRAIN);
    let checks = Http::new(checks, None).serve(health, shutdown, DRAIN);
    tokio::join!(http, checks);
    log.info("exited", &json!({}));
    Ok(())
}

impl Api {
    fn failed(&self, error: &anyhow::Error) -> Response {
        self.log.error("database read failed", error);
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        (status, r#"{"error": "database read failed"}"#).into_response()
    }
}

async fn security_groups(
    State(api): State<Arc<Api>>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    // Agents send no `limit`, so that every answer is complete.
    let spaces = query.get("space_guids").map(String::as_str).unwrap_or_default();
    let spaces: Vec<String> =
        spaces.split(',').filter(|space| !space.is_empty()).map(str::to_owned).collect();
    match groups::of_spaces(&api.database, &spaces).await {
        Ok(groups) => json!({ "next": 0, "security_groups": groups }).to_string().into_response(),
        Err(error) => api.failed(&error),
    }
}

async fn last_updated(State(api): State<Arc<Api>>) -> Response {
    match groups::last_updated(&api.database).await {
        Ok(stamp) => stamp.to_string().into_response(),
        Err(error) => api.failed(&error),
    }
}

async fn policies() -> Response {
    r#"{"total_policies":0,"policies":[]}"#.into_response()
}

async fn uptime(State(api): State<Arc<Api>>) -> String {
    format!("Network policy server, up for {:?}\n", api.began.elapsed())
}

async fn check(State(api): State<Arc<Api>>) -> Response {
    match api.database.run("SELECT 1", &[]).await {
        Ok(_rows) => StatusCode::OK.into_response(),
        Err(error) => {
            api.log.error("check database failed", &error.into());
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            (status, r#"{"error": "check database failed"}"#).into_response()
        }
    }
}
