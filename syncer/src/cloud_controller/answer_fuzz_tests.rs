//! Fuzz tests of small answers of UAA and Cloud Controller.

use std::error::Error as _;

use fuzz::{Fuzz, Language};
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use tokio::time::Instant;

use super::{granted, message};
use crate::cloud_controller::error::retry_after;

/// A token that is accepted is a header, and its end is a moment; no error has the token.
#[test]
fn fuzz_token_answer() {
    let now = Instant::now();
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "cc_error", Language::Json);
    let fuzz = fuzz.tokens(&["access_token", "expires_in", "error", "errors", "detail", "eyJ"]);
    fuzz.expects(&["token", "uaa answered without", "the access_token of uaa has"]).run(|input| {
        assert!(message(input).chars().count() <= 513);
        match granted(input) {
            Ok((header, life)) => {
                assert!(header.is_sensitive());
                assert!(now.checked_add(life).is_some(), "{life:?}");
                "token".to_owned()
            }
            Err(fault) => {
                let source = fault.source().map(ToString::to_string);
                format!("{fault} {}", source.unwrap_or_default())
            }
        }
    });
}

#[test]
fn fuzz_retry_after() {
    let now = "2026-11-23T01:54:34Z".parse().unwrap();
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "retry_after", Language::Text).longest(200);
    let fuzz = fuzz.tokens(&["Mon,", "23", "Nov", "2026", "GMT", "+2359", "UT", "-0000", "(a)"]);
    fuzz.expects(&["wait 7s", "wait 30s", "wait 900s", "none"]).run(|input| {
        let Ok(value) = http::HeaderValue::from_bytes(input) else { return "none".to_owned() };
        let headers = HeaderMap::from_iter([(RETRY_AFTER, value)]);
        match retry_after(StatusCode::TOO_MANY_REQUESTS, &headers, now) {
            Some(wait) => {
                assert!(wait.as_secs() <= 900, "{wait:?}");
                format!("wait {wait:?}")
            }
            None => "none".to_owned(),
        }
    });
}
