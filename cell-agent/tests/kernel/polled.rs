//! Groups from a genuine policy-server-internal, which is polled.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use runtime::{
    server::{Http, Listener},
    tls::{Alpn, Files, ServerTls},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::{StatusCode, header::CONTENT_ENCODING};

use crate::{
    agent::{Cell, app, eventually},
    lab::{Lab, lab},
    once,
    packets::{Fate, Prober, connection},
};

const C1: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
const OPEN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);

/// A fake policy server that implements the contract (policy-server.md 4.2).
struct Server {
    told: Arc<Mutex<Update>>,
    files: Files,
    address: String,
    up: Option<(CancellationToken, JoinSet<()>)>,
}

#[derive(Debug, Default)]
struct Update {
    /// `None`: the route does not exist, like in older servers.
    stamp: Option<u64>,
    groups: Vec<Value>,
    /// Groups on a page; 0: all.
    page: usize,
    /// Whether each group is a separate gzip member.
    zipped: bool,
    fails: bool,
    stamps_asked: usize,
    lists_asked: Vec<String>,
}

impl Server {
    async fn start(files: &Files) -> Self {
        let (told, address) = (Arc::default(), "127.0.0.1:0".to_owned());
        let mut server = Self { told, files: files.clone(), address, up: None };
        server.up().await;
        server
    }

    async fn up(&mut self) {
        let listener = Listener::tcp("the policy server", &self.address).await.unwrap();
        self.address = listener.local_addr().to_owned();
        let tls = ServerTls::load(&self.files, Alpn::None).unwrap();
        let routes = Router::new()
            .route("/networking/v1/internal/security_groups", get(groups))
            .route("/networking/v1/internal/security_groups_last_updated", get(stamp))
            .with_state(Arc::clone(&self.told));
        let shutdown = CancellationToken::new();
        let (mut tasks, token) = (JoinSet::new(), shutdown.clone());
        tasks.spawn(async move {
            Http::new(listener, Some(tls)).serve(routes, token, Duration::ZERO).await;
        });
        self.up = Some((shutdown, tasks));
    }

    async fn down(&mut self) {
        let (shutdown, mut tasks) = self.up.take().unwrap();
        shutdown.cancel();
        while tasks.join_next().await.is_some() {}
    }

    fn tell(&self, change: impl FnOnce(&mut Update)) {
        change(&mut self.told.lock().unwrap());
    }

    fn seen<T>(&self, look: impl FnOnce(&Update) -> T) -> T {
        look(&self.told.lock().unwrap())
    }
}

async fn stamp(State(told): State<Arc<Mutex<Update>>>) -> Response {
    let mut told = told.lock().unwrap();
    told.stamps_asked += 1;
    match told.stamp {
        Some(stamp) => stamp.to_string().into_response(),
        None => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
    }
}

async fn groups(State(told): State<Arc<Mutex<Update>>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let mut told = told.lock().unwrap();
    told.lists_asked.push(query.clone());
    if told.fails {
        let body = r#"{"error": "database read failed"}"#;
        return (StatusCode::INTERNAL_SERVER_ERROR, body).into_response();
    }
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
    let spaces: Vec<&str> = parameter("space_guids=").unwrap_or_default().split(',').collect();
    let from: usize = parameter("from=").map_or(1, |from| from.parse().unwrap());
    let concerns = |group: &Value| {
        let bound = |key: &str| group[key].as_array().cloned().unwrap_or_default();
        let bound = [bound("running_space_guids"), bound("staging_space_guids")].concat();
        group["running_default"] == true
            || bound.iter().any(|space| spaces.contains(&space.as_str().unwrap()))
    };
    let concerned = (1..).zip(&told.groups).filter(|(id, group)| *id >= from && concerns(group));
    let mut concerned: Vec<(usize, String)> =
        concerned.map(|(id, group)| (id, group.to_string())).collect();
    let mut next = 0;
    if told.page > 0 && concerned.len() > told.page {
        next = concerned[told.page].0;
        concerned.truncate(told.page);
    }
    let mut parts = vec![format!(r#"{{"next":{next},"security_groups":["#)];
    for (place, (_, group)) in concerned.into_iter().enumerate() {
        parts.push(format!("{}{group}", if place > 0 { "," } else { "" }));
    }
    parts.push("]}".to_owned());
    if !told.zipped {
        return parts.concat().into_response();
    }
    let zip = |part: &String| {
        let mut member = GzEncoder::new(Vec::new(), Compression::fast());
        member.write_all(part.as_bytes()).unwrap();
        member.finish().unwrap()
    };
    let body: Vec<u8> = parts.iter().flat_map(zip).collect();
    ([(CONTENT_ENCODING, "gzip")], body).into_response()
}

fn group(guid: &str, spaces: &[&str], destination: &str) -> Value {
    let rules = json!([{"protocol": "all", "destination": destination, "ports": "", "type": 0,
        "code": 0, "description": "", "log": false}]);
    json!({"guid": guid, "name": guid, "rules": rules.to_string(), "staging_default": false,
        "running_default": spaces.is_empty(), "staging_space_guids": [], "running_space_guids": spaces})
}

/// The original's configuration names a policy server instead of our store.
async fn cell(lab: &Lab, interval: u32) -> (Cell, Server, Prober) {
    lab.container(C1);
    let mut cell = Cell::new(json!({})).await;
    let server = Server::start(cell.store.files()).await;
    let config = json!({
        "policy_store_address": null,
        "cell_id": null,
        "policy_server_url": format!("https://{}", server.address),
        "client_timeout_seconds": 1,
        "asg_poll_interval": interval,
    });
    cell.configure(config.as_object().unwrap());
    (cell, server, Prober::new(lab))
}

#[test]
fn one_pass_asks_the_server_once() {
    lab(async |lab| {
        let (mut cell, server, prober) = cell(&lab, 3600).await;
        server.tell(|told| told.groups = vec![group("g1", &["s1"], "10.1.0.0/16")]);
        cell.add_entry("c1", "10.255.1.1", &app("s1"));
        once::done(&cell, "--once").await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Reject);
        assert_eq!(server.seen(|told| told.lists_asked.len()), 1);
        server.tell(|told| told.fails = true);
        let failed = once::fails(&cell, "--once").await;
        assert!(failed.contains("500"), "{failed}");
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
    });
}

#[test]
fn a_forced_container_has_the_groups_of_that_moment() {
    lab(async |lab| {
        let (mut cell, server, prober) = cell(&lab, 3600).await;
        server.tell(|told| told.groups = vec![group("g1", &["s1"], "10.1.0.0/16")]);
        cell.start().await;
        eventually("the server was asked", async || {
            server.seen(|told| !told.lists_asked.is_empty())
        })
        .await;
        assert_eq!(server.seen(|told| told.lists_asked[0].clone()), "per_page=5000");
        cell.add_app("c1", "10.255.1.1", "s1").await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Reject);
        let query = server.seen(|told| told.lists_asked.last().cloned());
        assert_eq!(query.as_deref(), Some("per_page=5000&space_guids=s1"));
        server.tell(|told| told.groups.push(group("g2", &[], "10.2.0.0/16")));
        assert_eq!(cell.force("c1").await.0, 200);
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
        cell.stop().await;
    });
}

#[test]
fn a_stamp_that_stays_spares_the_server_the_list() {
    lab(async |lab| {
        let (mut cell, server, prober) = cell(&lab, 1).await;
        server.tell(|told| {
            told.stamp = Some(1_795_398_851_394_607_000);
            // All permitted forms of a response.
            (told.page, told.zipped) = (1, true);
            told.groups = vec![
                group("g1", &["s1"], "10.1.0.0/16"),
                group("g2", &["s2"], "10.9.0.0/16"),
                group("g3", &[], "10.3.0.0/16"),
            ];
        });
        cell.start().await;
        cell.add_app("c1", "10.255.1.1", "s1").await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        assert_eq!(
            prober.probe(C1, Ipv4Addr::new(10, 3, 0, 1), connection(80)).await,
            Fate::Accept
        );
        let pages = server.seen(|told| told.lists_asked.clone());
        assert_eq!(pages.last().unwrap(), "per_page=5000&space_guids=s1&from=3");
        let asked = server.seen(|told| told.stamps_asked);
        eventually("polls", async || server.seen(|told| told.stamps_asked >= asked + 2)).await;
        assert_eq!(server.seen(|told| told.lists_asked.len()), pages.len());
        server.tell(|told| {
            told.stamp = told.stamp.map(|stamp| stamp + 1);
            told.groups[0] = group("g1", &["s1"], "10.2.0.0/16");
        });
        eventually("the change is in force", async || {
            prober.probe(C1, OTHER, connection(80)).await == Fate::Accept
        })
        .await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Reject);
        eventually("the stamp is the generation", async || {
            cell.status().await.enforced_generation == 1_795_398_851_394_607_001
        })
        .await;
        cell.stop().await;
    });
}

#[test]
fn whatever_the_server_does_containers_keep_their_rules() {
    lab(async |lab| {
        let (mut cell, mut server, prober) = cell(&lab, 1).await;
        server.tell(|told| told.groups = vec![group("g1", &["s1"], "10.1.0.0/16")]);
        cell.start().await;
        cell.add_app("c1", "10.255.1.1", "s1").await;
        // A bad group only loses its own change.
        server.tell(|told| {
            told.groups[0]["rules"] = json!([]);
            told.groups.push(group("g2", &[], "10.2.0.0/16"));
        });
        assert_eq!(cell.force("c1").await.0, 200);
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
        let told = cell.log.data_of("cfnetworking.vxlan-policy-agent.group-isolated").unwrap();
        assert!(told["error"].as_str().unwrap().starts_with("group \"g1\": "), "{told}");
        // During an error, known spaces keep their groups, and other spaces are
        // refused.
        server.tell(|told| told.fails = true);
        assert_eq!(cell.force("c1").await.0, 200);
        cell.add_entry("c2", "10.255.1.2", &app("s2"));
        let (status, body) = cell.force("c2").await;
        let refused = "failed to update asgs for container c2: security_groups: http status 500: \
                       database read failed";
        assert_eq!((status, body.as_str()), (500, refused));
        cell.delete_entry("c2");
        assert!(!cell.status().await.store_connected);
        // The server is down, and the agent restarts.
        server.down().await;
        cell.stop().await;
        cell.start().await;
        assert_eq!(cell.force("c1").await.0, 200);
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, OTHER, connection(80)).await, Fate::Accept);
        // The server is up again.
        server.tell(|told| {
            told.fails = false;
            told.groups = vec![group("g1", &["s1"], "10.1.0.0/16")];
        });
        server.up().await;
        eventually("what the server says now is in force", async || {
            prober.probe(C1, OTHER, connection(80)).await == Fate::Reject
        })
        .await;
        assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
        cell.stop().await;
    });
}
