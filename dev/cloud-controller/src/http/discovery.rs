//! Discovery endpoints, which clients call first.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;

use super::{Shared, answer};
use crate::json::{Json, object};
use crate::present::{self, Base};

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/", get(root))
        .route("/v3", get(async |base: Base| answer(200, &present::v3_root(&base))))
        .route("/v3/info", get(async |base: Base| answer(200, &present::v3_info(&base))))
        .route("/v2/info", get(v2_info))
        .route("/healthz", get(async || "ok"))
}

async fn root(State(shared): State<Arc<Shared>>, base: Base) -> Response {
    answer(200, &present::root(&base, shared.uaa_port))
}

/// The response of a Cloud Controller without API v2.
async fn v2_info(State(shared): State<Arc<Shared>>, base: Base) -> Response {
    let uaa = base.at_port(shared.uaa_port);
    let document = object! {
        "name": "portcullis-dev",
        "build": "",
        "support": "CF API v2 is disabled",
        "version": 0i64,
        "description": "",
        "authorization_endpoint": &uaa,
        "token_endpoint": &uaa,
        "api_version": "",
        "user": Json::Null,
    };
    answer(200, &document)
}
