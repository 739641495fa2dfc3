//! Organizations, spaces, roles and jobs.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::get;

use super::{Body, Call, Parameters, Shared, accepted, answer};
use crate::present;
use crate::refusal::Refusal;
use crate::validate::query;

type Answer = Result<Response, Refusal>;

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

async fn list_organizations(call: Call, Parameters(parameters): Parameters) -> Answer {
    let query = query::read(&parameters, &query::ORGANIZATIONS).map_err(Refusal::BadQuery)?;
    let state = call.state();
    let mut found = state.select_organizations(&call.caller, &query);
    present::sort(&mut found, &query, |o| (o.created_at, o.updated_at, &o.name));
    let page = present::page(&found, &query, "/v3/organizations", &call.base, |organization| {
        present::organization(organization, state.quota_guid(), &call.base)
    });
    Ok(answer(200, &page.into()))
}

async fn show_organization(Path(guid): Path<String>, call: Call) -> Answer {
    let state = call.state();
    let organization = state.visible_organization(&call.caller, &guid)?;
    Ok(answer(200, &present::organization(organization, state.quota_guid(), &call.base)))
}

async fn create_organization(call: Call, Body(body): Body) -> Answer {
    let made =
        call.change(|state, moment| state.create_organization(&call.caller, &body, moment))?;
    tracing::info!(actor = %call.caller.name, guid = %made.guid, name = %made.name, "organization-created");
    Ok(answer(201, &present::organization(&made, call.state().quota_guid(), &call.base)))
}

async fn update_organization(Path(guid): Path<String>, call: Call, Body(body): Body) -> Answer {
    let changed =
        call.change(|state, moment| state.update_organization(&call.caller, &guid, &body, moment))?;
    Ok(answer(200, &present::organization(&changed, call.state().quota_guid(), &call.base)))
}

async fn delete_organization(Path(guid): Path<String>, call: Call) -> Answer {
    let job =
        call.change(|state, moment| state.delete_organization(&call.caller, &guid, moment))?;
    tracing::info!(actor = %call.caller.name, guid = %guid, "organization-deleted");
    Ok(accepted(&job, &call.base))
}

async fn list_spaces(call: Call, Parameters(parameters): Parameters) -> Answer {
    let query = query::read(&parameters, &query::SPACES).map_err(Refusal::BadQuery)?;
    let state = call.state();
    let mut found = state.select_spaces(&call.caller, &query);
    present::sort(&mut found, &query, |space| (space.created_at, space.updated_at, &space.name));
    let mut page = present::page(&found, &query, "/v3/spaces", &call.base, |space| {
        present::space(space, &call.base)
    });
    if query.list("include").is_some() {
        page.set("included", present::included_organizations(&state, &found, &query, &call.base));
    }
    Ok(answer(200, &page.into()))
}

async fn show_space(Path(guid): Path<String>, call: Call) -> Answer {
    let state = call.state();
    Ok(answer(200, &present::space(state.visible_space(&call.caller, &guid)?, &call.base)))
}

async fn create_space(call: Call, Body(body): Body) -> Answer {
    let made = call.change(|state, moment| state.create_space(&call.caller, &body, moment))?;
    tracing::info!(actor = %call.caller.name, guid = %made.guid, name = %made.name, "space-created");
    Ok(answer(201, &present::space(&made, &call.base)))
}

async fn update_space(Path(guid): Path<String>, call: Call, Body(body): Body) -> Answer {
    let changed =
        call.change(|state, moment| state.update_space(&call.caller, &guid, &body, moment))?;
    Ok(answer(200, &present::space(&changed, &call.base)))
}

async fn delete_space(Path(guid): Path<String>, call: Call) -> Answer {
    let job = call.change(|state, moment| state.delete_space(&call.caller, &guid, moment))?;
    tracing::info!(actor = %call.caller.name, guid = %guid, "space-deleted");
    Ok(accepted(&job, &call.base))
}

async fn list_roles(call: Call, Parameters(parameters): Parameters) -> Answer {
    let query = query::read(&parameters, &query::ROLES).map_err(Refusal::BadQuery)?;
    let state = call.state();
    let mut found = state.select_roles(&call.caller, &query);
    present::sort(&mut found, &query, |role| (role.created_at, role.created_at, &role.kind));
    let mut page = present::page(&found, &query, "/v3/roles", &call.base, |role| {
        present::role(role, &call.base)
    });
    if query.list("include").is_some() {
        page.set("included", present::included_with_roles(&state, &found, &query, &call.base));
    }
    Ok(answer(200, &page.into()))
}

async fn show_role(Path(guid): Path<String>, call: Call) -> Answer {
    let state = call.state();
    let everything = query::read(&[], &query::ROLES).map_err(Refusal::BadQuery)?;
    let mut visible = state.select_roles(&call.caller, &everything).into_iter();
    let role = visible.find(|role| role.guid == guid).ok_or(Refusal::NotFound("Role"))?;
    Ok(answer(200, &present::role(&role, &call.base)))
}

async fn create_role(call: Call, Body(body): Body) -> Answer {
    let made = call.change(|state, moment| state.create_role(&call.caller, &body, moment))?;
    tracing::info!(actor = %call.caller.name, kind = %made.kind, user = %made.user, "role-created");
    Ok(answer(201, &present::role(&made, &call.base)))
}

async fn delete_role(Path(guid): Path<String>, call: Call) -> Answer {
    let job = call.change(|state, moment| state.delete_role(&call.caller, &guid, moment))?;
    Ok(accepted(&job, &call.base))
}

async fn show_job(Path(guid): Path<String>, call: Call) -> Answer {
    let state = call.state();
    let job = state.job(&guid).ok_or(Refusal::NotFound("Job"))?;
    Ok(answer(200, &present::job(job, &call.base)))
}
