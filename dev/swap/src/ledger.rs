//! What the lock clients believe, and what is found wrong with it.
//!
//! An owner believes to hold a key from the response to its claim until it decides to
//! release, at most until one time to live after it *sent* its last successful claim. A
//! server may grant the key to another owner only after that.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A key that its owner believes to hold.
#[derive(Debug, Clone)]
pub(crate) struct Belief {
    pub(crate) owner: String,
    /// Distinguishes the beliefs of all keys and times.
    pub(crate) number: u64,
    /// The belief ends here unless the lock is renewed.
    pub(crate) until: Instant,
    pub(crate) is_presence: bool,
    ttl: Duration,
    /// 0 until a server assigned one.
    token: u64,
    /// The row's `modified_id`, once seen.
    life: Option<String>,
    is_condemned: bool,
}

/// Something that must not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Lost or absent during the belief of its owner.
    LostLock,
    LostPresence,
    /// Granted to an owner during the belief of another one.
    HeldTwice,
    /// A fencing token that did not rise with the owner, or changed without.
    Token,
    /// A lock outlived its owner by more than the original allows.
    Stuck,
}

/// An event with its time.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) at: Instant,
    pub(crate) what: T,
}

#[derive(Debug, Default)]
struct Books {
    beliefs: BTreeMap<String, Belief>,
    next: u64,
    /// The last token of each key, and its owner.
    tokens: BTreeMap<String, (u64, String)>,
    /// Whether each call succeeded.
    calls: Vec<At<bool>>,
    faults: Vec<At<(Fault, String)>>,
}

/// Shared by all lock clients and witnesses.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    books: Mutex<Books>,
}

/// A claim that a server granted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) sent: Instant,
    pub(crate) token: u64,
}

/// Longest time between the end of a belief without release and the next owner, beyond two
/// further times to live, since both instances may be replaced meanwhile: the burglar's
/// interval, the restarts, and the clients' pauses.
const LINGERING: Duration = Duration::from_secs(15);

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_call(&self, is_ok: bool) {
        self.books().calls.push(At { at: Instant::now(), what: is_ok });
    }

    /// A new owner of a key; returns the number of the belief.
    pub(crate) fn begin(
        &self,
        key: &str,
        owner: &str,
        is_presence: bool,
        ttl: Duration,
        granted: Granted,
    ) -> u64 {
        let now = Instant::now();
        let mut books = self.books();
        if let Some(other) = books.beliefs.get(key).cloned() {
            if other.owner != owner && other.until > now {
                let why = format!("{key}: {owner} during the belief of {}", other.owner);
                books.fault(Fault::HeldTwice, why);
            }
            let late = now.saturating_duration_since(other.until);
            if late > other.ttl * 2 + LINGERING {
                books.fault(Fault::Stuck, format!("{key}: {late:?} after {}", other.owner));
            }
        }
        books.next += 1;
        let number = books.next;
        let belief = Belief {
            owner: owner.to_owned(),
            number,
            until: granted.sent + ttl,
            is_presence,
            ttl,
            token: 0,
            life: None,
            is_condemned: false,
        };
        books.beliefs.insert(key.to_owned(), belief);
        books.note_token(key, granted.token);
        number
    }

    /// Extends a belief.
    pub(crate) fn renew(&self, key: &str, number: u64, granted: Granted) {
        let mut books = self.books();
        if let Some(belief) = books.own(key, number) {
            belief.until = granted.sent + belief.ttl;
            books.note_token(key, granted.token);
        }
    }

    /// The owner gives the key up; called before the request is sent.
    pub(crate) fn end(&self, key: &str, number: u64) {
        let mut books = self.books();
        if books.own(key, number).is_some() {
            books.beliefs.remove(key);
        }
    }

    /// The owner learns that it lost the key.
    pub(crate) fn lose(&self, key: &str, number: u64, why: &str) {
        let mut books = self.books();
        books.condemn(key, number, why);
        if books.own(key, number).is_some() {
            books.beliefs.remove(key);
        }
    }

    /// All beliefs.
    pub(crate) fn beliefs(&self) -> BTreeMap<String, Belief> {
        self.books().beliefs.clone()
    }

    /// Judges what a reader saw of a key: `seen` is the owner and, from the table, the
    /// `modified_id`. `before` are the beliefs before it read. Only a belief that held from
    /// before the read until now counts.
    pub(crate) fn judge(
        &self,
        before: &BTreeMap<String, Belief>,
        is_seen: impl Fn(&str, &Belief) -> bool,
        seen: impl Fn(&str) -> Option<(String, Option<String>)>,
        reader: &str,
    ) {
        let now = Instant::now();
        let mut books = self.books();
        for (key, earlier) in before.iter().filter(|(key, belief)| is_seen(key, belief)) {
            let Some(belief) = books.own(key, earlier.number) else { continue };
            if belief.until <= now {
                continue;
            }
            let why = match seen(key) {
                None => Some(format!("{reader} does not know it")),
                Some((owner, _)) if owner != belief.owner => {
                    Some(format!("{reader} says that {owner} holds it"))
                }
                Some((_, life @ Some(_))) if belief.life.is_none() => {
                    belief.life = life;
                    None
                }
                Some((_, Some(life))) if belief.life.as_ref() != Some(&life) => {
                    Some(format!("{reader} has another life of it"))
                }
                Some(_same) => None,
            };
            if let Some(why) = why {
                books.condemn(key, earlier.number, &why);
            }
        }
    }

    /// Calls and faults of a period.
    pub(crate) fn period(&self, from: Instant, to: Instant) -> Period {
        let books = self.books();
        let calls = || books.calls.iter().filter(|call| from <= call.at && call.at < to);
        let faults = books.faults.iter().filter(|fault| from <= fault.at && fault.at < to);
        Period {
            ok: calls().filter(|call| call.what).count(),
            failed: calls().filter(|call| !call.what).count(),
            faults: faults.map(|fault| fault.what.clone()).collect(),
        }
    }
}

/// Calls and faults of a period.
#[derive(Debug, Default)]
pub(crate) struct Period {
    pub(crate) ok: usize,
    pub(crate) failed: usize,
    pub(crate) faults: Vec<(Fault, String)>,
}

impl Period {
    /// How many faults are of that kind.
    pub(crate) fn count(&self, kind: &Fault) -> usize {
        self.faults.iter().filter(|(fault, _why)| fault == kind).count()
    }
}

impl Books {
    fn own(&mut self, key: &str, number: u64) -> Option<&mut Belief> {
        self.beliefs.get_mut(key).filter(|belief| belief.number == number)
    }

    fn fault(&mut self, fault: Fault, why: String) {
        self.faults.push(At { at: Instant::now(), what: (fault, why) });
    }

    /// Counts the loss of a belief once.
    fn condemn(&mut self, key: &str, number: u64, why: &str) {
        let Some(belief) = self.own(key, number) else { return };
        if std::mem::replace(&mut belief.is_condemned, true) {
            return;
        }
        let fault = if belief.is_presence { Fault::LostPresence } else { Fault::LostLock };
        let why = format!("{key} of {}: {why}", belief.owner);
        self.fault(fault, why);
    }

    /// The token of a belief stays; that of the next owner is higher.
    fn note_token(&mut self, key: &str, token: u64) {
        let (last, holder) = self.tokens.get(key).cloned().unwrap_or_default();
        let Some(belief) = self.beliefs.get_mut(key) else { return };
        if token == 0 || token == belief.token {
            return;
        }
        let is_first = std::mem::replace(&mut belief.token, token) == 0;
        let owner = belief.owner.clone();
        // An owner that gave up a renewal may find its lock still there.
        let is_kept = owner == holder && token == last;
        if !is_first || (token <= last && !is_kept) {
            self.fault(Fault::Token, format!("{key} of {owner}: token {token} after {last}"));
        }
        self.tokens.insert(key.to_owned(), (token.max(last), owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn granted(token: u64) -> Granted {
        Granted { sent: Instant::now(), token }
    }

    fn faults(ledger: &Ledger) -> Vec<Fault> {
        let far = Instant::now() + Duration::from_secs(1_000_000);
        let since = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        let faults = ledger.period(since, far).faults;
        faults.into_iter().map(|(fault, _why)| fault).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_granted_during_a_belief_is_held_twice() {
        tokio::time::advance(Duration::from_secs(7200)).await;
        let ledger = Ledger::default();
        let number = ledger.begin("k", "a", false, TTL, granted(0));
        tokio::time::advance(Duration::from_secs(4)).await;
        ledger.renew("k", number, granted(0));
        tokio::time::advance(Duration::from_secs(4)).await;
        ledger.begin("k", "b", false, TTL, granted(0));
        assert_eq!(faults(&ledger), [Fault::HeldTwice]);
        tokio::time::advance(Duration::from_secs(6)).await;
        let number = ledger.begin("k", "c", false, TTL, granted(0));
        ledger.end("k", number);
        ledger.begin("k", "d", false, TTL, granted(0));
        assert_eq!(faults(&ledger).len(), 1, "after the belief, or its end, it is no fault");
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_rise_with_the_owner_and_only_with_it() {
        tokio::time::advance(Duration::from_secs(7200)).await;
        let ledger = Ledger::default();
        let number = ledger.begin("k", "a", false, TTL, granted(0));
        ledger.renew("k", number, granted(3));
        ledger.renew("k", number, granted(3));
        assert_eq!(faults(&ledger), []);
        ledger.renew("k", number, granted(4));
        assert_eq!(faults(&ledger), [Fault::Token]);
        ledger.end("k", number);
        ledger.begin("k", "b", false, TTL, granted(4));
        assert_eq!(faults(&ledger), [Fault::Token, Fault::Token]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_misses_a_held_key_proves_its_loss_once() {
        tokio::time::advance(Duration::from_secs(7200)).await;
        let ledger = Ledger::default();
        let number = ledger.begin("k", "a", true, TTL, granted(0));
        let before = ledger.beliefs();
        let all = |_: &str, _: &Belief| true;
        let row = |life: &str| Some(("a".to_owned(), Some(life.to_owned())));
        ledger.judge(&before, all, |_| row("1"), "the table");
        ledger.judge(&before, all, |_| row("1"), "the table");
        assert_eq!(faults(&ledger), []);
        ledger.judge(&before, all, |_| row("2"), "the table");
        ledger.judge(&before, all, |_| None, "the table");
        assert_eq!(faults(&ledger), [Fault::LostPresence]);
        ledger.end("k", number);
        ledger.judge(&before, all, |_| None, "the table");
        assert_eq!(faults(&ledger).len(), 1);
    }
}
