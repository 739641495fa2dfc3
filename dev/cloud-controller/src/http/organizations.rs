//! Organizations, spaces, roles and jobs.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;

use super::{Body, Parameters, Shared, accepted, answer};
use crate::present::{self, Base};
use crate::refusal::Refusal;
use crate::state::access::Caller;
use crate::validate::query;

type Answer = Result<Response, Refusal>;
type SharedState = State<Arc<Shared>>;

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v3/organizations", get(list_organizations).post(create_organization))
        .route(
            "/v3/organizations/{guid}",
            get(show_organization).patch(update_organization).delete(delete_organization),
        )
        .route("/v3/spaces", get(list_spaces).post(create_space))
        .route("/v3/spaces/{guid}", get(show_space).patch(update_space).delete(delete_space))
        .route("/v3/roles", get(list_roles).post(create_role))
        .route("/v3/roles/{guid}", get(show_role).delete(delete_role))
        .route("/v3/jobs/{guid}", get(show_job))
}

async fn list_organizations(
    State(shared): SharedState,
    caller: Caller,
    base: Base,
    Parameters(parameters): Parameters,
) -> Answer {
    let query = query::read(&parameters, &query::ORGANIZATIONS).map_err(Refusal::BadQuery)?;
    let state = shared.store.read();
    let mut found = state.select_organizations(&caller, &query);
    present::sort(&mut found, &query, |o| (o.created_at, o.updated_at, &o.name));
    let page = present::page(&found, &query, "/v3/organizations", &base, |organization| {
        present::organization(organization, state.quota_guid(), &base)
    });
    Ok(answer(200, &page.into()))
}

async fn show_organization(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
) -> Answer {
    let state = shared.store.read();
    let organization = state.visible_organization(&caller, &guid)?;
    Ok(answer(200, &present::organization(organization, state.quota_guid(), &base)))
}

async fn create_organization(
    State(shared): SharedState,
    caller: Caller,
    base: Base,
    Body(body): Body,
) -> Answer {
    let made =
        shared.store.change(|state, moment| state.create_organization(&caller, &body, moment))?;
    tracing::info!(actor = %caller.name, guid = %made.guid, name = %made.name, "organization-created");
    Ok(answer(201, &present::organization(&made, shared.store.read().quota_guid(), &base)))
}

async fn update_organization(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
    Body(body): Body,
) -> Answer {
    let changed = shared
        .store
        .change(|state, moment| state.update_organization(&caller, &guid, &body, moment))?;
    Ok(answer(200, &present::organization(&changed, shared.store.read().quota_guid(), &base)))
}

async fn delete_organization(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
) -> Answer {
    let job =
        shared.store.change(|state, moment| state.delete_organization(&caller, &guid, moment))?;
    tracing::info!(actor = %caller.name, guid = %guid, "organization-deleted");
    Ok(accepted(&job, &base))
}

async fn list_spaces(
    State(shared): SharedState,
    caller: Caller,
    base: Base,
    Parameters(parameters): Parameters,
) -> Answer {
    let query = query::read(&parameters, &query::SPACES).map_err(Refusal::BadQuery)?;
    let state = shared.store.read();
    let mut found = state.select_spaces(&caller, &query);
    present::sort(&mut found, &query, |space| (space.created_at, space.updated_at, &space.name));
    let mut page =
        present::page(&found, &query, "/v3/spaces", &base, |space| present::space(space, &base));
    if query.list("include").is_some() {
        page.set("included", present::included_organizations(&state, &found, &query, &base));
    }
    Ok(answer(200, &page.into()))
}

async fn show_space(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
) -> Answer {
    let state = shared.store.read();
    Ok(answer(200, &present::space(state.visible_space(&caller, &guid)?, &base)))
}

async fn create_space(
    State(shared): SharedState,
    caller: Caller,
    base: Base,
    Body(body): Body,
) -> Answer {
    let made = shared.store.change(|state, moment| state.create_space(&caller, &body, moment))?;
    tracing::info!(actor = %caller.name, guid = %made.guid, name = %made.name, "space-created");
    Ok(answer(201, &present::space(&made, &base)))
}

async fn update_space(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
    Body(body): Body,
) -> Answer {
    let changed =
        shared.store.change(|state, moment| state.update_space(&caller, &guid, &body, moment))?;
    Ok(answer(200, &present::space(&changed, &base)))
}

async fn delete_space(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
) -> Answer {
    let job = shared.store.change(|state, moment| state.delete_space(&caller, &guid, moment))?;
    tracing::info!(actor = %caller.name, guid = %guid, "space-deleted");
    Ok(accepted(&job, &base))
}

async fn list_roles(
    State(shared): SharedState,
    caller: Caller,
    base: Base,
    Parameters(parameters): Parameters,
) -> Answer {
    let query = query::read(&parameters, &query::ROLES).map_err(Refusal::BadQuery)?;
    let state = shared.store.read();
    let mut found = state.select_roles(&caller, &query);
    present::sort(&mut found, &query, |role| (role.created_at, role.created_at, &role.kind));
    let mut page =
        present::page(&found, &query, "/v3/roles", &base, |role| present::role(role, &base));
    if query.list("include").is_some() {
        page.set("included", present::included_with_roles(&state, &found, &query, &base));
    }
    Ok(answer(200, &page.into()))
}

async fn show_role(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
) -> Answer {
    let state = shared.store.read();
    let everything = query::read(&[], &query::ROLES).map_err(Refusal::BadQuery)?;
    let mut visible = state.select_roles(&caller, &everything).into_iter();
    let role = visible.find(|role| role.guid == guid).ok_or(Refusal::NotFound("Role"))?;
    Ok(answer(200, &present::role(&role, &base)))
}

async fn create_role(
    State(shared): SharedState,
    caller: Caller,
    base: Base,
    Body(body): Body,
) -> Answer {
    let made = shared.store.change(|state, moment| state.create_role(&caller, &body, moment))?;
    tracing::info!(actor = %caller.name, kind = %made.kind, user = %made.user, "role-created");
    Ok(answer(201, &present::role(&made, &base)))
}

async fn delete_role(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
) -> Answer {
    let job = shared.store.change(|state, moment| state.delete_role(&caller, &guid, moment))?;
    Ok(accepted(&job, &base))
}

async fn show_job(
    State(shared): SharedState,
    Path(guid): Path<String>,
    _caller: Caller,
    base: Base,
) -> Answer {
    let state = shared.store.read();
    let job = state.job(&guid).ok_or(Refusal::NotFound("Job"))?;
    Ok(answer(200, &present::job(job, &base)))
}
