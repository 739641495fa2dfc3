//! The fields of one event or span, encoded as they are recorded.

use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Debug, Display, Formatter, Write};
use std::ops::Range;

use serde::Serialize;
use tracing::field::{Field, Visit};

use super::GO;

/// The field that replaces a span's name in the message.
const TASK: &str = "lager.task";
/// The field that makes an error fatal.
const FATAL: &str = "lager.fatal";
/// The field in which `tracing` stores an event's message.
const MESSAGE: &str = "message";

/// Names and their values as JSON text, in one buffer.
#[derive(Debug, Default)]
pub(super) struct Fields {
    entries: Vec<(&'static str, Range<usize>)>,
    json: String,
    pub(super) message: Option<String>,
    pub(super) task: Option<String>,
    pub(super) fatal: bool,
}

/// Typical size of a value in bytes.
const ROOM: usize = 48;

impl Fields {
    /// Creates a buffer for `count` fields.
    pub(super) fn with_capacity(count: usize) -> Self {
        let (entries, json) = (Vec::with_capacity(count), String::with_capacity(count * ROOM));
        Self { entries, json, ..Self::default() }
    }

    /// Names and JSON values, in the order in which they were recorded.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let entries = self.entries.iter();
        entries.map(|(name, range)| (*name, &self.json[range.clone()]))
    }

    fn record<T: Serialize + ?Sized>(&mut self, field: &Field, value: &T) {
        let start = self.json.len();
        GO.push(&mut self.json, value).expect("texts and numbers are JSON");
        self.entries.push((field.name(), start..self.json.len()));
    }

    fn record_json(&mut self, field: &Field, json: &str) {
        let start = self.json.len();
        self.json.push_str(json);
        self.entries.push((field.name(), start..self.json.len()));
    }

    fn record_text(&mut self, field: &Field, text: &str) {
        match field.name() {
            MESSAGE => self.message = Some(text.to_owned()),
            TASK => self.task = Some(text.to_owned()),
            _ => self.record(field, text),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_text(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == FATAL {
            self.fatal = value;
        } else {
            self.record(field, &value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.record(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record(field, &value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.record(field, &value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.record(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record(field, &value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_text(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match render(value) {
            Rendered::Text(text) => self.record_text(field, &text),
            Rendered::Json(json) => self.record_json(field, &json),
        }
    }
}

/// Logs `value` as nested JSON rather than as a string.
pub fn json<T: Serialize + ?Sized>(value: &T) -> impl tracing::Value {
    tracing::field::display(Json(value))
}

struct Json<'a, T: ?Sized>(&'a T);

thread_local! {
    /// `Some` while a field is being rendered. [`Json`] leaves its text here, so that text which
    /// only looks like JSON is never treated as JSON.
    static JSON_SLOT: Cell<Option<String>> = const { Cell::new(None) };
}

impl<T: Serialize + ?Sized> Display for Json<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = match GO.to_string(self.0) {
            Ok(text) => text,
            Err(error) => return write!(f, "cannot be shown as JSON: {error}"),
        };
        match JSON_SLOT.take() {
            Some(_) => JSON_SLOT.set(Some(text)),
            None => f.write_str(&text)?,
        }
        Ok(())
    }
}

enum Rendered {
    Text(String),
    Json(String),
}

fn render(value: &dyn Debug) -> Rendered {
    JSON_SLOT.set(Some(String::new()));
    let mut text = String::new();
    let written = write!(text, "{value:?}");
    match (JSON_SLOT.take(), written) {
        (Some(json), _) if !json.is_empty() => Rendered::Json(json),
        (_, Ok(())) => Rendered::Text(text),
        (_, Err(fmt::Error)) => Rendered::Text("cannot be shown".into()),
    }
}
