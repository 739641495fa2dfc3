//! Health check endpoint of the original: plain HTTP on the loopback address
//! (docs/compatibility/policy-server-internal.md#listeners).

use std::{sync::Arc, time::Duration};

use axum::{Router, response::Response};
use http::{HeaderMap, Method, StatusCode, Uri};
use jiff::Timestamp;
use runtime::{config::GoDuration, dropsonde::Dropsonde, server::Health};
use tokio::time::Instant;
use uuid::Uuid;

use super::answer;
use crate::groups::current::SnapshotPublisher;

/// Component of [`Health`] for the database.
pub const DATABASE: &str = "database";

/// What a health check looks at.
#[derive(Debug)]
pub struct Checked {
    /// Of the process.
    pub health: Health,
    /// The served groups.
    pub board: Arc<SnapshotPublisher>,
    /// Age of the last confirmed Replace at which groups are outdated; `None`: never.
    pub stale_after: Option<Duration>,
    /// Start of the process.
    pub began: Instant,
}

/// Router for the health check port.
pub fn router(checked: Checked, metron: Dropsonde) -> Router {
    let checked = Arc::new(checked);
    Router::new().fallback(async move |method: Method, uri: Uri, headers: HeaderMap| {
        type Serve = fn(&Checked) -> Response;
        let (name, serve): (&'static str, Serve) = match uri.path() {
            "/" | "/networking" => ("Uptime", uptime),
            "/health" => ("Health", check),
            _ => return answer::not_found(),
        };
        if method != Method::GET {
            return answer::not_allowed(&Method::GET);
        }
        let asked = Instant::now();
        let mut response = serve(&checked);
        super::count(&metron, name, response.status(), asked.elapsed());
        let id = Uuid::new_v4().to_string();
        answer::sign(&mut response, &id, answer::given_id(&headers));
        response
    })
}

fn uptime(checked: &Checked) -> Response {
    let up = GoDuration::from(checked.began.elapsed());
    answer::ok(format!("Network policy server, up for {up}\n"))
}

/// As in the original, an unreachable database is unhealthy; `/readyz` shows all components.
/// So is a store without current groups: a name server that checks the health then sends
/// agents to another instance, which may be an original with current groups.
fn check(checked: &Checked) -> Response {
    let is_gone = checked.health.reasons().iter().any(|(component, _)| *component == DATABASE);
    if is_gone {
        return answer::error(StatusCode::INTERNAL_SERVER_ERROR, "check database failed");
    }
    let synced_at = checked.board.current().state.synced_at;
    if !is_current(synced_at, checked.stale_after, Timestamp::now()) {
        return answer::error(StatusCode::SERVICE_UNAVAILABLE, "no current security groups");
    }
    answer::empty()
}

/// Whether the last Replace, by whichever instance, is recent enough. Unlike readiness, a new
/// process has no respite: its groups may be those of a former life of the foundation.
fn is_current(synced_at: Option<Timestamp>, stale_after: Option<Duration>, now: Timestamp) -> bool {
    let Some(synced_at) = synced_at else { return false };
    stale_after.is_none_or(|limit| now.duration_since(synced_at).unsigned_abs() <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_current_until_they_are_stale() {
        let (limit, now) =
            (Some(Duration::from_secs(600)), Timestamp::from_second(10_000).unwrap());
        let ago = |seconds: i64| Some(Timestamp::from_second(10_000 - seconds).unwrap());
        assert!(!is_current(None, limit, now), "never synced");
        assert!(!is_current(None, None, now));
        assert!(is_current(ago(600), limit, now));
        assert!(!is_current(ago(601), limit, now));
        assert!(is_current(ago(601), None, now));
        // The clock of the writing instance may be ahead.
        assert!(is_current(ago(-1), limit, now));
    }
}
