//! FetchAll and Fetch on a shared database: the response includes every write
//! acknowledged before, by any instance, and reads no more rows than needed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_server::store::Store;
use model::lock::{Claim, LockKind, LockValue, Selector};
use storage::{
    server::{Dialect, Options, Schema, Server},
    testing::TestServer,
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::support::{Instance, PATIENCE, ask, claim, find, key, owner, take};

const PRESENCES: Selector = Selector::Kind(LockKind::Presence);
const LOCKS: Selector = Selector::Kind(LockKind::Lock);

fn presence(on: &str, text: &str) -> Claim {
    let value = LockValue::parse(text).unwrap();
    Claim { kind: LockKind::Presence, value, ..claim(on, "o") }
}

/// Keys and values of a kind.
async fn all(instance: &Instance, of: &Selector) -> BTreeMap<String, String> {
    let all = instance.store.select(of).await.unwrap();
    all.iter().map(|held| (held.lock.key.to_string(), held.lock.value.to_string())).collect()
}

/// A program that writes the table with its own statements, as the original does.
async fn foreign(options: &Options) -> Server {
    let schema = Schema { record: "unused_by_the_original", migrations: &[], tables: &[] };
    Server::connect(options, &schema).await.unwrap()
}

/// After each write, by any program, both instances return exactly the held locks.
async fn each_write_is_in_the_next_answer(options: &Options) {
    let instances = [Instance::open(options).await, Instance::open(options).await];
    let original = foreign(options).await;
    let run = async |sql: &str| assert_eq!(original.execute(sql, &[]).await.unwrap(), 1, "{sql}");
    let (mut locks, mut presences) = (BTreeMap::new(), BTreeMap::new());
    let text = |text: &str| text.to_owned();
    for round in 0..4_usize {
        let (here, there) = (&instances[round % 2].store, &instances[(round + 1) % 2].store);
        for step in 0..10 {
            match step {
                0 => drop(take(here, presence("p", "v")).await),
                1 => drop(take(there, presence("p", "w")).await),
                // A refresh.
                2 => drop(take(here, presence("p", "w")).await),
                3 => drop(take(there, Claim { kind: LockKind::Lock, ..presence("p", "w") }).await),
                4 => drop(here.release(&key("p"), &owner("o")).await.unwrap()),
                5 => {
                    run("INSERT INTO locks VALUES ('q', 'x', 'v', 'presence', 1, 'i', 15)").await;
                }
                6 => {
                    run("UPDATE locks SET modified_index = 2, value = 'V' WHERE path = 'q'").await;
                }
                7 => run("UPDATE locks SET modified_index = 3 WHERE path = 'q'").await,
                8 => run("DELETE FROM locks WHERE path = 'q'").await,
                _ => {
                    let held = take(there, presence("e", "v")).await;
                    here.expire(&held).await.unwrap();
                }
            }
            presences.clear();
            locks.clear();
            match step {
                0 => drop(presences.insert(text("p"), text("v"))),
                1 | 2 => drop(presences.insert(text("p"), text("w"))),
                3 => drop(locks.insert(text("p"), text("w"))),
                5 => drop(presences.insert(text("q"), text("v"))),
                6 | 7 => drop(presences.insert(text("q"), text("V"))),
                _ => {}
            }
            for instance in &instances {
                assert_eq!(all(instance, &PRESENCES).await, presences, "step {step}");
                assert_eq!(all(instance, &LOCKS).await, locks, "step {step}");
                for on in ["p", "q", "e"] {
                    let held = find(&instance.store, on).await;
                    let shown = presences.get(on).or(locks.get(on));
                    assert_eq!(held.map(|held| held.lock.value.to_string()).as_ref(), shown);
                }
            }
        }
    }
    for instance in instances {
        instance.close().await;
    }
}

#[tokio::test]
async fn each_write_is_in_the_next_answer_on_postgres() {
    each_write_is_in_the_next_answer(&TestServer::shared(Dialect::Postgres).database()).await;
}

#[tokio::test]
async fn each_write_is_in_the_next_answer_on_mariadb() {
    each_write_is_in_the_next_answer(&TestServer::shared(Dialect::MySql).database()).await;
}

/// Progress of one writer on its key: each value is larger than the one before.
#[derive(Default)]
struct Written {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

const WRITERS: usize = 6;
const WRITES: u64 = 60;

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

/// Reads until all writers are done: a response has at least the values acknowledged when
/// the read began, at most those begun when it ended, and never less than before, unless
/// `forgets`: InnoDB shows a commit to others shortly before it is on the disk.
async fn read(
    instance: Arc<Instance>,
    written: Arc<[Written; WRITERS]>,
    done: Arc<AtomicBool>,
    forgets: bool,
) -> u64 {
    let (mut answers, mut before) = (0, BTreeMap::new());
    while !done.load(Ordering::SeqCst) {
        let from = written.each_ref().map(|one| one.acknowledged.load(Ordering::SeqCst));
        // Fails while the database is down, or when the instance has crashed.
        let Ok(shown) = instance.store.select(&PRESENCES).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let until = written.each_ref().map(|one| one.begun.load(Ordering::SeqCst));
        answers += 1;
        let shown: BTreeMap<_, _> = shown
            .iter()
            .map(|held| (held.lock.key.to_string(), number(held.lock.value.as_str())))
            .collect();
        for (writer, (from, until)) in from.into_iter().zip(until).enumerate() {
            let on = format!("w{writer}");
            let value = shown.get(&on).copied().unwrap_or(0);
            let least = before.get(&on).copied().unwrap_or(0).max(from);
            assert!((least..=until).contains(&value), "{on}: {value} of {least}..={until}");
        }
        if !forgets {
            before = shown;
        }
    }
    answers
}

async fn write(instance: Arc<Instance>, writer: usize, written: Arc<[Written; WRITERS]>) {
    let one = &written[writer];
    for value in 1..=WRITES {
        one.begun.store(value, Ordering::SeqCst);
        let claim = presence(&format!("w{writer}"), &value.to_string());
        // Repeat writes with an unknown outcome until they are acknowledged.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = ask(&instance.store, claim.clone()).await {
            assert!(Instant::now() < deadline, "{error:?}");
            tokio::task::yield_now().await;
        }
        one.acknowledged.store(value, Ordering::SeqCst);
    }
}

/// Readers and writers on both instances, while another instance crashes repeatedly,
/// and with `kill` the database.
async fn answers_are_linearizable(server: &TestServer, kill: bool) {
    let options = server.database();
    let instances =
        [Arc::new(Instance::open(&options).await), Arc::new(Instance::open(&options).await)];
    let written: Arc<[Written; WRITERS]> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let forgets = kill && server.dialect() == Dialect::MySql;
    let (mut readers, mut writers) = (JoinSet::new(), JoinSet::new());
    for at in 0..4 {
        let (instance, written) = (Arc::clone(&instances[at % 2]), Arc::clone(&written));
        readers.spawn(read(instance, written, Arc::clone(&done), forgets));
    }
    for writer in 0..WRITERS {
        let (instance, written) = (Arc::clone(&instances[writer % 2]), Arc::clone(&written));
        writers.spawn(write(instance, writer, written));
    }
    let half = |one: &Written| one.acknowledged.load(Ordering::SeqCst) >= WRITES / 2;
    if kill {
        while !written.iter().any(half) {
            tokio::task::yield_now().await;
        }
        server.kill();
        server.restart();
    } else {
        // Its writes are interrupted anywhere.
        for _ in 0..3 {
            let crashes = Instance::open(&options).await;
            let mut claims: JoinSet<_> = (0..4)
                .map(|at| {
                    let (store, claim) = (crashes.store.clone(), claim(&format!("c{at}"), "o"));
                    async move { ask(&store, claim).await }
                })
                .collect();
            let _some = claims.join_next().await;
            claims.shutdown().await;
            crashes.crash().await;
        }
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    while let Some(answers) = readers.join_next().await {
        assert!(answers.unwrap() > 3);
    }
    for instance in instances {
        Arc::into_inner(instance).expect("the tasks have ended").close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_linearizable_on_postgres() {
    answers_are_linearizable(TestServer::shared(Dialect::Postgres), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_linearizable_on_mariadb() {
    answers_are_linearizable(TestServer::shared(Dialect::MySql), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_linearizable_when_postgres_is_killed() {
    answers_are_linearizable(&TestServer::start(Dialect::Postgres), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_linearizable_when_mariadb_is_killed() {
    answers_are_linearizable(&TestServer::start(Dialect::MySql), true).await;
}

/// Whether FetchAll answers while the table is locked, right after a response.
async fn answers_without_the_table(ours: &Instance, original: &Server) -> bool {
    let (locked, unlock) = (&Notify::new(), &Notify::new());
    let holding = original.transaction(|transaction| async move {
        transaction.query("LOCK TABLE locks IN ACCESS EXCLUSIVE MODE", &[]).await?;
        locked.notify_one();
        unlock.notified().await;
        Ok::<_, storage::Error>(())
    });
    let before = all(ours, &PRESENCES).await;
    let looks = async {
        locked.notified().await;
        let answer = timeout(Duration::from_secs(2), all(ours, &PRESENCES)).await;
        unlock.notify_one();
        answer.map(|answer| assert_eq!(answer, before)).is_ok()
    };
    let (held, is_answered) = tokio::join!(Box::pin(holding), Box::pin(looks));
    held.unwrap();
    is_answered
}

/// Without changes the table is not read, even when it is locked.
#[tokio::test]
async fn an_unchanged_answer_is_given_without_the_table() {
    let options = TestServer::shared(Dialect::Postgres).database();
    let options = Options { max_open: 8, ..options };
    let ours = Instance::open(&options).await;
    take(&ours.store, presence("p", "v")).await;
    let original = foreign(&options).await;
    // On a slow machine the image may be too old by the time of the read.
    let mut tries = 0;
    while !Box::pin(answers_without_the_table(&ours, &original)).await {
        tries += 1;
        assert!(tries < 5, "FetchAll waits for the table");
    }
    ours.close().await;
}

const OTHERS: u64 = 10_000;
const READS: u64 = 40;

/// Presences change and are read each time; the locks are not read.
async fn rows_of_the_other_kind_are_not_read(server: &TestServer, rows_read: &str) {
    let options = server.database();
    let name = options.connection_string.rsplit('/').next().unwrap().to_owned();
    let ours = Instance::open(&options).await;
    let (series, vacuum) = match server.dialect() {
        Dialect::Postgres => (format!("generate_series(1, {OTHERS}) AS s (seq)"), "ANALYZE locks"),
        Dialect::MySql => (format!("seq_1_to_{OTHERS}"), "ANALYZE TABLE locks"),
    };
    server.sql_in(
        &name,
        &format!(
            "INSERT INTO locks SELECT CONCAT('l', seq), 'o', 'v', 'lock', 1, 'i', 600 FROM {series};
             INSERT INTO fencing_tokens SELECT path, 1, 'i' FROM locks; {vacuum}"
        ),
    );
    let count = || number(&server.sql_in(&name, rows_read));
    let before = count();
    for at in 0..READS {
        take(&ours.store, presence(&format!("p{}", at % 10), &at.to_string())).await;
        assert!(!all(&ours, &PRESENCES).await.is_empty());
    }
    // The server's statistics lag.
    let deadline = Instant::now() + PATIENCE;
    while count() - before < READS && Instant::now() < deadline {
        sleep(Duration::from_millis(50)).await;
    }
    let read = count() - before;
    // The pass over the table reads all rows a few times meanwhile.
    assert!((READS..READS * OTHERS / 2).contains(&read), "{read} rows for {READS} answers");
    ours.close().await;
}

#[tokio::test]
async fn rows_of_the_other_kind_are_not_read_on_postgres() {
    let rows_read = "SELECT COALESCE(SUM(seq_tup_read + COALESCE(idx_tup_fetch, 0)), 0)::bigint
        FROM pg_stat_user_tables";
    rows_of_the_other_kind_are_not_read(TestServer::shared(Dialect::Postgres), rows_read).await;
}

#[tokio::test]
async fn rows_of_the_other_kind_are_not_read_on_mariadb() {
    let rows_read = "SELECT SUM(variable_value) FROM information_schema.global_status
        WHERE variable_name IN ('Handler_read_next', 'Handler_read_rnd_next', 'Handler_read_key')";
    let server = TestServer::start(Dialect::MySql);
    rows_of_the_other_kind_are_not_read(&server, rows_read).await;
}

/// Dropped triggers: responses stay correct, on PostgreSQL at once, on MySQL after a
/// pass, and the triggers are recreated.
async fn triggers_that_are_gone_come_back(dialect: Dialect) {
    let server = TestServer::shared(dialect);
    let options = server.database();
    let name = options.connection_string.rsplit('/').next().unwrap().to_owned();
    let ours = Instance::open(&options).await;
    take(&ours.store, presence("p", "v")).await;
    assert_eq!(all(&ours, &PRESENCES).await.len(), 1);
    let triggers = match dialect {
        Dialect::Postgres => "SELECT COUNT(*) FROM pg_trigger WHERE tgname LIKE 'portcullis%'",
        Dialect::MySql => {
            "SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_schema = DATABASE()"
        }
    };
    let made = server.sql_in(&name, triggers);
    for event in ["inserted", "updated", "deleted"] {
        let on = if dialect == Dialect::Postgres { " ON locks" } else { "" };
        server.sql_in(&name, &format!("DROP TRIGGER portcullis_locks_{event}{on}"));
    }
    server.sql_in(&name, "INSERT INTO locks VALUES ('q', 'o', 'v', 'presence', 1, 'i', 60)");
    if dialect == Dialect::Postgres {
        assert_eq!(all(&ours, &PRESENCES).await.len(), 2);
    }
    let right = async {
        while all(&ours, &PRESENCES).await.len() != 2 || server.sql_in(&name, triggers) != made {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, right).await.expect("in time");
    ours.close().await;
}

#[tokio::test]
async fn triggers_that_are_gone_come_back_on_postgres() {
    triggers_that_are_gone_come_back(Dialect::Postgres).await;
}

#[tokio::test]
async fn triggers_that_are_gone_come_back_on_mariadb() {
    triggers_that_are_gone_come_back(Dialect::MySql).await;
}

/// A user without the privilege for triggers, as on a server with a binary log.
#[tokio::test]
async fn without_triggers_answers_are_right() {
    let server = TestServer::start_with(Dialect::MySql, None, &["log_bin=binlog"]);
    let options = server.database();
    let name = options.connection_string.rsplit('/').next().unwrap().to_owned();
    server.sql(&format!(
        "CREATE USER plain@'%' IDENTIFIED BY 'secret'; GRANT ALL ON {name}.* TO plain@'%'"
    ));
    let connection_string = options.connection_string.replace("tester:", "plain:");
    let options = Options { connection_string, ..options };
    each_write_is_in_the_next_answer(&options).await;
    let triggers =
        "SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_name LIKE 'port%'";
    assert_eq!(server.sql_in(&name, triggers), "0");
}

/// MySQL runs triggers as their creator: the next start recreates them as its own user,
/// and the previous user may be deleted.
#[tokio::test]
async fn a_start_under_another_user_makes_the_triggers_its_own() {
    let server = TestServer::start(Dialect::MySql);
    let options = server.database();
    server.sql("CREATE USER other@'%' IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO other@'%'");
    let ours = Instance::open(&options).await;
    take(&ours.store, presence("p", "v")).await;
    ours.close().await;
    let connection_string = options.connection_string.replace("tester:", "other:");
    let options = Options { connection_string, ..options };
    let next = Instance::open(&options).await;
    let name = options.connection_string.rsplit('/').next().unwrap();
    let definers = "SELECT DISTINCT definer FROM information_schema.triggers
        WHERE trigger_name LIKE 'portcullis%'";
    assert_eq!(server.sql_in(name, definers), "other@%");
    server.sql("DROP USER tester@'%'");
    take(&next.store, presence("p", "w")).await;
    assert_eq!(all(&next, &PRESENCES).await.into_iter().next(), Some(("p".into(), "w".into())));
    next.close().await;
}

/// Counter rows are compacted before they become many, and responses stay correct.
async fn the_table_of_changes_stays_short(dialect: Dialect) {
    let server = TestServer::shared(dialect);
    let options = server.database();
    let name = options.connection_string.rsplit('/').next().unwrap().to_owned();
    let ours = Instance::open(&options).await;
    let original = foreign(&options).await;
    for at in 0..600 {
        let sql = format!("INSERT INTO locks VALUES ('k{at}', 'o', 'v', 'presence', 1, 'i', 60)");
        original.execute(&sql, &[]).await.unwrap();
        if at % 100 == 0 {
            assert_eq!(all(&ours, &PRESENCES).await.len(), at + 1);
        }
    }
    assert_eq!(all(&ours, &PRESENCES).await.len(), 600);
    let rows = || number(&server.sql_in(&name, "SELECT COUNT(*) FROM lock_changes"));
    let short = async {
        while rows() > 300 {
            assert_eq!(all(&ours, &PRESENCES).await.len(), 600);
        }
    };
    timeout(PATIENCE, short).await.expect("in time");
    assert!(rows() > 0);
    ours.close().await;
}

#[tokio::test]
async fn the_table_of_changes_stays_short_on_postgres() {
    the_table_of_changes_stays_short(Dialect::Postgres).await;
}

#[tokio::test]
async fn the_table_of_changes_stays_short_on_mariadb() {
    the_table_of_changes_stays_short(Dialect::MySql).await;
}
