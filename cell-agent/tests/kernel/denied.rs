//! The record of denied packets, on every data plane.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use cell_agent::denied::nflog::Nflog;
use proto::cell_v1::{DeniedFlow, DeniedRequest, DeniedResponse};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    agent::{Cell, app, eventually, global, listing, rule},
    lab::{Lab, lab, sh},
    packets::{Fate, Kind, Prober, connection},
    planes::{PLANES, Plane, on_all_planes_at_once},
    silk::BACKENDS,
};

const C1: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
const C2: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 2);
const TO: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const GROUP: u16 = 7077;

async fn running(plane: Plane, lab: &Lab, record: Value) -> (Cell, Prober) {
    lab.container(C1);
    lab.container(C2);
    let deny = json!({"always": ["10.1.9.0/24"], "running": [], "staging": []});
    let config = plane.config(json!({"denied_connections": record, "deny_networks": deny}));
    let mut cell = Cell::running(config).await;
    cell.store.set(vec![global("g1", vec![rule("tcp", "10.1.0.0/16", "443")])]);
    cell.add_app("c1", "10.255.1.1", "s1").await;
    cell.add_app("c2", "10.255.1.2", "s2").await;
    cell.caught_up().await;
    (cell, Prober::new(lab))
}

async fn ask(cell: &Cell, request: DeniedRequest) -> Result<DeniedResponse, Status> {
    Ok(cell.client().denied(request).await?.into_inner())
}

async fn all(cell: &Cell) -> DeniedResponse {
    ask(cell, DeniedRequest { limit: 1000, ..DeniedRequest::default() }).await.unwrap()
}

fn handle(flow: &DeniedFlow) -> &str {
    flow.container.as_ref().map_or("", |container| container.handle.as_str())
}

/// Container, protocol, destination, port, and packets, sorted.
fn shown(answer: &DeniedResponse) -> Vec<(&str, &str, &str, u32, u64)> {
    let mut shown = Vec::new();
    for flow in &answer.flows {
        let DeniedFlow { protocol, destination, port, packets, .. } = flow;
        shown.push((handle(flow), protocol.as_str(), destination.as_str(), *port, *packets));
    }
    shown.sort_unstable();
    shown
}

/// Packets in flows, and packets in none.
fn counts(answer: &DeniedResponse) -> (u64, u64) {
    (answer.flows.iter().map(|flow| flow.packets).sum(), answer.not_recorded)
}

/// Waits until the record has this number of packets.
async fn recorded(cell: &Cell, packets: u64) -> DeniedResponse {
    let began = Instant::now();
    let mut answer = all(cell).await;
    let deadline = began + Duration::from_secs(20);
    while counts(&answer).0 != packets {
        assert!(Instant::now() < deadline, "{packets} packets are to be recorded: {answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
        answer = all(cell).await;
    }
    println!("{packets} packets recorded after {:?}", began.elapsed());
    answer
}

async fn rejected(prober: &Prober, from: Ipv4Addr, to: Ipv4Addr, kind: Kind) {
    assert_eq!(prober.probe(from, to, kind).await, Fate::Reject, "{from} {to} {kind:?}");
}

#[test]
fn a_denied_connection_is_recorded_with_its_reason() {
    on_all_planes_at_once(async |plane, lab| {
        let (mut cell, prober) = running(plane, &lab, json!({"record": true})).await;
        assert_eq!(prober.probe(C1, TO, connection(443)).await, Fate::Accept);
        rejected(&prober, C1, TO, connection(80)).await;
        rejected(&prober, C1, TO, connection(80)).await;
        rejected(&prober, C2, TO, Kind::Udp { port: 53, source: 1000 }).await;
        rejected(&prober, C2, TO, Kind::Icmp { icmp_type: 8, code: 0 }).await;
        rejected(&prober, C1, Ipv4Addr::new(10, 1, 9, 1), connection(443)).await;
        let answer = recorded(&cell, 5).await;
        let expected = [
            ("c1", "tcp", "10.1.0.1", 80, 2),
            ("c1", "tcp", "10.1.9.1", 443, 1),
            ("c2", "icmp", "10.1.0.1", 0, 1),
            ("c2", "udp", "10.1.0.1", 53, 1),
        ];
        assert_eq!(shown(&answer), expected);
        assert_eq!(answer.kept.map(|kept| kept.seconds), Some(3600));
        let find = |destination: &str, protocol: &str| {
            let is_it =
                |flow: &&DeniedFlow| flow.destination == destination && flow.protocol == protocol;
            answer.flows.iter().find(is_it).unwrap()
        };
        let web = find("10.1.0.1", "tcp");
        assert_eq!(web.reason, "the only rule of the container does not match");
        let nearest = web.nearest.clone().unwrap();
        assert_eq!(nearest.rule.unwrap().source.unwrap().group_guid, "g1");
        let seconds = |at: Option<prost_types::Timestamp>| at.unwrap().seconds;
        assert!(seconds(web.last) >= seconds(web.first));
        let network = find("10.1.9.1", "tcp");
        assert!(network.reason.contains("10.1.9.0/24 of deny_networks"), "{}", network.reason);
        assert_eq!(find("10.1.0.1", "icmp").icmp_type, 8);
        selections(&cell, &prober, answer.cursor).await;
        // A rule that allows the connection now, and a container that is gone.
        cell.store.set(vec![global("g1", vec![rule("tcp", "10.1.0.0/16", "80-443")])]);
        cell.caught_up().await;
        cell.delete_entry("c2");
        eventually("c2 is gone", async || cell.status().await.containers == 1).await;
        let later = all(&cell).await;
        let reason = |protocol: &str| {
            let flow = later.flows.iter().find(|flow| flow.protocol == protocol).unwrap();
            flow.reason.clone()
        };
        assert_eq!(reason("udp"), "the container no longer exists");
        let web = later.flows.iter().find(|flow| flow.port == 80).unwrap();
        assert!(web.reason.starts_with("it was denied before a change; now rule 0"), "{web:?}");
        cell.stop().await;
    });
}

/// What a request selects.
async fn selections(cell: &Cell, prober: &Prober, cursor: u64) {
    let select = async |request| ask(cell, request).await.unwrap();
    let request = |handle: &str, space: &str, cursor| DeniedRequest {
        handle: handle.to_owned(),
        space_guid: space.to_owned(),
        cursor,
        ..DeniedRequest::default()
    };
    let of = async |handle, space| {
        let answer = select(request(handle, space, 0)).await;
        let mut handles: Vec<_> = answer.flows.iter().map(handle_of).collect();
        handles.dedup();
        handles
    };
    assert_eq!(of("c1", "").await, ["c1"]);
    assert_eq!(of("", "s2").await, ["c2"]);
    assert!(of("c1", "s2").await.is_empty());
    assert!(of("nobody", "").await.is_empty());
    let refused = async |request| ask(cell, request).await.unwrap_err();
    assert_eq!(refused(request("c", "", 0)).await.code(), Code::InvalidArgument);
    let many = DeniedRequest { limit: 1001, ..DeniedRequest::default() };
    assert!(refused(many).await.message().starts_with("limit: 1001"));
    let few = DeniedRequest { limit: 1, ..DeniedRequest::default() };
    assert_eq!(select(few).await.flows.len(), 1);
    assert!(select(request("", "", cursor)).await.flows.is_empty());
    rejected(prober, C1, TO, connection(81)).await;
    eventually("the new flow is shown alone", async || {
        shown(&select(request("", "", cursor)).await) == [("c1", "tcp", "10.1.0.1", 81, 1)]
    })
    .await;
}

fn handle_of(flow: &DeniedFlow) -> String {
    handle(flow).to_owned()
}

#[test]
fn a_flood_stays_bounded_and_every_packet_is_counted() {
    on_all_planes_at_once(async |plane, lab| {
        let limits = json!({"record": true, "records_per_sec": 5});
        let (mut cell, prober) = running(plane, &lab, limits).await;
        const SENT: u16 = 3000;
        for n in 0..SENT {
            prober.send(C1, TO, Kind::Udp { port: 1000 + n % 500, source: 2000 + n });
        }
        rejected(&prober, C2, TO, connection(80)).await;
        eventually("each packet is recorded or counted as not recorded", async || {
            let answer = all(&cell).await;
            let (recorded, not_recorded) = counts(&answer);
            // The flood of one container hides no other container.
            let quiet = shown(&answer).iter().any(|row| row.0 == "c2");
            quiet && recorded + not_recorded == u64::from(SENT) + 1
        })
        .await;
        let answer = all(&cell).await;
        let (recorded, not_recorded) = counts(&answer);
        println!("{plane:?}: recorded {recorded}, not recorded {not_recorded}");
        assert!(recorded < 1000 && not_recorded > 0);
        cell.stop().await;
    });
}

#[test]
fn the_record_begins_anew_with_the_agent_and_survives_foreign_changes() {
    on_all_planes_at_once(async |plane, lab| {
        let (mut cell, prober) = running(plane, &lab, json!({"record": true})).await;
        rejected(&prober, C1, TO, connection(80)).await;
        let cursor = recorded(&cell, 1).await.cursor;
        cell.settled().await;
        cell.stop().await;
        rejected(&prober, C1, TO, connection(80)).await;
        cell.start().await;
        cell.caught_up().await;
        rejected(&prober, C1, TO, connection(81)).await;
        let answer = recorded(&cell, 1).await;
        assert_eq!(shown(&answer), [("c1", "tcp", "10.1.0.1", 81, 1)]);
        assert!(answer.cursor > cursor, "a cursor of the former agent hides nothing");
        cell.settled().await;
        // The count of the plane includes nothing of the time before.
        eventually("the counts agree", async || counts(&all(&cell).await) == (1, 0)).await;
        let before = cell.status().await.drift_healed;
        match plane {
            Plane::Nftables => _ = sh("nft flush chain inet portcullis rejected"),
            Plane::Iptables(silk) => _ = silk.run("-F portcullis-denied"),
        }
        eventually("healed", async || cell.status().await.drift_healed > before).await;
        cell.settled().await;
        plane.wreck();
        eventually("healed again", async || cell.status().await.drift_healed > before + 1).await;
        rejected(&prober, C1, TO, connection(82)).await;
        let answer = recorded(&cell, 2).await;
        assert!(shown(&answer).contains(&("c1", "tcp", "10.1.0.1", 82, 1)), "{answer:?}");
        cell.stop().await;
    });
}

/// silk-cni: the interface names the container, also for IPv6 and with a foreign source.
#[test]
fn the_interface_names_the_container() {
    lab(async |lab| {
        let container = lab.silk(C1, "fd00:255::101");
        let mut cell = Cell::running(json!({})).await;
        cell.store.set(vec![global("g1", vec![rule("tcp", "10.1.0.0/16", "443")])]);
        cell.add_app("c1", "10.255.1.1", "s1").await;
        cell.caught_up().await;
        container.sh("ping -6 -c 1 -W 1 fd00:99::2 >/dev/null || true");
        container.sh("ip address add 10.255.7.7/32 dev eth0");
        container.sh("ping -I 10.255.7.7 -c 1 -W 1 10.99.0.2 >/dev/null || true");
        let answer = recorded(&cell, 2).await;
        let icmp = |to| ("c1", "icmp", to, 0, 1);
        assert_eq!(shown(&answer), [icmp("10.99.0.2"), icmp("fd00:99::2")]);
        let types: Vec<u32> = answer.flows.iter().map(|flow| flow.icmp_type).collect();
        assert_eq!(types, [8, 128]);
        cell.stop().await;
    });
}

#[test]
fn without_a_record_the_rules_are_as_before_and_the_reason_is_given() {
    lab(async |lab| {
        let (mut cell, prober) = running(Plane::Nftables, &lab, json!({"record": false})).await;
        rejected(&prober, C1, TO, connection(80)).await;
        assert!(!listing().contains("log group"), "{}", listing());
        let error = ask(&cell, DeniedRequest::default()).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("denied_connections.record"), "{error:?}");
        cell.stop().await;
    });
    lab(async |lab| {
        let plane = Plane::Iptables(BACKENDS[1]);
        let (mut cell, prober) = running(plane, &lab, json!({})).await;
        rejected(&prober, C1, TO, connection(80)).await;
        assert!(!plane.ours().concat().contains("portcullis-denied"), "off by default");
        let error = ask(&cell, DeniedRequest::default()).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        cell.stop().await;
    });
    lab(async |lab| {
        let held = Nflog::open(GROUP).unwrap();
        let (mut cell, prober) = running(Plane::Nftables, &lab, json!({})).await;
        rejected(&prober, C1, TO, connection(80)).await;
        assert!(!listing().contains("log group"), "{}", listing());
        let error = ask(&cell, DeniedRequest::default()).await.unwrap_err();
        assert!(error.message().contains("another process receives it"), "{error:?}");
        let source = "cfnetworking.vxlan-policy-agent.denied-packets-not-recorded";
        assert_eq!(cell.log.data_of(source).unwrap()["group"], GROUP);
        drop(held);
        cell.stop().await;
    });
}

/// Switching the record off and on changes the rules of a running cell in place.
#[test]
fn the_chains_go_when_the_record_is_switched_off() {
    for plane in [Plane::Nftables, Plane::Iptables(BACKENDS[1])] {
        lab(async move |lab| {
            let (mut cell, prober) = running(plane, &lab, json!({"record": true})).await;
            // The chains come before the jumps, and go after them.
            let follow = |record| match (plane, record) {
                (Plane::Nftables, true) => listing().contains("jump record"),
                (Plane::Nftables, false) => !listing().contains("record"),
                (Plane::Iptables(silk), true) => silk.save().contains("-j portcullis-denied"),
                (Plane::Iptables(silk), false) => !silk.save().contains("portcullis-denied"),
            };
            assert!(follow(true));
            for record in [false, true] {
                cell.settled().await;
                cell.stop().await;
                let config = json!({"denied_connections": {"record": record}});
                cell.configure(config.as_object().unwrap());
                cell.start().await;
                eventually("the rules follow", async || follow(record)).await;
                rejected(&prober, C1, TO, connection(80)).await;
                assert_eq!(prober.probe(C1, TO, connection(443)).await, Fate::Accept);
            }
            recorded(&cell, 1).await;
            cell.stop().await;
        });
    }
}

/// Cost of a flood of denied packets, with and without a record.
#[test]
#[ignore = "measures for a minute: prints the figures of docs/performance.md"]
fn the_cost_of_a_flood() {
    for plane in PLANES {
        for record in [false, true] {
            lab(async move |lab| measure(plane, &lab, record).await);
        }
    }
}

const MEASURED: Duration = Duration::from_secs(4);
/// Containers with a flood: the rate of the cell limits them, not only their own.
const NOISY: u8 = 25;

/// The agent is a process of its own, so that its CPU time can be read.
async fn measure(plane: Plane, lab: &Lab, record: bool) {
    let config = plane.config(json!({"denied_connections": {"record": record}}));
    let mut cell = Cell::new(config).await;
    cell.store.set(vec![global("g1", vec![rule("udp", "10.2.0.0/16", "1-65535")])]);
    for n in 1..=NOISY {
        let (handle, address) = (format!("c{n}"), Ipv4Addr::new(10, 255, 1, n));
        lab.container(address);
        cell.plug(&handle, &address.to_string());
        cell.add_entry(&handle, &address.to_string(), &app("s1"));
    }
    let file = cell.directory.path().join("agent.json");
    std::fs::write(&file, cell.config_text()).unwrap();
    let mut agent = tokio::process::Command::new(env!("CARGO_BIN_EXE_cell-agent"))
        .arg("--config-file")
        .arg(file)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    cell.caught_up().await;
    let prober = Prober::new(lab);
    eventually("the rules are in force", async || {
        prober.probe(C1, Ipv4Addr::new(10, 2, 0, 1), Kind::Udp { port: 9, source: 9 }).await
            == Fate::Accept
    })
    .await;
    drop(prober);
    let stat = format!("/proc/{}/stat", agent.id().unwrap());
    let ticks = || -> u64 {
        let text = std::fs::read_to_string(&stat).unwrap();
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    let (denied, denied_best) = flood(lab, Ipv4Addr::new(10, 1, 0, 1));
    #[expect(clippy::cast_precision_loss, reason = "a few hundred ticks")]
    let percent = (ticks() - before) as f64 / MEASURED.as_secs_f64();
    let (_, allowed_best) = flood(lab, Ipv4Addr::new(10, 2, 0, 1));
    let counted = match record {
        true => format!("{:?}", counts(&all(&cell).await)),
        false => String::new(),
    };
    println!(
        "{plane:?} record {record}: {denied:.0} denied/s, agent {percent:.1} % of a core; best \
         denied {denied_best:.2} us, allowed {allowed_best:.2} us {counted}"
    );
    agent.kill().await.unwrap();
}

/// Packets a second of one sender, and the microseconds of a packet in the best round.
fn flood(lab: &Lab, to: Ipv4Addr) -> (f64, f64) {
    const ROUND: u16 = 512;
    let bind =
        |n| lab.inside.run(move || UdpSocket::bind((Ipv4Addr::new(10, 255, 1, n), 0)).unwrap());
    let sockets: Vec<UdpSocket> = (1..=NOISY).map(bind).collect();
    let (begun, mut sent, mut best) = (Instant::now(), 0.0, f64::MAX);
    while begun.elapsed() < MEASURED {
        let round = Instant::now();
        for socket in sockets.iter().cycle().take(ROUND.into()) {
            // The error is that of an earlier packet.
            _ = socket.send_to(b"x", (to, 9));
        }
        sent += f64::from(ROUND);
        best = f64::min(best, round.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND));
    }
    (sent / begun.elapsed().as_secs_f64(), best)
}
