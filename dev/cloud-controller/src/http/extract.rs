//! Extractors of the handlers.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::Method;
use axum::http::header::HOST;
use axum::http::request::Parts;

use super::{Shared, form};
use crate::json::{Json, Object};
use crate::present::Base;
use crate::refusal::Refusal;
use crate::state::access::Caller;
use crate::state::{Moment, State};

/// The URL scheme of a listener, added to each of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scheme(pub &'static str);

impl<S: Sync> FromRequestParts<S> for Base {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| parts.uri.authority().map(|authority| authority.as_str()));
        let scheme = parts.extensions.get::<Scheme>().map_or("http", |scheme| scheme.0);
        Ok(Self { scheme, host: host.unwrap_or("localhost").to_owned() })
    }
}

/// An authenticated request to the API.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) caller: Caller,
    pub(crate) base: Base,
}

impl FromRequestParts<Arc<Shared>> for Call {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Refusal> {
        let caller = shared.caller(&parts.headers)?;
        caller.require_scope(!matches!(parts.method, Method::GET | Method::HEAD))?;
        let base = Base::from_request_parts(parts, shared).await?;
        Ok(Self { shared: shared.clone(), caller, base })
    }
}

impl Call {
    /// The current state.
    pub(super) fn state(&self) -> Arc<State> {
        self.shared.store.read()
    }

    /// Applies a change completely, or not at all.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut State, &Moment) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.shared.store.change(change)
    }
}

/// The decoded query.
#[derive(Debug)]
pub(crate) struct Parameters(pub Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Ok(Self(form(parts.uri.query().unwrap_or_default().as_bytes())))
    }
}

/// The JSON object in the body, regardless of the content type. No body is an empty
/// object; any other value becomes the key `_json`, as in Rails, and so is an unknown
/// field.
#[derive(Debug)]
pub(crate) struct Body(pub Object);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state).await.map_err(|_| Refusal::Unparsable)?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(Object::new()));
        }
        match Json::parse(&bytes).map_err(|_| Refusal::Unparsable)? {
            Json::Object(object) => Ok(Self(object)),
            other => {
                let mut object = Object::new();
                object.set("_json", other);
                Ok(Self(object))
            }
        }
    }
}
