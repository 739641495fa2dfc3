//! The fields of a report: one list for each command defines the columns of its table
//! and the keys of its JSON objects, in display order. A field has one type.

use jiff::Timestamp;
use serde_json::json;

/// One field of records of type `T`.
#[derive(Debug)]
pub(crate) struct Field<T> {
    key: &'static str,
    get: Get<T>,
    only_json: bool,
}

#[derive(Debug)]
enum Get<T> {
    Text(fn(&T) -> String),
    Integer(fn(&T) -> Option<u64>),
    Boolean(fn(&T) -> bool),
    Texts(fn(&T) -> Vec<String>),
    Time(fn(&T) -> Option<Timestamp>),
}

impl<T> Field<T> {
    const fn new(key: &'static str, get: Get<T>) -> Self {
        Self { key, get, only_json: false }
    }

    /// A text; an empty one counts as absent.
    pub(crate) const fn text(key: &'static str, get: fn(&T) -> String) -> Self {
        Self::new(key, Get::Text(get))
    }

    /// An integer.
    pub(crate) const fn integer(key: &'static str, get: fn(&T) -> Option<u64>) -> Self {
        Self::new(key, Get::Integer(get))
    }

    /// A boolean.
    pub(crate) const fn boolean(key: &'static str, get: fn(&T) -> bool) -> Self {
        Self::new(key, Get::Boolean(get))
    }

    /// A list of texts.
    pub(crate) const fn texts(key: &'static str, get: fn(&T) -> Vec<String>) -> Self {
        Self::new(key, Get::Texts(get))
    }

    /// A timestamp.
    pub(crate) const fn time(key: &'static str, get: fn(&T) -> Option<Timestamp>) -> Self {
        Self::new(key, Get::Time(get))
    }

    /// Hides the field from text output, where another field has the value.
    pub(crate) const fn only_json(self) -> Self {
        Self { only_json: true, ..self }
    }

    /// Key and type, as documented.
    #[cfg(test)]
    pub(crate) fn documented(&self) -> (&'static str, &'static str) {
        let kind = match self.get {
            Get::Text(_) => "text",
            Get::Integer(_) => "integer",
            Get::Boolean(_) => "boolean",
            Get::Texts(_) => "list of text",
            Get::Time(_) => "time",
        };
        (self.key, kind)
    }

    /// The field's value in one record.
    pub(crate) fn of(&self, thing: &T) -> Entry {
        let value = match self.get {
            Get::Text(get) => Some(get(thing)).filter(|text| !text.is_empty()).map(Value::Text),
            Get::Integer(get) => get(thing).map(Value::Integer),
            Get::Boolean(get) => Some(Value::Boolean(get(thing))),
            Get::Texts(get) => Some(Value::Texts(get(thing))),
            Get::Time(get) => get(thing).map(Value::Time),
        };
        Entry { key: self.key, only_json: self.only_json, value }
    }

    /// The column heading.
    pub(crate) fn heading(&self) -> String {
        heading(self.key)
    }

    /// Whether text output shows the field.
    pub(crate) fn is_shown(&self) -> bool {
        !self.only_json
    }
}

fn heading(key: &str) -> String {
    key.strip_suffix("_at").unwrap_or(key).replace('_', " ")
}

/// A field's value in one record.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: &'static str,
    pub(crate) only_json: bool,
    pub(crate) value: Option<Value>,
}

/// The value of a field.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Integer(u64),
    Boolean(bool),
    Texts(Vec<String>),
    Time(Timestamp),
}

impl Entry {
    /// The heading in a record.
    pub(crate) fn heading(&self) -> String {
        heading(self.key)
    }

    /// The JSON value; null if absent.
    pub(crate) fn json(&self) -> serde_json::Value {
        match &self.value {
            None => serde_json::Value::Null,
            Some(Value::Text(text)) => json!(text),
            Some(Value::Integer(number)) => json!(number),
            Some(Value::Boolean(yes)) => json!(yes),
            Some(Value::Texts(texts)) => json!(texts),
            Some(Value::Time(time)) => json!(time.to_string()),
        }
    }

    /// The value as text relative to `now`, one line per item; empty if absent.
    pub(crate) fn lines(&self, now: Timestamp) -> Vec<String> {
        match &self.value {
            None => Vec::new(),
            Some(Value::Text(text)) => vec![text.clone()],
            Some(Value::Integer(number)) => vec![number.to_string()],
            Some(Value::Boolean(yes)) => vec![yes.to_string()],
            Some(Value::Texts(texts)) => texts.clone(),
            Some(Value::Time(time)) => vec![age(*time, now)],
        }
    }
}

/// `12s ago`; `in 12s` if the server's clock is ahead.
fn age(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - time.as_second();
    let text = span(seconds.unsigned_abs());
    if seconds < 0 { format!("in {text}") } else { format!("{text} ago") }
}

/// A duration in its two largest units.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// The timestamp of a protobuf message, if valid.
pub(crate) fn moment(seconds: i64, nanoseconds: i32) -> Option<Timestamp> {
    Timestamp::new(seconds, nanoseconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        let now = moment(1_000_000, 0).unwrap();
        for (before, text) in [
            (0, "0s ago"),
            (12, "12s ago"),
            (72, "1m12s ago"),
            (3_660, "1h1m ago"),
            (180_000, "2d2h ago"),
            (-5, "in 5s"),
        ] {
            assert_eq!(age(moment(1_000_000 - before, 0).unwrap(), now), text);
        }
    }
}
