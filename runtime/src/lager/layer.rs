//! The `tracing` layer: filters spans and events, and formats them as lines.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::budget::Budget;
use super::fields::Fields;
use super::level::{AtomicLevel, Level, TimeFormat};
use super::{GO, Options, Redactor, Sink};
use crate::redact;

/// Third-party crates, sorted: all packages of Cargo.lock that are not part of the workspace.
pub(super) const THIRD_PARTY: &[&str] = include!(concat!(env!("OUT_DIR"), "/third_party.rs"));

/// Writes lager lines for a `tracing` registry.
pub struct Lager {
    source: String,
    format: TimeFormat,
    level: Arc<AtomicLevel>,
    budget: Arc<Budget>,
    redactor: Redactor,
    sink: Sink,
    sessions: AtomicU64,
}

/// A lager session, stored in the span's extensions. Most spans have no log line, so values needed
/// only for lines are computed per line.
struct Session {
    parent: Option<Arc<Session>>,
    task: Cow<'static, str>,
    /// Its number among the sessions of the same parent, from 1.
    number: u64,
    children: AtomicU64,
    fields: RwLock<Fields>,
}

impl Session {
    /// The sessions from the outermost to this one.
    fn lineage(&self) -> Vec<&Self> {
        let mut lineage: Vec<_> =
            iter::successors(Some(self), |session| session.parent.as_deref()).collect();
        lineage.reverse();
        lineage
    }

    /// The tasks, joined by dots.
    fn path(&self) -> String {
        let tasks: Vec<&str> = self.lineage().iter().map(|session| &*session.task).collect();
        tasks.join(".")
    }

    /// `8.2.1` is the first child of the second child of the eighth.
    fn number(&self) -> String {
        let numbers: Vec<String> =
            self.lineage().iter().map(|session| session.number.to_string()).collect();
        numbers.join(".")
    }
}

impl Lager {
    pub(super) fn new(
        options: Options,
        level: Arc<AtomicLevel>,
        budget: Arc<Budget>,
        sink: Sink,
    ) -> Self {
        let Options { source, level: _, format } = options;
        let (redactor, sessions) = (Redactor::default(), AtomicU64::new(0));
        Self { source, format, level, budget, redactor, sink, sessions }
    }

    /// Sets the redactor.
    #[must_use]
    pub fn censored(self, redactor: Redactor) -> Self {
        Self { redactor, ..self }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let threshold = self.level.load();
        let level = *metadata.level();
        if metadata.is_span() {
            let always = level <= tracing::Level::INFO;
            return is_ours(metadata.target()) && (always || threshold == Level::Debug);
        }
        if is_ours(metadata.target()) {
            level <= lowest(threshold)
        } else {
            level <= tracing::Level::WARN && threshold <= Level::Info
        }
    }

    fn new_session(
        &self,
        parent: Option<Arc<Session>>,
        name: &'static str,
        mut fields: Fields,
    ) -> Session {
        let siblings = parent.as_ref().map_or(&self.sessions, |parent| &parent.children);
        let number = siblings.fetch_add(1, Ordering::Relaxed) + 1;
        let task = fields.task.take().map_or(Cow::Borrowed(name), Cow::Owned);
        Session { parent, task, number, children: AtomicU64::new(0), fields: RwLock::new(fields) }
    }

    fn line(&self, severity: Severity, path: &[&str], data: &str) -> String {
        let now = jiff::Timestamp::now();
        let mut line = String::with_capacity(128 + data.len());
        match self.format {
            TimeFormat::Rfc3339 => {
                let level = severity.name();
                push(&mut line, format_args!("{{\"timestamp\":\"{now:.9}\",\"level\":\"{level}\""));
            }
            TimeFormat::UnixEpoch => {
                let (seconds, nanoseconds) = (now.as_second(), now.subsec_nanosecond());
                let stamp = format_args!("{{\"timestamp\":\"{seconds}.{nanoseconds:09}\"");
                push(&mut line, stamp);
            }
        }
        line.push_str(",\"source\":");
        push_string(&mut line, &self.source);
        line.push_str(",\"message\":");
        push_string(&mut line, &[&[self.source.as_str()], path].concat().join("."));
        if self.format == TimeFormat::UnixEpoch {
            let number = severity as u8;
            push(&mut line, format_args!(",\"log_level\":{number}"));
        }
        line.push_str(",\"data\":");
        line.push_str(&redact::urls(data));
        line.push_str("}\n");
        line
    }

    /// Writes a line, unless its call site has exceeded its budget.
    fn write(&self, metadata: &Metadata<'_>, severity: Severity, path: &[&str], data: &str) {
        let line = self.line(severity, path, data);
        let message = || path.join(".");
        let is_bounded = matches!(severity, Severity::Info | Severity::Error);
        let now = tokio::time::Instant::now();
        if !is_bounded || self.budget.takes(metadata.callsite(), line.len(), now, message) {
            self.sink.write(&line);
        }
    }

    fn write_foreign(&self, metadata: &Metadata<'_>, fields: &Fields) {
        let mut entries: Vec<_> = fields.iter().collect();
        let mut text = String::new();
        if let Some(message) = &fields.message {
            push_string(&mut text, message);
            entries.push(("text", &text));
        }
        let data = self.redactor.apply(object(entries));
        self.write(metadata, Severity::Info, &[metadata.target()], &data);
    }
}

impl<S> Layer<S> for Lager
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.level.load() {
            Level::Debug => LevelFilter::TRACE,
            _ => LevelFilter::INFO,
        })
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::with_capacity(attributes.fields().len());
        attributes.record(&mut fields);
        let parent = span.parent();
        let parent = parent.and_then(|parent| parent.extensions().get::<Arc<Session>>().cloned());
        let session = self.new_session(parent, span.name(), fields);
        span.extensions_mut().insert(Arc::new(session));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let session = span.extensions().get::<Arc<Session>>().cloned();
        if let Some(session) = session {
            let mut fields = session.fields.write().unwrap_or_else(PoisonError::into_inner);
            values.record(&mut *fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        if !is_ours(metadata.target()) {
            return self.write_foreign(metadata, &fields);
        }
        let severity = Severity::of(*metadata.level(), fields.fatal);
        if self.level.load() == Level::Fatal && severity != Severity::Fatal {
            return;
        }
        let span = context.event_span(event);
        let session = span.and_then(|span| span.extensions().get::<Arc<Session>>().cloned());
        let action = fields.message.as_deref().unwrap_or(metadata.name());
        let data = self.redactor.apply(data(session.as_deref(), &fields));
        match &session {
            Some(session) => self.write(metadata, severity, &[&session.path(), action], &data),
            None => self.write(metadata, severity, &[action], &data),
        }
    }
}

/// Level of a line; the numbers are those of the `unix-epoch` format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Debug = 0,
    Info = 1,
    Error = 2,
    Fatal = 3,
}

impl Severity {
    fn of(level: tracing::Level, fatal: bool) -> Self {
        match level {
            tracing::Level::ERROR if fatal => Self::Fatal,
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN | tracing::Level::INFO => Self::Info,
            _ => Self::Debug,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }
}

/// The lowest `tracing` level that passes the threshold.
fn lowest(threshold: Level) -> tracing::Level {
    match threshold {
        Level::Debug => tracing::Level::TRACE,
        Level::Info => tracing::Level::INFO,
        Level::Warn => tracing::Level::WARN,
        Level::Error | Level::Fatal => tracing::Level::ERROR,
    }
}

/// Whether the target belongs to a crate, a program or a test of this workspace.
fn is_ours(target: &str) -> bool {
    let name = target.split("::").next().unwrap_or_default();
    THIRD_PARTY.binary_search(&name).is_err()
}

fn push(out: &mut String, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String");
}

fn push_string(out: &mut String, text: &str) {
    GO.push(out, text).expect("a text is JSON");
}

/// The data of an event: inner values win over outer ones of the same name.
fn data(session: Option<&Session>, event: &Fields) -> String {
    let guards: Vec<_> = session
        .map(Session::lineage)
        .unwrap_or_default()
        .into_iter()
        .map(|session| session.fields.read().unwrap_or_else(PoisonError::into_inner))
        .collect();
    let number = session.map(|session| format!("\"{}\"", session.number()));
    let mut entries: Vec<(&str, &str)> = Vec::new();
    for fields in &guards {
        entries.extend(fields.iter());
    }
    entries.extend(event.iter());
    entries.extend(number.iter().map(|number| ("session", number.as_str())));
    object(entries)
}

/// Formats a JSON object with sorted keys; the last of several entries with the same key counts.
fn object(mut entries: Vec<(&str, &str)>) -> String {
    entries.sort_by_key(|(name, _)| *name);
    let mut json = String::from("{");
    for (index, (name, value)) in entries.iter().enumerate() {
        let superseded = entries.get(index + 1).is_some_and(|(next, _)| next == name);
        if superseded {
            continue;
        }
        if json.len() > 1 {
            json.push(',');
        }
        push_string(&mut json, name);
        json.push(':');
        json.push_str(value);
    }
    json.push('}');
    json
}
