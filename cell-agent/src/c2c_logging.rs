//! The switch for logging container-to-container connections, of the original's debug
//! server (docs/compatibility/vxlan-policy-agent.md#endpoints). Such policies are not
//! enforced here, so the switch only stores its state, for clients that use it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::any,
};
use runtime::json::Objects;
use serde::Deserialize;
use serde_json::{Deserializer, json};
use tonic::codegen::http::{Method, StatusCode};

#[derive(Deserialize, Default)]
struct Switch {
    enabled: Option<bool>,
}

/// The route, with the initial state of the switch.
pub(crate) fn router(enabled: bool) -> Router {
    Router::new()
        .route("/iptables-c2c-logging", any(switch))
        .with_state(Arc::new(AtomicBool::new(enabled)))
}

/// PUT sets the switch; any method returns its state.
async fn switch(State(state): State<Arc<AtomicBool>>, method: Method, body: String) -> Response {
    if method == Method::PUT {
        match wanted(&body) {
            Ok(enabled) => state.store(enabled, Ordering::Relaxed),
            Err(error) => {
                let body = json!({ "error": error });
                return (StatusCode::BAD_REQUEST, body.to_string()).into_response();
            }
        }
    }
    json!({ "enabled": state.load(Ordering::Relaxed) }).to_string().into_response()
}

/// Only the first JSON value counts.
fn wanted(body: &str) -> Result<bool, &'static str> {
    let first = Option::<Switch>::deserialize(Objects(&mut Deserializer::from_str(body)));
    let Ok(switch) = first else { return Err("decoding request body as json") };
    switch.unwrap_or_default().enabled.ok_or("missing required key 'enabled'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_read_as_by_the_original() {
        let bad = Err("decoding request body as json");
        let missing = Err("missing required key 'enabled'");
        for (body, expected) in [
            (r#"{"enabled":true}"#, Ok(true)),
            (r#"{"enabled":false,"more":1} rest"#, Ok(false)),
            ("", bad),
            ("{", bad),
            ("[]", bad),
            ("[true]", bad),
            (r#"{"enabled":1}"#, bad),
            ("{}", missing),
            ("null", missing),
            (r#"{"enabled":null}"#, missing),
        ] {
            assert_eq!(wanted(body), expected, "{body:?}");
        }
    }
}
