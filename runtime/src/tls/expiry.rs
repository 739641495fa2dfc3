//! Validity periods: pure functions of the time.

use jiff::Timestamp;

/// Days before the expiry of a certificate at which a warning is due; 0 is the expiry.
const THRESHOLDS: [i64; 4] = [0, 1, 7, 30];
const DAY: i64 = 86_400;

/// Why a certificate is not valid at a given time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The time is after the certificate's end.
    #[error("expired at {0}")]
    Expired(Timestamp),
    /// The time is before the certificate's beginning.
    #[error("is not valid before {0}")]
    NotYet(Timestamp),
}

/// The validity period of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

impl Validity {
    /// Why the certificate is not valid at `now`; `None` when valid.
    pub(super) fn problem(self, now: Timestamp) -> Option<Invalid> {
        if self.not_after < now {
            Some(Invalid::Expired(self.not_after))
        } else if now < self.not_before {
            Some(Invalid::NotYet(self.not_before))
        } else {
            None
        }
    }
}

/// The narrowest threshold that `now` has passed; `None` when the end is more than
/// 30 days away.
fn passed(not_after: Timestamp, now: Timestamp) -> Option<i64> {
    let left = not_after.as_second() - now.as_second();
    THRESHOLDS.into_iter().find(|days| left <= days * DAY)
}

/// The warnings already written about one certificate: one per threshold, also
/// when the clock goes back and forth.
#[derive(Debug, Default)]
pub(super) struct Warned(Option<i64>);

impl Warned {
    /// The threshold to warn about at `now`, if there is a new one.
    pub(super) fn due(&mut self, not_after: Timestamp, now: Timestamp) -> Option<i64> {
        let passed = passed(not_after, now)?;
        if self.0.is_some_and(|before| before <= passed) {
            return None;
        }
        self.0 = Some(passed);
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("a moment")
    }

    #[test]
    fn each_threshold_is_warned_about_once() {
        let end = 100 * DAY;
        let mut warned = Warned::default();
        let mut due = |now: i64| warned.due(at(end), at(now));
        assert_eq!(due(0), None);
        assert_eq!(due(end - 30 * DAY - 1), None);
        assert_eq!(due(end - 30 * DAY), Some(30));
        assert_eq!(due(end - 29 * DAY), None);
        assert_eq!(due(end - 7 * DAY), Some(7));
        // The clock is set back and then forward again.
        assert_eq!(due(end - 20 * DAY), None);
        assert_eq!(due(end - 6 * DAY), None);
        assert_eq!(due(end - DAY), Some(1));
        assert_eq!(due(end), Some(0));
        assert_eq!(due(end + 50 * DAY), None);
    }

    #[test]
    fn a_late_start_warns_about_the_narrowest_threshold_alone() {
        let end = 100 * DAY;
        let mut warned = Warned::default();
        assert_eq!(warned.due(at(end), at(end - 3 * DAY)), Some(7));
        assert_eq!(warned.due(at(end), at(end - 2 * DAY)), None);
    }

    #[test]
    fn a_certificate_is_valid_from_its_first_to_its_last_second() {
        let validity = Validity { not_before: at(10), not_after: at(20) };
        assert_eq!(validity.problem(at(9)), Some(Invalid::NotYet(at(10))));
        assert_eq!(validity.problem(at(10)), None);
        assert_eq!(validity.problem(at(20)), None);
        assert_eq!(validity.problem(at(21)), Some(Invalid::Expired(at(20))));
        assert_eq!(Invalid::Expired(at(0)).to_string(), "expired at 1970-01-01T00:00:00Z");
    }
}
