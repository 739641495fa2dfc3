//! Types of configuration values.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

/// A type that one key can hold. A service may implement it for its own types.
pub trait Value: Sized {
    /// Whether an empty string counts as an absent key.
    const EMPTY_IS_ABSENT: bool = false;

    /// Parses the JSON, which is never `null`.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence that begins with the key. The text must not repeat
    /// the value: the reader prints the value unless it is secret.
    fn from_json(json: &Json) -> Result<Self, String>;

    /// Whether an absent key has this value in the originals, so that the value does not satisfy a
    /// required key.
    fn is_zero(&self) -> bool {
        false
    }
}

/// Error text for a value of the wrong type.
pub(super) fn expects(what: &str, json: &Json) -> String {
    format!("expects {what}, not {}", kind(json))
}

/// The JSON type of a value, with its article.
pub(super) fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(number) if number.is_f64() => "a number with a fraction or exponent",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

fn text<'a>(json: &'a Json, what: &str) -> Result<&'a str, String> {
    json.as_str().ok_or_else(|| expects(what, json))
}

impl Value for String {
    const EMPTY_IS_ABSENT: bool = true;

    fn from_json(json: &Json) -> Result<Self, String> {
        text(json, "a string").map(str::to_owned)
    }
}

impl Value for PathBuf {
    const EMPTY_IS_ABSENT: bool = true;

    fn from_json(json: &Json) -> Result<Self, String> {
        text(json, "a path").map(PathBuf::from)
    }
}

impl Value for bool {
    fn from_json(json: &Json) -> Result<Self, String> {
        json.as_bool().ok_or_else(|| expects("true or false", json))
    }
}

impl Value for Vec<String> {
    fn from_json(json: &Json) -> Result<Self, String> {
        let array = json.as_array().ok_or_else(|| expects("an array of strings", json))?;
        let texts = array.iter().map(|item| text(item, "strings in the array").map(str::to_owned));
        texts.collect()
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

macro_rules! integer {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn from_json(json: &Json) -> Result<Self, String> {
                let wide = json.as_i64().map(i128::from).or(json.as_u64().map(i128::from));
                let fits = wide.and_then(|wide| <$type>::try_from(wide).ok());
                fits.ok_or_else(|| {
                    let range = format!("an integer from {} to {}", <$type>::MIN, <$type>::MAX);
                    if wide.is_some() { format!("expects {range}") } else { expects(&range, json) }
                })
            }

            fn is_zero(&self) -> bool {
                *self == 0
            }
        }
    )*};
}

integer!(u16, u32, u64, i64, usize);

/// A whole number of seconds, as in several keys of the originals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub Duration);

impl Seconds {
    /// Creates a value from seconds.
    pub const fn new(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        seconds.0
    }
}

impl Value for Seconds {
    fn from_json(json: &Json) -> Result<Self, String> {
        // Maximum of Go's int64 nanoseconds, so that deadlines never overflow.
        const LONGEST: u64 = i64::MAX as u64 / 1_000_000_000;
        let seconds = json.as_u64().filter(|seconds| *seconds <= LONGEST);
        match seconds {
            Some(seconds) => Ok(Self::new(seconds)),
            None if json.as_i64().is_some() || json.as_u64().is_some() => {
                Err(format!("expects whole seconds from 0 to {LONGEST}"))
            }
            None => Err(expects("a whole number of seconds", json)),
        }
    }

    fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
}

/// An address in the form `host:port`; the host may be a name, an IPv4 address, an IPv6 address in
/// brackets, or empty (all interfaces).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort(String);

impl HostPort {
    /// Parses `host:port`.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("expects host:port, and has no port")?;
        if port.parse::<u16>().is_err() || port.starts_with('+') {
            return Err("expects host:port with a port from 0 to 65535".into());
        }
        if host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err("expects host:port without spaces, scheme or path".into());
        }
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.contains(':') && !bracketed {
            return Err("expects an IPv6 address in brackets, such as [::1]:8891".into());
        }
        Ok(Self(text.to_owned()))
    }

    /// The address as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for HostPort {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Value for HostPort {
    const EMPTY_IS_ABSENT: bool = true;

    fn from_json(json: &Json) -> Result<Self, String> {
        Self::parse(text(json, "host:port in quotes")?)
    }
}
