//! `/v3/security_groups` and the groups of a space.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get, post};

use super::{Body, Parameters, Shared, accepted, answer};
use crate::present::{self, Base};
use crate::refusal::Refusal;
use crate::state::access::{Caller, Spaces};
use crate::state::{Group, Lifecycle};
use crate::validate::query;

type Answer = Result<Response, Refusal>;
type SharedState = State<Arc<Shared>>;

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
                post(async move |shared: SharedState, guid, caller: Caller, base, body: Body| {
                    bind(shared, lifecycle, guid, caller, base, body).await
                }),
            )
            .route(
                &format!("{spaces}/{{space}}"),
                delete(async move |shared: SharedState, guids, caller: Caller| {
                    unbind(shared, lifecycle, guids, caller).await
                }),
            )
            .route(
                &format!("/v3/spaces/{{guid}}/{name}_security_groups"),
                get(async move |shared: SharedState, guid, caller: Caller, base, parameters| {
                    list_of_space(shared, lifecycle, guid, caller, base, parameters).await
                }),
            );
    }
    router
}

async fn list(
    State(shared): SharedState,
    caller: Caller,
    base: Base,
    Parameters(parameters): Parameters,
) -> Answer {
    let query =
        query::read(&parameters, &query::SECURITY_GROUPS).map_err(Refusal::Unprocessable)?;
    let state = shared.store.read();
    let visible = state.readable_spaces(&caller);
    let mut groups = state.select_groups(&caller, &query);
    present::sort(&mut groups, &query, by);
    let page =
        present::page(&groups, &query, PATH, &base, |group| present::group(group, &visible, &base));
    Ok(answer(200, &page.into()))
}

async fn list_of_space(
    State(shared): SharedState,
    lifecycle: Lifecycle,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
    Parameters(parameters): Parameters,
) -> Answer {
    let state = shared.store.read();
    let space = state.visible_space(&caller, &guid)?;
    let query =
        query::read(&parameters, &query::SPACE_SECURITY_GROUPS).map_err(Refusal::Unprocessable)?;
    let only_this = Spaces::Some([space.guid.clone()].into());
    let mut groups = state.select_space_groups(&guid, lifecycle, &query);
    present::sort(&mut groups, &query, by);
    let path = format!("/v3/spaces/{guid}/{}_security_groups", lifecycle.name());
    let page = present::page(&groups, &query, &path, &base, |group| {
        present::group(group, &only_this, &base)
    });
    Ok(answer(200, &page.into()))
}

async fn show(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
) -> Answer {
    let state = shared.store.read();
    let group = state.visible_group(&caller, &guid)?;
    Ok(answer(200, &present::group(group, &state.readable_spaces(&caller), &base)))
}

async fn create(
    State(shared): SharedState,
    caller: Caller,
    base: Base,
    Body(body): Body,
) -> Answer {
    let group = shared
        .store
        .change(|state, moment| state.create_group(&caller, &body, shared.flags, moment))?;
    tracing::info!(actor = %caller.name, guid = %group.guid, name = %group.name, "security-group-created");
    Ok(answer(201, &present::group(&group, &Spaces::All, &base)))
}

async fn update(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
    Body(body): Body,
) -> Answer {
    let group = shared
        .store
        .change(|state, moment| state.update_group(&caller, &guid, &body, shared.flags, moment))?;
    tracing::info!(actor = %caller.name, guid = %group.guid, name = %group.name, "security-group-updated");
    Ok(answer(200, &present::group(&group, &Spaces::All, &base)))
}

async fn remove(
    State(shared): SharedState,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
) -> Answer {
    let job = shared.store.change(|state, moment| state.delete_group(&caller, &guid, moment))?;
    tracing::info!(actor = %caller.name, guid = %guid, "security-group-deleted");
    Ok(accepted(&job, &base))
}

async fn bind(
    State(shared): SharedState,
    lifecycle: Lifecycle,
    Path(guid): Path<String>,
    caller: Caller,
    base: Base,
    Body(body): Body,
) -> Answer {
    let group = shared
        .store
        .change(|state, moment| state.bind_group(&caller, &guid, lifecycle, &body, moment))?;
    let spaces = present::guid_list(group.spaces(lifecycle));
    tracing::info!(actor = %caller.name, guid = %guid, name = %group.name,
        lifecycle = lifecycle.name(), spaces, "security-group-bound");
    Ok(answer(200, &present::bound_spaces(&group, lifecycle, &base)))
}

async fn unbind(
    State(shared): SharedState,
    lifecycle: Lifecycle,
    Path((guid, space)): Path<(String, String)>,
    caller: Caller,
) -> Result<StatusCode, Refusal> {
    shared
        .store
        .change(|state, moment| state.unbind_group(&caller, &guid, lifecycle, &space, moment))?;
    tracing::info!(actor = %caller.name, guid = %guid, lifecycle = lifecycle.name(), space = %space,
        "security-group-unbound");
    Ok(StatusCode::NO_CONTENT)
}

fn by(group: &Arc<Group>) -> (jiff::Timestamp, jiff::Timestamp, &str) {
    (group.created_at, group.updated_at, &group.name)
}
