//! Error responses of the Cloud Controller
//! (docs/compatibility/cloud-controller.md#refusals).

use super::json::{Json, object};

/// A refused request. The state is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No token was sent.
    #[error("Authentication error")]
    NotAuthenticated,
    /// The token is not one of ours, or has expired.
    #[error("Invalid Auth Token")]
    InvalidToken,
    /// The token lacks the scope for the request.
    #[error("Your token lacks the necessary scopes to access this resource.")]
    InsufficientScope,
    /// The caller may see the object but not change it.
    #[error("You are not authorized to perform the requested action")]
    NotAuthorized,
    /// The caller's organization is suspended.
    #[error("The organization is suspended")]
    OrgSuspended,
    /// No such path.
    #[error("Unknown request")]
    UnknownRequest,
    /// The object does not exist, or is invisible to the caller. Holds its title.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The body is not JSON.
    #[error("Request invalid due to parse error: invalid request body")]
    Unparsable,
    /// The request is invalid.
    #[error("{}", .0.join(", "))]
    Unprocessable(Vec<String>),
    /// The query of a list of organizations, spaces or roles is invalid.
    #[error("The query parameter is invalid: {}", .0.join(", "))]
    BadQuery(Vec<String>),
    /// The state could not be saved. The reason is in the log.
    #[error("An unknown error occurred.")]
    Broken,
}

impl Refusal {
    /// A refusal with one message.
    pub fn unprocessable(text: impl Into<String>) -> Self {
        Self::Unprocessable(vec![text.into()])
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotAuthenticated | Self::InvalidToken => 401,
            Self::InsufficientScope | Self::NotAuthorized | Self::OrgSuspended => 403,
            Self::UnknownRequest | Self::NotFound(_) => 404,
            Self::Unparsable | Self::BadQuery(_) => 400,
            Self::Unprocessable(_) => 422,
            Self::Broken => 500,
        }
    }

    fn code(&self) -> (i64, &'static str) {
        match self {
            Self::NotAuthenticated => (10002, "CF-NotAuthenticated"),
            Self::InvalidToken => (1000, "CF-InvalidAuthToken"),
            Self::InsufficientScope => (10007, "CF-InsufficientScope"),
            Self::NotAuthorized => (10003, "CF-NotAuthorized"),
            Self::OrgSuspended => (10017, "CF-OrgSuspended"),
            Self::UnknownRequest => (10000, "CF-NotFound"),
            Self::NotFound(_) => (10010, "CF-ResourceNotFound"),
            Self::Unparsable => (1001, "CF-MessageParseError"),
            Self::Unprocessable(_) => (10008, "CF-UnprocessableEntity"),
            Self::BadQuery(_) => (10005, "CF-BadQueryParameter"),
            Self::Broken => (10001, "UnknownError"),
        }
    }

    /// The JSON document.
    pub fn to_json(&self) -> Json {
        let (code, title) = self.code();
        let error = object! { "detail": self.to_string(), "title": title, "code": code };
        object! { "errors": vec![error] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_errors() {
        let list = || vec!["a".to_owned(), "b".to_owned()];
        for (refusal, status, code, title, detail) in [
            (Refusal::NotAuthenticated, 401, 10002, "CF-NotAuthenticated", "Authentication error"),
            (Refusal::InvalidToken, 401, 1000, "CF-InvalidAuthToken", "Invalid Auth Token"),
            (
                Refusal::NotAuthorized,
                403,
                10003,
                "CF-NotAuthorized",
                "You are not authorized to perform the requested action",
            ),
            (Refusal::OrgSuspended, 403, 10017, "CF-OrgSuspended", "The organization is suspended"),
            (Refusal::UnknownRequest, 404, 10000, "CF-NotFound", "Unknown request"),
            (Refusal::NotFound("Job"), 404, 10010, "CF-ResourceNotFound", "Job not found"),
            (
                Refusal::Unparsable,
                400,
                1001,
                "CF-MessageParseError",
                "Request invalid due to parse error: invalid request body",
            ),
            (Refusal::Unprocessable(list()), 422, 10008, "CF-UnprocessableEntity", "a, b"),
            (
                Refusal::BadQuery(list()),
                400,
                10005,
                "CF-BadQueryParameter",
                "The query parameter is invalid: a, b",
            ),
        ] {
            assert_eq!(refusal.status(), status);
            let expected = format!(
                r#"{{"errors":[{{"detail":"{detail}","title":"{title}","code":{code}}}]}}"#
            );
            assert_eq!(refusal.to_json().to_text(), expected);
        }
    }
}
