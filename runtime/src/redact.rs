//! Removes the user part of URLs, which may be a name and a password or a token.
//!
//! Every log line, every configuration problem on standard error and every error of
//! [`chain`](crate::error::chain) goes through [`urls`], since each may repeat a URL of the
//! configuration or of a redirect.

use std::borrow::Cow;

/// Replacement for the user part.
const REDACTED: &str = "*REDACTED*";

/// `text` without the user part of each URL in it.
///
/// In an HTTP URL the user part ends before the path. Other URLs (databases) are often written by
/// hand with unescaped passwords, so their user part ends at the last `@` before white space or a
/// quote.
#[must_use]
pub fn urls(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let user = user_part(before, url);
        if user > 0 {
            out.push_str(REDACTED);
        }
        rest = &url[user..];
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// `url` without its user part and without a mark.
#[must_use]
pub fn without_user(url: &str) -> String {
    let Some(at) = url.find("://") else { return url.to_owned() };
    let (before, rest) = url.split_at(at + 3);
    let user = user_part(before, rest);
    format!("{before}{}", rest[user..].strip_prefix('@').unwrap_or(&rest[user..]))
}

/// Length of the user part at the beginning of `url`, the text after `://`.
fn user_part(before: &str, url: &str) -> usize {
    let is_end: fn(char) -> bool = match is_http(before) {
        true => |c| c.is_whitespace() || "\"'/?#<>\\".contains(c),
        false => |c| c.is_whitespace() || c == '"',
    };
    let end = url.find(is_end).unwrap_or(url.len());
    url[..end].rfind('@').unwrap_or(0)
}

fn is_http(before: &str) -> bool {
    let scheme = before.trim_end_matches("://");
    ["http", "https"].iter().any(|http| {
        let start = scheme.len().checked_sub(http.len());
        let ends = start.and_then(|start| scheme.get(start..));
        ends.is_some_and(|end| end.eq_ignore_ascii_case(http))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_part_of_every_url_is_removed() {
        for (text, expected) in [
            ("", ""),
            ("no url, but me@example.org", "no url, but me@example.org"),
            ("https://uaa:8443/oauth?a=b@c", "https://uaa:8443/oauth?a=b@c"),
            ("https://me:hush@uaa:8443/x", "https://*REDACTED*@uaa:8443/x"),
            ("HTTPS://token@uaa", "HTTPS://*REDACTED*@uaa"),
            ("https://a:h@sh@uaa/", "https://*REDACTED*@uaa/"),
            (
                r#"{"a":"http://u:p@h","b":"x@y","c":["https://u:p@i/","https://j"]}"#,
                r#"{"a":"http://*REDACTED*@h","b":"x@y","c":["https://*REDACTED*@i/","https://j"]}"#,
            ),
            (
                "sending request for url (https://u:p@h/a): refused",
                "sending request for url (https://*REDACTED*@h/a): refused",
            ),
            ("postgres://u:a/b?c@d#\\@h:1/d next", "postgres://*REDACTED*@h:1/d next"),
            ("mysql://u:p@h,mysql://v:q@i", "mysql://*REDACTED*@i"),
            ("://", "://"),
            ("a://@h", "a://@h"),
        ] {
            assert_eq!(urls(text), expected);
        }
        assert!(matches!(urls("https is not here"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_url_loses_its_user_part() {
        for (url, expected) in [
            ("https://me:hush@uaa:8443/x", "https://uaa:8443/x"),
            ("https://@uaa", "https://uaa"),
            ("https://uaa/a@b", "https://uaa/a@b"),
            ("uaa:8443", "uaa:8443"),
        ] {
            assert_eq!(without_user(url), expected);
        }
    }
}
