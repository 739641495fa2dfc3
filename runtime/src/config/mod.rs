//! Configuration: one JSON object in a file, with the parsing rules of the originals, but with
//! every problem reported at once.
//!
//! Invariants:
//! - Key names match without regard to ASCII case; `null` is the same as absent; only the first
//!   JSON value of the file counts (docs/compatibility/locket.md#configuration).
//! - Reading never stops at the first problem: each problem is collected with the full path of its
//!   key and the offending value.
//! - The value of a key whose path mentions a password, a secret, a token or a connection string is
//!   never printed.
//! - Unknown keys are accepted, and listed in [`Loaded::unknown`].

mod duration;
mod reader;
mod value;

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};

pub use duration::{GoDuration, ParseDurationError};
pub use reader::Reader;
pub use value::{HostPort, Seconds, Value};

use reader::Report;

/// A configuration, or a section of one, that can be read from JSON.
pub trait Configure: Sized {
    /// Reads every key. Returns `None` only if a problem was recorded; to report
    /// all problems at once, read all keys before the first `?`.
    fn read(keys: &mut Reader<'_>) -> Option<Self>;
}

/// A configuration without problems.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub config: T,
    /// Full paths of unknown keys, in the file's spelling.
    pub unknown: Vec<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug)]
pub struct Error {
    path: Option<PathBuf>,
    problems: Vec<String>,
}

impl Error {
    /// Every problem, one sentence each.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn of(problem: String) -> Self {
        Self { path: None, problems: vec![problem] }
    }

    /// The problems, each prefixed with its file.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.problems.iter().map(|problem| match &self.path {
            Some(path) => format!("{}: {problem}", path.display()),
            None => problem.clone(),
        })
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Reads and checks the configuration file at `path`.
///
/// # Errors
/// When the file cannot be read, is not JSON, or has any problem.
pub fn load<T: Configure>(path: &Path) -> Result<Loaded<T>, Error> {
    read_text(path)
        .and_then(|text| parse(&text))
        .map_err(|error| Error { path: Some(path.to_path_buf()), ..error })
}

fn read_text(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path)
        .map_err(|error: io::Error| Error::of(format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| Error::of(format!("is not UTF-8: {error}")))
}

/// Parses and checks a configuration from text.
///
/// # Errors
/// When it is not JSON, or has any problem.
pub fn parse<T: Configure>(json: &str) -> Result<Loaded<T>, Error> {
    let first = serde_json::Deserializer::from_str(json).into_iter::<serde_json::Value>().next();
    let object = match first {
        None => return Err(Error::of("is empty: expects a JSON object".into())),
        Some(Err(error)) => return Err(Error::of(format!("is not JSON: {error}"))),
        Some(Ok(serde_json::Value::Object(object))) => object,
        Some(Ok(other)) => {
            let kind = value::kind(&other);
            return Err(Error::of(format!("expects a JSON object, not {kind}")));
        }
    };
    let mut report = Report::default();
    let config = Reader::root(&object, &mut report).read::<T>();
    match (config, report.problems.is_empty()) {
        (Some(config), true) => Ok(Loaded { config, unknown: report.unknown }),
        (None, true) => Err(Error::of("is refused without a stated reason".into())),
        (_, false) => Err(Error { path: None, problems: report.problems }),
    }
}

#[cfg(test)]
mod tests;
