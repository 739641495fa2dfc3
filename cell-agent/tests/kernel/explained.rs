//! The verdicts of explain match those on real packets, on every data plane.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use proto::cell_v1::{
    EffectiveRulesRequest, Enforcement, ExplainRequest, ExplainResponse, ListContainersRequest,
    explain_response::Verdict,
};
use serde_json::{Value, json};

use crate::{
    agent::{Cell, all, app, bound, eventually, global, rule},
    lab::{Lab, Namespace, lab, sh},
    packets::{Fate, Kind, Prober, connection},
    planes::{Plane, on_every_plane},
    silk::{BACKENDS, Silk},
};

const HANDLE: &str = "00000001-aaaa-bbbb-cccc-0123456789ab";
const ADDRESS: &str = "10.255.1.1";

/// Protocol, destination, port or ICMP type, and the expected verdict.
const PROBES: [(&str, &str, u16, Verdict); 8] = [
    ("tcp", "10.1.0.1", 443, Verdict::Allowed),
    ("tcp", "10.1.0.1", 80, Verdict::Denied),
    ("tcp", "10.2.0.1", 443, Verdict::Denied),
    ("udp", "10.2.0.1", 53, Verdict::AllowedAndLogged),
    ("udp", "10.2.0.2", 53, Verdict::Denied),
    ("icmp", "10.3.0.1", 8, Verdict::Allowed),
    ("icmp", "10.3.0.1", 13, Verdict::Denied),
    // In a denied network, even if a rule allows the destination.
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
            Verdict::Denied if destination == "10.1.9.1" => "10.1.9.0/24 of deny_networks",
            Verdict::Denied => "none of the 3 rules",
            _ => "of security group g1 (g1) allows",
        };
        assert!(answer.reason.contains(told), "{probe:?}: {}", answer.reason);
        let group = answer.decisive.and_then(|rule| rule.source).map(|source| source.group_guid);
        assert_eq!(group.is_some_and(|guid| guid == "g1"), verdict != Verdict::Denied);
    }
    cell.stop().await;
}

/// Until the CNI plugin has created its chains, nothing is allowed.
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
fn explain_matches_packets_in_our_table() {
    lab(async |lab| compare(&lab, None).await);
}

#[test]
fn explain_matches_packets_beside_silk() {
    for silk in BACKENDS {
        lab(async move |lab| compare(&lab, Some(silk)).await);
    }
}

/// Moves the container to another space in the metadata store.
fn move_to(cell: &mut Cell, space: &str) {
    cell.plug(HANDLE, ADDRESS);
    cell.add_entry(HANDLE, ADDRESS, &app(space));
}

/// Explains and sends a packet to a destination that the first space allows.
async fn state(cell: &Cell, prober: &Prober) -> (Enforcement, Verdict, Fate) {
    let list = async || {
        cell.client().list_containers(ListContainersRequest {}).await.unwrap().into_inner()
    };
    // Both responses must be from the same state.
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

/// Laws 5 and 7: the rules of an earlier agent in a chain of their own stay until the
/// desired rules are known; rules of a space that the container has left do not.
#[test]
fn an_unknown_space_allows_nothing_and_kept_rules_are_shown() {
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
    cell.shorten_force_timeout();
    cell.start().await;
    let (status, body) = cell.force(HANDLE).await;
    assert_eq!(status, 500);
    assert!(body.contains("has not sent the security groups of space s2"), "{body}");
    let denied = (Enforcement::DeniedUntilKnown, Verdict::Denied, Fate::Reject);
    let kept = (Enforcement::KeptUntilKnown, Verdict::Unspecified, Fate::Accept);
    // A table of our own is not kept while its content is unknown.
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

/// Port of all servers of the next test.
const PORT: u16 = 4000;

/// A server on all addresses of a namespace; the kernel accepts its connections.
fn serve() -> TcpListener {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT))).unwrap()
}

/// A server on each address of [`DESTINATIONS`]. Other cells are reached through
/// `silk-vtep`.
fn servers(lab: &Lab, second: &Namespace) -> Vec<TcpListener> {
    for address in ["10.1.0.1/32", "10.1.9.1/32", "10.2.0.1/32", "fd00:1::1/128", "fd00:2::1/128"] {
        lab.outside.sh(&format!("ip address add {address} dev lo"));
    }
    let id = lab.outside.thread_id();
    sh(&format!("ip link add silk-vtep type veth peer name vtep netns {id}"));
    sh("ip link set silk-vtep up && ip address add 10.255.1.0/32 dev silk-vtep");
    sh("ip route add 10.255.2.0/24 dev silk-vtep");
    lab.outside.sh("ip link set vtep up && ip address add 10.255.2.5/32 dev vtep");
    lab.outside.sh("ip route add 10.255.1.0/24 dev vtep");
    sh("echo 1 > /proc/sys/net/ipv4/conf/silk-vtep/proxy_arp");
    vec![serve(), lab.outside.run(serve), second.run(serve)]
}

/// Each class of destinations, and whether security groups apply.
const DESTINATIONS: [(&str, Verdict, &str); 14] = [
    ("10.1.0.1", Verdict::Allowed, "rule 0 of security group g1 (g1) allows"),
    ("fd00:1::1", Verdict::Allowed, "rule 0 of security group g1 (g1) allows"),
    ("10.2.0.1", Verdict::Denied, "rule 1 of security group g1 (g1) would allow it"),
    ("fd00:2::1", Verdict::Denied, "the only rule of the container does not match"),
    ("10.1.9.1", Verdict::Denied, "10.1.9.0/24 of deny_networks"),
    // Container network policy knows IPv4 only.
    ("fd00:255:1::2", Verdict::Denied, "the only rule of the container does not match"),
    ("127.0.0.1", Verdict::NotDecided, "do not leave the container"),
    ("::1", Verdict::NotDecided, "do not leave the container"),
    ("10.255.1.1", Verdict::NotDecided, "do not leave the container"),
    ("169.254.0.1", Verdict::NotDecided, "an address of this cell"),
    ("10.99.0.1", Verdict::NotDecided, "an address of this cell"),
    ("fd00:99::1", Verdict::NotDecided, "an address of this cell"),
    ("10.255.1.2", Verdict::NotDecided, "is the container c2 of this cell"),
    ("10.255.2.5", Verdict::NotDecided, "in the overlay network 10.255.0.0/16"),
];

/// Whether a connection is accepted; otherwise it is refused.
fn opens(container: &Namespace, to: &str) -> bool {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    match container.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(5))) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
        Err(error) => panic!("{to}: {error}"),
    }
}

/// Explain and the kernel agree on whether a container's packet is subject to its
/// security groups, for every destination.
#[test]
fn each_class_of_destinations_is_explained_as_packets_fare() {
    on_every_plane(async |plane, lab: Lab| {
        let (first, second) = (
            lab.silk(ADDRESS.parse().unwrap(), "fd00:255:1::1"),
            lab.silk("10.255.1.2".parse().unwrap(), "fd00:255:1::2"),
        );
        let mut servers = servers(&lab, &second);
        servers.push(first.run(serve));
        for underlay in [json!([]), json!(["10.99.0.1"])] {
            let networks = json!({"always": ["10.1.9.0/24"], "running": [], "staging": []});
            let config = json!({"deny_networks": networks, "underlay_ips": underlay});
            let mut cell = Cell::running(plane.config(config)).await;
            let isolated = rule("tcp", "10.2.0.0/255.255.0.0", "4000");
            cell.store.set(vec![global("g1", vec![all("10.1.0.0/16,fd00:1::/32"), isolated])]);
            cell.caught_up().await;
            cell.add_app(HANDLE, ADDRESS, "s1").await;
            cell.add_app("c2", "10.255.1.2", "s1").await;
            for (to, verdict, reason) in DESTINATIONS {
                // A prefix of the handle is enough.
                let answer = explained(&cell, &HANDLE[..5], to).await;
                assert_eq!(answer.verdict(), verdict, "{to}: {}", answer.reason);
                assert!(answer.reason.contains(reason), "{to}: {}", answer.reason);
                assert_eq!(
                    opens(&first, to),
                    verdict != Verdict::Denied,
                    "{to}: {}",
                    answer.reason
                );
                assert_eq!(answer.container.unwrap().handle, HANDLE);
            }
            ambiguous(&mut cell).await;
            cell.delete_entry(HANDLE);
            cell.delete_entry("c2");
            cell.stop().await;
        }
    });
}

async fn explained(cell: &Cell, handle: &str, to: &str) -> ExplainResponse {
    let request = ExplainRequest {
        handle: handle.to_owned(),
        protocol: "tcp".to_owned(),
        destination: to.to_owned(),
        port: PORT.into(),
        ..Default::default()
    };
    cell.client().explain(request).await.unwrap().into_inner()
}

/// A prefix of several handles matches none of them; a complete handle matches itself.
async fn ambiguous(cell: &mut Cell) {
    cell.add_app("c2-more", "10.255.1.3", "s1").await;
    let rules = async |handle: &str| {
        let request = EffectiveRulesRequest { handle: handle.to_owned() };
        cell.client().effective_rules(request).await
    };
    let error = rules("c").await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("c2, c2-more"), "{}", error.message());
    for (handle, whole) in [("c2", "c2"), ("c2-", "c2-more")] {
        let answer = rules(handle).await.unwrap().into_inner();
        let container = answer.container.unwrap();
        assert_eq!(container.handle, whole);
        let counted = (container.rules as usize, container.isolated_rules as usize);
        assert_eq!(counted, (answer.rules.len(), answer.isolated.len()));
        assert_eq!(counted, (1, 1));
    }
    assert_eq!(rules("nobody").await.unwrap_err().code(), tonic::Code::NotFound);
    cell.delete_entry("c2-more");
}
