//! Operator interfaces: the debug address and the loggregator agent.

use std::{collections::BTreeSet, time::Duration};

use lock_server::{
    feed::{Event, Feed},
    grpc::Calls,
    report::{self, Report},
};
use proto::models::{FetchRequest, LockRequest, Resource};
use rcgen::SanType;
use runtime::{
    loggregator::{self, Agent, Envelope, Gauge, Message},
    server::{Grpc, Health, Listener},
    tls::{Alpn, ServerTls},
};
use serde_json::json;
use storage::server::Stats;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    PATIENCE,
    server::{Server, Site},
};

/// One plain HTTP request; returns the code and the whole response.
async fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer)
}

#[tokio::test]
async fn the_debug_address_answers_as_the_originals() {
    let site = Site::new();
    let mut config = site.config();
    config["debug_address"] = json!("127.0.0.1:0");
    let mut server = Server::start(site.command(&config));
    let line = server.line("locket.debug-server.bound");
    let debug = line["data"]["address"].as_str().unwrap().to_owned();

    let forms = ["debug", "INFO", "warn", "Error", "fatal", "d", "i", "W", "e", "f"];
    for level in forms.into_iter().chain(["0", "1", "2", "3", "4"]) {
        assert_eq!(http(&debug, "POST", "/log-level", level).await.0, 200, "{level}");
    }
    for (method, level) in
        [("POST", "loud"), ("POST", ""), ("POST", "5"), ("GET", "info"), ("PUT", "info")]
    {
        let (code, text) = http(&debug, method, "/log-level", level).await;
        assert!(code == 400 && !text.ends_with("\r\n\r\n"), "{method} {level}: {text}");
    }
    for path in ["/block-profile-rate", "/mutex-profile-fraction"] {
        assert_eq!(http(&debug, "POST", path, "1").await.0, 200, "{path}");
        assert_eq!(http(&debug, "POST", path, "often").await.0, 400, "{path}");
        assert_eq!(http(&debug, "POST", path, "").await.0, 400, "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(http(&debug, "GET", path, "").await.0, 200, "{path}");
    }
    for path in ["/", "/debug/pprof/", "/log-level/", "/nothing"] {
        assert_eq!(http(&debug, "GET", path, "").await.0, 404, "{path}");
    }

    // The new level is active: the lines of a request appear only at level debug.
    let mut client = site.client(&server.address);
    http(&debug, "POST", "/log-level", "error").await;
    client.fetch(FetchRequest { key: "unseen".to_owned() }).await.unwrap_err();
    http(&debug, "POST", "/log-level", "debug").await;
    client.fetch(FetchRequest { key: "seen".to_owned() }).await.unwrap_err();
    let line = server.line("locket.fetch.fetch-lock.failed-to-fetch-lock");
    assert_eq!(line["data"]["key"], "seen");
}

#[tokio::test]
async fn the_debug_address_answers_while_the_locks_are_loaded() {
    let site = Site::new();
    let mut config = site.config();
    config["debug_address"] = json!("127.0.0.1:0");
    config["database_driver"] = json!("postgres");
    // Nothing listens on port 1: the server waits for its database.
    config["database_connection_string"] = json!("postgres://locket@127.0.0.1:1/locket");
    config["db_start_timeout"] = json!("1h");
    let mut server = Server::spawn(site.command(&config));
    let line = server.line("locket.debug-server.bound");
    let debug = line["data"]["address"].as_str().unwrap().to_owned();
    assert_eq!(http(&debug, "GET", "/metrics", "").await.0, 200);
    let (code, text) = http(&debug, "GET", "/readyz", "").await;
    assert_eq!((code, text.contains("store: loading the locks")), (503, true), "{text}");
}

/// Name, unit, tags and value of a gauge.
fn gauge(envelope: &Envelope) -> ((String, String, Option<String>), f64) {
    let Some(Message::Gauge(Gauge { metrics })) = &envelope.message else {
        panic!("no gauge: {envelope:?}");
    };
    assert_eq!(metrics.len(), 1, "one metric an envelope");
    let (name, value) = metrics.first_key_value().unwrap();
    let request = envelope.tags.get("request-type").cloned();
    ((name.clone(), value.unit.clone(), request), value.value)
}

/// All metrics of one report, by docs/compatibility/locket.md#metrics.
fn of_one_report() -> BTreeSet<(String, String, Option<String>)> {
    let plain = |name: &str| (name.to_owned(), "Metric".to_owned(), None);
    let mut all = BTreeSet::from([plain("ActiveLocks"), plain("ActivePresences")]);
    for rpc in ["Lock", "Release", "Fetch", "FetchAll"] {
        for name in ["Started", "Succeeded", "Failed", "InFlight", "Cancelled"] {
            all.insert((format!("Requests{name}"), "Metric".to_owned(), Some(rpc.to_owned())));
        }
        all.insert(("RequestLatencyMax".to_owned(), "nanos".to_owned(), Some(rpc.to_owned())));
    }
    all
}

#[tokio::test(start_paused = true)]
async fn what_the_database_did_has_the_originals_names_and_units() {
    let (loggregator, mut queue) = loggregator::detached();
    let stats = || Stats {
        open: 3,
        waits: 5,
        waited: Duration::from_nanos(70),
        queries: 11,
        succeeded: 9,
        failed: 2,
        in_flight: 4,
        longest: Duration::from_nanos(13),
    };
    let interval = Duration::from_secs(60);
    let running = report::database(stats, Some(loggregator), interval, CancellationToken::new());
    let ran = timeout(Duration::from_secs(65), running).await;
    assert!(ran.is_err(), "it reports until shutdown");
    let mut found = BTreeSet::new();
    while let Ok(envelope) = queue.try_recv() {
        let ((name, unit, tag), value) = gauge(&envelope);
        assert!(tag.is_none() && found.insert(format!("{name} {unit} {value}")), "once");
    }
    let expected = [
        "DBOpenConnections Metric 3",
        "DBWaitCount Metric 5",
        "DBWaitDuration nanos 70",
        "DBQueriesTotal Metric 11",
        "DBQueriesSucceeded Metric 9",
        "DBQueriesFailed Metric 2",
        "DBQueriesInFlight Metric 4",
        "DBQueryDurationMax nanos 13",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
}

#[tokio::test(start_paused = true)]
async fn reports_have_the_originals_names_units_and_periods() {
    let (loggregator, mut queue) = loggregator::detached();
    let feed = Feed::default();
    let calls = std::sync::Arc::<Calls>::default();
    let interval = Duration::from_secs(60);
    let report = Report { loggregator, feed: feed.clone(), calls, interval };
    let shutdown = CancellationToken::new();
    let (held, gone) = (crate::support::held("a"), crate::support::held("b"));
    feed.publish(&Event::Acquired(held));
    feed.publish(&Event::Acquired(std::sync::Arc::clone(&gone)));
    feed.publish(&Event::Expired(gone));
    let running = report.run(shutdown.clone());
    let ran = timeout(Duration::from_secs(125), running).await;
    assert!(ran.is_err(), "it reports until shutdown");

    let mut envelopes = Vec::new();
    while let Ok(envelope) = queue.try_recv() {
        envelopes.push(gauge(&envelope));
    }
    let count = |name: &str| envelopes.iter().filter(|((found, ..), _)| found == name).count();
    let table = [
        ("ActiveLocks", 2),
        ("ActivePresences", 2),
        ("LocksExpired", 2),
        ("PresenceExpired", 2),
        ("RequestsStarted", 8),
        ("RequestLatencyMax", 8),
        ("memoryStats.numBytesAllocatedHeap", 12),
        ("memoryStats.numBytesAllocatedStack", 12),
        ("numGoRoutines", 12),
    ];
    for (name, times) in table {
        assert_eq!(count(name), times, "{name} in 125 seconds");
    }
    let value = |name: &str| envelopes.iter().find(|((found, ..), _)| found == name).unwrap().1;
    let is = |name: &str, expected: f64| assert!((value(name) - expected).abs() < 0.5, "{name}");
    is("ActiveLocks", 1.0);
    is("LocksExpired", 1.0);
    is("PresenceExpired", 0.0);
    assert!(value("memoryStats.numBytesAllocatedHeap") > 1e5);
    let units: BTreeSet<_> = envelopes.iter().map(|((name, unit, _), _)| (name, unit)).collect();
    assert!(units.contains(&(&"numGoRoutines".to_owned(), &"Count".to_owned())));
}

/// The process, and an agent over mutual TLS.
#[tokio::test]
async fn an_agent_gets_every_metric_of_the_first_report() {
    let site = Site::new();
    let files = site.authority.issue_with("metron", |params| {
        params.subject_alt_names = vec![SanType::DnsName("metron".try_into().unwrap())];
    });
    let listener = Listener::tcp("ingress", "127.0.0.1:0").await.unwrap();
    let (_, port) =
        listener.local_addr().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
    let agent = Agent::default();
    let tls = ServerTls::load(&files, Alpn::H2).unwrap();
    let ingress = Grpc::new(listener, Some(tls), &Health::new()).add(agent.clone());
    let mut ingresses = JoinSet::new();
    ingresses.spawn(ingress.serve(CancellationToken::new(), PATIENCE));

    let client = site.authority.client();
    let mut config = site.config();
    config["report_interval"] = json!("300ms");
    config["loggregator"] = json!({
        "loggregator_api_port": port.parse::<u16>().unwrap(),
        "loggregator_ca_path": client.ca, "loggregator_cert_path": client.cert,
        "loggregator_key_path": client.key, "loggregator_job_origin": "locket",
        "loggregator_source_id": "locket", "loggregator_instance_id": "7",
    });
    let mut server = Server::start(site.command(&config));
    let (key, owner) = ("k".to_owned(), "o".to_owned());
    let resource = Some(Resource { key, owner, type_code: 2, ..Resource::default() });
    let lock = LockRequest { resource, ttl_in_seconds: 60 };
    site.client(&server.address).lock(lock).await.unwrap();

    let told = |name: &str, request: Option<&str>, expected: f64| {
        agent.envelopes().iter().map(gauge).any(|((found, _, tag), value)| {
            found == name && tag.as_deref() == request && (value - expected).abs() < 0.5
        })
    };
    let enough = async {
        while !(told("ActivePresences", None, 1.0) && told("RequestsSucceeded", Some("Lock"), 1.0))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, enough).await.expect("the presence and its request are reported");
    let envelopes = agent.envelopes();
    let names: BTreeSet<_> = envelopes.iter().map(|envelope| gauge(envelope).0).collect();
    assert!(names.is_superset(&of_one_report()), "{names:?}");
    for envelope in &envelopes {
        assert_eq!(envelope.source_id, "locket");
        assert_eq!(envelope.instance_id, "7");
        assert_eq!(envelope.tags["origin"], "locket");
        assert!(envelope.timestamp > 1_500_000_000_000_000_000);
    }
    for notifier in ["lock-metrics-notifier", "request-metrics-notifier"] {
        let line = server.line(&format!("locket.{notifier}.starting"));
        assert_eq!(line["data"]["interval"], 300_000_000);
    }
}
