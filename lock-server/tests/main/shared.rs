//! Several servers on one database: Portcullis instances, alone and with the original.

use std::{collections::HashMap, sync::Arc, time::Duration};

use lock_server::{
    feed::Event,
    reaper,
    store::{Claimed, Error, Store},
};
use model::lock::{Claim, FencingToken, LockKind, Selector, Ttl};
use proto::models::{FetchRequest, LockRequest, ReleaseRequest, Resource};
use serde_json::json;
use storage::{
    server::{Dialect, Options, Schema, Server, Value},
    testing::TestServer,
};
use tokio::{
    sync::Notify,
    time::{Instant, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::Code;

use crate::support::{
    Instance, PATIENCE, by_key, claim, find, key, owner,
    server::{Server as Process, Site},
    take,
};

/// Runs the task that deletes what has expired.
#[expect(clippy::disallowed_methods, reason = "it ends with the handle")]
fn reap(instance: &Instance) -> AbortOnDropHandle<anyhow::Result<()>> {
    let (store, feed) = (instance.store.clone(), instance.feed.clone());
    AbortOnDropHandle::new(tokio::spawn(reaper::run(store, feed, CancellationToken::new())))
}

fn seconds(claim: Claim, ttl: i64) -> Claim {
    Claim { ttl: Ttl::try_from_seconds(ttl).unwrap(), ..claim }
}

async fn watchers_hear_of_the_other_instance(options: &Options) {
    let (here, there) = (Instance::open(options).await, Instance::open(options).await);
    let (held, mut events) = here.store.watch(&by_key("k")).await.unwrap();
    assert_eq!(*held, []);
    let taken = take(&there.store, claim("k", "o")).await;
    let next = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    assert!(matches!(&next, Event::Acquired(held) if held.lock == taken.lock), "{next:?}");
    there.store.release(&key("k"), &owner("o")).await.unwrap();
    let next = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    assert!(matches!(&next, Event::Released(held) if held.lock == taken.lock), "{next:?}");
    let token = take(&here.store, claim("k", "p")).await.lock.token;
    assert!(token > taken.lock.token);
    let claimed = there.store.claim(claim("k", "o"), None).await.unwrap();
    assert!(matches!(claimed, Claimed::Collision(held) if held.lock.token == token));
    here.close().await;
    there.close().await;
}

#[tokio::test]
async fn watchers_hear_of_the_other_instance_on_postgres() {
    watchers_hear_of_the_other_instance(&TestServer::shared(Dialect::Postgres).database()).await;
}

#[tokio::test]
async fn watchers_hear_of_the_other_instance_on_mariadb() {
    watchers_hear_of_the_other_instance(&TestServer::shared(Dialect::MySql).database()).await;
}

/// The instance that acquired a lock dies: another one expires the lock.
#[tokio::test]
async fn the_lock_of_a_dead_instance_expires() {
    let options = TestServer::shared(Dialect::Postgres).database();
    let (dead, here) = (Instance::open(&options).await, Instance::open(&options).await);
    let _reaper = reap(&here);
    let (_, mut events) = here.store.watch(&by_key("k")).await.unwrap();
    let taken = take(&dead.store, seconds(claim("k", "o"), 1)).await;
    dead.crash().await;
    let acquired = timeout(PATIENCE, events.next()).await.unwrap();
    assert!(matches!(acquired, Ok(Event::Acquired(_))), "{acquired:?}");
    let expired = timeout(PATIENCE, events.next()).await.unwrap();
    assert!(matches!(expired, Ok(Event::Expired(held)) if held.lock == taken.lock));
    here.close().await;
}

/// The original's use of the table (docs/compatibility/locket.md#lock, #expiry): it
/// reads a row, writes it with the next index, and periodically deletes rows that did
/// not change for a time to live.
struct Original {
    server: Server,
    /// The version whose time it measures, and the start of the measurement.
    timed: HashMap<String, (String, i64, Instant)>,
}

impl Original {
    async fn connect(options: &Options) -> Self {
        let schema = Schema { record: "unused_by_the_original", migrations: &[], tables: &[] };
        let server = Server::connect(options, &schema).await.unwrap();
        Self { server, timed: HashMap::new() }
    }

    /// Takes a free key.
    async fn insert(&self, key: &str, owner: &str, ttl: i64) {
        let id = uuid::Uuid::new_v4().to_string();
        let values: [Value; 4] = [key.into(), owner.into(), id.into(), ttl.into()];
        let sql = "INSERT INTO locks (path, owner, value, type, modified_index, modified_id, ttl)
            VALUES (?, ?, '', 'lock', 1, ?, ?)";
        self.server.execute(sql, &values).await.unwrap();
    }

    /// Refreshes a held key.
    async fn refresh(&self, key: &str, owner: &str) {
        let sql = "UPDATE locks SET modified_index = modified_index + 1
            WHERE path = ? AND owner = ?";
        assert_eq!(self.server.execute(sql, &[key.into(), owner.into()]).await.unwrap(), 1);
    }

    /// Restarts the time of every changed row; deletes expired rows.
    async fn pass(&mut self) -> Vec<String> {
        let rows = "SELECT path, modified_id, modified_index, ttl FROM locks";
        let mut deleted = Vec::new();
        for row in self.server.query(rows, &[]).await.unwrap() {
            let (path, id): (String, String) = (row.get(0).unwrap(), row.get(1).unwrap());
            let (index, ttl): (i64, i64) = (row.get(2).unwrap(), row.get(3).unwrap());
            let now = Instant::now();
            match self.timed.get(&path) {
                Some((timed, at, since)) if (timed, *at) == (&id, index) => {
                    if now.duration_since(*since) >= Duration::from_secs(ttl.unsigned_abs()) {
                        let sql = "DELETE FROM locks
                            WHERE path = ? AND modified_id = ? AND modified_index = ?";
                        let values = [path.as_str().into(), id.into(), index.into()];
                        if self.server.execute(sql, &values).await.unwrap() > 0 {
                            deleted.push(path);
                        }
                    }
                }
                _ => {
                    self.timed.insert(path, (id, index, now));
                }
            }
        }
        deleted
    }
}

async fn neither_expires_the_others_live_locks(options: &Options) {
    let ours = Instance::open(options).await;
    let _reaper = reap(&ours);
    let mut original = Original::connect(options).await;
    take(&ours.store, seconds(claim("ours", "o"), 2)).await;
    original.insert("theirs", "original", 2).await;
    take(&ours.store, seconds(claim("left", "o"), 2)).await;

    // Five times the time to live, with two refreshes in each.
    let mut beat = interval(Duration::from_millis(500));
    for _ in 0..20 {
        beat.tick().await;
        take(&ours.store, seconds(claim("ours", "o"), 2)).await;
        original.refresh("theirs", "original").await;
        let deleted = original.pass().await;
        assert!(deleted.iter().all(|key| key == "left"), "{deleted:?}");
    }
    assert!(find(&ours.store, "ours").await.is_some());
    let theirs = find(&ours.store, "theirs").await.expect("the original's lock is alive");
    assert!(theirs.lock.token >= FencingToken(1));
    assert_eq!(find(&ours.store, "left").await, None, "nobody refreshed it");
    let claimed = ours.store.claim(claim("theirs", "o"), None).await.unwrap();
    assert!(matches!(claimed, Claimed::Collision(_)));
    // The original is gone: its lock expires here, and the token rises.
    let freed = async {
        while find(&ours.store, "theirs").await.is_some() {
            beat.tick().await;
        }
    };
    timeout(PATIENCE, freed).await.expect("in time");
    let token = take(&ours.store, claim("theirs", "o")).await.lock.token;
    assert!(token > theirs.lock.token);
    ours.close().await;
}

#[tokio::test]
async fn beside_the_original_on_postgres() {
    let options = TestServer::shared(Dialect::Postgres).database();
    neither_expires_the_others_live_locks(&options).await;
}

#[tokio::test]
async fn beside_the_original_on_mariadb() {
    let options = TestServer::shared(Dialect::MySql).database();
    neither_expires_the_others_live_locks(&options).await;
}

/// Rows that this server never writes.
#[tokio::test]
async fn rows_of_others_are_read_as_far_as_they_make_sense() {
    for dialect in [Dialect::Postgres, Dialect::MySql] {
        let options = TestServer::shared(dialect).database();
        Instance::open(&options).await.close().await;
        let original = Original::connect(&options).await;
        let rows = [
            "('nobody', '', 'v', 'lock', 7, 'i', 15)",
            "('null', NULL, 'v', 'lock', 7, 'i', 15)",
            "('strange', 'o', 'v', 'sandwich', 7, 'i', 15)",
            "('dead', 'o', 'v', 'lock', 7, 'i', 0)",
            "('good', 'o', 'v', 'presence', 7, 'i', 15)",
        ];
        let sql = format!(
            "INSERT INTO locks (path, owner, value, type, modified_index, modified_id, ttl)
             VALUES {}",
            rows.join(", ")
        );
        original.server.execute(&sql, &[]).await.unwrap();
        let ours = Instance::open(&options).await;
        for absent in ["nobody", "null", "dead"] {
            assert_eq!(find(&ours.store, absent).await, None, "{absent}");
            take(&ours.store, claim(absent, "p")).await;
        }
        let good = find(&ours.store, "good").await.unwrap();
        assert_eq!((good.lock.kind, good.index), (LockKind::Presence, 7));
        let presences = ours.store.select(&Selector::Kind(LockKind::Presence)).await.unwrap();
        assert_eq!(*presences, [Arc::clone(&good)]);
        assert_eq!(take(&ours.store, claim("good", "o")).await.index, 8);
        let strange = find(&ours.store, "strange").await.unwrap();
        assert_eq!(strange.foreign_type.as_deref(), Some("sandwich"));
        let claimed = ours.store.claim(claim("strange", "p"), None).await.unwrap();
        assert!(matches!(claimed, Claimed::Collision(_)));
        assert_eq!(take(&ours.store, claim("strange", "o")).await.foreign_type, None);
        assert_eq!(find(&ours.store, "strange").await.unwrap().foreign_type, None);
        ours.close().await;
    }
}

/// A table of the original has no tokens: the first pass issues all of them.
#[tokio::test]
async fn each_lock_of_the_original_has_a_token_from_the_start() {
    for dialect in [Dialect::Postgres, Dialect::MySql] {
        let options = TestServer::shared(dialect).database();
        let before = Instance::open(&options).await;
        let earlier = take(&before.store, claim("k7", "o")).await.lock.token;
        before.store.release(&key("k7"), &owner("o")).await.unwrap();
        before.close().await;
        let original = Original::connect(&options).await;
        for n in 0..100 {
            original.insert(&format!("k{n}"), "original", 60).await;
        }
        let ours = Instance::open(&options).await;
        let locks = ours.store.select(&Selector::Kind(LockKind::Lock)).await.unwrap();
        assert_eq!(locks.len(), 100, "{dialect:?}");
        for held in locks.iter() {
            let lowest = if held.lock.key == key("k7") { earlier.0 + 1 } else { 1 };
            assert!(held.lock.token.0 >= lowest, "{dialect:?}: {held:?}");
        }
        ours.close().await;
    }
}

/// Queued claims share one statement: each gets its own result.
#[tokio::test]
async fn claims_that_wait_together_are_answered_each_for_itself() {
    let options = TestServer::shared(Dialect::Postgres).database();
    // Other tests use the server meanwhile.
    let options = Options { max_open: 8, ..options };
    let (here, there) = (Instance::open(&options).await, Instance::open(&options).await);
    take(&there.store, claim("taken", "other")).await;
    let claims = (0..300).map(|number| match number % 6 {
        0 => claim("taken", "o"),
        1 => claim("contended", &format!("o{number}")),
        2 => claim("mine", "o"),
        // PostgreSQL cannot store the text; the other claims must not fail.
        3 => claim(&format!("\0{number}"), "o"),
        _ => claim(&format!("key \" \\ ü {number}"), "o"),
    });
    let made = claims.map(|claim| async {
        let instance = if claim.owner.as_str() == "o" { &here } else { &there };
        let claimed = instance.store.claim(claim.clone(), None).await;
        (claim, claimed)
    });
    let mut winners = Vec::new();
    for (claim, claimed) in futures_util::future::join_all(made).await {
        match (claim.key.as_str(), claimed) {
            ("taken", Ok(Claimed::Collision(held))) => assert_eq!(held.lock.owner, owner("other")),
            ("contended", Ok(Claimed::LockVersion(held))) => winners.push(held),
            ("contended", Ok(Claimed::Collision(_))) => {}
            ("mine", Ok(Claimed::LockVersion(held))) => {
                assert_eq!(held.lock.token, FencingToken(1));
            }
            (key, Err(Error::Unstorable(_))) if key.starts_with('\0') => {}
            (key, Ok(Claimed::LockVersion(held))) if key.starts_with("key") => {
                assert_eq!((&held.lock.key, &held.lock.value), (&claim.key, &claim.value));
            }
            (key, claimed) => panic!("{key:?}: {claimed:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(find(&here.store, "contended").await.unwrap().lock.owner, winners[0].lock.owner);
    assert!(find(&here.store, "mine").await.unwrap().index >= 50);
    here.close().await;
    there.close().await;
}

/// A locked row delays claims of its key only, other claims at most briefly.
#[tokio::test]
async fn a_locked_row_holds_up_its_own_key_only() {
    let options = TestServer::shared(Dialect::Postgres).database();
    let options = Options { max_open: 8, ..options };
    let ours = Instance::open(&options).await;
    take(&ours.store, claim("locked", "o")).await;
    let original = Original::connect(&options).await;
    let (locked, unlock) = (&Notify::new(), &Notify::new());
    let holding = original.server.transaction(|transaction| async move {
        transaction.query("SELECT 1 FROM locks WHERE path = 'locked' FOR UPDATE", &[]).await?;
        locked.notify_one();
        unlock.notified().await;
        Ok::<_, storage::Error>(())
    });
    let claims = async {
        locked.notified().await;
        let mut waiting = std::pin::pin!(take(&ours.store, claim("locked", "o")));
        // Longer than a statement blocks others.
        let waited = timeout(Duration::from_millis(700), &mut waiting).await;
        assert!(waited.is_err(), "{waited:?}");
        let others = (0..100).map(|number| take(&ours.store, claim(&number.to_string(), "o")));
        let others = timeout(Duration::from_secs(5), futures_util::future::join_all(others));
        tokio::select! {
            held = &mut waiting => panic!("{held:?}"),
            others = others => assert_eq!(others.expect("they wait for nobody").len(), 100),
        }
        unlock.notify_one();
        assert_eq!(waiting.await.index, 2, "it was made once");
    };
    let (held, ()) = tokio::join!(holding, claims);
    held.unwrap();
    ours.close().await;
}

/// Two processes over gRPC, and a start before the database is reachable.
#[tokio::test]
async fn two_servers_share_a_database() {
    let database = TestServer::start(Dialect::Postgres);
    let options = database.database();
    database.stop();
    let site = Site::new();
    let mut config = site.config();
    config["database_driver"] = json!("postgres");
    config["database_connection_string"] = json!(options.connection_string);
    config["enable_db_health_check"] = json!(true);
    let waiting = std::thread::spawn({
        let command = site.command(&config);
        move || Process::start(command)
    });
    database.restart();
    let mut first = waiting.join().unwrap();
    let notifier = first.line("locket.metrics-notifier.starting");
    assert_eq!(notifier["data"]["interval"], 60_000_000_000_i64);
    let second = Process::start(site.command(&config));

    let lock = |owner: &str| LockRequest {
        resource: Some(Resource {
            key: "k".to_owned(),
            owner: owner.to_owned(),
            type_code: 1,
            ..Resource::default()
        }),
        ttl_in_seconds: 60,
    };
    let (mut here, mut there) = (site.client(&first.address), site.client(&second.address));
    here.lock(lock("o")).await.unwrap();
    let refused = there.lock(lock("p")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::AlreadyExists, "lock-collision"));
    there.lock(lock("o")).await.unwrap();
    let fetched = here.fetch(FetchRequest { key: "k".to_owned() }).await.unwrap().into_inner();
    assert_eq!(fetched.resource.unwrap().owner, "o");
    // A row of an unknown writer is returned unchanged.
    let original = Original::connect(&options).await;
    let sandwich = "UPDATE locks SET type = 'sandwich', modified_index = modified_index + 1";
    original.server.execute(sandwich, &[]).await.unwrap();
    let fetched = there.fetch(FetchRequest { key: "k".to_owned() }).await.unwrap().into_inner();
    let shown = format!("{:?}", fetched.resource.unwrap());
    assert!(shown.contains(r#"type: "sandwich", type_code: Unknown"#), "{shown}");
    there.release(ReleaseRequest { resource: lock("o").resource }).await.unwrap();
    let gone = here.fetch(FetchRequest { key: "k".to_owned() }).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "resource-not-found"));
}
