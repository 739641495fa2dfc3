//! Redacts secrets and truncates long texts in log lines.
//!
//! The rules are those of the originals' `redact_secrets`, `redact_patterns` and
//! `max_data_string_length`: they apply to the values of a line's data, at any depth, and to no
//! other part of the line. Redaction precedes truncation, so that truncation leaves no part of a
//! secret.

use regex_lite::Regex;
use serde_json::Value as Json;

use super::GO;
use crate::config::Reader;

/// Replacement for a secret.
const REDACTED: &str = "*REDACTED*";
/// Suffix of a truncated text; it counts as part of the text.
const CUT: &str = "-(truncated)";

/// Patterns for the names of secret values.
const NAMES: [&str; 2] = ["[Pp]wd", "[Pp]ass"];
/// Default patterns for texts that are secret under any name: AWS keys, password hashes, private
/// keys.
const TEXTS: [&str; 6] = [
    r"AKIA[A-Z0-9]{16}",
    r#"KEY["']?\s*(?::|=>|=)\s*["']?[A-Z0-9/+=]{40}["']?"#,
    r"\$1\$[A-Z0-9./]{1,16}\$[A-Z0-9./]{22}",
    r"\$5\$[A-Z0-9./]{1,16}\$[A-Z0-9./]{43}",
    r"\$6\$[A-Z0-9./]{1,16}\$[A-Z0-9./]{86}",
    r"-----BEGIN(.*)PRIVATE KEY-----",
];

/// Redacts the data of lines; the default redacts nothing.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    secrets: Option<Secrets>,
    longest: Option<usize>,
}

#[derive(Debug, Clone)]
struct Secrets {
    names: Vec<Regex>,
    texts: Vec<Regex>,
}

impl Secrets {
    fn new(texts: &[String]) -> Result<Self, regex_lite::Error> {
        let names = compile(&NAMES)?;
        let texts = if texts.is_empty() { compile(&TEXTS)? } else { compile(texts)? };
        Ok(Self { names, texts })
    }
}

fn compile<T: AsRef<str>>(patterns: &[T]) -> Result<Vec<Regex>, regex_lite::Error> {
    patterns.iter().map(|pattern| Regex::new(pattern.as_ref())).collect()
}

impl Redactor {
    /// Reads the three keys of the originals.
    pub fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let wanted = keys.or("redact_secrets", false);
        let texts = keys.or::<Vec<String>>("redact_patterns", Vec::new());
        let longest = keys.or::<i64>("max_data_string_length", 0);
        // Patterns are checked even when they are not used.
        let secrets = match Secrets::new(&texts?) {
            Ok(secrets) => secrets,
            Err(error) => {
                keys.problem("redact_patterns", format!("invalid regular expression: {error}"));
                return None;
            }
        };
        let longest = usize::try_from(longest?).ok().filter(|longest| *longest > 0);
        Some(Self { secrets: wanted?.then_some(secrets), longest })
    }

    /// Returns the JSON object, redacted and truncated.
    pub(super) fn apply(&self, object: String) -> String {
        if self.secrets.is_none() && self.longest.is_none() {
            return object;
        }
        // Lines are generated here and always parse; if one did not, it must not be logged
        // unredacted.
        let Ok(mut json) = serde_json::from_str(&object) else { return "{}".to_owned() };
        self.visit(&mut json);
        GO.to_string(&json).expect("a JSON value is JSON")
    }

    fn visit(&self, json: &mut Json) {
        match json {
            Json::String(text) => self.text(text),
            Json::Array(items) => items.iter_mut().for_each(|item| self.visit(item)),
            Json::Object(entries) => {
                for (name, value) in entries {
                    if self.is_secret(name) {
                        *value = REDACTED.into();
                    } else {
                        self.visit(value);
                    }
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    fn is_secret(&self, name: &str) -> bool {
        let secrets = self.secrets.as_ref();
        secrets.is_some_and(|secrets| secrets.names.iter().any(|pattern| pattern.is_match(name)))
    }

    fn text(&self, text: &mut String) {
        if let Some(secrets) = &self.secrets
            && secrets.texts.iter().any(|pattern| pattern.is_match(text))
        {
            REDACTED.clone_into(text);
        }
        let Some(longest) = self.longest.map(|longest| longest.max(CUT.len())) else { return };
        if text.len() > longest {
            text.truncate(text.floor_char_boundary(longest - CUT.len()));
            text.push_str(CUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Configure, parse};

    struct Read(Redactor);

    impl Configure for Read {
        fn read(keys: &mut Reader<'_>) -> Option<Self> {
            Redactor::read(keys).map(Self)
        }
    }

    fn censored(config: &str, data: &str) -> String {
        parse::<Read>(config).unwrap().config.0.apply(data.to_owned())
    }

    #[test]
    fn without_the_keys_nothing_is_redacted() {
        let data = r#"{"password":"secret","text":"a text of any length","n":1e+21}"#;
        assert_eq!(censored("{}", data), data);
    }

    #[test]
    fn secrets_are_detected_by_name_or_by_pattern() {
        let config = r#"{"redact_secrets": true}"#;
        let table = [
            (r#"{"password":{"a":1}}"#, r#"{"password":"*REDACTED*"}"#),
            (r#"{"a":[{"dbPwd":1}]}"#, r#"{"a":[{"dbPwd":"*REDACTED*"}]}"#),
            (r#"{"a":"AKIAABCDEFGHIJKLMNOP!"}"#, r#"{"a":"*REDACTED*"}"#),
            (r#"{"a":"-----BEGIN RSA PRIVATE KEY-----"}"#, r#"{"a":"*REDACTED*"}"#),
            (r#"{"a":"\u003cplain\u003e","n":2}"#, r#"{"a":"\u003cplain\u003e","n":2}"#),
        ];
        for (data, expected) in table {
            assert_eq!(censored(config, data), expected);
        }
    }

    #[test]
    fn configured_patterns_replace_the_default_ones() {
        let config = r#"{"redact_secrets": true, "redact_patterns": ["^token-\\d+$"]}"#;
        let data = r#"{"a":"token-42","b":"AKIAABCDEFGHIJKLMNOP","passwd":"x"}"#;
        let expected = r#"{"a":"*REDACTED*","b":"AKIAABCDEFGHIJKLMNOP","passwd":"*REDACTED*"}"#;
        assert_eq!(censored(config, data), expected);
        let error = parse::<Read>(r#"{"redact_patterns": ["("]}"#).err().unwrap();
        assert!(error.to_string().contains("redact_patterns: invalid regular expression"));
    }

    #[test]
    fn long_texts_are_cut_to_the_length_with_the_mark() {
        let cut = |longest: usize, text: &str| {
            let config = format!(r#"{{"max_data_string_length": {longest}}}"#);
            censored(&config, &format!(r#"{{"a":["{text}"]}}"#))
        };
        let long = "a".repeat(25);
        assert_eq!(cut(20, &long), r#"{"a":["aaaaaaaa-(truncated)"]}"#);
        assert_eq!(cut(13, &long), r#"{"a":["a-(truncated)"]}"#);
        assert_eq!(cut(5, &long), r#"{"a":["-(truncated)"]}"#);
        assert_eq!(cut(5, "foobar"), r#"{"a":["foobar"]}"#);
        assert_eq!(cut(25, &long), format!(r#"{{"a":["{long}"]}}"#));
        assert_eq!(cut(15, &"\u{fc}".repeat(20)), "{\"a\":[\"\u{fc}-(truncated)\"]}");
        assert_eq!(cut(0, &long), format!(r#"{{"a":["{long}"]}}"#));
    }
}
