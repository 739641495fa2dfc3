//! Laws 1 and 2: owners and fencing tokens.
//!
//! An owner has a lock from the answer to its claim until it sends its release, at most until
//! one time to live after it *sent* its last granted claim. The grant took effect at some time
//! between request and answer. Two owners contradict law 1 only if no order of these times
//! avoids an overlap.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Violation;
use crate::history::{Claim, Claimed, Entry, Event, Moment};

/// A time during which an owner has a lock for certain.
#[derive(Debug)]
struct Hold<'a> {
    owner: &'a str,
    token: u64,
    from: Moment,
    until: Moment,
}

#[derive(Debug)]
struct Grant<'a> {
    owner: &'a str,
    token: u64,
    sent: Moment,
    at: Moment,
}

/// The claims of one lock.
#[derive(Debug, Default)]
struct Lock<'a> {
    holds: Vec<Hold<'a>>,
    /// The place of the last hold of each owner that has not released it.
    open: BTreeMap<&'a str, usize>,
    grants: Vec<Grant<'a>>,
    lost: Vec<Violation>,
}

pub(super) fn check(history: &[Entry]) -> Vec<Violation> {
    let mut locks: BTreeMap<&str, Lock<'_>> = BTreeMap::new();
    for entry in history {
        match &entry.event {
            Event::Claim(claim) => {
                locks.entry(&claim.key).or_default().claim(claim, entry.at);
            }
            Event::Release { key, owner, sent, confirmed: _ } => {
                locks.entry(key).or_default().release(owner, *sent);
            }
            _ => {}
        }
    }
    let mut violations = Vec::new();
    for (key, lock) in &mut locks {
        violations.append(&mut lock.lost);
        violations.extend(lock.overlaps(key));
        violations.extend(lock.tokens(key));
    }
    violations.extend(history.iter().filter_map(|entry| observed(entry, &locks)));
    violations
}

impl<'a> Lock<'a> {
    fn claim(&mut self, claim: &'a Claim, at: Moment) {
        let Claim { key, owner, sent, ttl, outcome } = claim;
        let place = self.open.get(owner.as_str()).copied();
        let held = place.filter(|place| self.holds[*place].until > *sent);
        match outcome {
            Claimed::Unknown => {}
            Claimed::Refused => {
                self.open.remove(owner.as_str());
                let Some(hold) = held.map(|place| &self.holds[place]) else { return };
                if hold.until > at {
                    let what = format!("lock {key}: refused to {owner}, which has it");
                    self.lost.push(Violation { law: 1, at, what });
                }
            }
            Claimed::Granted(token) => {
                let until = sent.after(Duration::from_micros(*ttl));
                // With another token, a late claim may have found the lock expired.
                let is_refresh = |place: &usize| {
                    let hold = &self.holds[*place];
                    hold.token == *token || at <= hold.until
                };
                if let Some(place) = held.filter(is_refresh) {
                    let hold = &mut self.holds[place];
                    (hold.until, hold.token) = (until, *token);
                } else {
                    self.open.insert(owner, self.holds.len());
                    self.holds.push(Hold { owner, token: *token, from: at, until });
                }
                self.grants.push(Grant { owner, token: *token, sent: *sent, at });
            }
        }
    }

    fn release(&mut self, owner: &str, sent: Moment) {
        if let Some(place) = self.open.remove(owner) {
            let until = &mut self.holds[place].until;
            *until = sent.min(*until);
        }
    }

    /// Holds of different owners that overlap in every order.
    fn overlaps(&self, key: &str) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (place, first) in self.holds.iter().enumerate() {
            let later = self.holds[place + 1..].iter().take_while(|hold| hold.from < first.until);
            for second in later.filter(|second| second.owner != first.owner) {
                if first.from < second.until {
                    let what =
                        format!("lock {key}: granted to {}, {} has it", second.owner, first.owner);
                    violations.push(Violation { law: 1, at: second.from, what });
                }
            }
        }
        violations
    }

    /// Tokens that do not rise from a grant to a later one of another owner.
    fn tokens(&self, key: &str) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut owners: BTreeMap<u64, &str> = BTreeMap::new();
        let mut by_sent: Vec<&Grant<'_>> = self.grants.iter().collect();
        by_sent.sort_by_key(|grant| grant.sent);
        let mut answered = self.grants.iter().peekable();
        let mut newest: Option<&Grant<'_>> = None;
        for grant in by_sent {
            while let Some(before) = answered.next_if(|before| before.at <= grant.sent) {
                if newest.is_none_or(|newest| newest.token <= before.token) {
                    newest = Some(before);
                }
            }
            let Grant { owner, token, at, .. } = *grant;
            let goes_back = newest.is_some_and(|before| {
                token < before.token || (token == before.token && *owner != *before.owner)
            });
            let other = *owners.entry(token).or_insert(owner);
            if goes_back || other != owner || token == 0 {
                let last = newest.map_or(0, |before| before.token);
                let what = format!("lock {key}: token {token} for {owner} after {last}");
                violations.push(Violation { law: 2, at, what });
            }
        }
        violations
    }
}

/// An owner that holds a lock during the whole question, and another answer.
fn observed(entry: &Entry, locks: &BTreeMap<&str, Lock<'_>>) -> Option<Violation> {
    let Event::Owner { key, sent, owner } = &entry.event else { return None };
    let holds = &locks.get(key.as_str())?.holds;
    let hold = holds.iter().find(|hold| hold.from <= *sent && entry.at < hold.until)?;
    let seen = owner.as_deref();
    (seen != Some(hold.owner)).then(|| Violation {
        law: 1,
        at: entry.at,
        what: format!("lock {key}: {} has it, and a server names {seen:?}", hold.owner),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn claim(sent: u64, at: u64, outcome: Claimed) -> Entry {
        let (key, owner) = ("k".to_owned(), "a".to_owned());
        let (sent, at, ttl) = (Moment(sent * SECOND), Moment(at * SECOND), 5 * SECOND);
        Entry { at, event: Event::Claim(Claim { key, owner, sent, ttl, outcome }) }
    }

    fn seen(sent: u64, owner: Option<&str>) -> Entry {
        let owner = owner.map(str::to_owned);
        let (key, sent, at) = ("k".to_owned(), Moment(sent * SECOND), Moment(sent * SECOND + 1));
        Entry { at, event: Event::Owner { key, sent, owner } }
    }

    /// A paused server answers a claim after the lock has expired and was granted anew.
    #[test]
    fn a_late_grant_with_another_token_is_a_new_hold() {
        let first = claim(0, 1, Claimed::Granted(1));
        let history = [first, seen(6, None), claim(4, 8, Claimed::Granted(2)), seen(8, None)];
        let violations = check(&history);
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert_eq!(violations[0].at, history[3].at, "the second hold lasts from 8 s to 9 s");
    }
}
