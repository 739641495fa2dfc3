//! Users. The UAA stores them; the Cloud Controller shows their names.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::get;

use super::{Body, Call, Parameters, Shared, answer};
use crate::present;
use crate::refusal::Refusal;
use crate::state::users::User;
use crate::validate::{query, resources};

type Answer = Result<Response, Refusal>;

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v3/users", get(list_users).post(create_user))
        .route("/v3/users/{guid}", get(show_user))
}

/// Administrators see every user, others see themselves.
async fn list_users(call: Call, Parameters(parameters): Parameters) -> Answer {
    let query = query::read(&parameters, &query::USERS).map_err(Refusal::BadQuery)?;
    let state = call.state();
    let all = call.caller.require_admin().is_ok();
    let part_of = |user: &User| match query.list("partial_usernames") {
        Some(parts) => parts.iter().any(|part| user.name.contains(part.as_str())),
        None => true,
    };
    let wanted = |user: &&Arc<User>| {
        query.admits("guids", &user.guid)
            && query.admits("usernames", &user.name)
            && query.admits("origins", &user.origin)
            && part_of(user)
            && (all || user.guid == call.caller.id)
    };
    let found: Vec<_> = state.users().filter(wanted).collect();
    let page = present::page(&found, &query, "/v3/users", &call.base, |user| {
        present::user(&user.guid, Some(&user.name), &call.base)
    });
    Ok(answer(200, &page.into()))
}

/// The UAA creates users; this only confirms the GUID.
async fn create_user(call: Call, Body(body): Body) -> Answer {
    call.caller.require_admin()?;
    let guid = resources::user(&body).map_err(Refusal::Unprocessable)?;
    let state = call.state();
    Ok(answer(201, &present::user(&guid, state.user_name(&guid), &call.base)))
}

async fn show_user(Path(guid): Path<String>, call: Call) -> Answer {
    let state = call.state();
    let name = state.user_name(&guid);
    if name.is_none() || (call.caller.require_admin().is_err() && call.caller.id != guid) {
        return Err(Refusal::NotFound("User"));
    }
    Ok(answer(200, &present::user(&guid, name, &call.base)))
}
