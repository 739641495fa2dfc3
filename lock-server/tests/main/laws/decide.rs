//! The SQL conditions of the shared store and `lock_server::decide` are the same rules: the same
//! calls, on the same state, have the same outcome on a database and in memory.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;
use lock_server::{
    feed::Feed,
    lock_version::LockVersion,
    store::{Claimed, Expired, Released, Store, testing::Memory},
};
use model::lock::{Claim, LockKind, LockValue, Selector, Ttl};
use proptest::{prelude::*, sample::select};
use storage::{
    server::{Dialect, Options, Schema, Server, Value},
    testing::TestServer,
};

use crate::support::{Instance, key, owner};

/// Keys and owners that a collation may treat as equal.
const KEYS: [&str; 4] = ["k", "K", "k ", ""];
const OWNERS: [&str; 3] = ["o", "O", "o "];

#[derive(Debug, Clone)]
enum Step {
    /// Claims of distinct keys at the same time: PostgreSQL serves them by one statement.
    Claim(BTreeMap<&'static str, Claim>),
    Release {
        on: &'static str,
        by: &'static str,
    },
    /// The deadline of the newest version of the key, or of an older one.
    Expire {
        on: &'static str,
        back: usize,
    },
    /// Another program removes the owner of the row: the key is free.
    RemoveOwner {
        on: &'static str,
        null: bool,
    },
}

prop_compose! {
    fn claims()(
        on in select(&KEYS[..]),
        by in select(&OWNERS[..]),
        value in select(&["v", "V"][..]),
        kind in select(&[LockKind::Lock, LockKind::Presence][..]),
        ttl in select(&[5_i64, 15][..]),
    ) -> (&'static str, Claim) {
        let ttl = Ttl::try_from_seconds(ttl).unwrap();
        let value = LockValue::parse(value).unwrap();
        (on, Claim { key: key(on), owner: owner(by), value, kind, ttl })
    }
}

fn step() -> impl Strategy<Value = Step> {
    let on = || select(&KEYS[..]);
    prop_oneof![
        8 => prop::collection::vec(claims(), 1..4)
            .prop_map(|claims| Step::Claim(claims.into_iter().collect())),
        3 => (on(), select(&OWNERS[..])).prop_map(|(on, by)| Step::Release { on, by }),
        3 => (on(), 0..3_usize).prop_map(|(on, back)| Step::Expire { on, back }),
        1 => (on(), any::<bool>()).prop_map(|(on, null)| Step::RemoveOwner { on, null }),
    ]
}

/// The fields of a version that both stores must agree on: ids are random, and a row without an
/// owner keeps its index.
fn shown(held: &LockVersion) -> String {
    format!("{:?}", held.lock)
}

/// The outcome of a call, and the version that it returned.
type Outcome = (&'static str, Option<Arc<LockVersion>>);

fn seen((name, held): &Outcome) -> (&'static str, Option<String>) {
    (name, held.as_deref().map(shown))
}

async fn claim<S: Store>(store: &S, claim: Claim) -> Outcome {
    match store.claim(claim, None).await.unwrap() {
        Claimed::LockVersion(held) => ("taken", Some(held)),
        Claimed::Collision(held) => ("collision", Some(held)),
    }
}

async fn release<S: Store>(store: &S, on: &str, by: &str) -> Outcome {
    match store.release(&key(on), &owner(by)).await.unwrap() {
        Released::Deleted(held) => ("deleted", Some(held)),
        Released::Absent => ("absent", None),
        Released::Collision(held) => ("collision", Some(held)),
    }
}

async fn expire<S: Store>(store: &S, held: &LockVersion) -> Outcome {
    match store.expire(held).await.unwrap() {
        Expired::Deleted(held) => ("deleted", Some(held)),
        Expired::Absent => ("absent", None),
        Expired::Newer(held) => ("newer", Some(held)),
    }
}

async fn all<S: Store>(store: &S) -> Vec<String> {
    let mut all = Vec::new();
    for on in KEYS {
        let found = store.select(&Selector::Key(key(on))).await.unwrap();
        all.extend(found.iter().map(|held| shown(held)));
    }
    all
}

/// A store with these rules, and the versions that it returned for each key.
struct Rules<S> {
    store: S,
    versions: BTreeMap<&'static str, Vec<Arc<LockVersion>>>,
}

impl<S: Store> Rules<S> {
    fn new(store: S) -> Self {
        Self { store, versions: BTreeMap::new() }
    }

    async fn apply(&mut self, step: &Step) -> Vec<Outcome> {
        match step {
            Step::Claim(claims) => {
                let calls = claims.values().map(|asked| claim(&self.store, asked.clone()));
                let outcomes = join_all(calls).await;
                for (on, outcome) in claims.keys().zip(&outcomes) {
                    if let ("taken", Some(held)) = outcome {
                        self.versions.entry(on).or_default().push(Arc::clone(held));
                    }
                }
                outcomes
            }
            Step::Release { on, by } => vec![release(&self.store, on, by).await],
            Step::Expire { on, back } => {
                let versions = self.versions.get(on).map_or(&[][..], Vec::as_slice);
                match versions.iter().rev().nth(*back) {
                    Some(held) => vec![expire(&self.store, held).await],
                    None => Vec::new(),
                }
            }
            Step::RemoveOwner { .. } => Vec::new(),
        }
    }
}

/// Removes the owner in the table; in memory, the owner releases the lock.
async fn remove_owner(table: &Server, memory: &Memory, on: &'static str, null: bool) {
    let sql = if null {
        "UPDATE locks SET owner = NULL WHERE path = ?"
    } else {
        "UPDATE locks SET owner = '' WHERE path = ?"
    };
    table.execute(sql, &[Value::from(on)]).await.unwrap();
    let held = memory.select(&Selector::Key(key(on))).await.unwrap();
    for held in held.iter() {
        memory.release(&held.lock.key, &held.lock.owner).await.unwrap();
    }
}

async fn compare(options: &Options, steps: &[Step]) {
    let instance = Instance::open(options).await;
    let schema = Schema { record: "unused", migrations: &[], tables: &[] };
    let table = Server::connect(options, &schema).await.unwrap();
    let mut memory = Rules::new(Memory::new(Feed::default()));
    let mut shared = Rules::new(instance.store.clone());
    for step in steps {
        if let Step::RemoveOwner { on, null } = step {
            remove_owner(&table, &memory.store, on, *null).await;
        }
        let expected: Vec<_> = memory.apply(step).await.iter().map(seen).collect();
        let found: Vec<_> = shared.apply(step).await.iter().map(seen).collect();
        assert_eq!(found, expected, "{step:?}");
        assert_eq!(all(&shared.store).await, all(&memory.store).await, "after {step:?}");
    }
    table.close().await;
    instance.close().await;
}

fn hold(dialect: Dialect, steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = TestServer::shared(dialect).database();
    runtime.block_on(compare(&options, steps));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn postgres_decides_as_the_rules_do(steps in prop::collection::vec(step(), 1..40)) {
        hold(Dialect::Postgres, &steps);
    }

    #[test]
    fn mariadb_decides_as_the_rules_do(steps in prop::collection::vec(step(), 1..40)) {
        hold(Dialect::MySql, &steps);
    }
}
