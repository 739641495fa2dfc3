//! Durations in the format of Go's `time.ParseDuration` and `Duration.String`, which the originals'
//! configuration files use.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::Duration;

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000 * MICROSECOND;
const SECOND: u64 = 1_000 * MILLISECOND;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// The magnitude of the smallest value; the largest is one less.
const LIMIT: u64 = 1 << 63;

/// A signed number of nanoseconds, written as Go writes it: `1h30m`, `1.5s`,
/// `500ms`, `-1s`, `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GoDuration(i64);

/// Error for a text that is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseDurationError {
    /// Empty text, an unexpected character, or a sign alone.
    #[error("is not a duration such as \"15s\" or \"1m30s\"")]
    Malformed,
    /// A number without a unit.
    #[error("has a number without a unit (ns, us, ms, s, m or h)")]
    MissingUnit,
    /// A unit that Go does not know, such as `d`.
    #[error("has an unknown unit: use ns, us, ms, s, m or h")]
    UnknownUnit,
    /// More than about 292 years.
    #[error("is longer than a duration can be")]
    Overflow,
}

impl GoDuration {
    /// Zero.
    pub const ZERO: Self = Self(0);

    /// Creates a duration from nanoseconds.
    pub const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// Creates a duration from seconds.
    pub const fn from_seconds(seconds: u32) -> Self {
        Self(seconds as i64 * SECOND as i64)
    }

    /// The value, which may be negative.
    pub const fn nanoseconds(self) -> i64 {
        self.0
    }

    /// The value as an unsigned duration; negative values become zero.
    pub const fn to_duration(self) -> Duration {
        if self.0 > 0 { Duration::from_nanos(self.0.unsigned_abs()) } else { Duration::ZERO }
    }
}

impl From<Duration> for GoDuration {
    /// Saturates at about 292 years.
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl FromStr for GoDuration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, ParseDurationError> {
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(ParseDurationError::Malformed);
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (term, after) = parse_term(rest)?;
            total = total
                .checked_add(term)
                .filter(|total| *total <= LIMIT)
                .ok_or(ParseDurationError::Overflow)?;
            rest = after;
        }
        let magnitude = i128::from(total);
        let value = if negative { -magnitude } else { magnitude };
        let value = i64::try_from(value).map_err(|_| ParseDurationError::Overflow)?;
        Ok(Self(value))
    }
}

/// Parses one number with its unit; returns nanoseconds and the rest of the text.
fn parse_term(text: &str) -> Result<(u64, &str), ParseDurationError> {
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(ParseDurationError::Malformed);
    }
    let whole = parse_whole(whole)?;
    let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let unit = match name {
        "" => return Err(ParseDurationError::MissingUnit),
        "ns" => 1,
        // The micro sign and the Greek letter mu look alike.
        "us" | "\u{b5}s" | "\u{3bc}s" => MICROSECOND,
        "ms" => MILLISECOND,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        _ => return Err(ParseDurationError::UnknownUnit),
    };
    let nanoseconds = whole
        .checked_mul(unit)
        .filter(|nanoseconds| *nanoseconds <= LIMIT)
        .and_then(|nanoseconds| nanoseconds.checked_add(fraction_of(fraction, unit)))
        .filter(|nanoseconds| *nanoseconds <= LIMIT)
        .ok_or(ParseDurationError::Overflow)?;
    Ok((nanoseconds, rest))
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// No digits before a point are zero.
fn parse_whole(digits: &str) -> Result<u64, ParseDurationError> {
    let value = if digits.is_empty() { Some(0) } else { digits.parse().ok() };
    value.filter(|value| *value <= LIMIT).ok_or(ParseDurationError::Overflow)
}

/// The fraction `0.<digits>` of a unit, computed with a float64 as in Go, so that thirds of an hour
/// give the same result. Digits beyond the precision are ignored.
fn fraction_of(digits: &str, unit: u64) -> u64 {
    let (mut numerator, mut scale) = (0_u64, 1_f64);
    for digit in digits.bytes() {
        let next = numerator
            .checked_mul(10)
            .and_then(|next| next.checked_add(u64::from(digit - b'0')))
            .filter(|next| *next <= LIMIT);
        let Some(next) = next else { break };
        numerator = next;
        scale *= 10.0;
    }
    (numerator as f64 * (unit as f64 / scale)) as u64
}

impl Display for GoDuration {
    /// Formats as Go does: below a second in the largest unit that fits (`1.5ms`), from a second on
    /// in hours, minutes and seconds (`1h0m0.5s`).
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match magnitude {
            0 => f.write_str("0s"),
            1..MICROSECOND => write!(f, "{magnitude}ns"),
            MICROSECOND..MILLISECOND => write_decimal(f, magnitude, MICROSECOND, "\u{b5}s"),
            MILLISECOND..SECOND => write_decimal(f, magnitude, MILLISECOND, "ms"),
            _ => {
                let (hours, minutes) = (magnitude / HOUR, magnitude % HOUR / MINUTE);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if magnitude >= MINUTE {
                    write!(f, "{minutes}m")?;
                }
                write_decimal(f, magnitude % MINUTE, SECOND, "s")
            }
        }
    }
}

fn write_decimal(f: &mut Formatter<'_>, value: u64, unit: u64, name: &str) -> fmt::Result {
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", value % unit);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    write!(f, "{}{point}{fraction}{name}", value / unit)
}
