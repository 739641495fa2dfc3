//! `/internal/v4`: only behind mutual TLS.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{any, get};

use super::{Shared, answer};
use crate::present;
use crate::refusal::Refusal;

/// The routes of the internal listener. The client certificate is the authentication;
/// the bearer token that syncers send is ignored.
pub(crate) fn internal_router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/internal/v4/asg_latest_update", get(last_update))
        .fallback(async || Refusal::UnknownRequest)
        .method_not_allowed_fallback(async || Refusal::UnknownRequest)
        .with_state(shared)
}

async fn last_update(State(shared): State<Arc<Shared>>) -> Response {
    answer(200, &present::last_update(shared.store.read().last_update()))
}

/// The response of the proxy in front of the original, on public listeners.
pub(super) fn forbidden_router() -> Router<Arc<Shared>> {
    let forbidden = || any(async || (StatusCode::FORBIDDEN, "Forbidden"));
    Router::new()
        .route("/internal/v4", forbidden())
        .route("/internal/v4/", forbidden())
        .route("/internal/v4/{*rest}", forbidden())
}
