//! Foreign changes of our rules, as the log shows them. Pure.

use std::ops::Range;

use serde::Serialize;

/// Maximum number of differences in a log line.
const SHOWN_MOST: usize = 10;
/// Maximum length of a rule in a log line, in characters.
const RULE_MOST: usize = 200;

/// Foreign changes of our rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drift {
    /// Number of rules that differ.
    pub differences: usize,
    /// The first differences.
    pub shown: Vec<Difference>,
}

/// A rule that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The chain, map or table.
    pub place: String,
    /// The expected rule; `None` if there should be none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The actual rule; `None` if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

impl Drift {
    /// Adds a difference.
    pub fn note(&mut self, place: &str, expected: Option<&str>, found: Option<&str>) {
        self.differences += 1;
        if self.shown.len() < SHOWN_MOST {
            let short = |text: &str| text.chars().take(RULE_MOST).collect();
            let place = place.to_owned();
            let (expected, found) = (expected.map(short), found.map(short));
            self.shown.push(Difference { place, expected, found });
        }
    }

    /// Adds the differences of another drift.
    pub fn extend(&mut self, other: Self) {
        self.differences += other.differences;
        let room = SHOWN_MOST.saturating_sub(self.shown.len());
        self.shown.extend(other.shown.into_iter().take(room));
    }

    /// Adds the differences of two rule lists, without their common beginning and end.
    pub fn compare<'a>(
        &mut self,
        place: &str,
        expected: &[&'a str],
        found: &[&'a str],
        same: impl Fn(&str, &str) -> bool,
    ) {
        let (old, new) = middle(expected.len(), found.len(), |i, j| same(found[j], expected[i]));
        for index in 0..old.len().max(new.len()) {
            let expected = expected[old.clone()].get(index).copied();
            self.note(place, expected, found[new.clone()].get(index).copied());
        }
    }
}

/// The indexes that remain without the common prefix and suffix.
pub(super) fn middle(
    old: usize,
    new: usize,
    same: impl Fn(usize, usize) -> bool,
) -> (Range<usize>, Range<usize>) {
    let most = old.min(new);
    let head = (0..most).take_while(|at| same(*at, *at)).count();
    let tail = (0..most - head).take_while(|at| same(old - 1 - at, new - 1 - at)).count();
    (head..old - tail, head..new - tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_shows_a_few_differences_and_their_number() {
        let mut drift = Drift::default();
        let rules: Vec<_> = (0..1_000).map(|number| format!("rule {number}")).collect();
        let rules: Vec<_> = rules.iter().map(String::as_str).collect();
        drift.compare("chain a", &rules, &rules[500..], |a, b| a == b);
        assert_eq!((drift.differences, drift.shown.len()), (500, SHOWN_MOST));
        drift.compare("chain b", &[&"x".repeat(1_000)], &[], |a, b| a == b);
        assert_eq!(drift.differences, 501);
    }
}
