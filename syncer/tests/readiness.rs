//! `/readyz` of leaders and standbys.

use std::time::Duration;

use runtime::server::Health;
use syncer::poll::Settings;
use tokio::time::{Instant, sleep};

use crate::support::{
    cloud::{Cloud, EARLY, Reply, STAMP, group, groups, page, stamp},
    leader::{Leader, SETTINGS},
    store::PolicyStoreTwin,
    until,
};

const BOUND: Duration = Duration::from_millis(600);

async fn leader(cloud: &Cloud, store: &PolicyStoreTwin) -> Leader {
    cloud.on(STAMP, [stamp(EARLY)]);
    cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
    let settings = Settings { max_staleness: BOUND, ..SETTINGS };
    let leader = Leader::with(settings, cloud.client(), store.client("me"), 1);
    until("a write", || !store.writes().is_empty()).await;
    leader
}

fn reason(health: &Health, component: &str) -> Option<String> {
    let reasons = health.reasons().into_iter();
    reasons.filter(|(name, _)| *name == component).map(|(_, reason)| reason).next()
}

/// The timeouts of the calls are far longer than the bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_cloud_controller_hangs_is_not_ready() {
    for call in [STAMP.to_owned(), page(1)] {
        let (cloud, store) = (Cloud::start().await, PolicyStoreTwin::start().await);
        let leader = leader(&cloud, &store).await;
        assert!(leader.health.is_ready(), "{:?}", leader.health.reasons());
        let never = Duration::from_secs(3600);
        cloud.on(&call, [Reply::text(200, "{}").after(never)]);
        if call != STAMP {
            cloud.on(STAMP, [stamp("2026-11-23T01:53:10.5Z")]);
        }
        let health = leader.health.clone();
        until("not ready", || !health.is_ready()).await;
        assert_eq!(
            reason(&health, "sync").unwrap(),
            "no good poll for 600ms: the Cloud Controller does not answer"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_polls_fail_is_not_ready_until_one_goes_well() {
    let (cloud, store) = (Cloud::start().await, PolicyStoreTwin::start().await);
    let leader = leader(&cloud, &store).await;
    cloud.on(STAMP, [Reply::text(500, "down")]);
    let health = leader.health.clone();
    until("not ready", || !health.is_ready()).await;
    let told = reason(&health, "sync").unwrap();
    assert!(told.ends_with("http status 500: down"), "{told}");
    cloud.on(STAMP, [stamp(EARLY)]);
    until("ready", || health.is_ready()).await;
}

/// Each page takes half of the bound, all pages several times the bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_that_arrives_page_by_page_leaves_it_ready() {
    let (cloud, store) = (Cloud::start().await, PolicyStoreTwin::start().await);
    let leader = leader(&cloud, &store).await;
    for number in 1..=6 {
        let list = groups(&[group(&format!("g{number}"), "10.0.0.1")], number < 6);
        cloud.on(&page(number), [list.after(BOUND / 2)]);
    }
    cloud.on(STAMP, [stamp("2026-11-23T01:53:10.5Z")]);
    let began = Instant::now();
    while store.writes().len() < 2 {
        assert!(leader.health.is_ready(), "{:?}", leader.health.reasons());
        assert!(began.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() > 2 * BOUND);
}

/// Also without changes, hence without writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_store_is_away_is_not_ready() {
    let (cloud, store) = (Cloud::start().await, PolicyStoreTwin::start().await);
    let mut leader = leader(&cloud, &store).await;
    let health = leader.health.clone();
    sleep(2 * BOUND).await;
    assert!(health.is_ready(), "{:?}", health.reasons());
    drop(store);
    until("not ready", || !health.is_ready()).await;
    let told = reason(&health, "policy-store").unwrap();
    assert!(told.starts_with("no answer of the policy store for 600ms: Status: "), "{told}");
    leader.work.shutdown().await;
    assert!(health.is_ready(), "a standby: {:?}", health.reasons());
}
