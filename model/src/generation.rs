//! Progress: the store's generation and the Cloud Controller's watermark. Both only ever rise.

use std::fmt;

/// The policy store's number for one complete set of security groups.
///
/// 0 is the empty set before the first sync; each Replace that changes content
/// raises it by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When a store created a generation, in nanoseconds since 1970 by the store's clock; 0 before the
/// first.
///
/// Rises with each generation, even if the clock does not, and is the same on every instance. Cells
/// compare stamps only with other stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(pub i64);

impl Stamp {
    /// The stamp of the generation after this one, created at `now`.
    #[must_use]
    pub fn next(self, now: Self) -> Self {
        now.max(Self(self.0.saturating_add(1)))
    }
}

/// Identifies one generation of one store: a store that was restored from a backup reuses
/// generation numbers, but with new stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Point {
    /// The generation.
    pub generation: Generation,
    /// Its creation time.
    pub stamp: Stamp,
}

/// The Cloud Controller's last-update stamp that was fully synced: a time in UTC as seconds and
/// nanoseconds since 1970.
///
/// The time comes from the Cloud Controller's clock; it is compared only with other watermarks,
/// never with a local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watermark {
    seconds: i64,
    nanoseconds: u32,
}

/// Error for nanoseconds that are not a fraction of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} nanoseconds are a second or more")]
pub struct NotAFraction(pub i64);

impl Watermark {
    /// # Errors
    /// `nanoseconds` outside 0..1,000,000,000.
    pub fn try_new(seconds: i64, nanoseconds: i64) -> Result<Self, NotAFraction> {
        match u32::try_from(nanoseconds) {
            Ok(fraction) if fraction < 1_000_000_000 => Ok(Self { seconds, nanoseconds: fraction }),
            _ => Err(NotAFraction(nanoseconds)),
        }
    }

    /// Whole seconds since 1970, negative before.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// The fraction, in nanoseconds, counted forward from [`Self::seconds`].
    #[must_use]
    pub fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_order_by_time() {
        let at = |s, n| Watermark::try_new(s, n).unwrap();
        assert!(at(1, 999_999_999) < at(2, 0));
        assert!(at(-2, 5) < at(-1, 0));
    }

    #[test]
    fn stamps_rise_whatever_the_clock_does() {
        assert_eq!(Stamp(5).next(Stamp(9)), Stamp(9));
        assert_eq!(Stamp(5).next(Stamp(5)), Stamp(6));
        assert_eq!(Stamp(5).next(Stamp(-3)), Stamp(6));
    }

    #[test]
    fn a_fraction_is_less_than_a_second() {
        assert_eq!(Watermark::try_new(0, 1_000_000_000), Err(NotAFraction(1_000_000_000)));
        assert_eq!(Watermark::try_new(0, -1), Err(NotAFraction(-1)));
    }
}
