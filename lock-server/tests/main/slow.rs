//! A slow database: many clients on one key, and clients that cancel long before the
//! response.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use lock_server::{
    reaper,
    store::{Claimed, Store, shared::Shared},
};
use model::lock::{Claim, Ttl};
use storage::{
    server::{Dialect, Options},
    testing::{SlowWay, TestServer},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::support::{Instance, by_key, claim, find, key, owner, take};

const BOTH: [Dialect; 2] = [Dialect::Postgres, Dialect::MySql];

const CLIENTS: usize = 64;

/// A new database behind a proxy that can be slow.
async fn behind(server: &TestServer) -> (SlowWay, Options) {
    let way = SlowWay::to(server.port()).await;
    let options = server.database();
    let (own, slow) = (format!(":{}", server.port()), format!(":{}", way.port()));
    let connection_string = options.connection_string.replacen(&own, &slow, 1);
    (way, Options { connection_string, ..options })
}

fn seconds(claim: Claim, ttl: i64) -> Claim {
    Claim { ttl: Ttl::try_from_seconds(ttl).unwrap(), ..claim }
}

#[expect(clippy::disallowed_methods, reason = "it ends with the handle")]
fn reap(instance: &Instance) -> AbortOnDropHandle<anyhow::Result<()>> {
    let (store, feed) = (instance.store.clone(), instance.feed.clone());
    AbortOnDropHandle::new(tokio::spawn(reaper::run(store, feed, CancellationToken::new())))
}

/// Opens several connections, as after some time of work: each of these calls needs one.
async fn warm(way: &SlowWay, store: &Shared) {
    way.delay(Duration::from_millis(300));
    let (keys, nobody) = ((0..16).map(|number| key(&format!("none-{number}"))), owner("nobody"));
    let keys: Vec<_> = keys.collect();
    let releases = keys.iter().map(|key| store.release(key, &nobody));
    for released in join_all(releases).await {
        released.unwrap();
    }
}

/// Each client retries a second after each response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_on_one_key_do_not_pile_up() {
    for dialect in BOTH {
        let server = TestServer::shared(dialect);
        let (way, options) = behind(server).await;
        let instance = Instance::open(&options).await;
        let _reaper = reap(&instance);
        let token = take(&instance.store, claim("k", "o")).await.lock.token;
        warm(&way, &instance.store).await;
        way.delay(Duration::from_secs(2));
        let over = Arc::new(AtomicBool::new(false));
        let mut waiters = JoinSet::new();
        for number in 1..CLIENTS {
            let (store, over) = (instance.store.clone(), Arc::clone(&over));
            waiters.spawn(async move {
                let (mut collisions, mut failures, mut longest) = (0, 0, Duration::ZERO);
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match store.claim(claim("k", &format!("waiter-{number}")), None).await {
                        Ok(Claimed::Collision(_)) => collisions += 1,
                        Ok(Claimed::LockVersion(held)) => panic!("{held:?}"),
                        Err(_) => failures += 1,
                    }
                    longest = longest.max(began.elapsed());
                    sleep(Duration::from_secs(1)).await;
                }
                (collisions, failures, longest)
            });
        }
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(20) {
            let asked = Instant::now();
            let claimed = instance.store.claim(claim("k", "o"), None).await;
            longest = longest.max(asked.elapsed());
            assert!(
                matches!(&claimed, Ok(Claimed::LockVersion(held)) if held.lock.token == token),
                "{dialect:?}, after {:?}: {claimed:?}",
                asked.elapsed()
            );
            sleep(Duration::from_secs(1)).await;
        }
        over.store(true, Ordering::Relaxed);
        let waited = waiters.join_all().await;
        way.delay(Duration::ZERO);
        let collisions: usize = waited.iter().map(|(collisions, ..)| collisions).sum();
        let failures: usize = waited.iter().map(|(_, failures, _)| failures).sum();
        let slowest = waited.iter().map(|(.., longest)| *longest).max().unwrap();
        let told = format!(
            "{dialect:?}: refresh {longest:?}; {collisions} collisions, {failures} failures, \
             slowest {slowest:?}"
        );
        println!("{told}");
        assert!(longest < Duration::from_secs(10), "{told}");
        assert!(slowest < Duration::from_secs(10), "{told}");
        assert!(failures == 0 && collisions >= 2 * CLIENTS, "{told}");
        instance.close().await;
    }
}

/// Connections that ended without the protocol's termination message.
fn cut_off(server: &TestServer, dialect: Dialect) -> u64 {
    let sql = match dialect {
        Dialect::Postgres => "SELECT SUM(sessions_abandoned) FROM pg_stat_database",
        Dialect::MySql => {
            "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS
             WHERE VARIABLE_NAME = 'ABORTED_CLIENTS'"
        }
    };
    server.sql(sql).parse().unwrap()
}

/// A cancelled call costs neither a connection nor a live lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_before_the_answer_leave_pool_and_locks_whole() {
    const DEADLINE: Duration = Duration::from_millis(50);
    const CALLS: usize = 1_500;
    const LIVE: usize = 5;
    const TTL: i64 = 6;
    for dialect in BOTH {
        let server = TestServer::start(dialect);
        let (way, options) = behind(&server).await;
        let options = Options { max_open: 16, ..options };
        let instance = Instance::open(&options).await;
        let _reaper = reap(&instance);
        warm(&way, &instance.store).await;
        way.delay(Duration::ZERO);
        let live = |number: usize| seconds(claim(&format!("live-{number}"), "o"), TTL);
        let takes = (0..LIVE).map(|number| take(&instance.store, live(number)));
        let taken = join_all(takes).await;
        way.delay(Duration::from_millis(200));
        let mut owners = JoinSet::new();
        for number in 0..LIVE {
            let store = instance.store.clone();
            owners.spawn(async move {
                loop {
                    let claimed = store.claim(live(number), None);
                    assert!(timeout(DEADLINE, claimed).await.is_err(), "it is not slow");
                    sleep(Duration::from_millis(500)).await;
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(TTL.unsigned_abs() * 2);
        let count = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for worker in 0..20 {
            let (store, count) = (instance.store.clone(), Arc::clone(&count));
            callers.spawn(async move {
                while count.fetch_add(1, Ordering::Relaxed) < CALLS || Instant::now() < until {
                    let on = format!("other-{worker}");
                    let _late = timeout(DEADLINE, store.select(&by_key(&on))).await;
                    let (on, nobody) = (key(&on), owner("nobody"));
                    let _late = timeout(DEADLINE, store.release(&on, &nobody)).await;
                }
            });
        }
        callers.join_all().await;
        let names: Vec<_> = (0..LIVE).map(|number| format!("live-{number}")).collect();
        let finds = names.iter().map(|name| find(&instance.store, name));
        for (before, now) in taken.iter().zip(join_all(finds).await) {
            let now = now.unwrap_or_else(|| panic!("{dialect:?}: {before:?} is lost"));
            assert_eq!(now.lock.token, before.lock.token, "{dialect:?}");
        }
        assert!(owners.try_join_next().is_none(), "{dialect:?}: a claim was in time");
        owners.shutdown().await;
        way.delay(Duration::ZERO);
        let finds = (0..CLIENTS).map(|_| find(&instance.store, "k"));
        let found = timeout(Duration::from_secs(5), join_all(finds)).await;
        assert_eq!(found.expect("a whole pool").len(), CLIENTS);
        assert!(instance.store.stats().open <= 16, "{:?}", instance.store.stats());
        instance.close().await;
        let cut_off = cut_off(&server, dialect);
        // Each call could lose one; a loaded machine may lose one at the end.
        assert!(cut_off < 5, "{dialect:?}: {cut_off} connections were cut off");
    }
}
