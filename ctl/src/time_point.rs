//! Times on the command line: RFC 3339, or a duration before or after now.

use jiff::{SignedDuration, Timestamp};

/// A time of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePoint {
    /// A time.
    At(Timestamp),
    /// A duration from now; the argument says in which direction.
    Away(SignedDuration),
}

impl std::str::FromStr for TimePoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        let days = text.strip_suffix('d').and_then(|days| days.parse::<i64>().ok());
        let days = days.and_then(|days| days.checked_mul(24)).map(SignedDuration::try_from_hours);
        match days.flatten().or_else(|| text.parse().ok()) {
            Some(away) if away.is_positive() => Ok(Self::Away(away)),
            _ => {
                Err("not a time such as 2026-11-29T12:00:00Z, or a duration such as 30m, 2h or 7d"
                    .to_owned())
            }
        }
    }
}

impl TimePoint {
    /// The time, where a duration is before `now`.
    pub(crate) fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Away(away) => now.checked_sub(away).unwrap_or(Timestamp::MIN),
        }
    }

    /// The time, where a duration is after `now`.
    pub(crate) fn after(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Away(away) => now.checked_add(away).unwrap_or(Timestamp::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_point_is_a_time_or_a_duration() {
        let hours = |hours| TimePoint::Away(SignedDuration::from_hours(hours));
        assert_eq!("2h".parse(), Ok(hours(2)));
        assert_eq!("7d".parse(), Ok(hours(168)));
        let at: Timestamp = "2026-11-29T12:00:00Z".parse().unwrap();
        assert_eq!("2026-11-29T12:00:00Z".parse(), Ok(TimePoint::At(at)));
        assert_eq!(hours(2).before(at).to_string(), "2026-11-29T10:00:00Z");
        assert_eq!(hours(2).after(at).to_string(), "2026-11-29T14:00:00Z");
        for bad in ["", "-1h", "0s", "0d", "soon", "99999999999999999d"] {
            bad.parse::<TimePoint>().unwrap_err();
        }
    }
}
