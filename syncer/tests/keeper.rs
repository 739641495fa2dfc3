//! The keeper against a lock server: terms, losses, and log lines.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use model::lock::Ttl;
use runtime::{
    lager::{self, Level},
    server::Health,
};
use serde_json::json;
use syncer::lease::{
    Times,
    keeper::{Fenced, Keeper, Pace, Settings, Term},
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::support::{
    data_of, ended,
    locket::{LockServer, Mood, claim},
    log_options, until,
};

const TIMES: Times =
    Times { ttl: Duration::from_millis(1_000), retry_interval: Duration::from_millis(200) };
/// Retry interval so long that only a watch can be in time.
const RARE: Times = Times { ttl: Duration::from_secs(40), retry_interval: Duration::from_secs(20) };

/// Event of the work, with its time.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Began { token: u64 },
    Ended,
}

#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<(Step, Instant)>>>);

impl Diary {
    fn write(&self, step: Step) {
        self.0.lock().unwrap().push((step, Instant::now()));
    }

    fn steps(&self) -> Vec<Step> {
        self.0.lock().unwrap().iter().map(|(step, _)| step.clone()).collect()
    }

    fn at(&self, index: usize) -> Instant {
        self.0.lock().unwrap()[index].1
    }
}

/// Records when the work is dropped.
struct OnDrop(Diary);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.write(Step::Ended);
    }
}

struct Running {
    diary: Diary,
    shutdown: CancellationToken,
    keeper: JoinSet<anyhow::Result<()>>,
    health: Health,
}

impl Running {
    fn start(server: &LockServer, owner: &str, times: Times) -> Self {
        Self::with(server, owner, times, false, |_| std::future::pending())
    }

    fn with<F: Future<Output = Fenced> + Send + 'static>(
        server: &LockServer,
        owner: &str,
        times: Times,
        exit_on_loss: bool,
        work: impl Fn(Term) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::with_paces(owner, (server.pace(times), None), exit_on_loss, work)
    }

    fn with_paces<F: Future<Output = Fenced> + Send + 'static>(
        owner: &str,
        (usual, with_tokens): (Pace, Option<Pace>),
        exit_on_loss: bool,
        work: impl Fn(Term) -> F + Send + Sync + 'static,
    ) -> Self {
        let claim = claim(owner);
        let health = Health::new();
        let component = health.component("lock-server");
        let settings = Settings { claim, exit_on_loss };
        let keeper = Keeper::new(settings, usual, with_tokens, component);
        let diary = Diary::default();
        let shutdown = CancellationToken::new();
        let mine = diary.clone();
        let lead = move |term: Term| {
            let diary = mine.clone();
            let work = work(term.clone());
            async move {
                diary.write(Step::Began { token: term.token().0 });
                let _on_drop = OnDrop(diary);
                work.await
            }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.run(shutdown.clone(), lead));
        Self { diary, shutdown, keeper: tasks, health }
    }

    async fn steps(&self, count: usize) -> Vec<Step> {
        let diary = self.diary.clone();
        until("steps of the work", || diary.steps().len() >= count).await;
        self.diary.steps()
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        ended(&mut self.keeper).await
    }
}

fn began(token: u64) -> Step {
    Step::Began { token }
}

#[tokio::test]
async fn the_lock_is_taken_at_once_and_given_back_after_the_work() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let server = LockServer::start(true).await;
    let running = Running::start(&server, "me", TIMES);
    assert_eq!(running.steps(1).await, [began(1)]);
    let diary = running.diary.clone();
    running.stop().await.unwrap();
    assert_eq!(diary.steps(), [began(1), Step::Ended]);
    server.with(|state| {
        assert_eq!(state.owner, None);
        assert_eq!(state.calls.last().unwrap().0, "release");
        let request = &state.requests[0];
        assert_eq!(request.ttl_in_seconds, 15);
        let resource = request.resource.clone().unwrap();
        assert_eq!(resource.key, "policy-server-asg-syncer");
        assert_eq!((resource.owner.as_str(), resource.type_code), ("me", 1));
        assert!(state.calls.iter().all(|(_, uuid)| uuid.len() == 36), "{:?}", state.calls);
    });
    let lock = json!({
        "key": "policy-server-asg-syncer", "owner": "me", "type": "lock", "type_code": 1,
    });
    for action in ["started", "acquired-lock", "signalled", "released-lock", "completed"] {
        let [data] = &data_of(&log, &format!("locket-lock.{action}"))[..] else {
            panic!("{action}: {}", log.text());
        };
        assert_eq!(data["lock"], lock, "{action}");
        assert_eq!(data["ttl_in_seconds"], 15, "{action}");
        assert!(data["session"].is_string(), "{action}");
    }
}

#[tokio::test]
async fn a_standby_logs_the_collision_once_and_waits() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let server = LockServer::start(false).await;
    server.give_to("somebody");
    let running = Running::start(&server, "me", TIMES);
    until("several tries", || {
        server.with(|state| state.calls.iter().filter(|(call, _)| *call == "lock").count() >= 4)
    })
    .await;
    assert_eq!(running.diary.steps(), []);
    let [data] = &data_of(&log, "locket-lock.failed-to-acquire-lock")[..] else {
        panic!("not one line: {}", log.text());
    };
    assert_eq!(data["error"], "rpc error: code = AlreadyExists desc = lock-collision");
    assert_eq!(data["lock-owner"], "somebody");
    assert_eq!(data["lock"]["owner"], "me");
    assert_eq!(data["lock"]["type_code"], 1);
    assert_eq!(data["ttl_in_seconds"], 15);
    let first = server.with(|state| state.calls[0].1.clone());
    assert_eq!(data["request-uuid"], first.as_str());
    let line = log.lines().into_iter().find(|line| line["data"] == *data).unwrap();
    assert_eq!(line["level"], "error");
}

#[tokio::test]
async fn a_standby_that_can_watch_takes_over_at_once() {
    let server = LockServer::start(true).await;
    server.give_to("somebody");
    let running = Running::start(&server, "me", RARE);
    until("a watch", || server.with(|state| state.calls.iter().any(|(call, _)| *call == "watch")))
        .await;
    let freed = Instant::now();
    server.free();
    assert_eq!(running.steps(1).await, [began(2)]);
    let took = running.diary.at(0) - freed;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_standby_of_a_genuine_locket_asks_at_intervals() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Debug));
    let server = LockServer::start(false).await;
    server.give_to("somebody");
    let running = Running::start(&server, "me", TIMES);
    until("a try to watch", || !data_of(&log, "locket-lock.lock-server-has-no-watch").is_empty())
        .await;
    server.free();
    assert_eq!(running.steps(1).await, [began(2)]);
    assert_eq!(data_of(&log, "locket-lock.lock-server-has-no-watch").len(), 1, "asked once");
}

#[tokio::test]
async fn no_answers_end_the_work_before_the_lock_could_be_given_away() {
    let server = LockServer::start(true).await;
    let running = Running::start(&server, "me", TIMES);
    running.steps(1).await;
    until("a renewal", || server.with(|state| state.granted.len() >= 2)).await;
    server.with(|state| state.mood = Mood::Silent);
    assert_eq!(running.steps(2).await, [began(1), Step::Ended]);
    // The server counts from the arrival of the request, which is later than the time of
    // sending.
    let last = server.with(|state| *state.granted.last().unwrap());
    let held = running.diary.at(1) - last;
    assert!(held < TIMES.ttl - TIMES.margin() / 2, "believed for {held:?}");
    server.with(|state| state.mood = Mood::Normal);
    assert_eq!(running.steps(3).await[2], began(1), "nobody else had it: the same token");
}

#[tokio::test]
async fn one_failed_renewal_is_no_loss() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let server = LockServer::start(true).await;
    let running = Running::start(&server, "me", TIMES);
    running.steps(1).await;
    server.with(|state| state.mood = Mood::Broken);
    until("a failure", || !data_of(&log, "locket-lock.failed-to-renew-lock").is_empty()).await;
    let renewed = server.with(|state| {
        state.mood = Mood::Normal;
        state.granted.len()
    });
    until("renewals", || server.with(|state| state.granted.len() >= renewed + 5)).await;
    assert_eq!(running.diary.steps(), [began(1)]);
    let data = &data_of(&log, "locket-lock.failed-to-renew-lock")[0];
    assert_eq!(data["error"], "rpc error: code = Unknown desc = sql-deadlock");
    assert!(data["duration"].is_u64());
}

#[tokio::test]
async fn a_collision_ends_the_term_and_the_process_stays() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let server = LockServer::start(true).await;
    let running = Running::start(&server, "me", TIMES);
    running.steps(1).await;
    server.give_to("somebody");
    assert_eq!(running.steps(2).await, [began(1), Step::Ended]);
    until("the collision", || !data_of(&log, "locket-lock.failed-to-acquire-lock").is_empty())
        .await;
    let lost = &data_of(&log, "locket-lock.lost-lock")[0];
    assert_eq!(lost["error"], "rpc error: code = AlreadyExists desc = lock-collision");
    server.free();
    assert_eq!(running.steps(3).await[2], began(3));
}

#[tokio::test]
async fn another_token_begins_another_term() {
    let server = LockServer::start(true).await;
    let running = Running::start(&server, "me", TIMES);
    running.steps(1).await;
    // Another owner held the lock between two renewals.
    server.with(|state| state.token = 7);
    assert_eq!(running.steps(3).await, [began(1), Step::Ended, began(7)]);
}

#[tokio::test]
async fn a_refusal_of_the_store_gives_the_lock_back() {
    let server = LockServer::start(true).await;
    let running = Running::with(&server, "me", TIMES, false, |_| async { Fenced });
    running.steps(2).await;
    until("a release", || {
        server.with(|state| state.calls.iter().any(|(call, _)| *call == "release"))
    })
    .await;
    // Standbys can claim first; then this process acquires it again.
    assert_eq!(running.steps(3).await[2], began(2));
    assert!(running.diary.at(2) - running.diary.at(1) >= TIMES.retry_interval);
}

#[tokio::test]
async fn a_lock_server_without_tokens_is_told_once() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let server = LockServer::start(false).await;
    server.with(|state| state.tokens = false);
    let running = Running::start(&server, "me", TIMES);
    running.steps(1).await;
    server.give_to("somebody");
    running.steps(2).await;
    server.free();
    assert_eq!(running.steps(3).await, [began(0), Step::Ended, began(0)]);
    assert_eq!(data_of(&log, "locket-lock.lock-server-without-fencing-tokens").len(), 1);
}

/// The time to live fits the kind of lock server that granted the last request: at once, without
/// waiting for the next renewal.
#[tokio::test]
async fn the_time_to_live_depends_on_whether_the_server_gives_tokens() {
    let server = LockServer::start(true).await;
    let usual = server.pace(RARE);
    let with_tokens = Pace { ttl: Ttl::try_from_seconds(5).unwrap(), ..server.pace(TIMES) };
    let paces = (usual, Some(with_tokens));
    let running = Running::with_paces("me", paces, false, |_| std::future::pending());
    let ttls = || {
        server.with(|state| {
            let ttls = state.requests.iter().map(|request| request.ttl_in_seconds);
            ttls.collect::<Vec<_>>()
        })
    };
    until("renewals", || ttls().len() >= 3).await;
    assert_eq!(ttls()[..3], [15, 5, 5]);
    assert_eq!(running.steps(1).await, [began(1)]);
    server.with(|state| {
        state.tokens = false;
        state.requests.clear();
    });
    until("a renewal at a server without tokens", || ttls().len() >= 2).await;
    assert_eq!(ttls()[..2], [5, 15]);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_panic_in_the_work_ends_the_keeper() {
    let server = LockServer::start(true).await;
    let work = |_| async { panic!("a defect") };
    let mut running = Running::with(&server, "me", TIMES, false, work);
    let outcome = ended(&mut running.keeper).await;
    assert!(outcome.unwrap_err().to_string().contains("the leader's work failed"));
    assert_eq!(server.with(|state| state.owner.clone()), None, "given back all the same");
}

#[tokio::test]
async fn the_originals_way_is_to_exit() {
    let server = LockServer::start(true).await;
    let work = |_| std::future::pending();
    let mut running = Running::with(&server, "me", TIMES, true, work);
    running.steps(1).await;
    server.give_to("somebody");
    let outcome = ended(&mut running.keeper).await;
    assert_eq!(outcome.unwrap_err().to_string(), "lost lock (request failed)");
}

#[tokio::test]
async fn of_five_one_leads_and_each_gets_its_turn() {
    let server = LockServer::start(true).await;
    let mut all: Vec<_> =
        ["a", "b", "c", "d", "e"].map(|owner| Running::start(&server, owner, TIMES)).into();
    while !all.is_empty() {
        let leads = |running: &Running| {
            running.diary.steps().last() == Some(&began(1))
                || matches!(running.diary.steps().last(), Some(Step::Began { .. }))
        };
        until("a leader", || all.iter().any(leads)).await;
        assert_eq!(all.iter().filter(|running| leads(running)).count(), 1);
        let leader = all.iter().position(leads).unwrap();
        all.swap_remove(leader).stop().await.unwrap();
    }
    assert_eq!(server.with(|state| state.token), 5);
}

/// Within a time to live, for leader and standby alike; a collision counts as a response.
#[tokio::test]
async fn a_process_that_cannot_reach_the_lock_server_is_not_ready() {
    let server = LockServer::start(true).await;
    let leader = Running::start(&server, "leader", TIMES);
    let health = leader.health.clone();
    assert!(!health.is_ready(), "nothing has answered yet");
    until("ready", || health.is_ready()).await;
    let standby = Running::start(&server, "standby", TIMES);
    let of_standby = standby.health.clone();
    until("a ready standby", || of_standby.is_ready()).await;
    for mood in [Mood::Broken, Mood::Silent] {
        server.with(|state| state.mood = mood);
        for health in [&health, &of_standby] {
            until("not ready", || !health.is_ready()).await;
            let [("lock-server", reason)] = &health.reasons()[..] else { panic!() };
            assert!(reason.starts_with("no answer of the lock server for 1s: "), "{reason}");
        }
        server.with(|state| state.mood = Mood::Normal);
        until("ready again", || health.is_ready() && of_standby.is_ready()).await;
    }
    leader.stop().await.unwrap();
    standby.stop().await.unwrap();
}
