//! Log lines in the format of the Cloud Foundry components (their library is called lager): one
//! JSON object a line on standard output.
//!
//! Code logs with `tracing`. An event's message is the *action*; spans are
//! lager *sessions*:
//!
//! ```
//! # use runtime::lager;
//! let span = tracing::info_span!("locket-lock", lock = lager::json(&["a"]));
//! let _entered = span.enter();
//! tracing::info!(key = "k1", "type-code" = 1, "acquired-lock");
//! // {"timestamp":"..","level":"info","source":"locket","message":"locket.locket-lock.acquired-lock",
//! //  "data":{"key":"k1","lock":["a"],"session":"1","type-code":1}}
//! ```
//!
//! Invariants (docs/compatibility/locket.md#logs):
//! - The message is `<source>.<span>...<action>`. A span field `lager.task` replaces the span's
//!   name.
//! - The data are the fields of the spans from the outermost in, then those of the event; the
//!   innermost value of a key wins; keys are sorted; `session` is the innermost span's. Root
//!   sessions count 1, 2, 3; their children append `.1`, `.2`.
//! - Strings are escaped as in Go's `encoding/json`.
//! - TRACE and DEBUG become `debug`, INFO and WARN `info`, ERROR `error`, and ERROR with a field
//!   `lager.fatal = true` `fatal`.
//! - Spans of INFO and above exist at every level, so that a message has the same path at every
//!   level; spans of DEBUG and TRACE exist, and have a cost, only at level debug.
//! - From third-party crates only WARN and ERROR pass, as `info` under the message
//!   `<source>.<target>` with `data.text`.
//! - Each call site may write 4 MiB of lines of info and above at once, and 32 KiB a second. Lines
//!   beyond that are dropped; a line `log-lines-dropped` has the message and count.
//! - Each line is one locked write; the lines of [`batch_writes()`] are one write together. A
//!   closed or failing standard output loses lines and has no other effect.

mod batch;
mod budget;
mod fields;
mod layer;
mod level;
mod redactor;
#[cfg(feature = "testing")]
mod testing;

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::callsite::rebuild_interest_cache;
use tracing_subscriber::layer::SubscriberExt;

use crate::go_json::Go;
use crate::metrics::own;

pub use batch::batch_writes;
pub use fields::json;
pub use layer::Lager;
pub use level::{Level, TimeFormat, UnknownName};
pub use redactor::Redactor;
#[cfg(feature = "testing")]
pub use testing::{Capture, capture};

use budget::Budget;
use level::AtomicLevel;

/// Escapes of the originals' log lines.
const GO: Go = Go::V1_22;

/// Log options of a process.
#[derive(Debug, Clone)]
pub struct Options {
    /// The component: the `source` of each line and the first part of its message.
    pub source: String,
    /// The lowest level that is written, until [`Control::set_level`].
    pub level: Level,
    /// Format of a line.
    pub format: TimeFormat,
}

/// Changes the level of a running process.
#[derive(Debug, Clone)]
pub struct Control {
    level: Arc<AtomicLevel>,
    budget: Arc<Budget>,
}

impl Control {
    /// The lowest level that is written.
    pub fn level(&self) -> Level {
        self.level.load()
    }

    /// Logs which lines were dropped since the last call, and how many.
    pub fn tell_left_out(&self) {
        for (message, lines) in self.budget.left_out() {
            own::LINES_LEFT_OUT.counter().increment(lines);
            tracing::info!(lines, of = message, "log-lines-dropped");
        }
    }

    /// Sets the lowest level that is written, for all threads, from now on.
    pub fn set_level(&self, level: Level) {
        self.level.store(level);
        rebuild_interest_cache();
    }
}

/// Output of the log: one locked write per line.
#[derive(Clone)]
pub(crate) struct Sink(Arc<Mutex<Box<dyn Write + Send>>>);

impl Sink {
    pub(crate) fn new(writer: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(writer))))
    }

    /// Whether both are the same sink.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Writes complete lines. A failed write is ignored, as there is no other place to report it.
    fn write(&self, line: &str) {
        if batch::keep(self, line) {
            return;
        }
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _lost = writer.write_all(line.as_bytes());
        let _lost = writer.flush();
    }
}

/// Creates a layer that writes to `writer`, and its control.
pub fn layer(options: Options, writer: impl Write + Send + 'static) -> (Lager, Control) {
    let level = Arc::new(AtomicLevel::new(options.level));
    let budget = Arc::<Budget>::default();
    let control = Control { level: Arc::clone(&level), budget: Arc::clone(&budget) };
    (Lager::new(options, level, budget, Sink::new(writer)), control)
}

/// Makes lager the log of this process, redacted by `redactor`.
///
/// # Errors
/// When the process already has a log.
pub fn init(
    options: Options,
    redactor: Redactor,
    writer: impl Write + Send + 'static,
) -> Result<Control, tracing::subscriber::SetGlobalDefaultError> {
    let (layer, control) = layer(options, writer);
    let layer = layer.censored(redactor);
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(control)
}

#[cfg(test)]
mod tests;
