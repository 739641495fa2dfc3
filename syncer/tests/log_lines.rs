//! The log of a first sync and of a poll without change, against a recording of
//! the original at level debug (fixtures/first-sync-debug.log).

use runtime::lager::{self, Level};
use serde_json::{Value, json};

use crate::support::{
    cloud::{Cloud, EARLY, STAMP, group, groups, page, stamp},
    data_of,
    leader::Leader,
    log_options,
    store::PolicyStoreTwin,
    until,
};

const RECORDING: &str = include_str!("fixtures/first-sync-debug.log");

/// Additional: the line `applied-security-groups` before the end of a sync, and the key
/// `reason`. Omitted: the request for a token while the cached one is valid. The order is
/// the recorded one.
fn expected() -> Vec<String> {
    let recorded: Vec<_> = RECORDING.lines().map(recorded).collect();
    let is = |action: &'static str| move |line: &String| line.starts_with(action);
    let polls = recorded.iter().position(is("debug asg-sync-started")).unwrap();
    let mut lines = Vec::new();
    let mut looked = false;
    for line in &recorded[polls..] {
        if line.starts_with("debug get-token") && lines.contains(line) {
            continue;
        }
        if line == "debug asg-sync-complete" && !lines.iter().any(is("info applied")) {
            lines.push(format!("info applied-security-groups {APPLIED}"));
        }
        // This syncer polls more often, and logs that at info once a minute.
        if line == LOOK && std::mem::replace(&mut looked, true) {
            lines.push(LOOK.replace("info", "debug"));
            continue;
        }
        let ours = if line.starts_with("debug performing-update") { " reason" } else { "" };
        lines.push(format!("{line}{ours}"));
    }
    lines
}

const LOOK: &str = "info get-security-groups-last-update";
const APPLIED: &str = "added added-guids changed fencing-token generation kept malformed read-ms reason \
                       removed store-ms trace_id unchanged watermark";

/// The recording has lines that were truncated because of their length.
fn recorded(line: &str) -> String {
    if let Ok(line) = serde_json::from_str(line) {
        return told(&line);
    }
    assert!(line.ends_with("(cut)"), "{line}");
    let level = between(line, r#""level":""#);
    let action = between(line, r#""message":"cfnetworking.policy-server-asg-syncer."#);
    let key = between(line, r#""data":{""#);
    let session = if action.contains("json-client") { " session" } else { "" };
    format!("{level} {action} {key}{session}")
}

fn between<'l>(line: &'l str, before: &str) -> &'l str {
    line.split_once(before).unwrap().1.split_once('"').unwrap().0
}

fn told(line: &Value) -> String {
    let message = line["message"].as_str().unwrap();
    let action = message.strip_prefix("cfnetworking.policy-server-asg-syncer.").unwrap();
    let keys = line["data"].as_object().unwrap().keys().map(String::as_str);
    let parts = [line["level"].as_str().unwrap(), action].into_iter().chain(keys);
    parts.collect::<Vec<_>>().join(" ")
}

/// The recording ends within the last of these.
const POLLS: usize = 8;

async fn first_sync(level: Level, groups_of: &[Value]) -> lager::Capture {
    let (log, _control, _guard) = lager::capture(log_options(level));
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    cloud.on(STAMP, [stamp(EARLY)]);
    cloud.on(&page(1), [groups(groups_of, false)]);
    let leader = Leader::start(cloud.client(), store.client("me"), 7);
    until("polls", || cloud.count(STAMP) >= POLLS + 4).await;
    drop(leader);
    log
}

#[tokio::test]
async fn a_first_sync_reads_as_the_originals() {
    let log = first_sync(Level::Debug, &[group("a", "10.88.139.92")]).await;
    let lines: Vec<_> = log.lines().iter().map(told).collect();
    let expected = expected();
    assert_eq!(expected.iter().filter(|line| *line == "debug asg-sync-started").count(), POLLS);
    assert_eq!(lines[..expected.len()], expected, "{}", log.text());
}

#[tokio::test]
async fn values_are_the_originals() {
    let log = first_sync(Level::Debug, &[group("a", "10.88.139.92")]).await;
    let only = |action: &str| data_of(&log, action).remove(0);
    let early = "2026-11-23T01:53:08.742529Z";
    assert_eq!(only("get-security-groups-last-update-response"), json!({"last_update": early}));
    let performing = only("performing-update");
    assert_eq!(performing["cc-latest-update-time"], early);
    assert_eq!(performing["local-latest-update-time"], "0001-01-01T00:00:00Z");
    assert_eq!(
        only("skipping-update"),
        json!({"cc-latest-update-time": early, "local-latest-update-time": early})
    );
    assert_eq!(only("get-security-groups-retry-loop"), json!({"attempt": 0}));
    assert_eq!(
        only("get-security-groups-with-page-request"),
        json!({"route": "/v3/security_groups?per_page=5000&page=1"})
    );
    let shown = json!([{
        "guid": "a", "name": "name-of-a",
        "globally_enabled": {"running": true, "staging": false},
        "rules": [{"protocol": "tcp", "destination": "10.88.139.92", "ports": "443", "type": 0,
                   "code": 0, "description": "", "log": false}],
        "relationships": {"staging_spaces": {"data": []},
                          "running_spaces": {"data": [{"guid": "s1"}]}},
    }]);
    assert_eq!(only("get-security-groups-retry-loop-succeeded"), json!({"security-groups": shown}));
    assert_eq!(only("get-security-groups-with-page-response"), json!({"resources": shown}));
    assert_eq!(only("get-security-groups-response"), json!({"response": shown}));
    assert_eq!(only("successfully-fetched-security-groups"), json!({"count": 1}));
    // The keys of a group have the original's order, and & is escaped.
    let text = log.text();
    assert!(text.contains(r#"{"security-groups":[{"guid":"a","name":"name-of-a","globally_enabled":{"running":true,"staging":false},"rules":[{"protocol":"tcp","destination":"10.88.139.92","ports":"443","type":0,"code":0,"description":"","log":false}],"relationships":{"staging_spaces":{"data":[]},"running_spaces":{"data":[{"guid":"s1"}]}}}]}"#));
    assert!(text.contains(r"/v3/security_groups?per_page=5000\u0026page=1"));
    let applied = only("applied-security-groups");
    assert_eq!((&applied["added"], &applied["fencing-token"]), (&json!(1), &json!(7)));
    assert_eq!(applied["watermark"], early);
}

#[tokio::test]
async fn at_level_info_an_idle_poll_is_silent_for_a_minute() {
    let log = first_sync(Level::Info, &[group("a", "10.88.139.92")]).await;
    let lines: Vec<_> = log.lines().iter().map(told).collect();
    let synced = lines.iter().position(|line| line.contains("applied-security-groups")).unwrap();
    assert_eq!(lines[synced + 1..], [""; 0]);
    assert_eq!(lines.iter().filter(|line| *line == LOOK).count(), 1);
    assert!(!log.text().contains("10.88.139.92"), "no rules in the log");
}
