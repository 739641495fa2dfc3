//! Client of the Cloud Controller and its UAA.
//!
//! Requests equal the original's, with four additions: every call has a timeout; a token
//! is cached while it is valid and replaced once when it is rejected; `Retry-After` is
//! honored; a redirect is followed only within the same scheme, host and port.

mod error;
mod http;
pub mod listing;
mod stream;
mod token;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ::http::{HeaderValue, StatusCode, header::AUTHORIZATION};
use model::ids::GroupGuid;
use reqwest::Response;
use tokio::{sync::watch, time::Instant};
use tracing::{Span, debug, error, error_span, info};

use self::token::Tokens;
pub use self::{
    error::{Error, Fault, Step},
    http::{Http, Identity, Trust},
    token::{Secret, Uaa},
};
use crate::stamp::Stamp;

/// Limit of redirects per call.
const MOST_REDIRECTS: usize = 5;
/// Interval at which the read of the stamp is logged at info: the original's poll
/// interval; this syncer polls each second.
const ANNOUNCE: Duration = Duration::from_secs(60);

/// URLs and timeouts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// URL of the v3 API; without a trailing slash.
    pub url: String,
    /// URL of the internal API; without a trailing slash.
    pub internal_url: String,
    /// Token endpoint.
    pub uaa: Uaa,
    /// Groups per page, 1 to 5000.
    pub page_size: u16,
    /// Timeout of a token or stamp call.
    pub call_timeout: Duration,
    /// Timeout of a page of groups.
    pub page_timeout: Duration,
}

/// Client of the Cloud Controller and UAA.
pub struct CloudController {
    settings: Settings,
    tokens: Tokens,
    public: Api,
    internal: Api,
    /// Time of the last complete successful response.
    answered: watch::Sender<Instant>,
    looks: Announced,
    misses: Announced,
}

/// When the log line of each poll was last logged at info.
#[derive(Default)]
struct Announced(Mutex<Option<Instant>>);

impl Announced {
    /// Whether the line is due at info: once per [`ANNOUNCE`].
    fn due(&self) -> bool {
        let now = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last + ANNOUNCE <= now);
        if due {
            *last = Some(now);
        }
        due
    }
}

struct Api {
    http: Http,
    span: Span,
    base: String,
    timeout: Duration,
}

impl CloudController {
    /// `public` is the client for UAA and the v3 API, `internal` for the mTLS listener.
    #[must_use]
    pub fn new(settings: Settings, public: Http, internal: Http) -> Self {
        Self {
            tokens: Tokens::new(settings.uaa.clone(), settings.call_timeout),
            public: Api {
                http: public,
                span: error_span!(parent: None, "cc-json-client"),
                base: settings.url.clone(),
                timeout: settings.page_timeout,
            },
            internal: Api {
                http: internal,
                span: error_span!(parent: None, "cc-internal-json-client"),
                base: settings.internal_url.clone(),
                timeout: settings.call_timeout,
            },
            settings,
            answered: watch::Sender::new(Instant::now()),
            looks: Announced::default(),
            misses: Announced::default(),
        }
    }

    /// Time of the last complete successful response of the Cloud Controller.
    #[must_use]
    pub fn answers(&self) -> watch::Receiver<Instant> {
        self.answered.subscribe()
    }

    /// Requests a new token from UAA at the next call: the list suggests that the current
    /// token has too few authorities.
    pub async fn renew_token(&self) {
        self.tokens.forget().await;
    }

    /// Time of the last change of the security groups, by the Cloud Controller's clock.
    ///
    /// # Errors
    /// No token, no response, or an invalid one.
    pub async fn last_update(&self) -> Result<Stamp, Error> {
        #[derive(serde::Deserialize)]
        struct LastUpdate {
            last_update: Option<String>,
        }
        let error = |fault| Error { step: Step::LastUpdate, fault };
        let token = self.tokens.get(&self.public.http).await?;
        match self.looks.due() {
            true => info!("get-security-groups-last-update"),
            false => debug!("get-security-groups-last-update"),
        }
        const ROUTE: &str = "/internal/v4/asg_latest_update";
        let response = match self.get(&self.internal, ROUTE, token).await? {
            Ok(response) => response,
            Err(Fault::Status { code: StatusCode::NOT_FOUND, .. }) => {
                match self.misses.due() {
                    true => info!("get-security-groups-last-update-not-found"),
                    false => debug!("get-security-groups-last-update-not-found"),
                }
                self.answered.send_replace(Instant::now());
                return Ok(Stamp::Unknown);
            }
            Err(fault) => return Err(error(fault)),
        };
        let body = http::read(response).await.map_err(error)?;
        self.internal.show(&body);
        let answer: LastUpdate =
            runtime::json::from_slice(&body).map_err(|err| error(Fault::Json(err)))?;
        let text = answer.last_update.unwrap_or_default();
        let stamp = Stamp::parse(&text).map_err(|source| error(Fault::Stamp { text, source }))?;
        debug!(last_update = %stamp, "get-security-groups-last-update-response");
        self.answered.send_replace(Instant::now());
        Ok(stamp)
    }

    /// Requests one page of the list, from 1 on; the body is not read yet.
    async fn page(&self, page: u32) -> Result<Response, Error> {
        info!(page, "get-security-groups-with-page");
        let route = format!("/v3/security_groups?per_page={}&page={page}", self.settings.page_size);
        debug!(route, "get-security-groups-with-page-request");
        self.get_groups(&route).await
    }

    /// Requests the groups with these guids, on one page; the body is not read yet.
    async fn groups(&self, guids: &[GroupGuid]) -> Result<Response, Error> {
        info!(count = guids.len(), "get-security-groups-by-guid");
        // A comma in a guid is escaped twice, since the value is a list.
        let list: Vec<_> = guids.iter().map(|guid| guid.as_str().replace(',', "%2C")).collect();
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("per_page", &guids.len().to_string())
            .append_pair("guids", &list.join(","))
            .finish();
        self.get_groups(&format!("/v3/security_groups?{query}")).await
    }

    async fn get_groups(&self, route: &str) -> Result<Response, Error> {
        let token = self.tokens.get(&self.public.http).await?;
        self.get(&self.public, route, token)
            .await?
            .map_err(|fault| Error { step: Step::List, fault })
    }

    /// Replaces a rejected token once. The outer error is that of the token call, the inner
    /// one that of the call.
    async fn get(
        &self,
        api: &Api,
        route: &str,
        token: HeaderValue,
    ) -> Result<Result<Response, Fault>, Error> {
        match api.get(route, &token).await {
            Err(fault) if fault.refuses_token() => {
                self.tokens.reject(&token).await;
                let token = self.tokens.get(&self.public.http).await?;
                Ok(api.get(route, &token).await)
            }
            answer => Ok(answer),
        }
    }
}

impl Api {
    /// The response, if it has a success status.
    async fn get(&self, route: &str, token: &HeaderValue) -> Result<Response, Fault> {
        let client = self.http.client().map_err(Fault::Client)?;
        let mut request = client.get(format!("{}{route}", self.base));
        for _ in 0..=MOST_REDIRECTS {
            request = request.header(AUTHORIZATION, token.clone());
            let response = http::send(request, self.timeout).await?;
            match http::redirect(&response)? {
                Some(url) => request = client.get(url),
                None => return self.succeeded(response).await,
            }
        }
        Err(Fault::Redirects { limit: MOST_REDIRECTS })
    }

    async fn succeeded(&self, response: Response) -> Result<Response, Fault> {
        let code = response.status();
        if code.as_u16() <= 299 {
            return Ok(response);
        }
        let retry_after = http::wish(&response);
        let body = http::read(response).await?;
        self.show(&body);
        let fault = Fault::Status { code, message: error::message(&body), retry_after };
        // A Cloud Controller without the stamp returns this at every poll, and the caller logs
        // it once.
        if code != StatusCode::NOT_FOUND {
            let body = error::message(&body);
            self.span
                .in_scope(|| error!(body, code = code.as_u16(), error = %fault, "http-client"));
        }
        Err(fault)
    }

    /// Logs the body.
    fn show(&self, body: &[u8]) {
        self.span.in_scope(|| debug!(body = &*String::from_utf8_lossy(body), "http-do"));
    }
}
