//! What an attacker got: outcomes with their numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Outcomes in the table; the rest is summed up.
const SHOWN: usize = 6;

/// Outcomes of one attack, shared by its tasks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Got {
    outcomes: Arc<Mutex<BTreeMap<String, u64>>>,
    breaches: Arc<Mutex<BTreeSet<String>>>,
}

impl Got {
    /// Counts an outcome once.
    pub(crate) fn add(&self, outcome: impl Into<String>) {
        self.add_many(outcome, 1);
    }

    /// Counts an outcome several times.
    pub(crate) fn add_many(&self, outcome: impl Into<String>, count: u64) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        *outcomes.entry(outcome.into()).or_default() += count;
    }

    /// Counts how a connection ended.
    pub(crate) fn ended(&self, error: &io::Error) {
        self.add(describe(error));
    }

    /// Notes what no attacker may get.
    pub(crate) fn breach(&self, text: String) {
        self.breaches.lock().unwrap_or_else(PoisonError::into_inner).insert(text);
    }

    /// What no attacker may get.
    pub(crate) fn breaches(&self) -> Vec<String> {
        self.breaches.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The most frequent outcomes as text.
    pub(crate) fn text(&self) -> String {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut outcomes: Vec<_> = outcomes.into_iter().collect();
        outcomes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let mut text = String::new();
        for (outcome, count) in outcomes.iter().take(SHOWN) {
            let separator = if text.is_empty() { "" } else { "; " };
            let _infallible = write!(text, "{separator}{outcome}: {count}");
        }
        let rest: u64 = outcomes.iter().skip(SHOWN).map(|(_, count)| count).sum();
        if rest > 0 {
            let _infallible = write!(text, "; others: {rest}");
        }
        text
    }
}

/// How a connection ended, without numbers that differ between connections.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "closed".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = error.to_string();
                cause = error.source();
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_outcomes_are_shown() {
        let got = Got::default();
        got.add_many("refused", 7);
        got.ended(&io::ErrorKind::BrokenPipe.into());
        got.ended(&io::ErrorKind::ConnectionReset.into());
        assert_eq!(got.text(), "refused: 7; closed: 2");
        for number in 0..7 {
            got.add_many(format!("rare {number}"), 1);
        }
        assert!(got.text().ends_with("; others: 3"), "{}", got.text());
        got.breach("in".to_owned());
        got.breach("in".to_owned());
        assert_eq!(got.breaches(), ["in"]);
    }
}
