//! Every message of docs/compatibility/asg-syncer.md#logs, with its level and the keys
//! of its data: logged as documented, or listed as a difference in
//! docs/compatibility/asg-syncer.md#differences.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use runtime::{
    lager::{self, Level},
    server::Health,
};
use serde_json::Value;
use syncer::lease::{
    Times,
    keeper::{Fenced, Keeper, Settings},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{
    cloud::{Cloud, EARLY, LATE, Reply, STAMP, group, groups, page, stamp},
    data_of, ended,
    leader::Leader,
    locket::{LockServer, Mood, claim},
    log_options,
    store::PolicyStoreTwin,
    until,
};

/// Level, message, keys; additional keys of this syncer after a bar.
const WRITTEN: &str = "\
info locket-lock.started lock ttl_in_seconds session
info locket-lock.acquired-lock lock ttl_in_seconds session | fencing_token
info locket-lock.released-lock lock ttl_in_seconds session
info locket-lock.completed lock ttl_in_seconds session
info locket-lock.signalled lock ttl_in_seconds session signal
error locket-lock.failed-to-acquire-lock lock ttl_in_seconds session error lock-owner request-uuid duration
error locket-lock.lost-lock lock ttl_in_seconds session error request-uuid duration
error locket-lock.failed-fetching-lock-owner lock ttl_in_seconds session error
error locket-lock.failed-to-release-lock lock ttl_in_seconds session error
debug asg-sync-started
debug asg-sync-complete
debug initializing-lastSyncTime
debug get-token URL
info get-security-groups-last-update
info get-security-groups-last-update-not-found
debug get-security-groups-last-update-response last_update
debug skipping-update cc-latest-update-time local-latest-update-time
debug performing-update cc-latest-update-time local-latest-update-time | reason
info get-security-groups
info get-security-groups-attempt-pagination
debug get-security-groups-retry-loop attempt
debug get-security-groups-request page
debug get-security-groups-last-page page
info get-security-groups-with-page page
debug get-security-groups-with-page-request route
debug get-security-groups-with-page-response resources
debug get-security-groups-response response
debug get-security-groups-retry-loop-succeeded security-groups
debug get-security-groups-timestamps-match originalUpdatedAt newUpdatedAt
debug get-security-groups-timestamps-differ originalUpdatedAt newUpdatedAt
debug no-additional-security-groups
info successfully-fetched-security-groups count
debug successfully-sent-performance-metrics
debug updating-local-latest-update-time old-local-latest-update-time new-local-latest-update-time
debug updating-last-sync-time new-last-sync-time
debug cc-json-client.http-do body session
debug cc-internal-json-client.http-do body session
error cc-json-client.http-client body code error session
error cc-internal-json-client.http-client body code error session
error asg-sync-cycle error | retry_in_ms
";

/// Tested with whole processes: `starting-asg-syncer`, `exited`,
/// `exited-with-failure` (process.rs).
const NOT_WRITTEN: [&str; 5] = [
    "getting db connection",
    "db connection retrieved",
    "retrying due to getting an error",
    "error-closing-connection-pool",
    "time-metric-emitter.sending-metric",
];

const TIMES: Times =
    Times { ttl: Duration::from_millis(500), retry_interval: Duration::from_millis(100) };

/// A leader whose Cloud Controller fails in several ways, one after another.
async fn lead() {
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    let nowhere = Reply::text(404, "Unknown request");
    let oops = || Reply::text(500, "oops");
    // A poll; before, after: changed; before, after; two idle polls; a failure.
    let stamps = [EARLY, EARLY, LATE, LATE, LATE, EARLY].map(stamp);
    cloud.on(STAMP, stamps.into_iter().chain([oops(), nowhere]));
    let list = groups(&[group("a", "10.0.0.1")], false);
    let unlisted = Reply::text(200, "{}");
    cloud.on(&page(1), [list.clone(), list.clone(), oops(), unlisted, list]);
    let _leader = Leader::start(cloud.client(), store.client("me"), 1);
    until("a sync with trouble, one without a stamp", || store.writes().len() >= 2).await;
    cloud.on(STAMP, [stamp(EARLY)]);
    until("a third sync", || store.writes().len() >= 3).await;
    let polls = cloud.count(STAMP);
    until("idle polls", || cloud.count(STAMP) >= polls + 5).await;
}

/// A syncer that waits, leads, loses the lock, and is stopped while the lock server
/// fails.
async fn keep(log: &lager::Capture) {
    let server = LockServer::start(false).await;
    let keeper = || {
        let settings = Settings { claim: claim("me"), exit_on_loss: false };
        let component = Health::new().component("lock-server");
        Keeper::new(settings, server.pace(TIMES), None, component)
    };
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let shutdown = CancellationToken::new();
    server.give_to("somebody");
    server.with(|state| state.forgetful = true);
    tasks.spawn(keeper().run(shutdown.clone(), |_| std::future::pending::<Fenced>()));
    let told = |action: &'static str, count| {
        let message = format!("locket-lock.{action}");
        until(action, move || data_of(log, &message).len() >= count)
    };
    told("failed-to-acquire-lock", 1).await;
    server.with(|state| state.mood = Mood::Broken);
    told("failed-to-acquire-lock", 2).await;
    server.with(|state| state.mood = Mood::Normal);
    server.free();
    told("acquired-lock", 1).await;
    server.with(|state| state.mood = Mood::Broken);
    told("lost-lock", 1).await;
    server.with(|state| state.mood = Mood::Normal);
    told("acquired-lock", 2).await;
    server.with(|state| state.mood = Mood::Broken);
    shutdown.cancel();
    ended(&mut tasks).await.unwrap();
    server.with(|state| state.mood = Mood::Normal);
    let shutdown = CancellationToken::new();
    tasks.spawn(keeper().run(shutdown.clone(), |_| std::future::pending::<Fenced>()));
    told("acquired-lock", 3).await;
    shutdown.cancel();
    ended(&mut tasks).await.unwrap();
}

/// Level and keys by message.
fn told(log: &lager::Capture) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut told = BTreeMap::<_, (String, BTreeSet<String>)>::new();
    for line in log.lines() {
        let message = line["message"].as_str().unwrap();
        let action = message.strip_prefix("cfnetworking.policy-server-asg-syncer.").unwrap();
        let Value::Object(data) = &line["data"] else { panic!("{line}") };
        let entry = told.entry(action.to_owned()).or_default();
        // Stamp polls are logged at info once a minute, and at debug otherwise.
        if entry.0.is_empty() {
            line["level"].as_str().unwrap().clone_into(&mut entry.0);
        }
        entry.1.extend(data.keys().cloned());
    }
    told
}

#[tokio::test]
async fn every_message_has_the_keys_of_the_contract() {
    let (log, _control, _guard) = lager::capture(log_options(Level::Debug));
    lead().await;
    keep(&log).await;
    let mut told = told(&log);
    let mut wrong = Vec::new();
    for row in WRITTEN.lines() {
        let mut words = row.split_whitespace().filter(|word| *word != "|");
        let (level, message) = (words.next().unwrap(), words.next().unwrap());
        let expected = (level.to_owned(), words.map(str::to_owned).collect());
        match told.remove(message) {
            Some(found) if found == expected => {}
            found => wrong.push(format!("{row}: {found:?}")),
        }
    }
    assert_eq!(wrong, [""; 0], "{}", log.text());
}

#[test]
fn what_is_not_written_is_documented() {
    let page = include_str!("../../docs/compatibility/asg-syncer.md");
    let (_facts, text) = page.split_once("## Differences").expect("the page has differences");
    for message in NOT_WRITTEN {
        assert!(text.contains(&format!("`{message}`")), "{message}");
    }
}
