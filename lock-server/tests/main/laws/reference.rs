//! Sequential calls, compared with a small model.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use lock_server::{
    feed::Feed,
    lock_version::LockVersion,
    store::{Claimed, Error, Expired, Released, Store},
};
use model::lock::{Claim, LockKind, LockValue, Ttl};
use proptest::{prelude::*, sample::select};
use rusqlite::Connection;
use storage::sqlite::Options;
use tempfile::TempDir;

use crate::support::{Running, ask, find, key, owner};

#[derive(Debug, Clone)]
enum Step {
    Claim {
        on: &'static str,
        by: &'static str,
        value: &'static str,
        kind: LockKind,
        ttl: i64,
    },
    Release {
        on: &'static str,
        by: &'static str,
    },
    /// The deadline of the current version, or of the last observed version before it.
    Expire {
        on: &'static str,
        stale: bool,
    },
    /// The process stops in order and restarts.
    Restart,
    /// The process crashes and restarts.
    Crash,
    /// Another program has the database locked: commits fail until it unlocks.
    Block,
    Unblock,
}

/// Expected state of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    owner: &'static str,
    value: &'static str,
    kind: LockKind,
    ttl: i64,
    token: u64,
    index: i64,
    /// A refresh is not stored: a restart resets the index to this one.
    stored_index: i64,
}

#[derive(Debug, Default)]
struct Model {
    rows: BTreeMap<&'static str, Row>,
    tokens: BTreeMap<&'static str, u64>,
    /// Rows with a failed change since their last write.
    unconfirmed: BTreeSet<&'static str>,
}

const KEYS: [&str; 3] = ["", "k", "K"];

fn step() -> impl Strategy<Value = Step> {
    let on = || select(&KEYS[..]);
    let by = || select(&["a", "b"][..]);
    let kind = select(&[LockKind::Lock, LockKind::Presence][..]);
    let value = select(&["v", "w"][..]);
    prop_oneof![
        12 => (on(), by(), value, kind, select(&[5_i64, 15][..]))
            .prop_map(|(on, by, value, kind, ttl)| Step::Claim { on, by, value, kind, ttl }),
        // The same claim again, so that refreshes happen.
        8 => (on(), by()).prop_map(|(on, by)| Step::Claim {
            on, by, value: "v", kind: LockKind::Lock, ttl: 15,
        }),
        6 => (on(), by()).prop_map(|(on, by)| Step::Release { on, by }),
        3 => (on(), any::<bool>()).prop_map(|(on, stale)| Step::Expire { on, stale }),
        2 => Just(Step::Restart),
        2 => Just(Step::Crash),
        1 => Just(Step::Block),
        2 => Just(Step::Unblock),
    ]
}

struct World {
    path: std::path::PathBuf,
    running: Option<Running>,
    model: Model,
    /// Observed versions, newest last.
    seen: BTreeMap<&'static str, Vec<std::sync::Arc<LockVersion>>>,
    blocker: Option<Connection>,
}

async fn open(path: &Path) -> Running {
    let options = Options { busy_timeout: Duration::from_millis(5), ..Options::default() };
    Running::open_with(path, &options, Feed::default()).await
}

impl World {
    async fn apply(&mut self, step: &Step) {
        match *step {
            Step::Claim { on, by, value, kind, ttl } => self.claim(on, by, value, kind, ttl).await,
            Step::Release { on, by } => self.release(on, by).await,
            Step::Expire { on, stale } => self.expire(on, stale).await,
            Step::Restart | Step::Crash => {
                self.unblock();
                let running = self.running.take().expect("it runs");
                if matches!(step, Step::Restart) {
                    running.close().await;
                } else {
                    running.crash().await;
                }
                self.running = Some(open(&self.path).await);
                for row in self.model.rows.values_mut() {
                    row.index = row.stored_index;
                }
                self.model.unconfirmed.clear();
                self.seen.clear();
            }
            Step::Block => {
                if self.blocker.is_none() {
                    let blocker = Connection::open(&self.path).unwrap();
                    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
                    self.blocker = Some(blocker);
                }
            }
            Step::Unblock => self.unblock(),
        }
        self.compare().await;
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs")
    }

    fn unblock(&mut self) {
        if let Some(blocker) = self.blocker.take() {
            blocker.execute_batch("ROLLBACK").unwrap();
        }
    }

    async fn claim(
        &mut self,
        on: &'static str,
        by: &'static str,
        value: &'static str,
        kind: LockKind,
        ttl: i64,
    ) {
        let claim = Claim {
            key: key(on),
            owner: owner(by),
            value: LockValue::parse(value).unwrap(),
            kind,
            ttl: Ttl::try_from_seconds(ttl).unwrap(),
        };
        let answer = ask(&self.running().store, claim).await;
        let before = self.model.rows.get(on);
        let next = match before {
            Some(row) if row.owner != by => {
                let Ok(Claimed::Collision(held)) = answer else { panic!("{answer:?}") };
                assert_eq!(held.lock.owner.as_str(), row.owner);
                return;
            }
            Some(row) => {
                let same = (row.value, row.kind, row.ttl) == (value, kind, ttl)
                    && !self.model.unconfirmed.contains(on);
                let index = row.index + 1;
                let stored_index = if same { row.stored_index } else { index };
                Row { value, kind, ttl, index, stored_index, ..*row }
            }
            None => {
                let token = self.model.tokens.get(on).copied().unwrap_or(0) + 1;
                Row { owner: by, value, kind, ttl, token, index: 1, stored_index: 1 }
            }
        };
        let stores = before.is_none_or(|row| row.stored_index != next.stored_index);
        if stores && self.blocker.is_some() {
            assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
            if before.is_some() {
                self.model.unconfirmed.insert(on);
            }
            return;
        }
        if stores {
            self.model.unconfirmed.remove(on);
        }
        let Ok(Claimed::LockVersion(held)) = answer else { panic!("{answer:?}") };
        self.model.tokens.insert(on, next.token);
        self.model.rows.insert(on, next);
        self.seen.entry(on).or_default().push(held);
    }

    async fn release(&mut self, on: &'static str, by: &'static str) {
        let answer = self.running().store.release(&key(on), &owner(by)).await;
        match self.model.rows.get(on) {
            None => assert!(matches!(answer, Ok(Released::Absent)), "{answer:?}"),
            Some(row) if row.owner != by => {
                assert!(matches!(answer, Ok(Released::Collision(_))), "{answer:?}");
            }
            Some(_) if self.blocker.is_some() => {
                assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
                self.model.unconfirmed.insert(on);
            }
            Some(_) => {
                assert!(matches!(answer, Ok(Released::Deleted(_))), "{answer:?}");
                self.model.rows.remove(on);
                self.model.unconfirmed.remove(on);
            }
        }
    }

    async fn expire(&mut self, on: &'static str, stale: bool) {
        let Some(versions) = self.seen.get(on) else { return };
        let back = if stale { 2 } else { 1 };
        let Some(seen) = versions.len().checked_sub(back).and_then(|at| versions.get(at)) else {
            return;
        };
        let answer = self.running().store.expire(seen).await;
        match self.model.rows.get(on) {
            None => assert!(matches!(answer, Ok(Expired::Absent)), "{answer:?}"),
            Some(row) if (row.token, row.index) != (seen.lock.token.0, seen.index) => {
                assert!(matches!(answer, Ok(Expired::Newer(_))), "{answer:?}");
            }
            Some(_) if self.blocker.is_some() => {
                assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
                self.model.unconfirmed.insert(on);
            }
            Some(_) => {
                assert!(matches!(answer, Ok(Expired::Deleted(_))), "{answer:?}");
                self.model.rows.remove(on);
                self.model.unconfirmed.remove(on);
            }
        }
    }

    async fn compare(&self) {
        for on in KEYS {
            let found = find(&self.running().store, on).await;
            let expected = self.model.rows.get(on);
            let shown = found.as_ref().map(|held| {
                let lock = &held.lock;
                (
                    lock.owner.as_str(),
                    lock.value.as_str(),
                    lock.kind,
                    lock.ttl.seconds(),
                    lock.token.0,
                    held.index,
                )
            });
            let expected =
                expected.map(|row| (row.owner, row.value, row.kind, row.ttl, row.token, row.index));
            assert_eq!(shown, expected, "{on}");
        }
        assert_eq!(self.running().feed.deadline_count(), self.model.rows.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_store_does_what_the_model_does(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("db");
            let running = Some(open(&path).await);
            let (model, seen) = (Model::default(), BTreeMap::new());
            let mut world = World { path, running, model, seen, blocker: None };
            for step in &steps {
                world.apply(step).await;
            }
            world.unblock();
            world.running.expect("it runs").close().await;
        });
    }
}
