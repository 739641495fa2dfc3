//! Numbers and times for people.

use std::time::Duration;

use super::data::Change;
use crate::field;

/// A duration in two units at most: `0.4s`, `34s`, `2m13s`, `1h2m`, `3d4h`.
pub(crate) fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 10 => format!("{seconds}.{}s", time.subsec_millis() / 100),
        seconds => field::span(seconds),
    }
}

/// Milliseconds up to 10 s, then seconds and more.
pub(crate) fn millis(time: Duration) -> String {
    if time < Duration::from_secs(10) { format!("{} ms", time.as_millis()) } else { span(time) }
}

/// `12s ago`, or `never`.
pub(crate) fn ago(age: Option<Duration>) -> String {
    age.map_or_else(|| "never".to_owned(), |age| format!("{} ago", span(age)))
}

/// With separators between thousands.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 cell`, `2 cells`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A number of packets, and the packets per second; large ones in millions.
pub(crate) fn packets(number: Option<u64>, rate: f64) -> String {
    let large = |number: u64| match number {
        0..10_000_000 => count(number),
        _ => format!("{} M", count(number / 1_000_000)),
    };
    match number {
        None => "not counted".to_owned(),
        Some(number) => format!("{} ({}/s)", large(number), large(rate.round() as u64)),
    }
}

/// `+1 ~2 -0`.
pub(crate) fn counts(change: &Change) -> String {
    format!("+{} ~{} -{}", change.added, change.changed, change.removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_units_at_most() {
        for (millis, text) in [
            (0, "0.0s"),
            (450, "0.4s"),
            (9_990, "9.9s"),
            (34_600, "34s"),
            (133_000, "2m13s"),
            (3_720_000, "1h2m"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
        assert_eq!(millis(Duration::from_millis(433)), "433 ms");
        assert_eq!(millis(Duration::from_millis(12_300)), "12s");
    }

    #[test]
    fn large_numbers_have_separators() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(packets(Some(1_200), 2.4), "1,200 (2/s)");
        assert_eq!(packets(Some(70_640_700), 27_205_962.0), "70 M (27 M/s)");
        assert_eq!(packets(None, 0.0), "not counted");
    }
}
