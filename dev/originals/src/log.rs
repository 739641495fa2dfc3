//! Log lines in lager's format: one JSON object per line on standard output.

use std::io::Write;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::config::Config;

/// Writes the lines of one program.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    source: String,
}

impl Log {
    /// The source is `LOG_PREFIX.PROGRAM`.
    pub(crate) fn new(config: &Config, program: &str) -> Self {
        let prefix = config.text_or("log_prefix", "cfnetworking");
        Self { source: format!("{prefix}.{program}") }
    }

    /// The source is the program.
    pub(crate) fn bare(program: &str) -> Self {
        Self { source: program.to_owned() }
    }

    pub(crate) fn info(&self, task: &str, data: &Value) {
        self.line("info", task, data);
    }

    pub(crate) fn error(&self, task: &str, error: &anyhow::Error) {
        self.line("error", task, &json!({ "error": format!("{error:#}") }));
    }

    fn line(&self, level: &str, task: &str, data: &Value) {
        let source = &self.source;
        let line = json!({
            "timestamp": Timestamp::now().to_string(), "level": level, "source": source,
            "message": format!("{source}.{task}"), "data": data,
        });
        // A closed standard output stops no service.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}
