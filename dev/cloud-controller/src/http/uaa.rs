//! The routes of the UAA.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{delete, get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::{Shared, answer, form};
use crate::json::{Json, Object, object};
use crate::present::Base;
use crate::refusal::Refusal;
use crate::state::access::Authority;
use crate::state::users::{USER_SCOPES, User};
use crate::store::new_guid;
use crate::uaa::grant::{self, Around, Denied, Request};

type Answer = Result<Response, Denied>;

/// All routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/login", get(prompts))
        .route("/info", get(prompts))
        .route("/healthz", get(async || "ok"))
        .route("/oauth/token", post(token))
        .route("/oauth/token/revoke/{id}", delete(async || StatusCode::OK))
        .route("/token_key", get(token_key))
        .route("/token_keys", get(token_keys))
        .route("/check_token", post(check_token))
        .route("/.well-known/openid-configuration", get(openid_configuration))
        .route("/Users", get(list_users).post(create_user))
        .route("/oauth/clients/{id}", get(show_client))
        .with_state(shared)
}

impl axum::response::IntoResponse for Denied {
    fn into_response(self) -> Response {
        answer(self.status, &self.to_json())
    }
}

async fn prompts(base: Base) -> Response {
    let uaa = base.url("");
    let document = object! {
        "app": object! { "version": "77.30.0" },
        "links": object! {
            "uaa": &uaa,
            "login": &uaa,
            "passwd": "/forgot_password",
            "register": "/create_account",
        },
        "zone_name": "uaa",
        "entityID": "portcullis-dev",
        "prompts": object! {
            "username": ["text", "Email"].into_iter().collect::<Json>(),
            "password": ["password", "Password"].into_iter().collect::<Json>(),
        },
    };
    answer(200, &document)
}

async fn token(
    State(shared): State<Arc<Shared>>,
    base: Base,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    body: Bytes,
) -> Answer {
    let mut fields = form(&body);
    fields.extend(form(query.unwrap_or_default().as_bytes()));
    let request = Request { fields, basic: basic(&headers) };
    let state = shared.store.read();
    let now = Timestamp::now().as_second();
    let issuer = base.url("");
    let id = new_guid();
    let around = Around {
        state: &state,
        clients: &shared.clients,
        lifetimes: shared.lifetimes,
        now,
        issuer: &issuer,
        id: &id,
    };
    let decided = grant::decide(&request, around, |token| shared.signer.read(token, now));
    let granted = decided.inspect_err(|denied| {
        tracing::info!(error = denied.error, description = %denied.description, "token-denied");
    })?;
    let mut document = Object::new();
    document.set("access_token", sign(&shared, &granted.access)?);
    document.set("token_type", "bearer");
    if let Some(claims) = &granted.refresh {
        document.set("refresh_token", sign(&shared, claims)?);
    }
    document.set("expires_in", granted.expires_in);
    document.set("scope", granted.scope);
    document.set("jti", id.as_str());
    tracing::debug!(who = %granted.who, "token-granted");
    Ok(answer(200, &document.into()))
}

fn sign(shared: &Shared, claims: &Json) -> Result<String, Denied> {
    shared.signer.sign(claims).map_err(|error| {
        tracing::error!(error = %error, "failed-to-sign-token");
        Denied::new(500, "server_error", "The token could not be signed.")
    })
}

async fn token_key(State(shared): State<Arc<Shared>>) -> Response {
    answer(200, &shared.signer.to_json())
}

async fn token_keys(State(shared): State<Arc<Shared>>) -> Response {
    answer(200, &object! { "keys": vec![shared.signer.to_json()] })
}

async fn check_token(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Answer {
    let request = Request { fields: form(&body), basic: basic(&headers) };
    grant::authenticate(&request, &shared.clients).map_err(|_| {
        Denied::new(
            401,
            "unauthorized",
            "An Authentication object was not found in the SecurityContext",
        )
    })?;
    let token = request.fields.iter().find(|(key, _)| key == "token");
    let claims =
        token.and_then(|(_, token)| shared.signer.read(token, Timestamp::now().as_second()));
    let claims = claims.filter(|claims| !grant::is_refresh(claims)).ok_or_else(|| {
        Denied::new(
            400,
            "invalid_token",
            "The token expired, was revoked, or the token ID is incorrect.",
        )
    })?;
    Ok(answer(200, &claims))
}

async fn openid_configuration(base: Base) -> Response {
    let url = |path: &str| base.url(path);
    let texts = |texts: &[&str]| texts.iter().copied().collect::<Json>();
    let document = object! {
        "issuer": url("/oauth/token"),
        "authorization_endpoint": url("/oauth/authorize"),
        "token_endpoint": url("/oauth/token"),
        "jwks_uri": url("/token_keys"),
        "userinfo_endpoint": url("/userinfo"),
        "token_endpoint_auth_methods_supported":
            texts(&["client_secret_basic", "client_secret_post"]),
        "token_endpoint_auth_signing_alg_values_supported": texts(&["RS256"]),
        "id_token_signing_alg_values_supported": texts(&["RS256"]),
        "scopes_supported": texts(&["openid"]),
        "response_types_supported": texts(&["code"]),
        "subject_types_supported": texts(&["public"]),
        "claims_supported": texts(&["sub", "user_name", "origin", "iss", "exp", "iat"]),
    };
    answer(200, &document)
}

/// The Cloud Controller's administrators also administrate the UAA.
fn require_admin(shared: &Shared, headers: &HeaderMap) -> Result<(), Denied> {
    let caller = shared.caller(headers).map_err(|_| {
        Denied::new(401, "unauthorized", "Full authentication is required to access this resource")
    })?;
    match caller.authority {
        Authority::Admin => Ok(()),
        Authority::ReadEverything | Authority::Roles { .. } => {
            Err(Denied::new(403, "insufficient_scope", "Insufficient scope for this resource"))
        }
    }
}

fn present_user(user: &User) -> Json {
    object! {
        "id": &user.guid,
        "userName": &user.name,
        "origin": &user.origin,
        "active": true,
        "emails": vec![object! { "value": &user.name, "primary": false }],
    }
}

/// `GET /Users`; the only supported filter is `userName eq "..."`.
async fn list_users(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Answer {
    require_admin(&shared, &headers)?;
    let fields = form(query.unwrap_or_default().as_bytes());
    let filter = fields.iter().find(|(key, _)| key == "filter").map(|(_, value)| value.as_str());
    let wanted = filter.map(|filter| {
        let after = filter.split_once("userName eq \"").map(|(_, rest)| rest);
        after.and_then(|rest| rest.split_once('"')).map(|(name, _)| name).unwrap_or_default()
    });
    let state = shared.store.read();
    let users = state
        .users()
        .filter(|user| wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(&user.name)));
    let found: Vec<Json> = users.map(|user| present_user(user)).collect();
    let document = object! {
        "totalResults": found.len(),
        "startIndex": 1i64,
        "itemsPerPage": 100i64,
        "schemas": ["urn:scim:schemas:core:1.0"].into_iter().collect::<Json>(),
        "resources": found,
    };
    Ok(answer(200, &document))
}

async fn create_user(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Answer {
    require_admin(&shared, &headers)?;
    let invalid = |text: &str| Denied::new(400, "invalid_scim_resource", text);
    let body = Json::parse(&body).map_err(|_| invalid("The body is not JSON"))?;
    let text = |key: &str| body.at(&[key]).and_then(Json::as_str).filter(|text| !text.is_empty());
    let name = text("userName").ok_or_else(|| invalid("A username must be provided."))?;
    let scopes = USER_SCOPES.map(str::to_owned).to_vec();
    let created = shared.store.change(|state, moment| {
        let user = state.add_user(name, text("password").unwrap_or_default(), scopes, moment);
        user.ok_or_else(|| Refusal::unprocessable("taken"))
    });
    match created {
        Ok(user) => Ok(answer(201, &present_user(&user))),
        Err(Refusal::Broken) => Err(Denied::new(500, "server_error", "The user was not saved.")),
        Err(_) => Err(Denied::new(
            409,
            "scim_resource_already_exists",
            format!("Username already in use: {name}"),
        )),
    }
}

async fn show_client(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer {
    require_admin(&shared, &headers)?;
    let client = shared.clients.iter().find(|client| client.id == id);
    let client = client.ok_or_else(|| {
        Denied::new(404, "not_found", format!("No client with requested id: {id}"))
    })?;
    let authorities: Json = client.authorities.iter().collect();
    Ok(answer(200, &object! { "client_id": &client.id, "authorities": authorities }))
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(axum::http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}
