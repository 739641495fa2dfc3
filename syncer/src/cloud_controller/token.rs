//! UAA client-credentials token, cached until shortly before it expires.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{
    HeaderValue, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use tokio::{sync::Mutex, time::Instant};
use tracing::debug;

use super::{
    error::{Error, Fault, Step, message},
    http::{self as client, Http},
};

/// Token endpoint and client.
#[derive(Debug, Clone)]
pub struct Uaa {
    /// Base URL with scheme and port, without path.
    pub url: String,
    /// Client name.
    pub client: String,
    /// Client secret.
    pub secret: Secret,
}

/// A text that is never logged.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Token cache.
pub(super) struct Tokens {
    uaa: Uaa,
    timeout: Duration,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    /// Header value, `bearer ...`.
    token: HeaderValue,
    good_until: Instant,
}

#[derive(serde::Deserialize)]
struct Granted {
    access_token: Option<String>,
    expires_in: Option<i64>,
}

/// Safety margin: a token is not used in this time before it expires.
const EARLY: Duration = Duration::from_secs(60);
/// Lifetime of a token without `expires_in`. The original fetches a token per poll and
/// ignores the lifetime.
const UNSTATED_LIFE: Duration = Duration::from_secs(60);

/// Upper bound of the lifetime: its end must be a moment that the clock can represent.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a token with `expires_in` seconds is used: a short lifetime is reduced by a
/// quarter, a long one by a minute.
fn usable(expires_in: Option<i64>) -> Duration {
    match expires_in {
        None => UNSTATED_LIFE,
        Some(seconds) => {
            let life = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            (life - EARLY.min(life / 4)).min(LONGEST_LIFE)
        }
    }
}

impl Tokens {
    /// Empty cache.
    #[must_use]
    pub(super) fn new(uaa: Uaa, timeout: Duration) -> Self {
        Self { uaa, timeout, kept: Mutex::new(None) }
    }

    /// The cached token, or a new one.
    ///
    /// # Errors
    /// UAA returns no token.
    pub(super) async fn get(&self, http: &Http) -> Result<HeaderValue, Error> {
        let mut kept = self.kept.lock().await;
        let now = Instant::now();
        if let Some(kept) = kept.as_ref().filter(|kept| now < kept.good_until) {
            return Ok(kept.token.clone());
        }
        *kept = None;
        let (token, life) =
            self.fetch(http).await.map_err(|fault| Error { step: Step::Token, fault })?;
        *kept = Some(Kept { token: token.clone(), good_until: now + life });
        Ok(token)
    }

    /// Drops `token` from the cache after it was rejected.
    pub(super) async fn reject(&self, token: &HeaderValue) {
        self.kept.lock().await.take_if(|kept| kept.token == token);
    }

    /// Drops the cached token.
    pub(super) async fn forget(&self) {
        *self.kept.lock().await = None;
    }

    /// Neither the header nor the form is url-encoded: the original does not do so either,
    /// and UAA accepts it.
    async fn fetch(&self, http: &Http) -> Result<(HeaderValue, Duration), Fault> {
        let Uaa { url, client, secret } = &self.uaa;
        debug!(URL = runtime::lager::json(&LoggedUrl::token(url)), "get-token");
        let basic = BASE64_STANDARD.encode(format!("{client}:{}", secret.0));
        let request = http
            .client()
            .map_err(Fault::Client)?
            .post(format!("{url}{PATH}"))
            .header(AUTHORIZATION, format!("Basic {basic}"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(format!("client_id={client}&grant_type=client_credentials"));
        let response = client::send(request, self.timeout).await?;
        let (code, retry_after) = (response.status(), client::wish(&response));
        if code.is_redirection() {
            let message = "redirects, which is not followed with the client's secret".to_owned();
            return Err(Fault::Uaa { code, message, retry_after });
        }
        let body = client::read(response).await?;
        if code != StatusCode::OK {
            return Err(Fault::Uaa { code, message: message(&body), retry_after });
        }
        granted(&body)
    }
}

/// Header and lifetime of the token in UAA's response.
fn granted(body: &[u8]) -> Result<(HeaderValue, Duration), Fault> {
    let granted: Granted = runtime::json::from_slice(body).map_err(Fault::Json)?;
    match granted.access_token {
        Some(token) if !token.is_empty() => Ok((bearer(&token)?, usable(granted.expires_in))),
        _ => Err(Fault::NoToken),
    }
}

/// Header for `token`: visible ASCII, a superset of RFC 6750 tokens.
fn bearer(token: &str) -> Result<HeaderValue, Fault> {
    if let Some(at) = token.bytes().position(|byte| !byte.is_ascii_graphic()) {
        return Err(Fault::BadToken { byte: token.as_bytes()[at], position: at + 1 });
    }
    let mut header = HeaderValue::try_from(format!("bearer {token}")).expect("it is visible ASCII");
    header.set_sensitive(true);
    Ok(header)
}

const PATH: &str = "/oauth/token";

/// Go's `url.URL` as its JSON encoder prints it.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct LoggedUrl<'a> {
    scheme: &'a str,
    opaque: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    path: &'a str,
    fragment: &'a str,
    raw_query: &'a str,
    raw_path: &'a str,
    raw_fragment: &'a str,
    force_query: bool,
    omit_host: bool,
}

impl<'a> LoggedUrl<'a> {
    fn token(base: &'a str) -> Self {
        let (scheme, authority) = base.split_once("://").unwrap_or(("", base));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        Self {
            scheme,
            opaque: "",
            user: None,
            host,
            path: PATH,
            fragment: "",
            raw_query: "",
            raw_path: "",
            raw_fragment: "",
            force_query: false,
            omit_host: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_dropped_before_it_ends() {
        assert_eq!(usable(Some(43_199)), Duration::from_secs(43_139));
        assert_eq!(usable(Some(8)), Duration::from_secs(6));
        assert_eq!(usable(Some(0)), Duration::ZERO);
        assert_eq!(usable(Some(-5)), Duration::ZERO);
        assert_eq!(usable(Some(i64::MAX)), LONGEST_LIFE);
        assert_eq!(usable(None), UNSTATED_LIFE);
    }

    #[test]
    fn a_secret_does_not_show() {
        let uaa = Uaa {
            url: String::new(),
            client: "network-policy".to_owned(),
            secret: Secret("hush".to_owned()),
        };
        assert!(!format!("{uaa:?}").contains("hush"));
    }

    /// As recorded from the original.
    #[test]
    fn the_url_is_logged_as_go_logs_it() {
        assert_eq!(
            serde_json::to_string(&LoggedUrl::token("https://127.0.0.1:28443")).unwrap(),
            r#"{"Scheme":"https","Opaque":"","User":null,"Host":"127.0.0.1:28443","Path":"/oauth/token","Fragment":"","RawQuery":"","RawPath":"","RawFragment":"","ForceQuery":false,"OmitHost":false}"#
        );
    }

    #[test]
    fn the_user_of_a_url_does_not_show() {
        let text = serde_json::to_string(&LoggedUrl::token("https://me:hush@uaa:8443")).unwrap();
        assert!(text.contains(r#""Host":"uaa:8443""#) && !text.contains("hush"), "{text}");
    }
}

#[cfg(test)]
#[path = "answer_fuzz_tests.rs"]
mod fuzz_tests;
