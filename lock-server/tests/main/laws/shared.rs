//! The history of two instances on one database: one instance crashes, or the
//! database does.

use std::sync::{Arc, atomic::Ordering};

use proptest::prelude::*;
use storage::{
    server::{Dialect, Options},
    testing::TestServer,
};
use tokio::task::JoinSet;

use super::history::{Answer, Call, Entry, KEYS, OWNERS, Recorder, Script, check, lives};
use crate::support::Instance;

async fn look(recorder: &Recorder, instance: &Instance) {
    for on in KEYS {
        recorder.call(&instance.store, on, "", Call::Look).await;
        recorder.call(&instance.store, on, "", Call::LookAll).await;
    }
}

/// Every client uses one of the two instances; the first crashes after this number of
/// responses, with all calls that are in flight there.
async fn live(options: &Options, lives: Vec<(Vec<Script>, u64)>) -> Vec<Entry> {
    let recorder = Arc::new(Recorder::default());
    let stays = Instance::open(options).await;
    for (scripts, crash_after) in lives {
        let crashes = Instance::open(options).await;
        look(&recorder, &crashes).await;
        let (mut doomed, mut clients) = (JoinSet::new(), JoinSet::new());
        let born = recorder.clock.load(Ordering::SeqCst);
        for (number, (by, script)) in OWNERS.into_iter().cycle().zip(scripts).enumerate() {
            let is_doomed = number % 2 == 0;
            let store = if is_doomed { crashes.store.clone() } else { stays.store.clone() };
            let recorder = Arc::clone(&recorder);
            let client = async move {
                for (on, call) in script {
                    recorder.call(&store, on, by, call).await;
                }
            };
            if is_doomed {
                doomed.spawn(client)
            } else {
                clients.spawn(client)
            };
        }
        while !doomed.is_empty() && recorder.clock.load(Ordering::SeqCst) < born + crash_after {
            tokio::select! {
                _ = doomed.join_next() => {}
                () = tokio::task::yield_now() => {}
            }
        }
        doomed.shutdown().await;
        crashes.crash().await;
        while clients.join_next().await.is_some() {}
    }
    look(&recorder, &stays).await;
    stays.close().await;
    let history = recorder.history.lock().unwrap();
    history.clone()
}

fn hold(dialect: Dialect, lives: Vec<(Vec<Script>, u64)>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = TestServer::shared(dialect).database();
    let history = runtime.block_on(live(&options, lives));
    if let Err(problem) = check(&history) {
        panic!("{problem}\n{history:#?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn two_instances_on_postgres_keep_the_laws(lives in lives()) {
        hold(Dialect::Postgres, lives);
    }

    #[test]
    fn two_instances_on_mariadb_keep_the_laws(lives in lives()) {
        hold(Dialect::MySql, lives);
    }
}

/// The database is killed under load and restarts.
async fn the_database_crashes(dialect: Dialect) {
    let server = TestServer::start(dialect);
    let options = server.database();
    let instances = [Instance::open(&options).await, Instance::open(&options).await];
    let recorder = Arc::new(Recorder::default());
    let mut clients = JoinSet::new();
    for number in 0..6 {
        let (recorder, store) = (Arc::clone(&recorder), instances[number % 2].store.clone());
        clients.spawn(async move {
            for step in 0..60 {
                let call = match (number + step) % 5 {
                    0 | 1 => Call::Claim { changes: step % 2 == 0 },
                    2 => Call::Look,
                    3 => Call::LookAll,
                    _ => Call::Release,
                };
                recorder.call(&store, KEYS[step % 2], OWNERS[number % 3], call).await;
            }
        });
    }
    while recorder.clock.load(Ordering::SeqCst) < 150 {
        tokio::task::yield_now().await;
    }
    server.kill();
    server.restart();
    let back = recorder.tick();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    look(&recorder, &instances[0]).await;
    let mut history = recorder.history.lock().unwrap().clone();
    if dialect == Dialect::MySql {
        // InnoDB shows a commit to others shortly before it is on the disk: a version read
        // before the crash may be lost, unless its claim was acknowledged. Several clients have
        // the same owner, so a client may read an unacknowledged version of its own owner.
        let is_claim = |entry: &&Entry| matches!(entry.call, Call::Claim { .. });
        let of_owner = |entry: &&Entry| matches!(entry.answer, Answer::LockVersion(owner, _) if owner == entry.owner);
        let claims = history.iter().filter(is_claim).filter(of_owner);
        let acknowledged: Vec<_> = claims.map(|entry| (entry.key, entry.answer)).collect();
        for entry in history.iter_mut().filter(|entry| entry.begin < back) {
            let is_version = matches!(entry.answer, Answer::LockVersion(..));
            if is_version && !acknowledged.contains(&(entry.key, entry.answer)) {
                *entry = Entry { answer: Answer::Unknown, end: u64::MAX, ..*entry };
            }
        }
    }
    if let Err(problem) = check(&history) {
        panic!("{problem}\n{history:#?}");
    }
    for instance in instances {
        instance.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_postgres_loses_nothing() {
    the_database_crashes(Dialect::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_mariadb_loses_nothing() {
    the_database_crashes(Dialect::MySql).await;
}
