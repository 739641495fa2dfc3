//! The metrics, under the original's names and under the Portcullis names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::UdpSocket,
    time::Duration,
};

use prost::Message as _;
use reqwest::Method;
use runtime::dropsonde::Envelope;
use serde_json::json;
use storage::{server::Dialect, testing::TestServer};

use crate::support::{
    client::{Cell, replace},
    http::Poller,
    original::{Original, Version},
    process::Program,
    sets::{fenced, named},
    site::Site,
    until,
};

/// Received metrics with their unit; counters have none.
type Heard = BTreeMap<String, String>;

/// Listens until no further expected metric arrives.
fn receive(agent: &UdpSocket, expected: &Heard) -> Heard {
    let mut heard = Heard::new();
    while expected.keys().any(|name| !heard.contains_key(name)) {
        let mut datagram = [0; 2_048];
        let length = agent.recv(&mut datagram).unwrap_or_else(|error| {
            panic!("{error}: not all of {expected:?} came, only {heard:?}");
        });
        let envelope = Envelope::decode(&datagram[..length]).unwrap();
        assert_eq!(envelope.origin, "policy-server-internal");
        match (envelope.value_metric, envelope.counter_event) {
            (Some(value), None) => _ = heard.insert(value.name, value.unit),
            (None, Some(counter)) => _ = heard.insert(counter.name, "counter".to_owned()),
            other => panic!("{other:?}"),
        }
    }
    heard
}

fn metrics(table: &[(&str, &str)]) -> Heard {
    table.iter().map(|(name, unit)| ((*name).to_owned(), (*unit).to_owned())).collect()
}

/// Contracts/policy-server.md 4.6: periodic metrics, and those of each request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_gets_the_originals_metrics() {
    let agent = UdpSocket::bind("127.0.0.1:0").unwrap();
    agent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let site = Site::on(TestServer::shared(Dialect::Postgres));
    let mut config = site.config();
    config["metron_address"] = json!(agent.local_addr().unwrap());
    let program = tokio::task::block_in_place(|| Program::start_with(&site, &config));
    let by_itself = metrics(&[
        ("uptime", "seconds"),
        ("totalPolicies", ""),
        ("DBOpenConnections", ""),
        ("DBQueriesTotal", ""),
        ("DBQueriesSucceeded", ""),
        ("DBQueriesFailed", ""),
        ("DBQueriesInFlight", ""),
        ("DBQueryDurationMax", "seconds"),
        ("numCPUS", "count"),
        ("numGoRoutines", "count"),
        ("memoryStats.numBytesAllocatedHeap", "count"),
        ("memoryStats.numBytesAllocatedStack", "count"),
        ("memoryStats.numBytesAllocated", "count"),
    ]);
    assert_eq!(receive(&agent, &by_itself), by_itself);

    let writer = site.client(&program.address, "syncer", None);
    replace(&writer, &fenced(&named(3, "x"), "syncer-a", 1)).await.unwrap();
    let poller = Poller::new(&site, &program.internal(), "agent");
    let path = |rest: &str| format!("/networking/v1/internal/{rest}");
    let store = "SecurityGroupsStoreBySpaceGuidsSuccessTime";
    for (method, path, name, more) in [
        (Method::GET, path("policies"), "InternalPolicies", vec![]),
        (Method::GET, path("policies_last_updated"), "InternalPoliciesLastUpdated", vec![]),
        (Method::GET, path("security_groups"), "InternalSecurityGroups", vec![(store, "ms")]),
        (
            Method::GET,
            path("security_groups_last_updated"),
            "InternalSecurityGroupsLastUpdated",
            vec![],
        ),
        (
            Method::GET,
            path("security_groups?from=x"),
            "InternalSecurityGroups",
            vec![("http_error", "counter")],
        ),
        (Method::PUT, path("tags"), "CreateTags", vec![("http_error", "counter")]),
    ] {
        poller.ask(method, &path).await;
        let (time, count) = (format!("{name}RequestTime"), format!("{name}RequestCount"));
        let mut expected = metrics(&more);
        expected.extend(metrics(&[(&time, "ms"), (&count, "counter")]));
        assert_eq!(receive(&agent, &expected), expected, "{path}");
    }
    for (path, name) in [("/", "Uptime"), ("/health", "Health")] {
        reqwest::get(format!("http://{}{path}", program.health_checks())).await.unwrap();
        let (time, count) = (format!("{name}RequestTime"), format!("{name}RequestCount"));
        let expected = metrics(&[(&time, "ms"), (&count, "counter")]);
        assert_eq!(receive(&agent, &expected), expected, "{path}");
    }
}

/// The documented metrics are exactly the exported ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_metrics_are_those_that_are_shown() {
    let server = TestServer::shared(Dialect::Postgres);
    let site = Site::on(server).writing_original_tables();
    Original::at(server, site.database_name(), Version::Tables).await.create();
    let program = tokio::task::block_in_place(|| Program::start(&site));
    let writer = site.client(&program.address, "syncer", None);
    replace(&writer, &fenced(&named(3, "x"), "syncer-a", 1)).await.unwrap();
    let poller = Poller::new(&site, &program.internal(), "agent");
    poller.text("/networking/v1/internal/security_groups").await;
    let mut cell = Cell::hello(&site.client(&program.address, "c", Some("cell")), "c", &[]).await;
    cell.until(1).await;

    let page = include_str!("../../docs/config/policy-store.md");
    let (_, section) = page.split_once("\n## Metrics\n").expect("a section about metrics");
    let section = section.split("\n## ").next().unwrap();
    let documented: BTreeSet<&str> =
        section.split('`').filter(|text| text.starts_with("policy_store_")).collect();
    assert!(documented.len() > 20, "{documented:?}");
    let url = format!("http://{}/metrics", program.admin());
    until("all are shown", async || {
        let text = reqwest::get(&url).await.unwrap().text().await.unwrap();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = types.filter_map(|line| line.split(' ').next());
        let shown: BTreeSet<&str> =
            names.filter(|name| name.starts_with("policy_store_")).collect();
        let unknown: Vec<_> = shown.difference(&documented).collect();
        assert!(unknown.is_empty(), "not in the documentation: {unknown:?}");
        shown == documented
    })
    .await;
}
