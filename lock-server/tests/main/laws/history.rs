//! Several concurrent clients, a crash during their calls, and a check of the
//! responses.
//!
//! Time is a counter: each call takes a number when it begins and one when it is
//! answered. An unanswered call ends after everything else.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use lock_server::{
    lock_version::LockVersion,
    store::{Claimed, Released, Store},
};
use model::lock::{Claim, LockKind, LockValue, Selector};
use proptest::{prelude::*, sample::select};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::{Running, ask, claim, key, look, owner};

pub(super) const KEYS: [&str; 2] = ["k", "l"];
pub(super) const OWNERS: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Claim {
        changes: bool,
    },
    Release,
    /// Reads the key.
    Look,
    /// Reads all locks.
    LookAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The owner has the key, with this token.
    LockVersion(&'static str, u64),
    /// The key was released.
    Freed,
    /// Nothing was changed.
    Nothing,
    /// No response, or an error with an unknown outcome.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) key: &'static str,
    pub(super) owner: &'static str,
    pub(super) call: Call,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) answer: Answer,
}

impl Entry {
    /// May have released the key at some time between `after` and `before`.
    fn may_free(&self, key: &str, owner: &str, after: u64, before: u64) -> bool {
        self.call == Call::Release
            && self.key == key
            && self.owner == owner
            && self.answer != Answer::Nothing
            && self.begin < before
            && self.end > after
    }
}

/// The first violation of: one owner, durable responses, rising tokens.
pub(super) fn check(history: &[Entry]) -> Result<(), String> {
    let held = |entry: &Entry| match entry.answer {
        Answer::LockVersion(owner, token) => Some((owner, token)),
        Answer::Freed | Answer::Nothing | Answer::Unknown => None,
    };
    for x in history {
        let Some((x_owner, x_token)) = held(x) else { continue };
        for y in history.iter().filter(|y| y.key == x.key) {
            let Some((y_owner, y_token)) = held(y) else {
                continue;
            };
            if x_token == y_token && x_owner != y_owner {
                return Err(format!("one token, two owners: {x:?} {y:?}"));
            }
            if x.end < y.begin && x_token > y_token {
                return Err(format!("the token went down: {x:?} {y:?}"));
            }
            let freed =
                || history.iter().any(|entry| entry.may_free(x.key, x_owner, x.begin, y.end));
            if x_token < y_token && !freed() {
                return Err(format!("two owners: nobody freed {x:?} before {y:?}"));
            }
        }
        let lost = history.iter().find(|look| {
            look.key == x.key
                && matches!(look.call, Call::Look | Call::LookAll)
                && look.answer == Answer::Nothing
                && look.begin > x.end
                && !history.iter().any(|entry| entry.may_free(x.key, x_owner, x.begin, look.end))
        });
        if let Some(look) = lost {
            return Err(format!("lost: {x:?} {look:?}"));
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) clock: AtomicU64,
    pub(super) history: Mutex<Vec<Entry>>,
}

impl Recorder {
    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) async fn call<S: Store>(
        &self,
        store: &S,
        key: &'static str,
        owner: &'static str,
        call: Call,
    ) {
        let begin = self.tick();
        let entry = Entry { key, owner, call, begin, end: u64::MAX, answer: Answer::Unknown };
        let at = {
            let mut history = self.history.lock().unwrap();
            history.push(entry);
            history.len() - 1
        };
        let answer = answer(store, entry, begin).await;
        let end = if answer == Answer::Unknown { u64::MAX } else { self.tick() };
        let mut history = self.history.lock().unwrap();
        history[at] = Entry { answer, end, ..entry };
    }
}

async fn answer<S: Store>(store: &S, entry: Entry, number: u64) -> Answer {
    let Entry { key: on, owner: by, call, .. } = entry;
    match call {
        Call::Claim { changes } => {
            let text = if changes { number.to_string() } else { String::new() };
            let value = LockValue::parse(&text).unwrap();
            match ask(store, Claim { value, ..claim(on, by) }).await {
                Ok(Claimed::LockVersion(held)) => Answer::LockVersion(by, held.lock.token.0),
                Ok(Claimed::Collision(held)) => Answer::LockVersion(
                    OWNERS.into_iter().find(|name| held.lock.owner == owner(name)).unwrap(),
                    held.lock.token.0,
                ),
                Err(_) => Answer::Unknown,
            }
        }
        Call::Release => match store.release(&key(on), &owner(by)).await {
            Ok(Released::Deleted(_)) => Answer::Freed,
            Ok(Released::Absent | Released::Collision(_)) => Answer::Nothing,
            Err(_) => Answer::Unknown,
        },
        Call::Look => match look(store, on).await.as_deref() {
            Ok([held]) => seen(held),
            Ok([]) => Answer::Nothing,
            Ok(more) => panic!("one key, {more:?}"),
            Err(_) => Answer::Unknown,
        },
        Call::LookAll => match store.select(&Selector::Kind(LockKind::Lock)).await {
            Ok(all) => all
                .iter()
                .find(|held| held.lock.key == key(on))
                .map_or(Answer::Nothing, |held| seen(held)),
            Err(_) => Answer::Unknown,
        },
    }
}

fn seen(held: &LockVersion) -> Answer {
    let by = OWNERS.into_iter().find(|name| held.lock.owner == owner(name)).unwrap();
    Answer::LockVersion(by, held.lock.token.0)
}

pub(super) type Script = Vec<(&'static str, Call)>;

async fn live(path: &Path, lives: Vec<(Vec<Script>, u64)>) -> Vec<Entry> {
    let recorder = Arc::new(Recorder::default());
    for (scripts, crash_after) in lives {
        let running = Running::open(path).await;
        for on in KEYS {
            recorder.call(&running.store, on, "", Call::Look).await;
        }
        let mut clients = JoinSet::new();
        let born = recorder.clock.load(Ordering::SeqCst);
        for (by, script) in OWNERS.into_iter().cycle().zip(scripts) {
            let (recorder, store) = (Arc::clone(&recorder), running.store.clone());
            clients.spawn(async move {
                for (on, call) in script {
                    recorder.call(&store, on, by, call).await;
                }
            });
        }
        while !clients.is_empty() && recorder.clock.load(Ordering::SeqCst) < born + crash_after {
            tokio::select! {
                _ = clients.join_next() => {}
                () = tokio::task::yield_now() => {}
            }
        }
        running.crash().await;
        while clients.join_next().await.is_some() {}
    }
    let running = Running::open(path).await;
    for on in KEYS {
        recorder.call(&running.store, on, "", Call::Look).await;
    }
    running.close().await;
    let history = recorder.history.lock().unwrap();
    history.clone()
}

pub(super) fn lives() -> impl Strategy<Value = Vec<(Vec<Script>, u64)>> {
    let call = prop_oneof![
        3 => Just(Call::Claim { changes: true }),
        2 => Just(Call::Claim { changes: false }),
        2 => Just(Call::Release),
        1 => Just(Call::Look),
        1 => Just(Call::LookAll),
    ];
    let script = prop::collection::vec((select(&KEYS[..]), call), 0..20);
    let life = (prop::collection::vec(script, 1..7), 0..120_u64);
    prop::collection::vec(life, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn one_owner_durable_answers_rising_tokens(lives in lives()) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let directory = TempDir::new().unwrap();
        let history = runtime.block_on(live(&directory.path().join("db"), lives));
        if let Err(problem) = check(&history) {
            panic!("{problem}\n{history:#?}");
        }
    }
}

/// Proves that the checker finds violations.
mod checker {
    use super::*;

    fn entry(owner: &'static str, call: Call, begin: u64, end: u64, answer: Answer) -> Entry {
        Entry { key: "k", owner, call, begin, end, answer }
    }

    const CLAIM: Call = Call::Claim { changes: false };

    #[test]
    fn accepts_a_hand_over() {
        let history = [
            entry("a", CLAIM, 0, 1, Answer::LockVersion("a", 1)),
            entry("a", Call::Release, 2, 4, Answer::Freed),
            entry("b", CLAIM, 3, 5, Answer::LockVersion("b", 2)),
            entry("", Call::Look, 6, 7, Answer::LockVersion("b", 2)),
        ];
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn accepts_that_an_unanswered_release_freed_it() {
        let history = [
            entry("a", CLAIM, 0, 1, Answer::LockVersion("a", 1)),
            entry("a", Call::Release, 2, u64::MAX, Answer::Unknown),
            entry("", Call::Look, 6, 7, Answer::Nothing),
        ];
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn finds_two_owners() {
        let history = [
            entry("a", CLAIM, 0, 1, Answer::LockVersion("a", 1)),
            entry("b", CLAIM, 2, 3, Answer::LockVersion("b", 2)),
        ];
        assert!(check(&history).unwrap_err().starts_with("two owners"));
    }

    #[test]
    fn finds_a_token_with_two_owners() {
        let history = [
            entry("a", CLAIM, 0, 1, Answer::LockVersion("a", 1)),
            entry("a", Call::Release, 2, 3, Answer::Freed),
            entry("b", CLAIM, 4, 5, Answer::LockVersion("b", 1)),
        ];
        assert!(check(&history).unwrap_err().starts_with("one token"));
    }

    #[test]
    fn finds_a_token_that_goes_down() {
        let history = [
            entry("a", CLAIM, 0, 1, Answer::LockVersion("a", 2)),
            entry("a", Call::Release, 2, 3, Answer::Freed),
            entry("b", CLAIM, 4, 5, Answer::LockVersion("b", 1)),
        ];
        assert!(check(&history).unwrap_err().starts_with("the token went down"));
    }

    #[test]
    fn finds_a_lock_that_was_lost() {
        let history = [
            entry("a", CLAIM, 0, 1, Answer::LockVersion("a", 1)),
            entry("b", Call::Release, 2, 3, Answer::Nothing),
            entry("", Call::Look, 4, 5, Answer::Nothing),
        ];
        assert!(check(&history).unwrap_err().starts_with("lost"));
    }
}
