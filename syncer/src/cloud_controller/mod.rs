//! The Cloud Controller and its UAA, as much of them as syncing needs.
//!
//! Requests are the original's to the letter (contracts/policy-server.md 2.4 and
//! 2.5), with three habits of our own: every call has a timeout, a token is kept
//! as long as it is good and replaced once when it is not accepted, and
//! `Retry-After` is heeded.

mod error;
mod http;
pub mod listing;
mod stream;
mod token;

use std::time::Duration;

use ::http::{StatusCode, header::AUTHORIZATION};
use reqwest::Response;
use tracing::{Span, debug, error, error_span, info};

use self::token::Tokens;
pub use self::{
    error::{Error, Fault, Step},
    http::{Http, Trust},
    token::{Secret, Uaa},
};
use crate::stamp::Stamp;

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
        }
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
        info!("get-security-groups-last-update");
        const ROUTE: &str = "/internal/v4/asg_latest_update";
        let response = match self.get(&self.internal, ROUTE, token).await? {
            Ok(response) => response,
            Err(Fault::Status { code: StatusCode::NOT_FOUND, .. }) => {
                info!("get-security-groups-last-update-not-found");
                return Ok(Stamp::Unknown);
            }
            Err(fault) => return Err(error(fault)),
        };
        let body = http::read(response).await.map_err(error)?;
        self.internal.show(&body);
        let answer: LastUpdate =
            serde_json::from_slice(&body).map_err(|err| error(Fault::Json(err)))?;
        let text = answer.last_update.unwrap_or_default();
        let stamp = Stamp::parse(&text).map_err(|source| error(Fault::Stamp { text, source }))?;
        debug!(last_update = %stamp, "get-security-groups-last-update-response");
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
        token: String,
    ) -> Result<Result<Response, Fault>, Error> {
        match api.get(route, &token).await {
            Err(fault) if fault.is_unauthorized() => {
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
    async fn get(&self, route: &str, token: &str) -> Result<Response, Fault> {
        let request = self
            .http
            .client()
            .map_err(Fault::Request)?
            .get(format!("{}{route}", self.base))
            .header(AUTHORIZATION, format!("bearer {token}"));
        let response = http::send(request, self.timeout).await?;
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
