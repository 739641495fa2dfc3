//! The reader through which a [`Configure`] implementation gets its keys.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde_json::{Map, Value as Json};

use super::value::{self, Value, expects};
use super::{Configure, duration};

/// Problems and unknown keys of all sections.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) problems: Vec<String>,
    pub(super) unknown: Vec<String>,
}

/// Reads the keys of one JSON object, and collects every problem.
///
/// For texts, paths, addresses and levels an empty string counts as absent, as in the originals,
/// which cannot distinguish the two.
#[derive(Debug)]
pub struct Reader<'a> {
    object: &'a Map<String, Json>,
    /// Full path of this section with a trailing dot; empty at the root.
    prefix: String,
    known: BTreeSet<&'static str>,
    report: &'a mut Report,
}

impl<'a> Reader<'a> {
    pub(super) fn root(object: &'a Map<String, Json>, report: &'a mut Report) -> Self {
        Self { object, prefix: String::new(), known: BTreeSet::new(), report }
    }

    /// Reads a section, then records its unknown keys.
    pub(super) fn read<T: Configure>(mut self) -> Option<T> {
        let read = T::read(&mut self);
        let asked = |key: &String| self.known.iter().any(|known| known.eq_ignore_ascii_case(key));
        let unknown = self.object.keys().filter(|key| !asked(key));
        let prefix = &self.prefix;
        let unknown = unknown.map(|key| format!("{prefix}{key}"));
        self.report.unknown.extend(unknown);
        read
    }

    /// A required key. The value must not be its type's zero value (an empty text, the number 0).
    pub fn required<T: Value>(&mut self, key: &'static str) -> Option<T> {
        let Some(value) = self.optional::<T>(key)? else {
            let text = match self.find(key) {
                None => "missing",
                Some(_) => "must not be empty",
            };
            self.say(key, text);
            return None;
        };
        self.not_zero(key, value)
    }

    /// An optional key. The outer `None` means that a problem was recorded, the inner `None` that
    /// the key is absent.
    pub fn optional<T: Value>(&mut self, key: &'static str) -> Option<Option<T>> {
        self.known.insert(key);
        let Some(json) = self.find(key) else {
            return Some(None);
        };
        if T::EMPTY_IS_ABSENT && json.as_str().is_some_and(str::is_empty) {
            return Some(None);
        }
        match T::from_json(json) {
            Ok(value) => Some(Some(value)),
            Err(text) => {
                self.problem(key, text);
                None
            }
        }
    }

    /// An optional key with its default.
    pub fn or<T: Value>(&mut self, key: &'static str, default: T) -> Option<T> {
        Some(self.optional(key)?.unwrap_or(default))
    }

    /// An optional key with its default; the value must not be zero.
    pub fn nonzero<T: Value>(&mut self, key: &'static str, default: T) -> Option<T> {
        let value = self.or(key, default)?;
        self.not_zero(key, value)
    }

    fn not_zero<T: Value>(&mut self, key: &'static str, value: T) -> Option<T> {
        if value.is_zero() {
            self.problem(key, "must not be zero");
            return None;
        }
        Some(value)
    }

    /// An optional section.
    pub fn section<T: Configure>(&mut self, key: &'static str) -> Option<Option<T>> {
        self.known.insert(key);
        let object = match self.find(key) {
            None => return Some(None),
            Some(Json::Object(object)) => object,
            Some(other) => {
                let kind = value::kind(other);
                self.say(key, format_args!("expects an object, not {kind}"));
                return None;
            }
        };
        let before = self.report.problems.len();
        let section = Reader {
            object,
            prefix: format!("{}{key}.", self.prefix),
            known: BTreeSet::new(),
            report: &mut *self.report,
        };
        let read = section.read::<T>();
        if read.is_none() && self.report.problems.len() == before {
            self.say(key, "is refused without a stated reason");
        }
        read.map(Some)
    }

    /// A required section.
    pub fn required_section<T: Configure>(&mut self, key: &'static str) -> Option<T> {
        let section = self.section(key)?;
        if section.is_none() {
            self.say(key, "missing");
        }
        section
    }

    /// Keys of the originals that are accepted without effect: they are not reported as unknown.
    pub fn ignore(&mut self, keys: &[&'static str]) {
        self.known.extend(keys);
    }

    /// Records a problem with the value of `key`.
    pub fn problem(&mut self, key: &'static str, text: impl Display) {
        match self.find(key) {
            Some(json) if !is_secret(&self.prefix) && !is_secret(key) && !has_object(json) => {
                let shown = shorten(&json.to_string());
                self.say(key, format_args!("{text} (the value is {shown})"));
            }
            _ => self.say(key, text),
        }
    }

    fn say(&mut self, key: &str, text: impl Display) {
        let problem = format!("{}{key}: {text}", self.prefix);
        self.report.problems.push(problem);
    }

    /// The value of a key that is present and not `null`; the exact spelling has precedence.
    fn find(&self, key: &str) -> Option<&'a Json> {
        let exact = self.object.get(key);
        let folded = || {
            let mut entries = self.object.iter();
            entries.find(|(name, _)| name.eq_ignore_ascii_case(key))
        };
        let json = exact.or_else(|| folded().map(|(_, json)| json))?;
        (!json.is_null()).then_some(json)
    }
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["password", "secret", "token", "connection_string"].iter().any(|word| key.contains(word))
}

/// Whether a value has an object in it, whose keys may be those of secrets.
fn has_object(json: &Json) -> bool {
    match json {
        Json::Object(_) => true,
        Json::Array(values) => values.iter().any(has_object),
        _ => false,
    }
}

fn shorten(json: &str) -> String {
    const LONGEST: usize = 120;
    match json.char_indices().nth(LONGEST) {
        None => json.to_owned(),
        Some((end, _)) => format!("{}...", &json[..end]),
    }
}

impl Value for duration::GoDuration {
    const EMPTY_IS_ABSENT: bool = true;

    fn from_json(json: &Json) -> Result<Self, String> {
        let text = json
            .as_str()
            .ok_or_else(|| expects("a duration in quotes such as \"15s\" or \"1m30s\"", json))?;
        text.parse().map_err(|error: duration::ParseDurationError| error.to_string())
    }

    fn is_zero(&self) -> bool {
        self.nanoseconds() == 0
    }
}
