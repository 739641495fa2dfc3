//! Formats errors as one line of text.

use std::error::Error;

use crate::redact;

/// An error and its causes, `outer: inner: innermost`.
///
/// Each text appears once ([`trust::chain`]). URLs have no user part ([`redact`]). For a gRPC status
/// see [`client::describe`](crate::client::describe).
pub fn chain(error: &(dyn Error + 'static)) -> String {
    redact::urls(&trust::chain(error)).into_owned()
}

/// One error without its causes. A rejected certificate becomes a sentence that says what to
/// change.
pub fn text(error: &(dyn Error + 'static)) -> String {
    trust::explain_cause(error).unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn every_cause_is_printed_once() {
        let link = |text, source| Link { text, source };
        let inner = link("inner", Some(Box::new(link("innermost", None))));
        assert_eq!(chain(&link("outer", Some(Box::new(inner)))), "outer: inner: innermost");
        assert_eq!(chain(&link("alone", None)), "alone");
        let url = link("connecting to https://me:hush@uaa:8443", None);
        assert_eq!(chain(&url), "connecting to https://*REDACTED*@uaa:8443");
    }
}
