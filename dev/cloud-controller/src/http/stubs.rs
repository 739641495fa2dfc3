//! Empty lists of resources that are not implemented, but that the cf CLI requests.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::Uri;
use axum::response::Response;
use axum::routing::{MethodRouter, get};

use super::{Call, Shared, answer};
use crate::json::{Json, object};
use crate::present::{self, Base};
use crate::refusal::Refusal;

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v3/apps", empty())
        .route("/v3/service_instances", empty())
        .route("/v3/domains", empty())
        .route("/v3/routes", empty())
        .route("/v3/isolation_segments", empty())
        .route("/v3/organization_quotas", empty())
        .route("/v3/space_quotas", empty())
        .route("/v3/buildpacks", empty())
        .route("/v3/organizations/{guid}/domains", empty())
        .route("/v3/organization_quotas/{guid}", get(quota))
        .route("/v3/spaces/{guid}/relationships/isolation_segment", get(no_space_segment))
        .route(
            "/v3/organizations/{guid}/relationships/default_isolation_segment",
            get(no_organization_segment),
        )
}

/// Accepts any query: there is nothing to filter.
fn empty() -> MethodRouter<Arc<Shared>> {
    get(async |call: Call, uri: Uri| answer(200, &present::empty_page(uri.path(), &call.base)))
}

/// The quota of all organizations: no limits.
async fn quota(Path(guid): Path<String>, call: Call) -> Result<Response, Refusal> {
    let state = call.state();
    if guid != state.quota_guid() {
        return Err(Refusal::NotFound("Organization quota"));
    }
    let organizations: Json = state.organizations().map(|o| object! { "guid": &o.guid }).collect();
    let href = call.base.url(&format!("/v3/organization_quotas/{guid}"));
    let document = object! {
        "guid": guid,
        "name": "default",
        "apps": object! {},
        "services": object! {},
        "routes": object! {},
        "domains": object! {},
        "relationships": object! { "organizations": object! { "data": organizations } },
        "links": object! { "self": object! { "href": href } },
    };
    Ok(answer(200, &document))
}

fn no_segment(path: &str, base: &Base) -> Response {
    let links = object! { "self": object! { "href": base.url(path) } };
    answer(200, &object! { "data": Json::Null, "links": links })
}

async fn no_space_segment(
    Path(guid): Path<String>,
    call: Call,
    uri: Uri,
) -> Result<Response, Refusal> {
    call.state().visible_space(&call.caller, &guid)?;
    Ok(no_segment(uri.path(), &call.base))
}

async fn no_organization_segment(
    Path(guid): Path<String>,
    call: Call,
    uri: Uri,
) -> Result<Response, Refusal> {
    call.state().visible_organization(&call.caller, &guid)?;
    Ok(no_segment(uri.path(), &call.base))
}
