//! The switch for logging container-to-container connections, of the original's
//! debug server (contracts/cell-agent.md 2.8). Such policies are not enforced
//! here, so it is remembered and has no effect; whoever turns it goes on working.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::json;
use tonic::codegen::http::StatusCode;

#[derive(Deserialize)]
struct Switch {
    enabled: bool,
}

/// The route.
pub(crate) fn router() -> Router {
    Router::new()
        .route("/iptables-c2c-logging", get(show).put(turn))
        .with_state(Arc::new(AtomicBool::new(false)))
}

async fn show(State(state): State<Arc<AtomicBool>>) -> String {
    json!({ "enabled": state.load(Ordering::Relaxed) }).to_string()
}

async fn turn(State(state): State<Arc<AtomicBool>>, body: String) -> Response {
    match serde_json::from_str(&body) {
        Ok(Switch { enabled }) => {
            state.store(enabled, Ordering::Relaxed);
            json!({ "enabled": enabled }).to_string().into_response()
        }
        Err(error) => {
            let told = json!({ "error": format!("decoding request body: {error}") });
            (StatusCode::BAD_REQUEST, told.to_string()).into_response()
        }
    }
}
