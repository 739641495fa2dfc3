//! Health check endpoint of the original: plain HTTP on the loopback address
//! (docs/compatibility/policy-server-internal.md#listeners).

use axum::{Router, response::Response};
use http::{HeaderMap, Method, StatusCode, Uri};
use runtime::{config::GoDuration, dropsonde::Dropsonde, server::Health};
use tokio::time::Instant;
use uuid::Uuid;

use super::answer;

/// Component of [`Health`] for the database.
pub const DATABASE: &str = "database";

/// Router for the health check port, of a process that started at `began`.
pub fn router(health: Health, began: Instant, metron: Dropsonde) -> Router {
    Router::new().fallback(async move |method: Method, uri: Uri, headers: HeaderMap| {
        type Serve = fn(&Health, Instant) -> Response;
        let (name, serve): (&'static str, Serve) = match uri.path() {
            "/" | "/networking" => ("Uptime", uptime),
            "/health" => ("Health", check),
            _ => return answer::not_found(),
        };
        if method != Method::GET {
            return answer::not_allowed(&Method::GET);
        }
        let asked = Instant::now();
        let mut response = serve(&health, began);
        super::count(&metron, name, response.status(), asked.elapsed());
        let id = Uuid::new_v4().to_string();
        answer::sign(&mut response, &id, answer::given_id(&headers));
        response
    })
}

fn uptime(_: &Health, began: Instant) -> Response {
    let up = GoDuration::from(began.elapsed());
    answer::ok(format!("Network policy server, up for {up}\n"))
}

/// As in the original, only an unreachable database is unhealthy; `/readyz` shows all
/// components.
fn check(health: &Health, _: Instant) -> Response {
    let is_gone = health.reasons().iter().any(|(component, _)| *component == DATABASE);
    match is_gone {
        true => answer::error(StatusCode::INTERNAL_SERVER_ERROR, "check database failed"),
        false => answer::empty(),
    }
}
