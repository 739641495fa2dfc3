//! The Cloud Controller's last-update stamp.
//!
//! An opaque value, compared for equality only, since the Cloud Controller's clock may be
//! off and its stamps may go back (two overlapping writers, a restored database, another
//! machine).

use std::fmt;

use jiff::Timestamp;
use model::generation::Watermark;

/// Result of the stamp endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stamp {
    /// Time by the Cloud Controller's clock.
    At(Watermark),
    /// The Cloud Controller has no such endpoint (404).
    Unknown,
}

/// Go's zero time, which the original uses for an unknown stamp.
const YEAR_ONE: (i64, i64) = (-62_135_596_800, 0);

impl Stamp {
    /// Parses RFC 3339 with any fraction.
    ///
    /// # Errors
    /// Invalid time.
    pub fn parse(text: &str) -> Result<Self, jiff::Error> {
        let nanoseconds = text.parse::<Timestamp>()?.as_nanosecond();
        const SECOND: i128 = 1_000_000_000;
        let part = |part: i128| i64::try_from(part).expect("jiff's range fits");
        let seconds = part(nanoseconds.div_euclid(SECOND));
        let fraction = part(nanoseconds.rem_euclid(SECOND));
        Ok(Self::At(Watermark::try_new(seconds, fraction).expect("a remainder is a fraction")))
    }

    /// Watermark for the store; Go's zero time when unknown.
    #[must_use]
    pub fn watermark(self) -> Watermark {
        match self {
            Self::At(watermark) => watermark,
            Self::Unknown => Watermark::try_new(YEAR_ONE.0, YEAR_ONE.1).expect("zero is less"),
        }
    }

    /// Whether the Cloud Controller's stamps may be whole seconds, so that two changes can
    /// share one. (One in a million stamps with a finer resolution looks the same.)
    #[must_use]
    pub fn is_coarse(self) -> bool {
        match self {
            Self::At(watermark) => watermark.nanoseconds() == 0,
            Self::Unknown => false,
        }
    }
}

/// Formats a time in UTC as Go does: the fraction without trailing zeros.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watermark = self.watermark();
        let nanoseconds = i32::try_from(watermark.nanoseconds()).unwrap_or_default();
        match Timestamp::new(watermark.seconds(), nanoseconds) {
            Ok(moment) => moment.fmt(f),
            Err(_) => write!(f, "{}s", watermark.seconds()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_print_as_go_prints_them() {
        for (stated, printed) in [
            ("2026-11-23T01:53:08.742529000+00:00", "2026-11-23T01:53:08.742529Z"),
            ("2026-11-23T02:53:08.500+01:00", "2026-11-23T01:53:08.5Z"),
            ("1970-01-01T00:00:00.000000000+00:00", "1970-01-01T00:00:00Z"),
            ("1969-12-31T23:59:59.25Z", "1969-12-31T23:59:59.25Z"),
        ] {
            assert_eq!(Stamp::parse(stated).unwrap().to_string(), printed);
        }
        assert_eq!(Stamp::Unknown.to_string(), "0001-01-01T00:00:00Z");
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in ["", "yesterday", "2026-11-23", "1795398527"] {
            assert!(Stamp::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn whole_seconds_are_coarse() {
        assert!(Stamp::parse("2026-11-23T01:53:08+00:00").unwrap().is_coarse());
        assert!(!Stamp::parse("2026-11-23T01:53:08.000001+00:00").unwrap().is_coarse());
    }
}
