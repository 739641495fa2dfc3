//! Errors of Cloud Controller and UAA calls.

use std::{fmt, time::Duration};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use jiff::Timestamp;
use runtime::https;

/// The failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `POST /oauth/token` at UAA.
    Token,
    /// `GET /internal/v4/asg_latest_update`.
    LastUpdate,
    /// `GET /v3/security_groups`.
    List,
}

impl Step {
    /// The label of the failure metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::LastUpdate => "last-update",
            Self::List => "list",
        }
    }
}

/// A failed call and its cause.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// Which call.
    pub step: Step,
    /// Cause.
    #[source]
    pub fault: Fault,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.step {
            Step::Token => "getting a token from uaa",
            Step::LastUpdate => "getting the last update of the security groups",
            Step::List => "getting the security groups",
        })
    }
}

/// Cause of a failed call. Texts as the original's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Response with an error status.
    #[error("http status {}: {message}", code.as_u16())]
    Status {
        /// The status.
        code: StatusCode,
        /// Error message in the body, truncated.
        message: String,
        /// `Retry-After` of the server.
        retry_after: Option<Duration>,
    },
    /// UAA responded with a status other than 200.
    #[error("bad uaa response: {}: {message}", code.as_u16())]
    Uaa {
        /// The status.
        code: StatusCode,
        /// Body, truncated.
        message: String,
        /// `Retry-After` of the server.
        retry_after: Option<Duration>,
    },
    /// Not sent: there is no usable certificate.
    #[error("http client")]
    Client(#[from] https::Error),
    /// No response: connection, TLS or timeout error.
    #[error("http client")]
    Request(#[source] reqwest::Error),
    /// Incomplete response.
    #[error("read body")]
    Body(#[source] reqwest::Error),
    /// The body exceeds the size limit.
    #[error("the body has more than {limit} bytes")]
    TooLarge {
        /// Size limit.
        limit: usize,
    },
    /// Unexpected JSON.
    #[error("unmarshal json")]
    Json(#[source] serde_json::Error),
    /// Invalid page of the list.
    #[error(transparent)]
    Page(#[from] crate::import::Error),
    /// Invalid timestamp.
    #[error("failed parsing last_update from cloud controller: '{text}'")]
    Stamp {
        /// Received text.
        text: String,
        /// Parse error.
        source: jiff::Error,
    },
    /// UAA responded without a token.
    #[error("uaa answered without an access token")]
    NoToken,
    /// The list changed while it was read.
    #[error("last_update time has changed")]
    Moved,
    /// A page had no list: the number of groups is unknown, so none may be deleted.
    #[error("page {page} has no resources")]
    Unlisted {
        /// Page number.
        page: u32,
    },
    /// A page has another `pagination.total_results` than the page before.
    #[error("pagination.total_results was {before}, and {now} on page {page}")]
    Resized {
        /// Page number.
        page: u32,
        /// Value on the pages before.
        before: u64,
        /// Value on this page.
        now: u64,
    },
    /// The list ended before the stated number.
    #[error("the list is incomplete: pagination.{field} says {stated}, the pages had {found}")]
    Incomplete {
        /// `total_results` or `total_pages`.
        field: &'static str,
        /// The stated number.
        stated: u64,
        /// The number that was read.
        found: u64,
    },
    /// The last page has a link to a next page.
    #[error("page {page} names a next page, though pagination.total_pages is {stated}")]
    Endless {
        /// Page number.
        page: u32,
        /// Stated number of pages.
        stated: u64,
    },
    /// A page has no new group and a link to a next page.
    #[error("page {page} has no other security group than the pages before, and names a next page")]
    Repeated {
        /// Page number.
        page: u32,
    },
    /// The list exceeds the limit of groups.
    #[error("the list has more than {limit} security groups")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// Redirect to another host, which must not get the token.
    #[error(
        "http status {}: redirects to {to}; a redirect is followed on the same scheme, host and \
         port only, so that the token goes nowhere else", code.as_u16()
    )]
    Elsewhere {
        /// The status.
        code: StatusCode,
        /// Scheme, host and port of the redirect target.
        to: String,
    },
    /// Too many redirects.
    #[error("more than {limit} redirects")]
    Redirects {
        /// The limit.
        limit: usize,
    },
    /// UAA returned a token that is not valid in a header.
    #[error(
        "the access_token of uaa has byte 0x{byte:02x} at position {position}, which is not \
         allowed in a header"
    )]
    BadToken {
        /// First invalid byte.
        byte: u8,
        /// Its position, from 1 on.
        position: usize,
    },
}

impl Fault {
    /// `Retry-After` of the server, if any.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } | Self::Uaa { retry_after, .. } => *retry_after,
            Self::Client(_)
            | Self::Request(_)
            | Self::Body(_)
            | Self::TooLarge { .. }
            | Self::Json(_)
            | Self::Page(_)
            | Self::Stamp { .. }
            | Self::NoToken
            | Self::Moved
            | Self::Unlisted { .. }
            | Self::Resized { .. }
            | Self::Incomplete { .. }
            | Self::Endless { .. }
            | Self::Repeated { .. }
            | Self::TooMany { .. }
            | Self::Elsewhere { .. }
            | Self::Redirects { .. }
            | Self::BadToken { .. } => None,
        }
    }

    /// Whether the list changed while it was read.
    #[must_use]
    pub fn is_unstable(&self) -> bool {
        matches!(self, Self::Moved | Self::Resized { .. })
    }

    /// Whether the Cloud Controller rejected the token, also only for this call.
    #[must_use]
    pub fn refuses_token(&self) -> bool {
        matches!(self, Self::Status { code: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. })
    }
}

/// Upper bound of `Retry-After`: a server that asks for a day must not leave the cells
/// outdated for a day.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// `Retry-After` (RFC 9110 10.2.3) of a response with `code`: seconds, or a date relative
/// to `now`.
pub(super) fn retry_after(
    code: StatusCode,
    headers: &HeaderMap,
    now: Timestamp,
) -> Option<Duration> {
    if !matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            Duration::try_from(until.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

/// Length limit of a body in an error message.
const LONGEST_MESSAGE: usize = 512;

/// Error message of a response: the member `error` of a JSON object (as in the original),
/// or the details of the Cloud Controller's `errors`, or the text.
pub(super) fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: Option<String>,
        #[serde(default)]
        errors: Vec<Detail>,
    }
    #[derive(serde::Deserialize)]
    struct Detail {
        detail: Option<String>,
    }
    if let Ok(Refusal { error, errors }) = runtime::json::from_slice(body) {
        let details = errors.into_iter().filter_map(|error| error.detail);
        return shorten(error.unwrap_or_else(|| details.collect::<Vec<_>>().join("; ")));
    }
    shorten(String::from_utf8_lossy(&body[..body.len().min(4 * LONGEST_MESSAGE)]).into_owned())
}

fn shorten(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_MESSAGE) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(code: u16, value: &str) -> Option<u64> {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        let now = "2026-11-23T01:54:34Z".parse().unwrap();
        retry_after(StatusCode::from_u16(code).unwrap(), &headers, now).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_a_bound() {
        assert_eq!(waits(429, "7"), Some(7));
        assert_eq!(waits(503, " 7 "), Some(7));
        assert_eq!(waits(429, "Mon, 23 Nov 2026 01:55:04 GMT"), Some(30));
        assert_eq!(waits(429, "Mon, 23 Nov 2026 01:00:00 GMT"), Some(0));
        assert_eq!(waits(429, "864000"), Some(900));
        assert_eq!(waits(429, "soon"), None);
        assert_eq!(waits(500, "7"), None);
    }

    #[test]
    fn a_refusal_is_told_in_its_own_words() {
        assert_eq!(message(br#"{"error":"invalid_token"}"#), "invalid_token");
        assert_eq!(
            message(br#"{"errors":[{"code":10,"detail":"one"},{"detail":"two"},{}]}"#),
            "one; two"
        );
        assert_eq!(message(b"no json"), "no json");
        assert_eq!(message(b"[1]"), "[1]");
        assert_eq!(message(b"\xff"), "\u{fffd}");
        assert_eq!(message("ü".repeat(600).as_bytes()), format!("{}…", "ü".repeat(512)));
    }
}
