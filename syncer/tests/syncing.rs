//! Leaders against a store: writes, kept groups, fencing.

use std::time::Duration;

use proto::policy_v1::status_response::Writer;
use runtime::lager::{self, Level};
use serde_json::{Value, json};
use syncer::{
    lease::keeper::Fenced,
    poll::{Settings, sync_now::Outcome},
};
use tonic::Status;

use crate::support::{
    cloud::{Cloud, EARLY, LATE, Reply, STAMP, group, groups, page, stamp},
    data_of, ended,
    leader::{Leader, SETTINGS},
    log_options,
    store::PolicyStoreTwin,
    until,
};

const THIRD: &str = "2026-11-23T01:53:10.5Z";

fn malformed(guid: &str) -> Value {
    json!({"guid": guid, "name": format!("name-of-{guid}"), "rules": [{"ports": 80}]})
}

struct World {
    cloud: Cloud,
    store: PolicyStoreTwin,
}

impl World {
    async fn start() -> Self {
        Self { cloud: Cloud::start().await, store: PolicyStoreTwin::start().await }
    }

    /// Sets the groups of the Cloud Controller, and its stamp.
    fn set(&self, at: &str, list: &[Value]) {
        self.cloud.on(&page(1), [groups(list, false)]);
        self.cloud.on(STAMP, [stamp(at)]);
    }

    fn lead(&self, token: u64) -> Leader {
        Leader::start(self.cloud.client(), self.store.client("me"), token)
    }

    async fn writes(&self, count: usize) {
        until("writes", || self.store.writes().len() >= count).await;
    }

    fn names(&self) -> Vec<String> {
        self.store.with(|state| state.names().iter().map(|name| (*name).to_owned()).collect())
    }
}

#[tokio::test]
async fn a_write_carries_owner_token_and_watermark() {
    let world = World::start().await;
    world.set(EARLY, &[group("b", "10.0.0.1"), group("a", "10.0.0.1")]);
    let _leader = world.lead(7);
    world.writes(1).await;
    let write = world.store.writes().remove(0);
    assert_eq!((write.begin.owner.as_str(), write.begin.fencing_token), ("me", 7));
    let watermark = write.begin.watermark.unwrap();
    assert_eq!((watermark.seconds, watermark.nanos), (1_795_398_788, 742_529_000));
    assert!(!write.begin.allow_mass_removal);
    assert_eq!(write.guids, ["b", "a"], "the Cloud Controller's order");
    assert_eq!(write.sent, ["b", "a"]);
}

#[tokio::test]
async fn only_what_changed_is_sent() {
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1"), group("b", "10.0.0.1")]);
    let mut leader = world.lead(1);
    world.writes(1).await;
    world.set(LATE, &[group("a", "10.0.0.1"), group("b", "10.0.0.2")]);
    world.writes(2).await;
    assert_eq!(world.store.writes()[1].sent, ["b"]);
    // A new term has no state, but the store does.
    leader.begin_term(2);
    world.writes(3).await;
    assert_eq!(world.store.writes()[2].sent, [""; 0]);
    assert_eq!(world.store.with(|state| state.lists), 0, "nobody had to ask");
}

#[tokio::test]
async fn a_malformed_group_keeps_its_last_good_version() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1"), group("b", "10.0.0.1")]);
    let mut leader = world.lead(1);
    world.writes(1).await;
    let before = world.store.with(|state| state.groups.clone());
    world.set(LATE, &[malformed("b"), malformed("never-seen"), group("a", "10.0.0.2")]);
    world.writes(2).await;
    assert_eq!(world.names(), ["a", "b"]);
    let after = world.store.with(|state| state.groups.clone());
    let (a, b) = (before.keys().next().unwrap(), before.keys().last().unwrap());
    assert_eq!(after[b], before[b]);
    assert_ne!(after[a], before[a], "the others go on");
    assert_eq!(world.store.with(|state| state.lists), 0, "what it wrote it knows");
    // After a restart it has to list the store, once.
    leader.begin_term(2);
    world.writes(3).await;
    assert_eq!(world.names(), ["a", "b"]);
    assert_eq!(world.store.with(|state| state.lists), 1);
    world.set(THIRD, &[malformed("b"), group("a", "10.0.0.2")]);
    world.writes(4).await;
    assert_eq!(world.names(), ["a", "b"]);
    assert_eq!(world.store.with(|state| state.lists), 1);

    let told = data_of(&log, "malformed-security-group");
    assert_eq!(
        (told[0]["guid"].as_str(), told[0]["name"].as_str()),
        (Some("b"), Some("name-of-b"))
    );
    assert!(told[0]["error"].as_str().unwrap().starts_with("rules: rule 1: ports: "));
    let applied = data_of(&log, "applied-security-groups");
    assert_eq!((&applied[1]["malformed"], &applied[1]["kept"]), (&json!(2), &json!(1)));
}

/// The known content of the store stays known when the Cloud Controller fails.
#[tokio::test]
async fn a_failed_reading_costs_no_listing_of_the_store() {
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1"), group("b", "10.0.0.1")]);
    let _leader = world.lead(1);
    world.writes(1).await;
    let broken = Reply::text(500, "oops");
    let list = groups(&[malformed("b"), group("a", "10.0.0.2")], false);
    world.cloud.on(&page(1), [broken.clone(), broken.clone(), broken, list]);
    world.cloud.on(STAMP, [stamp(LATE)]);
    world.writes(2).await;
    assert_eq!(world.names(), ["a", "b"]);
    assert_eq!(world.store.with(|state| state.lists), 0);
}

/// More groups than a page of List, so that the listing is paged.
#[tokio::test]
async fn a_group_without_guid_holds_back_every_removal() {
    let world = World::start().await;
    let many: Vec<_> = (0..1_200).map(|n| group(&format!("g{n:04}"), "10.0.0.1")).collect();
    world.set(EARLY, &many);
    let mut leader = world.lead(1);
    world.writes(1).await;
    world.set(LATE, &[json!({"name": "nobody"}), group("new", "10.0.0.1")]);
    leader.begin_term(2);
    world.writes(2).await;
    assert_eq!(world.names().len(), 1_201);
    assert_eq!(world.store.with(|state| state.lists), 3);
    world.set(THIRD, &many[1..]);
    world.writes(3).await;
    assert_eq!(world.names().len(), 1_199, "removals go on when the list is whole");
}

#[tokio::test]
async fn a_list_that_shrank_to_nothing_is_stopped_by_the_stores_guard() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let world = World::start().await;
    let many: Vec<_> = (0..60).map(|n| group(&format!("g{n:02}"), "10.0.0.1")).collect();
    world.set(EARLY, &many);
    let leader = world.lead(1);
    world.writes(1).await;
    world.set(LATE, &[]);
    until("a refusal", || !data_of(&log, "asg-sync-cycle").is_empty()).await;
    let error = data_of(&log, "asg-sync-cycle")[0]["error"].clone();
    assert_eq!(
        error,
        "the policy store refused the security groups: too much would be removed; if the Cloud \
         Controller's list is right, `portcullisctl sync --accept-removal NUMBER`, with the number \
         of groups to remove, lets it pass once"
    );
    assert_eq!(data_of(&log, "reading-empty-list-again").len(), 1);
    assert_eq!(world.names().len(), 60);
    assert_eq!(leader.work.len(), 1, "it still leads");
    // A failed sync is not remembered: it is retried until it succeeds.
    world.set(LATE, &many[..59]);
    world.writes(2).await;
    assert_eq!(world.names().len(), 59);
}

/// Tokens: the leader's, and that of another owner that wrote before.
#[tokio::test]
async fn a_leader_whose_token_is_not_the_newest_stops() {
    for (token, newest) in [(8, 9), (8, 8), (0, 1)] {
        let world = World::start().await;
        world.set(EARLY, &[group("a", "10.0.0.1")]);
        let writer = Writer { owner: "another".to_owned(), fencing_token: newest };
        world.store.with(|state| state.writer = writer);
        let mut leader = world.lead(token);
        assert_eq!(ended(&mut leader.work).await, Fenced, "{token} {newest}");
        assert_eq!(world.store.writes(), []);
    }
}

#[tokio::test]
async fn without_tokens_anybody_who_leads_may_write() {
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1")]);
    let writer = Writer { owner: "another".to_owned(), fencing_token: 0 };
    world.store.with(|state| state.writer = writer);
    let _leader = world.lead(0);
    world.writes(1).await;
}

#[tokio::test]
async fn nothing_is_committed_after_the_lease() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1")]);
    let leader = world.lead(1);
    leader.outlive();
    until("the end of the lease", || !data_of(&log, "asg-sync-cycle").is_empty()).await;
    assert_eq!(data_of(&log, "asg-sync-cycle")[0]["error"], "the lease ended before the commit");
    assert_eq!(world.store.writes(), []);
}

/// Law 4: only stamps that the store has confirmed are remembered.
#[tokio::test]
async fn a_failed_write_is_repeated() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1")]);
    let failures = vec![Status::unavailable("away"), Status::internal("confused")];
    world.store.with(|state| state.failures = failures);
    let _leader = world.lead(1);
    world.writes(1).await;
    let errors = data_of(&log, "asg-sync-cycle");
    assert_eq!(errors[0]["error"], "Replace: rpc error: code = Internal desc = confused");
    assert_eq!(errors[1]["error"], "Replace: rpc error: code = Unavailable desc = away");
    assert!(errors[0]["retry_in_ms"].is_u64());
}

/// The store was emptied by another program: the known content is outdated.
#[tokio::test]
async fn a_store_that_forgot_gets_everything_again() {
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1"), group("b", "10.0.0.1")]);
    let _leader = world.lead(1);
    world.writes(1).await;
    world.store.with(|state| state.groups.clear());
    world.set(LATE, &[group("a", "10.0.0.1"), group("b", "10.0.0.2")]);
    world.writes(2).await;
    assert_eq!(world.names(), ["a", "b"]);
}

#[tokio::test]
async fn a_leader_that_cannot_keep_up_is_unhealthy_and_a_standby_is_not() {
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1")]);
    world.cloud.on(STAMP, [Reply::text(500, "down")]);
    let settings = Settings { retry_deadline: Duration::from_millis(300), ..SETTINGS };
    let mut leader = Leader::with(settings, world.cloud.client(), world.store.client("me"), 1);
    assert!(leader.health.is_ready(), "it has time to begin");
    let health = leader.health.clone();
    until("no longer healthy", || !health.is_ready()).await;
    let [("sync", reason)] = &health.reasons()[..] else { panic!("{:?}", health.reasons()) };
    assert!(reason.starts_with("no good poll for 300ms: getting the last update"), "{reason}");
    world.set(EARLY, &[group("a", "10.0.0.1")]);
    until("healthy again", || health.is_ready()).await;
    world.cloud.on(STAMP, [Reply::text(500, "down")]);
    until("no longer healthy", || !health.is_ready()).await;
    leader.work.shutdown().await;
    assert!(health.is_ready(), "a standby");
}

#[tokio::test]
async fn an_unstable_list_is_an_error_only_after_the_deadline() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1")]);
    let moving = (0..1_000).map(|n| stamp(&format!("2026-11-23T01:53:10.{n:03}Z")));
    world.cloud.on(STAMP, moving);
    let settings = Settings { retry_deadline: Duration::from_secs(1), ..SETTINGS };
    let _leader = Leader::with(settings, world.cloud.client(), world.store.client("me"), 1);
    until("an error", || !data_of(&log, "asg-sync-cycle").is_empty()).await;
    assert!(!data_of(&log, "security-groups-list-unstable").is_empty());
    assert_eq!(
        data_of(&log, "asg-sync-cycle")[0]["error"],
        "unable to retrieve a consistent listing of security groups from CAPI after '1s': \
         getting the security groups: last_update time has changed"
    );
}

#[tokio::test]
async fn sync_now_reads_the_list_though_nothing_moved() {
    let world = World::start().await;
    world.set(EARLY, &[group("a", "10.0.0.1")]);
    let settings = Settings {
        intervals: syncer::poll::schedule::Intervals {
            poll: Duration::from_secs(600),
            poll_share: 0,
            ..SETTINGS.intervals
        },
        ..SETTINGS
    };
    let leader = Leader::with(settings, world.cloud.client(), world.store.client("me"), 1);
    world.writes(1).await;
    let Outcome::Applied(applied) = leader.sync_now.ask().await else { panic!("not applied") };
    assert_eq!((applied.reason, applied.unchanged, applied.fencing_token), ("requested", 1, 1));
    world.writes(2).await;

    // A failure is also returned at once, and does not wait for the next poll.
    world.cloud.on(STAMP, [Reply::text(500, "oops")]);
    let Outcome::Failed { error, .. } = leader.sync_now.ask().await else { panic!("applied") };
    assert!(error.ends_with("http status 500: oops"), "{error}");
    let (sync_now, question) = (leader.sync_now.clone(), leader.sync_now.clone());
    world.cloud.on(STAMP, [stamp(EARLY).after(Duration::from_secs(60))]);
    let mut asking = tokio::task::JoinSet::new();
    asking.spawn(async move { question.ask().await });
    let before = world.cloud.count(STAMP);
    until("the poll", || world.cloud.count(STAMP) > before).await;
    drop(leader);
    assert_eq!(ended(&mut asking).await, Outcome::LeadershipEnded);
    assert_eq!(sync_now.ask().await, Outcome::NotLeading);
}

#[tokio::test]
async fn whole_second_stamps_are_read_again_once() {
    let world = World::start().await;
    world.set("2026-11-23T01:53:08.000000000+00:00", &[group("a", "10.0.0.1")]);
    let _leader = world.lead(1);
    world.writes(1).await;
    // A second change within the tick: the stamp is the same.
    world.cloud.on(&page(1), [groups(&[group("a", "10.0.0.2")], false)]);
    world.writes(2).await;
    assert_eq!(world.store.writes()[1].sent, ["a"]);
    let before = world.cloud.count(STAMP);
    until("more polls", || world.cloud.count(STAMP) > before + 20).await;
    assert_eq!(world.store.writes().len(), 2);
}
