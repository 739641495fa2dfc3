//! Each statement, on a random row, has the outcome that `decide` has for the lock of that row.

use std::sync::Arc;

use model::lock::{Claim, FencingToken, Lock, LockKey, LockKind, LockValue, Owner, Selector, Ttl};
use proptest::{prelude::*, sample::select};
use storage::{
    server::{Dialect, Server, Value},
    testing::TestServer,
};

use super::{
    rows::{self, Found},
    statements,
};
use crate::{decide, lock_version::LockVersion};

/// A row, or no row; the owner may be empty or NULL.
#[derive(Debug, Clone)]
struct Row {
    owner: Option<&'static str>,
    claim: Claim,
    index: i64,
    token: i64,
}

#[derive(Debug, Clone)]
enum Call {
    Claim(Claim),
    Release(&'static str),
    /// The deadline of the row's version, or of one with other numbers.
    Expire {
        token: i64,
        index: i64,
    },
}

/// Owners that a collation may treat as equal.
const OWNERS: [&str; 3] = ["o", "O", "o "];

prop_compose! {
    /// A claim of the key "k".
    fn claims()(
        by in select(&OWNERS[..]),
        value in select(&["v", "V", ""][..]),
        kind in select(&[LockKind::Lock, LockKind::Presence][..]),
        ttl in select(&[5_i64, 15][..]),
    ) -> Claim {
        Claim {
            key: LockKey::parse("k").unwrap(),
            owner: Owner::parse(by).unwrap(),
            value: LockValue::parse(value).unwrap(),
            kind,
            ttl: Ttl::try_from_seconds(ttl).unwrap(),
        }
    }
}

prop_compose! {
    fn rows_of_a_table()(
        owner in prop::option::weighted(0.8, select(&["o", "O", "o ", ""][..])),
        claim in claims(),
        index in 1..3_i64,
        token in 1..3_i64,
    ) -> Row {
        Row { owner, claim, index, token }
    }
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![
        claims().prop_map(Call::Claim),
        select(&OWNERS[..]).prop_map(Call::Release),
        (1..3_i64, 1..3_i64).prop_map(|(token, index)| Call::Expire { token, index }),
    ]
}

/// The life of the row with this token.
fn id(token: i64) -> String {
    format!("life-{token}")
}

fn version(claim: &Claim, owner: &str, token: i64, index: i64) -> LockVersion {
    let owner = Owner::parse(owner).unwrap();
    let claim = Claim { owner, ..claim.clone() };
    let token_number = FencingToken(token.unsigned_abs());
    let first = LockVersion::first(claim, id(token).into(), token_number, None);
    LockVersion { index, ..first }
}

impl Row {
    /// The lock of the row, if it has an owner.
    fn held(&self) -> Option<LockVersion> {
        let owner = self.owner.filter(|owner| !owner.is_empty())?;
        Some(version(&self.claim, owner, self.token, self.index))
    }
}

async fn write(server: &Server, row: Option<&Row>) {
    server.execute("DELETE FROM locks", &[]).await.unwrap();
    server.execute("DELETE FROM fencing_tokens", &[]).await.unwrap();
    let Some(Row { owner, claim, index, token }) = row else { return };
    let values: [Value; 7] = [
        "k".into(),
        owner.map(str::to_owned).into(),
        claim.value.as_str().into(),
        claim.kind.as_str().into(),
        (*index).into(),
        id(*token).into(),
        claim.ttl.seconds().into(),
    ];
    let sql = "INSERT INTO locks (path, owner, value, type, modified_index, modified_id, ttl)
        VALUES (?, ?, ?, ?, ?, ?, ?)";
    server.execute(sql, &values).await.unwrap();
    let sql = "INSERT INTO fencing_tokens (path, token, modified_id) VALUES (?, ?, ?)";
    server.execute(sql, &["k".into(), (*token).into(), id(*token).into()]).await.unwrap();
}

async fn read(server: &Server) -> Option<LockVersion> {
    let key = Selector::Key(LockKey::parse("k").unwrap());
    let found = rows::read(server, Some(&key)).await.unwrap();
    found.first().map(|row| match rows::parse(row).unwrap() {
        Found::LockVersion(held) => held,
        other => panic!("{other:?}"),
    })
}

async fn claim(server: &Server, row: Option<&Row>, asked: &Claim) -> Option<LockVersion> {
    let before = row.and_then(Row::held);
    let taken = statements::claim(server, asked, "new").await.unwrap();
    let Claim { key, owner, value, kind, ttl } = asked.clone();
    let lock = |token| Lock { key, owner, value, kind, ttl, token };
    match (decide::claim(before.as_ref().map(|held| &held.lock), asked), before) {
        (decide::Claimed::Collide, before) => {
            assert_eq!(taken, None);
            before
        }
        (decide::Claimed::Acquire, _) => {
            let taken = taken.expect("the key is free");
            let token = row.map_or(1, |row| row.token.unsigned_abs() + 1);
            assert_eq!((taken.id.as_str(), taken.token.0), ("new", token));
            let lock = lock(taken.token);
            let index = row.map_or(1, |row| row.index + 1);
            Some(LockVersion { lock, id: "new".into(), index, request: None, foreign_type: None })
        }
        (
            decide::Claimed::Refresh | decide::Claimed::ChangeTtl | decide::Claimed::Update,
            before,
        ) => {
            let before = before.expect("it has an owner");
            let taken = taken.expect("the claimant is the owner");
            assert_eq!((&*taken.id, taken.token), (&*before.id, before.lock.token));
            let (lock, index) = (lock(before.lock.token), before.index + 1);
            Some(LockVersion { lock, index, ..before })
        }
    }
}

async fn release(server: &Server, before: Option<LockVersion>, by: &str) -> Option<LockVersion> {
    let by = Owner::parse(by).unwrap();
    let deleted = statements::release(server, &LockKey::parse("k").unwrap(), &by).await.unwrap();
    let decided = decide::release(before.clone().map(Arc::new).as_ref(), &by);
    assert_eq!(deleted, matches!(decided, decide::Released::Deleted(_)));
    before.filter(|_| !deleted)
}

async fn expire(server: &Server, row: Option<&Row>, token: i64, index: i64) -> Option<LockVersion> {
    let before = row.and_then(Row::held);
    let Row { claim, owner, .. } = row?;
    let owner = owner.filter(|owner| !owner.is_empty()).unwrap_or("o");
    let seen = version(claim, owner, token, index);
    let deleted = statements::delete_version(server, &seen).await.unwrap();
    let decided = decide::expire(before.clone().map(Arc::new).as_ref(), seen.version());
    assert_eq!(deleted, matches!(decided, decide::Expired::Deleted(_)));
    before.filter(|_| !deleted)
}

async fn check(server: &Server, row: Option<&Row>, call: &Call) {
    write(server, row).await;
    let after = match call {
        Call::Claim(asked) => claim(server, row, asked).await,
        Call::Release(by) => release(server, row.and_then(Row::held), by).await,
        Call::Expire { token, index } => expire(server, row, *token, *index).await,
    };
    assert_eq!(read(server).await, after, "{row:?} {call:?}");
}

fn hold(dialect: Dialect, cases: &[(Option<Row>, Call)]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = TestServer::shared(dialect).database();
    runtime.block_on(async {
        let server = Server::connect(&options, &statements::schema(dialect)).await.unwrap();
        for (row, call) in cases {
            check(&server, row.as_ref(), call).await;
        }
        server.close().await;
    });
}

fn cases() -> impl Strategy<Value = Vec<(Option<Row>, Call)>> {
    prop::collection::vec((prop::option::weighted(0.9, rows_of_a_table()), calls()), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn statements_on_postgres_decide_as_the_rules_do(cases in cases()) {
        hold(Dialect::Postgres, &cases);
    }

    #[test]
    fn statements_on_mariadb_decide_as_the_rules_do(cases in cases()) {
        hold(Dialect::MySql, &cases);
    }
}
