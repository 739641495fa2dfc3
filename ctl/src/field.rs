//! The fields of a report: one list for each command defines the columns of its table
//! and the keys of its JSON objects, in display order. A field has one type.

use std::time::Duration;

use jiff::Timestamp;

/// One field of records of type `T`.
#[derive(Debug)]
pub(crate) struct Field<T> {
    column: Column,
    get: Get<T>,
    tone: Option<fn(&T) -> Tone>,
}

/// Name and visibility of a field.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) key: &'static str,
    pub(crate) shown: Shown,
}

/// The output formats that show a field. JSON, YAML and `-o fields=` have all fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Tables and records.
    Always,
    /// Wide tables and records.
    Wide,
    /// No text output, where another field has the value.
    Data,
}

/// Colour of a value on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warning,
    Bad,
    Plain,
}

#[derive(Debug)]
enum Get<T> {
    Text(fn(&T) -> String),
    Integer(fn(&T) -> Option<u64>),
    Boolean(fn(&T) -> bool),
    Texts(fn(&T) -> Vec<String>),
    Time(fn(&T) -> Option<Timestamp>),
    Milliseconds(fn(&T) -> Option<Duration>),
    Rows(fn(&T) -> Vec<Row>),
}

impl<T> Field<T> {
    const fn new(key: &'static str, get: Get<T>) -> Self {
        Self { column: Column { key, shown: Shown::Always }, get, tone: None }
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

    /// A duration; the key ends in `_ms`.
    pub(crate) const fn milliseconds(key: &'static str, get: fn(&T) -> Option<Duration>) -> Self {
        Self::new(key, Get::Milliseconds(get))
    }

    /// Records of another kind, from [`rows`].
    pub(crate) const fn rows(key: &'static str, get: fn(&T) -> Vec<Row>) -> Self {
        Self::new(key, Get::Rows(get))
    }

    /// Hides the field from text output, where another field has the value.
    pub(crate) const fn only_json(self) -> Self {
        self.shown(Shown::Data)
    }

    /// Hides the field from tables that are not wide.
    pub(crate) const fn wide(self) -> Self {
        self.shown(Shown::Wide)
    }

    const fn shown(self, shown: Shown) -> Self {
        Self { column: Column { key: self.column.key, shown }, ..self }
    }

    /// Colours the value on a terminal.
    pub(crate) const fn toned(self, tone: fn(&T) -> Tone) -> Self {
        Self { tone: Some(tone), ..self }
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
            Get::Milliseconds(_) => "number",
            Get::Rows(_) => "list of objects",
        };
        (self.column.key, kind)
    }

    /// The field's value in one record.
    pub(crate) fn of(&self, thing: &T) -> Entry {
        let value = match self.get {
            Get::Text(get) => Some(get(thing)).filter(|text| !text.is_empty()).map(Value::Text),
            Get::Integer(get) => get(thing).map(Value::Integer),
            Get::Boolean(get) => Some(Value::Boolean(get(thing))),
            Get::Texts(get) => Some(Value::Texts(get(thing))),
            Get::Time(get) => get(thing).map(Value::Time),
            Get::Milliseconds(get) => get(thing).map(Value::Milliseconds),
            Get::Rows(get) => Some(Value::Rows(get(thing))),
        };
        let tone = self.tone.map_or(Tone::Plain, |tone| tone(thing));
        Entry { column: self.column, tone, value }
    }

    /// Name and visibility.
    pub(crate) fn column(&self) -> Column {
        self.column
    }
}

/// One record.
pub(crate) type Row = Vec<Entry>;

/// The records of a field that has records.
pub(crate) fn rows<T>(fields: &[Field<T>], things: impl IntoIterator<Item = T>) -> Vec<Row> {
    let row = |thing| fields.iter().map(|field| field.of(&thing)).collect();
    things.into_iter().map(row).collect()
}

impl Column {
    /// The heading in tables and records.
    pub(crate) fn heading(self) -> String {
        let key = self.key.strip_suffix("_at").or_else(|| self.key.strip_suffix("_ms"));
        key.unwrap_or(self.key).replace('_', " ")
    }
}

/// A field's value in one record.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) column: Column,
    pub(crate) tone: Tone,
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
    Milliseconds(Duration),
    Rows(Vec<Row>),
}

impl Entry {
    /// The value as text relative to `now`, one line per item; empty if absent.
    pub(crate) fn lines(&self, now: Timestamp) -> Vec<String> {
        match &self.value {
            None => Vec::new(),
            Some(Value::Text(text)) => vec![text.clone()],
            Some(Value::Integer(number)) => vec![number.to_string()],
            Some(Value::Boolean(yes)) => vec![yes.to_string()],
            Some(Value::Texts(texts)) => texts.clone(),
            Some(Value::Time(time)) => vec![age(*time, now)],
            Some(Value::Milliseconds(time)) => vec![format!("{} ms", milliseconds(*time))],
            Some(Value::Rows(rows)) => vec![rows.len().to_string()],
        }
    }
}

/// `4.21`, `87.3` or `1250`.
pub(crate) fn milliseconds(time: Duration) -> String {
    let value = time.as_secs_f64() * 1e3;
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$}")
}

/// `12s ago`; `in 12s` if the server's clock is ahead.
fn age(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - time.as_second();
    let text = span(seconds.unsigned_abs());
    if seconds < 0 { format!("in {text}") } else { format!("{text} ago") }
}

/// A duration in its two largest units.
pub(crate) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// The timestamp of a protobuf message, if valid.
pub(crate) fn instant(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| moment(at.seconds, at.nanos))
}

/// The duration of a protobuf message, if valid and not negative.
pub(crate) fn duration(time: Option<prost_types::Duration>) -> Option<Duration> {
    Duration::try_from(time?).ok()
}

/// The timestamp with these seconds and nanoseconds, if valid.
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
