//! The whole process: configuration, certificates, signals, the debug server.

use std::{collections::BTreeMap, fs, net::UdpSocket, process::Command, time::Duration};

use prost::Message as _;
use runtime::{dropsonde::Envelope, metrics::Family};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::support::{
    certificates::issue,
    cloud::{Cloud, EARLY, LATE, Reply, STAMP, group, groups, page, stamp},
    process::{Syncer, World},
    store::Write,
    until,
};

async fn sync_now(syncer: &Syncer) -> (u16, Value) {
    let url = format!("{}/sync-now", syncer.url().await);
    let response = reqwest::Client::new().post(url).send().await.unwrap();
    (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
}

async fn get(url: &str) -> (u16, String) {
    let response = reqwest::get(url).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_when_the_leader_is_told_to_stop() {
    let world = World::start().await;
    world.cloud.on(STAMP, [stamp(EARLY)]);
    world.cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
    let mut leader = world.run("first");
    let applied = leader.until_told("applied-security-groups").await;
    assert_eq!((&applied["added"], &applied["fencing-token"]), (&json!(1), &json!(1)));
    let standby = world.run("second");
    let collision = standby.until_told("locket-lock.failed-to-acquire-lock").await;
    assert_eq!(collision["error"], "rpc error: code = AlreadyExists desc = lock-collision");
    assert_eq!(collision["lock-owner"], "first");
    assert_eq!(collision["session"], "4", "as in the original");
    for syncer in [&leader, &standby] {
        assert_eq!(get(&format!("{}/readyz", syncer.url().await)).await.0, 200);
    }
    let metrics = get(&format!("{}/metrics", leader.url().await)).await.1;
    for line in ["syncer_lease_held 1", "syncer_groups 1", "syncer_generation 1"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    for name in [
        "syncer_last_success_timestamp_seconds",
        "syncer_watermark_age_seconds",
        "syncer_cycle_duration_seconds_bucket",
        "syncer_polls_total",
        "syncer_fencing_token",
    ] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
    until("the standby watches", || {
        world.locks.with(|state| state.calls.iter().any(|(call, _)| *call == "watch"))
    })
    .await;
    world.cloud.on(STAMP, [stamp(LATE)]);
    let stopped = Instant::now();
    leader.signal("-TERM");
    until("the standby's first write", || {
        world.store.writes().last().is_some_and(|write| write.begin.owner == "second")
    })
    .await;
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(leader.ended().await.code(), Some(0));
    assert_eq!(leader.told("exited").len(), 1);
    assert_eq!(world.store.writes().last().unwrap().begin.fencing_token, 2);
}

/// Without watch and without fencing tokens: logged once; the lock is acquired, renewed
/// and released, and claimed at intervals.
#[tokio::test(flavor = "multi_thread")]
async fn a_genuine_locket_is_enough() {
    let world = World::with_locket(false).await;
    world.cloud.on(STAMP, [stamp(EARLY)]);
    world.cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
    let brief = |uuid: &str| {
        let mut config = world.config(uuid);
        config["lock_ttl_seconds"] = json!(4);
        config["lock_retry_interval_seconds"] = json!(1);
        Syncer::start(world.folder.path(), uuid, &config)
    };
    let mut leader = brief("first");
    let applied = leader.until_told("applied-security-groups").await;
    assert_eq!(applied["fencing-token"], 0);
    let standby = brief("second");
    standby.until_told("locket-lock.failed-to-acquire-lock").await;
    until("renewals", || world.locks.with(|state| state.granted.len() >= 3)).await;
    leader.signal("-TERM");
    assert_eq!(leader.ended().await.code(), Some(0));
    assert_eq!(leader.told("locket-lock.lock-server-without-fencing-tokens").len(), 1);
    assert_eq!(leader.told("locket-lock.released-lock").len(), 1);
    standby.until_told("applied-security-groups").await;
    let writes = world.store.writes();
    let tokens = |write: &Write| write.begin.fencing_token;
    assert!(writes.iter().all(|write| tokens(write) == 0), "{writes:?}");
    assert_eq!(writes.last().unwrap().begin.owner, "second");
    assert_eq!(standby.told("locket-lock.failed-to-acquire-lock").len(), 1);
}

/// The lines of a start, with their keys, as recorded from the original.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_reads_as_the_originals() {
    let world = World::start().await;
    world.cloud.on(STAMP, [Reply::text(503, "not yet")]);
    let syncer = world.run("first");
    let recording = include_str!("fixtures/first-sync-debug.log");
    let mut compared = 0;
    for line in recording.lines().take(5) {
        let recorded: Value = serde_json::from_str(line).unwrap();
        let message = recorded["message"].as_str().unwrap();
        let action = message.strip_prefix("cfnetworking.policy-server-asg-syncer.").unwrap();
        if action.contains("db connection") {
            continue;
        }
        compared += 1;
        let mut data = syncer.until_told(action).await;
        let mut recorded = recorded["data"].clone();
        for (data, owner) in [(&mut data, "first"), (&mut recorded, "bench-uuid")] {
            if let Some(lock) = data.get_mut("lock") {
                assert_eq!(lock["owner"].take(), owner);
            }
            if let Some(interval) = data.get_mut("interval") {
                assert!(interval.take().is_u64());
            }
            data.as_object_mut().unwrap().remove("fencing_token");
        }
        assert_eq!(data, recorded, "{action}");
    }
    assert_eq!(compared, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_go_to_metron_by_the_originals_names() {
    let world = World::start().await;
    world.cloud.on(STAMP, [stamp(EARLY)]);
    world.cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
    world.store.with(|state| state.failures = vec![Status::unavailable("away")]);
    let metron = UdpSocket::bind("127.0.0.1:0").unwrap();
    metron.set_nonblocking(true).unwrap();
    let mut config = world.config("only");
    config["metron_address"] = json!(metron.local_addr().unwrap().to_string());
    let syncer = Syncer::start(world.folder.path(), "only", &config);
    let mut told = BTreeMap::<_, u32>::new();
    until("a success after an error", || {
        let mut bytes = [0; 1 << 12];
        while let Ok(length) = metron.recv(&mut bytes) {
            let envelope = Envelope::decode(&bytes[..length]).unwrap();
            assert_eq!(envelope.origin, "policy-server-asg-syncer");
            let Envelope { value_metric, counter_event, .. } = envelope;
            let value = value_metric.map(|metric| (metric.name, metric.unit));
            let event = counter_event.map(|event| (event.name, event.delta.to_string()));
            *told.entry(value.or(event).unwrap()).or_insert(0) += 1;
        }
        // The last line of a sync, for the second time.
        told.get(&key("SecurityGroupsTotalSyncTime", "ms")) == Some(&2)
    })
    .await;
    let count = |name: &str, unit: &str| told.get(&key(name, unit)).copied();
    assert_eq!(count("SecurityGroupsStoreReplaceErrorTime", "ms"), Some(1));
    assert_eq!(count("SecurityGroupsStoreReplaceError", "1"), Some(1));
    assert_eq!(count("SecurityGroupsStoreReplaceSuccessTime", "ms"), Some(1));
    assert_eq!(count("SecurityGroupsRetrievalFromCCTime", "ms"), Some(2));
    assert!(count("numGoRoutines", "count") >= Some(1));
    let metrics = get(&format!("{}/metrics", syncer.url().await)).await.1;
    for name in [
        "syncer_cycle_duration_seconds_count{step=\"read\"} 2",
        "syncer_cycle_duration_seconds_count{step=\"store-failed\"} 1",
        "syncer_cycle_duration_seconds_count{step=\"store\"} 1",
        "syncer_cycle_duration_seconds_count{step=\"total\"} 2",
        "syncer_failures_total{cause=\"store\"} 1",
    ] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
    assert!(!metrics.contains("SecurityGroups"), "the original's names: {metrics}");
}

fn key(name: &str, unit: &str) -> (String, String) {
    (name.to_owned(), unit.to_owned())
}

/// Metrics of a standby, before any event.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_exists_from_the_start() {
    let world = World::start().await;
    world.locks.give_to("somebody");
    let standby = world.run("standby");
    standby.until_told("locket-lock.failed-to-acquire-lock").await;
    let metrics = get(&format!("{}/metrics", standby.url().await)).await.1;
    for Family { name, help, .. } in syncer::metrics::FAMILIES {
        let family = format!("# HELP {name} {help}\n# TYPE {name} ");
        assert!(metrics.contains(&family), "{name} is not in {metrics}");
    }
    for series in [
        r#"syncer_failures_total{cause="refused"} 0"#,
        r#"syncer_polls_total{outcome="synced"} 0"#,
        "syncer_lost_locks_total 0",
    ] {
        assert!(metrics.contains(series), "{series} is not in {metrics}");
    }
}

/// A user and a password in the URL of UAA, at level debug and with every error.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_url_is_in_no_log_line() {
    let world = World::start().await;
    world.cloud.on(STAMP, [stamp(EARLY)]);
    world.cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
    let mut config = world.config("only");
    config["log_level"] = json!("debug");
    for key in ["uaa_url", "cc_url", "cc_internal_url"] {
        let url = config[key].as_str().unwrap().replace("://", "://somebody:pa55word@");
        config[key] = json!(url);
    }
    let syncer = Syncer::start(world.folder.path(), "only", &config);
    syncer.until_told("applied-security-groups").await;
    let to = "http://somebody:pa55word@127.0.0.1:1/x";
    world.cloud.on(STAMP, [Reply::text(302, "").header("location", to)]);
    syncer.until_told("asg-sync-cycle").await;
    let (_, failed) = sync_now(&syncer).await;
    for text in [fs::read_to_string(&syncer.log).unwrap(), failed.to_string()] {
        assert!(!text.contains("pa55word") && !text.contains("somebody"), "{text}");
    }
    let called = world.cloud.calls();
    let several =
        |name: &str| called.iter().any(|call| call.headers.get_all(name).iter().count() > 1);
    assert!(!several("authorization"), "one of the URL besides that of the token");
}

/// The level is changed at runtime.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_is_a_request_to_the_debug_server() {
    let world = World::start().await;
    world.cloud.on(STAMP, [stamp(EARLY)]);
    world.cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
    let syncer = world.run("only");
    syncer.until_told("applied-security-groups").await;
    assert_eq!(syncer.told("skipping-update"), [] as [Value; 0]);
    let url = format!("{}/log-level", syncer.url().await);
    let answer = reqwest::Client::new().post(url).body("debug").send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
    syncer.until_told("skipping-update").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_now_is_a_request_to_the_debug_server() {
    let world = World::start().await;
    world.cloud.on(STAMP, [stamp(EARLY)]);
    world.cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
    let syncer = world.run("only");
    syncer.until_told("applied-security-groups").await;
    let standby = world.run("standby");
    let (status, applied) = sync_now(&syncer).await;
    assert_eq!((status, &applied["applied"]["reason"]), (200, &json!("requested")));
    assert_eq!(syncer.told("applied-security-groups")[1], applied["applied"]);
    let writes = world.store.writes();
    let [first, second] = &writes[..] else { panic!("{writes:?}") };
    let trace = applied["applied"]["trace_id"].as_str().unwrap();
    assert!(second.begin.traceparent.starts_with(&format!("00-{trace}-")), "{second:?}");
    assert_ne!(first.begin.traceparent, second.begin.traceparent, "each sync has its own");
    let times = |write: &Write| {
        [write.begin.noticed_at, write.begin.read_at]
            .map(|time| time.map(|time| (time.seconds, time.nanos)).unwrap())
    };
    assert!(times(first).is_sorted() && times(first)[1] < times(second)[0], "{writes:?}");
    let (status, refused) = sync_now(&standby).await;
    assert_eq!((status, &refused["error"]), (409, &json!("this syncer does not lead")));
    world.cloud.on(STAMP, [Reply::text(500, "oops")]);
    let (status, failed) = sync_now(&syncer).await;
    assert_eq!(status, 502);
    assert!(failed["error"].as_str().unwrap().ends_with("http status 500: oops"), "{failed}");
}

#[tokio::test]
async fn what_cannot_be_used_ends_it_with_a_reason() {
    let world = World::start().await;
    let mut config = world.config("bad");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config["debug_server_port"] = json!(taken.local_addr().unwrap().port());
    let mut syncer = Syncer::start(world.folder.path(), "bad", &config);
    assert_eq!(syncer.ended().await.code(), Some(1));
    let error = syncer.told("exited-with-failure").remove(0)["error"].to_string();
    assert!(error.contains("admin: listening on") && error.contains("in use"), "{error}");

    let empty = world.folder.path().join("empty.json");
    fs::write(&empty, "{}").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_syncer"))
        .arg("-config-file")
        .arg(&empty)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let prefix = "cfnetworking.policy-server-asg-syncer: could not read config file: ";
    assert!(stderr.lines().count() > 10 && stderr.lines().all(|line| line.starts_with(prefix)));
}

const GROUPS: usize = 13_500;
const MOST_KIB: u64 = 64 * 1024;

/// A page of large groups: 20 rules and about three bindings each. `version`
/// changes the content of one group in ten.
fn large_page(from: usize, to: usize, version: usize) -> Reply {
    let mut body = String::from(r#"{"resources":["#);
    for number in from..to {
        let port = if number % 10 == 0 { version } else { 0 };
        let rule = format!(
            r#"{{"protocol":"tcp","destination":"10.{}.{}.0/24","ports":"8000-{}","description":"service {number}","log":false}}"#,
            number / 256 % 256,
            number % 256,
            9000 + port,
        );
        let rules = vec![rule; 20].join(",");
        let space = |n: usize| format!(r#"{{"guid":"1d0d9cf0-0000-4000-8000-{:012x}"}}"#, n);
        let comma = if number + 1 == to { "" } else { "," };
        body += &format!(
            r#"{{"guid":"5b8d9cf0-0000-4000-8000-{number:012x}","created_at":"2026-11-23T01:53:08Z","updated_at":"2026-11-23T01:53:08Z","name":"group-{number}","globally_enabled":{{"running":false,"staging":false}},"rules":[{rules}],"relationships":{{"running_spaces":{{"data":[{},{}]}},"staging_spaces":{{"data":[{}]}}}},"links":{{"self":{{"href":"https://api.example.org/v3/security_groups/5b8d9cf0-0000-4000-8000-{number:012x}"}}}}}}{comma}"#,
            space(number),
            space(number + 1),
            space(number + 2),
        );
    }
    let next = if to < GROUPS { r#"{"href":"https://api.example.org/next"}"# } else { "null" };
    Reply::text(200, &format!(r#"{body}],"pagination":{{"next":{next}}}}}"#))
}

fn large_list(cloud: &Cloud, version: usize) {
    for (number, from) in (1..).zip((0..GROUPS).step_by(5_000)) {
        cloud.on(&page(number), [large_page(from, GROUPS.min(from + 5_000), version)]);
    }
}

/// 13,500 groups with 270,000 rules and 40,500 bindings (50 MB of JSON) in at most
/// 64 MiB, in any build profile.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_foundation_fits_into_little_memory() {
    let world = World::start().await;
    world.cloud.on(STAMP, [stamp(EARLY)]);
    large_list(&world.cloud, 0);
    let syncer = world.run("large");
    let patient = |writes| {
        let store = &world.store;
        async move {
            let deadline = Instant::now() + Duration::from_secs(120);
            while store.writes().len() < writes {
                assert!(Instant::now() < deadline, "no write {writes} in time");
                sleep(Duration::from_millis(20)).await;
            }
        }
    };
    patient(1).await;
    let first = syncer.peak();
    large_list(&world.cloud, 1);
    world.cloud.on(STAMP, [stamp(LATE)]);
    patient(2).await;
    let peak = syncer.peak();
    let writes = world.store.writes();
    assert_eq!((writes[0].sent.len(), writes[1].sent.len()), (GROUPS, GROUPS / 10));
    println!("peak {first} KiB after the first sync, {peak} KiB after a change");
    for applied in syncer.told("applied-security-groups") {
        println!("{applied}");
    }
    assert!(peak <= MOST_KIB, "{peak} KiB");
}

/// Log and readiness name the files of each client.
#[tokio::test(flavor = "multi_thread")]
async fn without_usable_certificates_it_starts_and_waits_for_them() {
    let world = World::start().await;
    world.cloud.on(STAMP, [stamp(EARLY)]);
    world.cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
    let mut config = world.config("only");
    let mut broken = Vec::new();
    for (client, prefix) in [
        ("lock-server", "locket_client"),
        ("policy-store", "policy_store_client"),
        ("cc-internal", "cc_internal_client"),
    ] {
        let files = issue(&world.authority, world.folder.path(), client);
        let text = fs::read_to_string(&files.cert).unwrap();
        fs::write(&files.cert, &text[..text.len() / 2]).unwrap();
        let suffix = if client == "cc-internal" { "" } else { "_file" };
        config[format!("{prefix}_cert{suffix}")] = json!(files.cert);
        config[format!("{prefix}_key{suffix}")] = json!(files.key);
        broken.push((client, files, text));
    }
    let missing = world.folder.path().join("authorities.pem");
    config["uaa_ca"] = json!(missing);
    config["lock_retry_interval_seconds"] = json!(1);
    let syncer = Syncer::start(world.folder.path(), "only", &config);
    let url = syncer.url().await;
    let (code, reasons) = get(&format!("{url}/readyz")).await;
    assert_eq!(code, 503);
    for client in ["lock-server", "policy-store", "cc-internal"] {
        assert!(reasons.contains(&format!("{client}-certificate: parsing")), "{reasons}");
    }
    assert!(reasons.contains("cc-authorities: reading"), "{reasons}");
    until("a line for each client", || {
        let lines = syncer.told("certificate-unusable");
        broken
            .iter()
            .all(|(client, ..)| lines.iter().any(|line| line["tls"] == format!("{client}-client")))
    })
    .await;
    for (_, files, text) in &broken {
        fs::write(&files.cert, text).unwrap();
    }
    fs::write(&missing, &world.authority.pem).unwrap();
    syncer.until_told("applied-security-groups").await;
    let ready = format!("{url}/readyz");
    let deadline = Instant::now() + Duration::from_secs(20);
    while get(&ready).await.0 != 200 {
        assert!(Instant::now() < deadline, "{}", get(&ready).await.1);
        sleep(Duration::from_millis(50)).await;
    }
    let metrics = get(&format!("{url}/metrics")).await.1;
    for tls in ["lock-server-client", "policy-store-client", "cc-internal-client"] {
        for file in ["cert", "ca"] {
            let series = format!(
                "syncer_certificate_expiry_timestamp_seconds{{tls=\"{tls}\",file=\"{file}\"}}"
            );
            assert!(metrics.contains(&series), "{series} is not in {metrics}");
        }
    }
}
