//! Fuzz tests of texts in configuration files and of JSON.

use std::marker::PhantomData;

use ::fuzz::{Bounds, Fuzz, Language};
use runtime::{
    config::GoDuration,
    go_json::Go,
    json,
    tls::{Identity, Pattern},
};
use serde_json::Value;

/// A duration is the same after it was printed.
#[test]
fn go_durations() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "go_duration", Language::Text).longest(200);
    let fuzz =
        fuzz.tokens(&["ns", "us", "\u{b5}s", "\u{3bc}s", "ms", "s", "m", "h", ".", "-", "+"]);
    fuzz.expects(&["ok", "is not a duration", "has a number without a unit"]).run(|input| {
        match String::from_utf8_lossy(input).parse::<GoDuration>() {
            Ok(duration) => {
                assert_eq!(duration.to_string().parse(), Ok(duration));
                "ok".to_owned()
            }
            Err(error) => error.to_string(),
        }
    });
}

/// Numbers may differ in the last digit: serde_json reads floats with an error of that size.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let both = one.iter().zip(other);
            one.len() == other.len()
                && both.into_iter().all(|(one, other)| one.0 == other.0 && same(one.1, other.1))
        }
        (Value::Number(one), Value::Number(other)) => match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => (one - other).abs() <= one.abs() * 1e-15,
            _ => false,
        },
        (one, other) => one == other,
    }
}

/// A value is read as serde_json reads it, and is the same after it was written as Go writes it.
#[test]
fn json_values() {
    // The test holds three values at one time; a list takes 128 bytes, and its text has two.
    let bounds = Bounds { bytes: (64 << 10, 600), ..Bounds::default() };
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "json", Language::Json).bounds(bounds);
    fuzz.tokens(&["\\u2028", "\\ud83d", "\\u0000", "1e400", "-0", "<&>"]).expects(&["ok"]).run(
        |input| {
            let plain = serde_json::from_slice::<Value>(input).map_err(|error| error.to_string());
            let ours = json::from_slice::<Value>(input).map_err(|error| error.to_string());
            assert_eq!(plain, ours);
            let read = json::from_reader(input, PhantomData::<Value>);
            assert_eq!(read.is_ok(), ours.is_ok());
            let value = match ours {
                Ok(value) => value,
                Err(error) => return error,
            };
            for go in [Go::V1_21, Go::V1_22] {
                let text = go.to_string(&value).unwrap();
                let special = ['<', '>', '&', '\u{2028}', '\u{2029}'];
                assert!(!text.contains(special), "{text}");
                let back: Value = serde_json::from_str(&text).unwrap();
                assert!(same(&back, &value), "{value} was written as {text}");
            }
            "ok".to_owned()
        },
    );
}

/// A pattern with different fields selects the certificate that has its values.
#[test]
fn patterns() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "pattern", Language::Text).longest(400);
    let fuzz = fuzz.tokens(&["cn=", "ou=", "dns=", "uri=", "*", ",", "=", "a"]);
    fuzz.expects(&["ok", "error"]).run(|input| {
        let text = String::from_utf8_lossy(input);
        let pattern: Pattern = match text.parse() {
            Ok(pattern) => pattern,
            Err(error) => return format!("error: {error}"),
        };
        let mut identity = Identity::default();
        let mut names = 0;
        for condition in text.split(',') {
            let (field, value) = condition.split_once('=').unwrap();
            let value = value.trim().replace('*', "any");
            match field.trim() {
                "cn" => {
                    names += 1;
                    identity.common_name = Some(value);
                }
                "ou" => identity.organizational_units.push(value),
                "dns" => identity.dns_names.push(value),
                _ => identity.uris.push(value),
            }
        }
        assert!(names > 1 || pattern.fits(&identity), "{text:?} and {identity}");
        assert!(!Pattern::any_fits(&[pattern], None));
        "ok".to_owned()
    });
}
