//! "Security group rules were updated" in the log of an app, through a real loggregator
//! agent over mutual TLS.

use std::{net::Ipv4Addr, time::Duration};

use runtime::{
    loggregator::{Agent, Envelope, Message},
    server::{Grpc, Health, Listener},
    tls::{Alpn, ServerTls},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Cell, all, app, bound, eventually, global},
    lab::lab,
    packets::{Fate, Prober, connection},
    silk::BACKENDS,
};

/// The loggregator agent of this VM.
struct Loggregator {
    agent: Agent,
    address: String,
    _tasks: JoinSet<()>,
}

impl Loggregator {
    async fn start(cell: &Cell) -> Self {
        let tls = ServerTls::load(cell.store.files(), Alpn::H2).unwrap();
        let listener = Listener::tcp("ingress", "127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let agent = Agent::default();
        let grpc = Grpc::new(listener, Some(tls), &Health::new()).add(agent.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            grpc.serve(CancellationToken::new(), Duration::ZERO).await.unwrap();
        });
        Self { agent, address, _tasks: tasks }
    }

    fn config(&self, cell: &Cell) -> Value {
        let files = cell.store.files();
        let port: u16 = self.address.rsplit(':').next().unwrap().parse().unwrap();
        json!({"loggregator": {
            "loggregator_use_v2_api": true, "loggregator_api_port": port,
            "loggregator_ca_path": files.ca, "loggregator_cert_path": files.cert,
            "loggregator_key_path": files.key, "loggregator_job_origin": "vxlan-policy-agent",
        }})
    }

    /// Waits for so many lines; returns their apps in order.
    async fn told(&self, count: usize) -> Vec<String> {
        eventually("the lines have come", async || self.agent.envelopes().len() >= count).await;
        self.agent.envelopes().into_iter().map(|envelope| envelope.source_id).collect()
    }
}

fn with_log(space: &str, guid: &str) -> Value {
    let mut metadata = app(space);
    let config = json!({"guid": guid, "index": 2, "source_name": "APP/PROC/WEB",
        "tags": {"organization_name": "o"}});
    metadata["log_config"] = json!(config.to_string());
    metadata
}

#[test]
fn an_app_log_has_a_line_only_when_rules_change() {
    lab(async |_lab| {
        let mut cell = Cell::new(json!({})).await;
        let loggregator = Loggregator::start(&cell).await;
        cell.configure(loggregator.config(&cell).as_object().unwrap());
        let set = |cell: &Cell, to: &str, name: &str| {
            let mut group = bound("g1", "s1", vec![all(to)]);
            group.name = name.to_owned();
            cell.store.set(vec![group, global("g", vec![all("10.9.0.0/16")])]);
        };
        set(&cell, "10.1.0.0/16", "one");
        cell.add_entry("c1", "10.255.1.1", &with_log("s1", "app-1"));
        cell.add_entry("c2", "10.255.1.2", &with_log("s2", "app-2"));
        cell.add_entry("c3", "10.255.1.3", &app("s1"));
        cell.start().await;
        cell.caught_up().await;
        // A container's first rules send no line, nor do the same rules under another
        // group name.
        set(&cell, "10.1.0.0/16", "two");
        cell.caught_up().await;
        set(&cell, "10.2.0.0/16", "two");
        cell.caught_up().await;
        assert_eq!(loggregator.told(1).await, ["app-1"]);
        // A restart sends no line, but a change during the restart does.
        cell.stop().await;
        cell.start().await;
        cell.caught_up().await;
        cell.stop().await;
        set(&cell, "10.3.0.0/16", "two");
        cell.start().await;
        cell.caught_up().await;
        assert_eq!(loggregator.told(2).await, ["app-1", "app-1"]);
        // Changes in sequence: an unexpected line would appear between the expected
        // ones.
        cell.store.set(vec![]);
        cell.caught_up().await;
        assert_eq!(loggregator.told(4).await, ["app-1", "app-1", "app-1", "app-2"]);
        let Envelope { source_id, instance_id, tags, message, .. } =
            loggregator.agent.envelopes().pop().unwrap();
        assert_eq!((source_id.as_str(), instance_id.as_str()), ("app-2", "2"));
        let tag = |name: &str| tags.get(name).map_or("", String::as_str);
        let found =
            ["source_type", "source_id", "instance_id", "organization_name", "origin"].map(tag);
        assert_eq!(found, ["APP/PROC/WEB", "app-2", "2", "o", "vxlan-policy-agent"]);
        let Some(Message::Log(log)) = message else { panic!("{message:?}") };
        assert_eq!(
            (log.payload.as_slice(), log.r#type),
            (&b"Security group rules were updated"[..], 0)
        );
        cell.stop().await;
    });
}

#[test]
fn an_app_log_has_a_line_beside_silk() {
    let silk = BACKENDS[1];
    lab(async move |_lab| {
        let mut cell = Cell::new(silk.config(json!({}))).await;
        let loggregator = Loggregator::start(&cell).await;
        cell.configure(loggregator.config(&cell).as_object().unwrap());
        cell.store.set(vec![global("g", vec![all("10.1.0.0/16")])]);
        silk.add("c1", "10.255.1.1", &json!({}));
        cell.add_entry("c1", "10.255.1.1", &with_log("s1", "app-1"));
        cell.start().await;
        cell.caught_up().await;
        cell.store.set(vec![global("g", vec![all("10.2.0.0/16")])]);
        assert_eq!(loggregator.told(1).await, ["app-1"]);
        assert!(silk.ours().iter().any(|rule| rule.contains("10.2.0.0-10.2.255.255")));
        cell.stop().await;
    });
}

/// Lines about denied connections, which are off by default.
#[test]
fn denied_connections_have_lines_if_configured() {
    lab(async |lab| {
        let (from, to) = (Ipv4Addr::new(10, 255, 1, 1), Ipv4Addr::new(10, 1, 0, 1));
        lab.container(from);
        let prober = Prober::new(&lab);
        let logs = json!({"agent": true, "app": true});
        let mut cell = Cell::new(json!({"denied_connection_logs": logs})).await;
        let loggregator = Loggregator::start(&cell).await;
        cell.configure(loggregator.config(&cell).as_object().unwrap());
        // A generation to wait for: without groups the agent is caught up before its first rules.
        cell.store.set(vec![global("g", vec![all("10.2.0.0/16")])]);
        cell.add_entry("c1", "10.255.1.1", &with_log("s1", "app-1"));
        cell.start().await;
        cell.caught_up().await;
        assert_eq!(prober.probe(from, to, connection(80)).await, Fate::Reject);
        assert_eq!(loggregator.told(1).await, ["app-1"]);
        let Some(Message::Log(log)) = loggregator.agent.envelopes().remove(0).message else {
            panic!("no log line")
        };
        let text = String::from_utf8(log.payload).unwrap();
        assert_eq!(text, "Security groups denied a tcp connection to 10.1.0.1 port 80");
        let source = "cfnetworking.vxlan-policy-agent.connection-denied";
        let told = cell.log.data_of(source).unwrap();
        assert_eq!((&told["container"], &told["space"]), (&json!("c1"), &json!("s1")));
        assert_eq!(told["line"], "DENY_c1 SRC=10.255.1.1 DST=10.1.0.1 PROTO=TCP DPT=80");
        cell.stop().await;
    });
}
