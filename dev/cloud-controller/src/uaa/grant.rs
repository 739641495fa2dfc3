//! Decides on token requests.
//!
//! Pure: takes the request, the users and clients, the time and two fresh IDs; returns
//! claims or an error.

use super::{Client, Lifetimes};
use crate::json::{Json, Object, object};
use crate::state::State;
use crate::state::users::{User, find_user};

/// A request for a token.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Form fields and query parameters.
    pub fields: Vec<(String, String)>,
    /// User and password of HTTP basic authentication.
    pub basic: Option<(String, String)>,
}

impl Request {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Context of the decision.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The known users.
    pub state: &'a State,
    /// The known clients.
    pub clients: &'a [Client],
    /// Lifetimes of tokens.
    pub lifetimes: Lifetimes,
    /// Seconds since 1970.
    pub now: i64,
    /// The URL of the UAA, for `iss`.
    pub issuer: &'a str,
    /// A fresh ID for the tokens.
    pub id: &'a str,
}

/// A token to issue.
#[derive(Debug, Clone, PartialEq)]
pub struct Granted {
    /// The claims of the access token.
    pub access: Json,
    /// The claims of the refresh token, for users.
    pub refresh: Option<Json>,
    /// Lifetime in seconds.
    pub expires_in: i64,
    /// All scopes, separated by spaces.
    pub scope: String,
    /// The user or client, for the log.
    pub who: String,
}

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The HTTP status.
    pub status: u16,
    /// The error code.
    pub error: &'static str,
    /// The error description.
    pub description: String,
}

impl Denied {
    /// Creates an error response.
    pub fn new(status: u16, error: &'static str, description: impl Into<String>) -> Self {
        Self { status, error, description: description.into() }
    }

    /// The JSON document.
    pub fn to_json(&self) -> Json {
        object! { "error": self.error, "error_description": &self.description }
    }
}

fn bad_credentials() -> Denied {
    Denied::new(401, "unauthorized", "Bad credentials")
}

/// The client of a request: by basic authentication, or else by the form fields.
pub fn authenticate<'a>(request: &Request, clients: &'a [Client]) -> Result<&'a Client, Denied> {
    let (id, secret) = match &request.basic {
        Some((id, secret)) => (id.as_str(), secret.as_str()),
        None => (
            request.field("client_id").unwrap_or_default(),
            request.field("client_secret").unwrap_or_default(),
        ),
    };
    let client = clients.iter().find(|client| client.id == id).ok_or_else(bad_credentials)?;
    if client.secret == secret { Ok(client) } else { Err(bad_credentials()) }
}

/// Decides on a request. `refresh` decodes one of our refresh tokens.
pub fn decide(
    request: &Request,
    around: Around<'_>,
    refresh: impl FnOnce(&str) -> Option<Json>,
) -> Result<Granted, Denied> {
    let client = authenticate(request, around.clients)?;
    let grant_type = request.field("grant_type").unwrap_or_default();
    match grant_type {
        "" => Err(Denied::new(400, "invalid_request", "Missing grant type")),
        "client_credentials" if !client.for_users => Ok(for_client(client, around)),
        "password" if client.for_users => {
            let user = find_user(around.state, request.field("username").unwrap_or_default());
            let password = request.field("password").unwrap_or_default();
            let user = user.filter(|user| user.password == password).ok_or_else(bad_credentials)?;
            Ok(for_user(client, user, "password", around))
        }
        "refresh_token" if client.for_users => {
            let token = request.field("refresh_token").unwrap_or_default();
            let user =
                refresh(token).and_then(|claims| refreshed_user(&claims, client, around.state));
            let user = user.ok_or_else(|| {
                Denied::new(
                    401,
                    "invalid_token",
                    "The token expired, was revoked, or the token ID is incorrect.",
                )
            })?;
            Ok(for_user(client, user, "refresh_token", around))
        }
        "client_credentials" | "password" | "refresh_token" => Err(Denied::new(
            401,
            "invalid_client",
            format!("Unauthorized grant type: {grant_type}"),
        )),
        _ => Err(Denied::new(
            400,
            "unsupported_grant_type",
            format!("Unsupported grant type: {grant_type}"),
        )),
    }
}

/// Whether the claims are those of a refresh token.
pub fn is_refresh(claims: &Json) -> bool {
    claims.at(&["jti"]).and_then(Json::as_str).is_some_and(|id| id.ends_with("-r"))
}

fn refreshed_user<'a>(claims: &Json, client: &Client, state: &'a State) -> Option<&'a User> {
    let claim = |key: &str| claims.at(&[key]).and_then(Json::as_str);
    if !is_refresh(claims) || claim("client_id") != Some(&client.id) {
        return None;
    }
    let guid = claim("user_id")?;
    state.users().find(|user| user.guid == guid).map(AsRef::as_ref)
}

fn for_client(client: &Client, around: Around<'_>) -> Granted {
    let scopes = &client.authorities;
    let mut claims = Object::new();
    claims.set("jti", around.id);
    claims.set("sub", &client.id);
    claims.set("authorities", scopes.iter().collect::<Json>());
    common_claims(
        &mut claims,
        client,
        scopes,
        "client_credentials",
        around.lifetimes.client,
        around,
    );
    Granted {
        access: claims.into(),
        refresh: None,
        expires_in: around.lifetimes.client,
        scope: scopes.join(" "),
        who: client.id.clone(),
    }
}

fn for_user(client: &Client, user: &User, grant_type: &str, around: Around<'_>) -> Granted {
    let scopes = &user.scopes;
    let make = |id: String, lifetime| {
        let mut claims = Object::new();
        claims.set("jti", id);
        claims.set("sub", &user.guid);
        claims.set("user_id", &user.guid);
        claims.set("user_name", &user.name);
        claims.set("origin", &user.origin);
        claims.set("email", &user.name);
        claims.set("auth_time", around.now);
        common_claims(&mut claims, client, scopes, grant_type, lifetime, around);
        Json::from(claims)
    };
    Granted {
        access: make(around.id.to_owned(), around.lifetimes.access),
        refresh: Some(make(format!("{}-r", around.id), around.lifetimes.refresh)),
        expires_in: around.lifetimes.access,
        scope: scopes.join(" "),
        who: user.name.clone(),
    }
}

fn common_claims(
    claims: &mut Object,
    client: &Client,
    scopes: &[String],
    grant_type: &str,
    lifetime: i64,
    around: Around<'_>,
) {
    claims.set("scope", scopes.iter().collect::<Json>());
    claims.set("client_id", &client.id);
    claims.set("cid", &client.id);
    claims.set("azp", &client.id);
    claims.set("revocable", false);
    claims.set("grant_type", grant_type);
    claims.set("iat", around.now);
    claims.set("exp", around.now.saturating_add(lifetime));
    claims.set("iss", format!("{}/oauth/token", around.issuer));
    claims.set("zid", "uaa");
    claims.set("aud", audience(client, scopes));
}

/// The resources of the scopes, and the client.
fn audience(client: &Client, scopes: &[String]) -> Json {
    let resources = scopes.iter().filter_map(|scope| scope.rsplit_once('.'));
    let mut audience: Vec<&str> = resources.map(|(resource, _)| resource).collect();
    audience.push(&client.id);
    audience.sort_unstable();
    audience.dedup();
    audience.into_iter().collect()
}
