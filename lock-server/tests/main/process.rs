//! The process: start, failed starts, crashes, shutdown.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::signal::Signal;
use proto::models::{
    FetchAllRequest, FetchRequest, LockRequest, ReleaseRequest, Resource,
    locket_client::LocketClient,
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::{Code, transport::Channel};

use crate::support::{
    PATIENCE,
    server::{BINARY, Server, Site},
};

fn resource(key: &str, owner: &str) -> Option<Resource> {
    Some(Resource {
        key: key.to_owned(),
        owner: owner.to_owned(),
        type_code: 1,
        ..Resource::default()
    })
}

fn lock(key: &str, owner: &str, ttl: i64) -> LockRequest {
    LockRequest { resource: resource(key, owner), ttl_in_seconds: ttl }
}

async fn fetch(client: &mut LocketClient<Channel>, key: &str) -> Option<Resource> {
    match client.fetch(FetchRequest { key: key.to_owned() }).await {
        Ok(answer) => answer.into_inner().resource,
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => panic!("{status}"),
    }
}

/// Runs a server whose start fails; returns its exit code and output.
fn refuses(site: &Site, config: &Value) -> (Option<i32>, String, Vec<Value>) {
    let output = site.command(config).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code(), String::from_utf8(output.stderr).unwrap(), lines)
}

#[test]
fn a_bad_configuration_is_refused_with_everything_that_is_wrong() {
    let site = Site::new();
    let config = json!({
        "database_driver": "oracle",
        "database_connection_string": "",
        "log_level": "loud",
        "db_operation_timeout": 10,
    });
    let (code, stderr, lines) = refuses(&site, &config);
    assert_eq!(code, Some(2));
    assert_eq!(lines, Vec::<Value>::new());
    for key in [
        "ca_file",
        "cert_file",
        "key_file",
        "database_driver",
        "database_connection_string",
        "log_level",
        "db_operation_timeout",
    ] {
        let problem = |line: &&str| line.starts_with("invalid-config-file: ") && line.contains(key);
        assert_eq!(stderr.lines().filter(problem).count(), 1, "{key} in {stderr}");
    }
}

#[test]
fn without_a_configuration_there_is_no_start() {
    let site = Site::new();
    let missing = site.path("missing.json");
    for arguments in [vec![], vec![format!("-config={}", missing.display())]] {
        let output = Command::new(BINARY).args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with("invalid-config-file: "), "{stderr}");
    }
}

/// The log lines and exit codes of docs/compatibility/locket.md#configuration.
#[test]
fn what_fails_later_is_a_log_line_and_an_exit_code() {
    let site = Site::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::fs::write(site.path("not-a-database"), "x".repeat(8192)).unwrap();
    let database = |path: &std::path::Path| json!(path);
    let (nowhere, not_one) = (site.path("nowhere/locket.db"), site.path("not-a-database"));
    let connection = "database_connection_string";
    let table = [
        ("listen_address", json!(address), "exited-with-failure", 1, "in use"),
        ("debug_address", json!(address), "exited-with-failure", 1, "in use"),
        (connection, database(&nowhere), "sql-failed-to-connect", 2, "nowhere/locket.db"),
        (connection, database(&not_one), "sql-failed-to-connect", 2, "not a database"),
    ];
    for (key, value, message, exit, said) in table {
        let mut config = site.config();
        config[key] = value;
        let (code, _, lines) = refuses(&site, &config);
        assert_eq!(code, Some(exit), "{key}");
        let last = lines.last().expect("a line");
        assert_eq!(last["message"], format!("locket.{message}"));
        assert_eq!(last["level"], if exit == 2 { "fatal" } else { "error" });
        let listening =
            lines.iter().any(|line| line["message"] == "locket.grpc-server.failed-to-listen");
        assert_eq!(listening, key == "listen_address");
        let error = last["data"]["error"].as_str().unwrap();
        assert!(error.contains(said), "{key}: {error}");
    }
}

#[test]
fn one_database_has_one_server() {
    let site = Site::new();
    let _first = site.start();
    let (code, _, lines) = refuses(&site, &site.config());
    assert_eq!(code, Some(2));
    let error = lines.last().unwrap()["data"]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("in use by another process"), "{error}");
}

/// Keys of the original's job template without a meaning here cause no warning.
#[test]
fn the_configuration_of_the_original_is_understood() {
    let site = Site::new();
    let mut config = site.config();
    let of_the_template = json!({
        "DEBUG_ADDRESS": "127.0.0.1:0",
        "max_open_database_connections": 200,
        "max_database_connection_lifetime": "1h",
        "report_interval": "1m",
        "db_operation_timeout": "10s",
        "enable_db_health_check": false,
        "loggregator": {"loggregator_api_port": 3458, "loggregator_job_origin": "locket"},
        "something_else": null,
        "typo": 1,
    });
    config.as_object_mut().unwrap().extend(of_the_template.as_object().unwrap().clone());
    let mut server = Server::start(site.command(&config));
    let unknown = server.line("locket.unknown-config-keys");
    assert_eq!(unknown["data"]["keys"], json!(["something_else", "typo"]));
}

#[tokio::test]
async fn the_last_line_of_the_start_is_started_and_sigterm_ends_it() {
    let site = Site::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = site.start();
        let mut client = site.client(&server.address);
        client.lock(lock("k", "o", 60)).await.unwrap();
        server.signal(signal);
        let (status, lines) = server.end().await;
        assert_eq!(status.code(), Some(0), "{lines:#?}");
        let said = |message| lines.iter().find(|line| line["message"] == message).unwrap();
        let signalled = said("locket.grpc-server.signalled");
        assert_eq!(signalled["data"]["signal"], signal as i32);
        assert_eq!(said("locket.grpc-server.complete")["level"], "info");
    }
    let server = site.start();
    let held = fetch(&mut site.client(&server.address), "k").await;
    assert_eq!(held.unwrap().owner, "o", "the end keeps locks");
    assert!(
        !site.path("locket.db-wal").exists() || {
            let log = std::fs::metadata(site.path("locket.db-wal")).unwrap();
            log.len() == 0
        }
    );
}

/// SIGTERM while watches are open and handles of the store are alive.
#[tokio::test]
async fn open_watches_do_not_hold_up_the_end() {
    use proto::lock_v1::{
        WatchRequest, lock_watch_client::LockWatchClient, watch_request::Selector,
    };
    let site = Site::new();
    let server = site.start();
    let mut watching = LockWatchClient::new(site.channel(&server.address));
    let selector = Some(Selector::TypeCode(1));
    let mut stream = watching.watch(WatchRequest { selector }).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    let ended = timeout(PATIENCE, stream.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    let (status, _) = server.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_restart_grants_the_full_time_to_live() {
    let site = Site::new();
    let server = site.start();
    let mut client = site.client(&server.address);
    client.lock(lock("k", "o", 3)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.kill();
    let server = site.start();
    let restarted = Instant::now();
    let mut client = site.client(&server.address);
    assert!(fetch(&mut client, "k").await.is_some());
    let gone = timeout(PATIENCE, async { while fetch(&mut client, "k").await.is_some() {} });
    gone.await.unwrap();
    let lived = restarted.elapsed();
    assert!(lived > Duration::from_millis(2_500), "{lived:?}");
    assert!(lived < Duration::from_secs(6), "{lived:?}");
}

/// Acknowledged calls by key: the token, and whether the lock must be held.
type Acknowledged = Arc<Mutex<BTreeMap<String, (u64, bool)>>>;

/// Takes keys of its own and releases every third, until the server dies.
async fn load(mut client: LocketClient<Channel>, who: String, done: Acknowledged) {
    for number in 0.. {
        let key = format!("{who}-{number}");
        let Ok(answer) = client.lock(lock(&key, &who, 600)).await else { return };
        let token = answer.into_inner().fencing_token;
        done.lock().unwrap().insert(key.clone(), (token, true));
        if number % 3 == 0 {
            // Both outcomes are valid while the call is in flight.
            done.lock().unwrap().remove(&key);
            let released = client.release(ReleaseRequest { resource: resource(&key, &who) }).await;
            if released.is_err() {
                return;
            }
            done.lock().unwrap().insert(key, (token, false));
        }
    }
}

#[tokio::test]
async fn a_kill_in_the_middle_of_the_load_loses_nothing_that_was_acknowledged() {
    let site = Site::new();
    let done = Acknowledged::default();
    for round in 0..3 {
        let server = site.start();
        let mut clients = JoinSet::new();
        for number in 0..16 {
            let client = site.client(&server.address);
            clients.spawn(load(client, format!("{round}-{number}"), Arc::clone(&done)));
        }
        let target = (round + 1) * 200;
        let enough = timeout(PATIENCE, async {
            while done.lock().unwrap().len() < target {
                tokio::task::yield_now().await;
            }
        });
        enough.await.unwrap();
        server.kill();
        while clients.join_next().await.is_some() {}
    }

    let server = site.start();
    let mut client = site.client(&server.address);
    let all = client.fetch_all(FetchAllRequest { type_code: 1, ..Default::default() });
    let resources = all.await.unwrap().into_inner().resources;
    let held: BTreeMap<_, _> = resources.into_iter().map(|r| (r.key, r.owner)).collect();
    let done = done.lock().unwrap().clone();
    for (key, (token, is_held)) in &done {
        let owner = key.rsplit_once('-').unwrap().0;
        assert_eq!(held.get(key).map(String::as_str), is_held.then_some(owner), "{key}");
        assert_eq!(*token, 1);
    }
    let released = done.iter().find(|(_, (_, is_held))| !is_held).unwrap().0;
    let answer = client.lock(lock(released, "next", 60)).await.unwrap().into_inner();
    assert_eq!(answer.fencing_token, 2, "the token outlives the lock and the process");
}

/// A separate file system that is really full.
#[tokio::test]
async fn a_full_disk_is_unavailable_and_heals() {
    let site = Site::new();
    let disk = site.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mut config = site.config();
    config["database_connection_string"] = json!(disk.join("locket.db"));
    let script = "mount -t tmpfs -o size=400k tmpfs \"$1\" && exec \"$2\" -config=\"$3\"";
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(&disk)
        .arg(BINARY)
        .arg(site.write(&config))
        .stderr(Stdio::inherit());
    let mut server = Server::start(command);
    let mut client = site.client(&server.address);

    let mut keys = Vec::new();
    let refused = loop {
        let key = format!("k{}", keys.len());
        let mut request = lock(&key, "o", 600);
        request.resource.as_mut().unwrap().value = "x".repeat(4_000);
        match client.lock(request).await {
            Ok(_) => keys.push(key),
            Err(status) => break status,
        }
        assert!(keys.len() < 1_000, "the disk never fills");
    };
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.message(), "the store does not take the change");
    let line = server.line("locket.lock.failed-locking-lock");
    assert!(line["data"]["error"].as_str().unwrap().contains("the disk is full"), "{line}");

    // Acknowledged locks are held, refused ones are not, and refreshes succeed.
    assert!(fetch(&mut client, &format!("k{}", keys.len())).await.is_none());
    let collision = client.lock(lock("k0", "other", 60)).await.unwrap_err();
    assert_eq!(collision.code(), Code::AlreadyExists);
    let mut same = lock("k0", "o", 600);
    same.resource.as_mut().unwrap().value = "x".repeat(4_000);
    client.lock(same).await.unwrap();
    for key in &keys {
        assert!(fetch(&mut client, key).await.is_some(), "{key}");
    }
    server.signal(Signal::SIGTERM);
    let (status, lines) = server.end().await;
    assert!(status.code().is_some(), "{lines:#?}");
}

/// One GET over plain HTTP.
async fn get(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn operators_see_health_and_counts() {
    let site = Site::new();
    let mut config = site.config();
    config["debug_address"] = json!("127.0.0.1:0");
    let mut server = Server::start(site.command(&config));
    let line = server.line("locket.debug-server.bound");
    let debug = line["data"]["address"].as_str().unwrap().to_owned();
    assert!(get(&debug, "/readyz").await.starts_with("HTTP/1.1 200"));

    let mut client = site.client(&server.address);
    client.lock(lock("a", "o", 60)).await.unwrap();
    client.lock(lock("b", "o", 60)).await.unwrap();
    client.lock(lock("b", "p", 60)).await.unwrap_err();
    client.lock(lock("b", "", 60)).await.unwrap_err();
    client.release(ReleaseRequest { resource: resource("a", "o") }).await.unwrap();
    let metrics = get(&debug, "/metrics").await;
    for line in [
        "lock_server_active_locks 1",
        "lock_server_active_presences 0",
        "lock_server_locks_expired_total 0",
        "lock_server_requests_started_total{request_type=\"Lock\"} 4",
        "lock_server_requests_succeeded_total{request_type=\"Lock\"} 3",
        "lock_server_requests_failed_total{request_type=\"Lock\"} 1",
        "lock_server_requests_succeeded_total{request_type=\"Release\"} 1",
        "lock_server_requests_failed_total{request_type=\"FetchAll\"} 0",
        "lock_server_requests_in_flight{request_type=\"Lock\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
    assert!(metrics.contains("lock_server_request_seconds_count{request_type=\"Lock\"} 4"));
}
