//! The parameters of a query string: nested keys, and lists of values.

use percent_encoding::percent_decode_str;

use crate::ruby;

/// The parameters, with the nested notation `key[inner]` split.
pub(super) struct Parameters<'a>(Vec<(&'a str, Option<&'a str>, &'a str)>);

impl<'a> Parameters<'a> {
    pub(super) fn new(parameters: &'a [(String, String)]) -> Self {
        let split = |key: &'a str| match key.strip_suffix(']').and_then(|key| key.split_once('[')) {
            Some((key, inner)) => (key, Some(inner)),
            None => (key, None),
        };
        Self(
            parameters
                .iter()
                .map(|(key, value)| {
                    let (key, inner) = split(key);
                    (key, inner, value.as_str())
                })
                .collect(),
        )
    }

    /// The last value under the plain key.
    pub(super) fn text(&self, wanted: &str) -> Option<&'a str> {
        let plain =
            |(key, inner, _): &&(&str, Option<&str>, &str)| *key == wanted && inner.is_none();
        self.0.iter().rev().find(plain).map(|(_, _, value)| *value)
    }

    pub(super) fn nested(&self, wanted: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let of_key = move |(key, inner, value): &(&'a str, Option<&'a str>, &'a str)| {
            inner.filter(|_| *key == wanted).map(|inner| (inner, *value))
        };
        self.0.iter().filter_map(of_key)
    }

    pub(super) fn unknown(&self, known: &[&str]) -> Vec<&'a str> {
        let mut unknown: Vec<&str> = Vec::new();
        for (key, _, _) in &self.0 {
            if !known.contains(key) && !unknown.contains(key) {
                unknown.push(key);
            }
        }
        unknown
    }
}

/// Splits at commas; an escaped comma inside a value is a comma.
pub(super) fn comma_list(text: &str) -> Vec<String> {
    let parts = text.split(',').enumerate();
    parts
        .map(
            |(index, part)| if index == 0 { part } else { part.trim_start_matches(ruby::is_space) },
        )
        .map(percent_decode)
        .collect()
}

fn percent_decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
