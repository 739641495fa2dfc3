//! `/v3/security_groups` and the groups of a space.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get, post};

use super::{Body, Call, Parameters, Shared, accepted, answer};
use crate::present;
use crate::refusal::Refusal;
use crate::state::access::Spaces;
use crate::state::{Group, Lifecycle};
use crate::validate::query;

type Answer = Result<Response, Refusal>;

const PATH: &str = "/v3/security_groups";

pub(super) fn router() -> Router<Arc<Shared>> {
    let mut router = Router::new()
        .route(PATH, get(list).post(create))
        .route("/v3/security_groups/{guid}", get(show).patch(update).delete(remove));
    for lifecycle in [Lifecycle::Running, Lifecycle::Staging] {
        let name = lifecycle.name();
        let spaces = format!("/v3/security_groups/{{guid}}/relationships/{name}_spaces");
        router = router
            .route(
                &spaces,
                post(async move |guid, call: Call, body: Body| {
                    bind(lifecycle, guid, call, body).await
                }),
            )
            .route(
                &format!("{spaces}/{{space}}"),
                delete(async move |guids, call: Call| unbind(lifecycle, guids, call).await),
            )
            .route(
                &format!("/v3/spaces/{{guid}}/{name}_security_groups"),
                get(async move |guid, call: Call, parameters| {
                    list_of_space(lifecycle, guid, call, parameters).await
                }),
            );
    }
    router
}

async fn list(call: Call, Parameters(parameters): Parameters) -> Answer {
    let query =
        query::read(&parameters, &query::SECURITY_GROUPS).map_err(Refusal::Unprocessable)?;
    let state = call.state();
    let visible = state.readable_spaces(&call.caller);
    let mut groups = state.select_groups(&call.caller, &query);
    present::sort(&mut groups, &query, by);
    let page = present::page(&groups, &query, PATH, &call.base, |group| {
        present::group(group, &visible, &call.base)
    });
    Ok(answer(200, &page.into()))
}

async fn list_of_space(
    lifecycle: Lifecycle,
    Path(guid): Path<String>,
    call: Call,
    Parameters(parameters): Parameters,
) -> Answer {
    let state = call.state();
    let space = state.visible_space(&call.caller, &guid)?;
    let query =
        query::read(&parameters, &query::SPACE_SECURITY_GROUPS).map_err(Refusal::Unprocessable)?;
    let only_this = Spaces::Some([space.guid.clone()].into());
    let mut groups = state.select_space_groups(&guid, lifecycle, &query);
    present::sort(&mut groups, &query, by);
    let path = format!("/v3/spaces/{guid}/{}_security_groups", lifecycle.name());
    let page = present::page(&groups, &query, &path, &call.base, |group| {
        present::group(group, &only_this, &call.base)
    });
    Ok(answer(200, &page.into()))
}

async fn show(Path(guid): Path<String>, call: Call) -> Answer {
    let state = call.state();
    let group = state.visible_group(&call.caller, &guid)?;
    Ok(answer(200, &present::group(group, &state.readable_spaces(&call.caller), &call.base)))
}

async fn create(call: Call, Body(body): Body) -> Answer {
    let group = call.change(|state, moment| {
        state.create_group(&call.caller, &body, call.shared.flags, moment)
    })?;
    tracing::info!(actor = %call.caller.name, guid = %group.guid, name = %group.name, "security-group-created");
    Ok(answer(201, &present::group(&group, &Spaces::All, &call.base)))
}

async fn update(Path(guid): Path<String>, call: Call, Body(body): Body) -> Answer {
    let group = call.change(|state, moment| {
        state.update_group(&call.caller, &guid, &body, call.shared.flags, moment)
    })?;
    tracing::info!(actor = %call.caller.name, guid = %group.guid, name = %group.name, "security-group-updated");
    Ok(answer(200, &present::group(&group, &Spaces::All, &call.base)))
}

async fn remove(Path(guid): Path<String>, call: Call) -> Answer {
    let job = call.change(|state, moment| state.delete_group(&call.caller, &guid, moment))?;
    tracing::info!(actor = %call.caller.name, guid = %guid, "security-group-deleted");
    Ok(accepted(&job, &call.base))
}

async fn bind(
    lifecycle: Lifecycle,
    Path(guid): Path<String>,
    call: Call,
    Body(body): Body,
) -> Answer {
    let group = call
        .change(|state, moment| state.bind_group(&call.caller, &guid, lifecycle, &body, moment))?;
    let spaces = present::guid_list(group.spaces(lifecycle));
    tracing::info!(actor = %call.caller.name, guid = %guid, name = %group.name,
        lifecycle = lifecycle.name(), spaces, "security-group-bound");
    Ok(answer(200, &present::bound_spaces(&group, lifecycle, &call.base)))
}

async fn unbind(
    lifecycle: Lifecycle,
    Path((guid, space)): Path<(String, String)>,
    call: Call,
) -> Result<StatusCode, Refusal> {
    call.change(|state, moment| {
        state.unbind_group(&call.caller, &guid, lifecycle, &space, moment)
    })?;
    tracing::info!(actor = %call.caller.name, guid = %guid, lifecycle = lifecycle.name(), space = %space,
        "security-group-unbound");
    Ok(StatusCode::NO_CONTENT)
}

fn by(group: &Arc<Group>) -> (jiff::Timestamp, jiff::Timestamp, &str) {
    (group.created_at, group.updated_at, &group.name)
}
