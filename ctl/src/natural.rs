//! Natural sort order of names: `cell-2` before `cell-10`.

use std::cmp::Ordering;

/// Compares numbers in names by value.
pub(crate) fn compare(one: &str, other: &str) -> Ordering {
    let (mut a, mut b) = (one, other);
    loop {
        let ((digits_a, rest_a), (digits_b, rest_b)) = (number(a), number(b));
        let order = if digits_a.is_empty() || digits_b.is_empty() {
            let (mut chars_a, mut chars_b) = (a.chars(), b.chars());
            let (next_a, next_b) = (chars_a.next(), chars_b.next());
            if next_a.is_none() && next_b.is_none() {
                // Equal except for leading zeros.
                return one.cmp(other);
            }
            (a, b) = (chars_a.as_str(), chars_b.as_str());
            next_a.cmp(&next_b)
        } else {
            (a, b) = (rest_a, rest_b);
            let plain = [digits_a, digits_b].map(|digits| digits.trim_start_matches('0'));
            plain[0].len().cmp(&plain[1].len()).then(plain[0].cmp(plain[1]))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Splits off the leading digits.
fn number(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count() {
        let sorted = ["", "9", "10", "a", "cell", "cell-1", "cell-01", "cell-2", "cell-10", "é"];
        let mut names = sorted;
        names.reverse();
        names.sort_by(|one, other| compare(one, other));
        assert_eq!(names[..5], sorted[..5]);
        assert_eq!(names[5..], ["cell-01", "cell-1", "cell-2", "cell-10", "é"]);
    }
}
