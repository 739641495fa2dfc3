//! Levels and time formats, and their names in configuration files.

use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::Value as Json;

use crate::config;

/// The lowest level that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All lines.
    Debug,
    /// Lines for normal operation; the usual setting.
    Info,
    /// Warnings, which are written as `info`, and errors. The originals have no such level,
    /// although their BOSH jobs offer it.
    Warn,
    /// Errors.
    Error,
    /// Only errors that end the process.
    Fatal,
}

/// Error for an unknown name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not one of {0}")]
pub struct UnknownName(&'static str);

impl Level {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Debug, "debug"),
        (Self::Info, "info"),
        (Self::Warn, "warn"),
        (Self::Error, "error"),
        (Self::Fatal, "fatal"),
    ];

    /// The level's name.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Parses the values that the debug endpoint accepts: a name, its first letter, or its number,
    /// in any case (docs/compatibility/locket.md#debug-server).
    ///
    /// # Errors
    /// When the text is none of these.
    pub fn parse_loosely(text: &str) -> Result<Self, UnknownName> {
        let text = text.trim().to_ascii_lowercase();
        let numbered = Self::ALL.iter().enumerate();
        numbered
            .map(|(number, (level, name))| (number.to_string(), *level, *name))
            .find(|(number, _, name)| text == *name || text == name[..1] || text == *number)
            .map(|(_, level, _)| level)
            .ok_or(UnknownName("debug, info, warn, error, fatal"))
    }
}

impl FromStr for Level {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(level, _)| *level).ok_or(UnknownName("debug, info, warn, error, fatal"))
    }
}

impl config::Value for Level {
    const EMPTY_IS_ABSENT: bool = true;

    fn from_json(json: &Json) -> Result<Self, String> {
        let text = json.as_str().unwrap_or_default();
        text.parse().map_err(|error: UnknownName| error.to_string())
    }
}

/// Format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeFormat {
    /// `timestamp` in RFC 3339 with nine fractional digits, `level` as a word.
    Rfc3339,
    /// `timestamp` in seconds since 1970, `log_level` as a number.
    UnixEpoch,
}

impl config::Value for TimeFormat {
    const EMPTY_IS_ABSENT: bool = true;

    fn from_json(json: &Json) -> Result<Self, String> {
        let text = match json {
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        match text.as_str() {
            "unix-epoch" | "0" => Ok(Self::UnixEpoch),
            "rfc3339" | "1" => Ok(Self::Rfc3339),
            _ => Err(UnknownName("unix-epoch, rfc3339").to_string()),
        }
    }
}

/// A [`Level`] that many threads read and that rarely changes.
#[derive(Debug)]
pub(super) struct AtomicLevel(AtomicU8);

impl AtomicLevel {
    pub(super) fn new(level: Level) -> Self {
        Self(AtomicU8::new(level as u8))
    }

    pub(super) fn load(&self) -> Level {
        Level::ALL[usize::from(self.0.load(Ordering::Relaxed))].0
    }

    pub(super) fn store(&self, level: Level) {
        self.0.store(level as u8, Ordering::Relaxed);
    }
}
