//! The Cloud Controller and its UAA, as much of them as syncing needs.
//!
//! Requests are the original's to the letter, with four habits of our own: every
//! call has a timeout, a token is kept as long as it is good and replaced once
//! when it is not accepted, `Retry-After` is heeded, and a redirect is followed
//! only within the same scheme, host and port.

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

/// How many redirects one call follows.
const MOST_REDIRECTS: usize = 5;
/// How often the look at the stamp is logged at info: as often as the original
/// looks, where this one looks each second.
const ANNOUNCE: Duration = Duration::from_secs(60);

/// Where things are, and how long they may take.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of the v3 API; without a trailing slash.
    pub url: String,
    /// Of the internal API; without a trailing slash.
    pub internal_url: String,
    /// Where tokens come from.
    pub uaa: Uaa,
    /// Groups a page, 1 to 5000.
    pub page_size: u16,
    /// How long a token or a stamp may take.
    pub call_timeout: Duration,
    /// How long a page of groups may take.
    pub page_timeout: Duration,
}

/// The client of both.
pub struct CloudController {
    settings: Settings,
    tokens: Tokens,
    public: Api,
    internal: Api,
    /// When the last good answer was complete.
    answered: watch::Sender<Instant>,
    looks: Announced,
    misses: Announced,
}

/// When a line that each poll has was last logged at info.
#[derive(Default)]
struct Announced(Mutex<Option<Instant>>);

impl Announced {
    /// Whether the line is due at info: once in [`ANNOUNCE`].
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
    /// `public` serves UAA and the v3 API, `internal` the mTLS listener.
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

    /// When the last good answer of the Cloud Controller was complete.
    #[must_use]
    pub fn answers(&self) -> watch::Receiver<Instant> {
        self.answered.subscribe()
    }

    /// Asks UAA for another token at the next call: the list that the present one
    /// gets looks as if it had too few authorities.
    pub async fn renew_token(&self) {
        self.tokens.forget().await;
    }

    /// When the security groups last changed, by the Cloud Controller's clock.
    ///
    /// # Errors
    /// No token, no answer, or none that can be read.
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

    /// One page of the list, from 1 on, whose body is yet to be read.
    async fn page(&self, page: u32) -> Result<Response, Error> {
        info!(page, "get-security-groups-with-page");
        let route = format!("/v3/security_groups?per_page={}&page={page}", self.settings.page_size);
        debug!(route, "get-security-groups-with-page-request");
        let token = self.tokens.get(&self.public.http).await?;
        self.get(&self.public, &route, token)
            .await?
            .map_err(|fault| Error { step: Step::List, fault })
    }

    /// A token that is not accepted is replaced once. The outer error is the
    /// token's, the inner one the call's.
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
    /// The answer, if it is a success.
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
        // A Cloud Controller without the stamp says so at every poll, and the
        // caller tells it in a line of its own.
        if code != StatusCode::NOT_FOUND {
            let body = error::message(&body);
            self.span
                .in_scope(|| error!(body, code = code.as_u16(), error = %fault, "http-client"));
        }
        Err(fault)
    }

    /// The body, for the log.
    fn show(&self, body: &[u8]) {
        self.span.in_scope(|| debug!(body = &*String::from_utf8_lossy(body), "http-do"));
    }
}
