//! Captures log lines in tests.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

use super::{Control, Options};

/// The captured lines.
#[derive(Debug, Clone, Default)]
pub struct Capture(Arc<Mutex<Vec<u8>>>);

impl Capture {
    /// All captured text.
    pub fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(bytes.clone()).expect("lines are UTF-8")
    }

    /// The captured lines, parsed.
    pub fn lines(&self) -> Vec<serde_json::Value> {
        let text = self.text();
        let parse = |line| serde_json::from_str(line).expect("each line is JSON");
        text.lines().map(parse).collect()
    }

    /// The data of the first line with this message, if any.
    pub fn data_of(&self, message: &str) -> Option<serde_json::Value> {
        let mut lines = self.lines().into_iter();
        let line = lines.find(|line| line["message"] == message)?;
        Some(line["data"].clone())
    }
}

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Captures the log of this thread until the guard is dropped. For tests; tasks of a multi-threaded
/// tokio runtime run on other threads and are not captured.
pub fn capture(options: Options) -> (Capture, Control, DefaultGuard) {
    let capture = Capture::default();
    let (layer, control) = super::layer(options, capture.clone());
    let subscriber = tracing_subscriber::registry().with(layer);
    let guard = tracing::subscriber::set_default(subscriber);
    (capture, control, guard)
}
