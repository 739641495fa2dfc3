//! What explain says is what happens to packets, on every data plane.

use std::net::Ipv4Addr;

use proto::cell_v1::{
    Enforcement, ExplainRequest, ExplainResponse, ListContainersRequest, explain_response::Verdict,
};
use serde_json::{Value, json};

use crate::{
    agent::{Cell, all, app, bound, eventually, global, rule},
    lab::{Lab, lab},
    packets::{Fate, Kind, Prober, connection},
    planes::{Plane, on_every_plane},
    silk::{BACKENDS, Silk},
};

const HANDLE: &str = "00000001-aaaa-bbbb-cccc-0123456789ab";
const ADDRESS: &str = "10.255.1.1";

/// Protocol, destination, port or ICMP type, and what is to come of it.
const PROBES: [(&str, &str, u16, Verdict); 8] = [
    ("tcp", "10.1.0.1", 443, Verdict::Allowed),
    ("tcp", "10.1.0.1", 80, Verdict::Denied),
    ("tcp", "10.2.0.1", 443, Verdict::Denied),
    ("udp", "10.2.0.1", 53, Verdict::AllowedAndLogged),
    ("udp", "10.2.0.2", 53, Verdict::Denied),
    ("icmp", "10.3.0.1", 8, Verdict::Allowed),
    ("icmp", "10.3.0.1", 13, Verdict::Denied),
    // In a denied network, whatever a rule says.
    ("tcp", "10.1.9.1", 443, Verdict::Denied),
];

type Probe<'a> = (&'a str, &'a str, u16, Verdict);

async fn explain(cell: &Cell, probe: Probe<'_>) -> ExplainResponse {
    let (protocol, destination, number, _) = probe;
    let (port, icmp_type) = if protocol == "icmp" { (0, number) } else { (number, 0) };
    let request = ExplainRequest {
        handle: HANDLE.to_owned(),
        protocol: protocol.to_owned(),
        destination: destination.to_owned(),
        port: port.into(),
        icmp_type: icmp_type.into(),
        icmp_code: 0,
    };
    cell.client().explain(request).await.unwrap().into_inner()
}

fn packet(protocol: &str, number: u16, source: u16) -> Kind {
    match protocol {
        "tcp" => Kind::Tcp { port: number, source, flags: 2 },
        "udp" => Kind::Udp { port: number, source },
        _ => Kind::Icmp { icmp_type: u8::try_from(number).unwrap(), code: 0 },
    }
}

async fn compare(lab: &Lab, silk: Option<Silk>) {
    let config =
        json!({"deny_networks": {"always": ["10.1.9.0/24"], "running": [], "staging": []}});
    let config: Value = silk.map_or(config.clone(), |silk| silk.config(config));
    lab.container(ADDRESS.parse().unwrap());
    let prober = Prober::new(lab);
    let mut cell = Cell::running(config).await;
    let mut logged = rule("udp", "10.2.0.1", "53");
    logged.log = true;
    let mut ping = rule("icmp", "10.3.0.0/16", "");
    ping.r#type = 8;
    cell.store.set(vec![global("g1", vec![rule("tcp", "10.1.0.0/16", "443"), logged, ping])]);
    cell.add_entry(HANDLE, ADDRESS, &app("s1"));
    cell.caught_up().await;
    if let Some(silk) = silk {
        waits(&cell).await;
        silk.add(HANDLE, ADDRESS, &json!({}));
    }
    let (status, body) = cell.force(HANDLE).await;
    assert_eq!(status, 200, "{body}");
    for (source, probe) in (20_000..).zip(PROBES) {
        let (protocol, destination, number, verdict) = probe;
        let answer = explain(&cell, probe).await;
        assert_eq!(answer.verdict(), verdict, "{probe:?}: {}", answer.reason);
        let to: Ipv4Addr = destination.parse().unwrap();
        let from = ADDRESS.parse().unwrap();
        let fate = prober.probe(from, to, packet(protocol, number, source)).await;
        let expected = if verdict == Verdict::Denied { Fate::Reject } else { Fate::Accept };
        assert_eq!(fate, expected, "{probe:?}: {}", answer.reason);
        let told = match verdict {
            Verdict::Denied if destination == "10.1.9.1" => "denied network 10.1.9.0/24",
            Verdict::Denied => "none of the 3 rules",
            _ => "of security group g1 allows",
        };
        assert!(answer.reason.contains(told), "{probe:?}: {}", answer.reason);
        let group = answer.decisive.and_then(|rule| rule.source).map(|source| source.group_guid);
        assert_eq!(group.is_some_and(|guid| guid == "g1"), verdict != Verdict::Denied);
    }
    cell.stop().await;
}

/// As long as the CNI plugin has made no chains, nothing is allowed.
async fn waits(cell: &Cell) {
    let answer = explain(cell, PROBES[0]).await;
    assert_eq!(answer.verdict(), Verdict::Denied);
    assert!(answer.reason.contains("its chain netout--00000001"), "{}", answer.reason);
    let list = cell.client().list_containers(ListContainersRequest {}).await.unwrap().into_inner();
    let container = &list.containers[0];
    assert_eq!(container.enforcement(), Enforcement::DeniedUntilKnown);
    assert_eq!(container.reason, answer.reason);
}

#[test]
fn what_is_explained_is_what_happens_in_our_table() {
    lab(async |lab| compare(&lab, None).await);
}

#[test]
fn what_is_explained_is_what_happens_beside_silk() {
    for silk in BACKENDS {
        lab(async move |lab| compare(&lab, Some(silk)).await);
    }
}

/// Moves the container to another space in the metadata store.
fn move_to(cell: &mut Cell, space: &str) {
    cell.plug(HANDLE, ADDRESS);
    cell.add_entry(HANDLE, ADDRESS, &app(space));
}

/// Explains and sends a packet to what the first space opens.
async fn state(cell: &Cell, prober: &Prober) -> (Enforcement, Verdict, Fate) {
    let list = async || {
        cell.client().list_containers(ListContainersRequest {}).await.unwrap().into_inner()
    };
    // Both answers of the same moment.
    let (list, answer) = loop {
        let before = list().await;
        let answer = explain(cell, ("tcp", "10.1.0.1", 80, Verdict::Unspecified)).await;
        if before == list().await {
            break (before, answer);
        }
    };
    let [container] = list.containers.as_slice() else { panic!("{list:?}") };
    if container.enforcement() != Enforcement::Enforced {
        assert_eq!(answer.reason, container.reason);
    }
    let to = "10.1.0.1".parse().unwrap();
    let fate = prober.probe(ADDRESS.parse().unwrap(), to, connection(80)).await;
    (container.enforcement(), answer.verdict(), fate)
}

/// Laws 5 and 7: the rules that an earlier agent left in a chain of their own stay
/// until it is known what should be there; those of a space that the container is no
/// longer in do not.
#[test]
fn a_space_that_is_unknown_opens_nothing_and_what_is_kept_is_told() {
    on_every_plane(unknown);
}

async fn unknown(plane: Plane, lab: Lab) {
    lab.container(ADDRESS.parse().unwrap());
    let prober = Prober::new(&lab);
    let mut cell = Cell::running(plane.config(json!({}))).await;
    let near = |space| bound(&format!("g-{space}"), space, vec![all("10.1.0.0/16")]);
    cell.store.set(vec![near("s1"), near("s3")]);
    move_to(&mut cell, "s1");
    assert_eq!(cell.force(HANDLE).await.0, 200);
    let enforced = (Enforcement::Enforced, Verdict::Allowed, Fate::Accept);
    assert_eq!(state(&cell, &prober).await, enforced);
    cell.settled().await;
    cell.stop().await;
    cell.store.down().await;
    move_to(&mut cell, "s2");
    cell.start().await;
    let (status, body) = cell.force(HANDLE).await;
    assert_eq!(status, 500);
    assert!(body.contains("has not told the security groups of space s2"), "{body}");
    let denied = (Enforcement::DeniedUntilKnown, Verdict::Denied, Fate::Reject);
    let kept = (Enforcement::KeptUntilKnown, Verdict::Unspecified, Fate::Accept);
    // A table of our own is not kept without being known.
    let expected = if let Plane::Iptables(_) = plane { kept } else { denied };
    assert_eq!(state(&cell, &prober).await, expected);
    cell.store.up().await;
    let known = (Enforcement::Enforced, Verdict::Denied, Fate::Reject);
    eventually("s2 is known", async || state(&cell, &prober).await == known).await;
    move_to(&mut cell, "s3");
    eventually("s3 is known", async || state(&cell, &prober).await == enforced).await;
    cell.store.down().await;
    move_to(&mut cell, "s4");
    eventually("s4 is unknown", async || state(&cell, &prober).await == denied).await;
    cell.stop().await;
}
