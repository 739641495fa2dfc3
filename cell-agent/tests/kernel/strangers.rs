//! Packets of containers in both families, with any source address
//! ([`cell_agent::interfaces`]).

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    agent::{Cell, all, app, eventually, global},
    lab::{Lab, Namespace, lab, sh},
    packets::{Fate, Prober, connection},
    planes::{Plane, Programs, on_every_plane},
    silk::BACKENDS,
};

const C1: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
const C2: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 2);
/// A destination that the group allows, and one that no group allows.
const OPEN: &str = "fd00:1::1";
const CLOSED: &str = "fd00:2::1";
const REJECTED: &str = "cfnetworking.vxlan-policy-agent.unattributed-packets-rejected";

/// Verdict on a packet of a new flow between two addresses.
async fn fate(container: &Namespace, from: &str, to: &str) -> Fate {
    let pair = format!("ip6 saddr {from} ip6 daddr {to}");
    sh(&format!(
        "nft 'add table inet measure; add chain inet measure after {{ type filter hook forward priority 100; }};
         add rule inet measure after {pair} counter'"
    ));
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let socket = container.run(move || {
        let socket = UdpSocket::bind(SocketAddr::from((from, 0))).unwrap();
        socket.connect(SocketAddr::from((to, 4000))).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    socket.send(b"ping").unwrap();
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut fate = Fate::Blocked;
    while fate == Fate::Blocked && Instant::now() < deadline {
        if socket.recv(&mut [0; 9]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        {
            fate = Fate::Reject;
        } else if !sh("nft list table inet measure").contains("packets 0 ") {
            fate = Fate::Accept;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sh("nft delete table inet measure");
    fate
}

fn entry(ip: &str, more: &Value) -> Value {
    json!({"ip": ip, "ipv6": more, "metadata": app("s1")})
}

impl Cell {
    /// Adds a metadata entry; waits until the rules are in force.
    async fn add_whole_entry(&mut self, handle: &str, entry: Value) {
        self.plug(handle, entry["ip"].as_str().unwrap());
        self.change_store(|entries| _ = entries.insert(handle.to_owned(), entry));
        assert_eq!(self.force(handle).await.0, 200);
    }
}

async fn cell(plane: Plane) -> Cell {
    let cell = Cell::running(plane.config(json!({"force_timeout": "10s"}))).await;
    cell.store.set(vec![global("g1", vec![all("fd00:1::/32,10.1.0.0/16")])]);
    cell.caught_up().await;
    cell
}

/// The metadata store has only the container's IPv4 address.
#[test]
fn ipv6_of_a_container_with_one_address_is_decided_by_its_rules() {
    on_every_plane(async |plane, lab: Lab| {
        let (first, second) = (lab.silk(C1, "fd00:255:1::1"), lab.silk(C2, "fd00:255:1::2"));
        first.sh("ip -6 address add fd00:666::1/128 dev eth0 nodad");
        second.sh("ip -6 address add fd00:255:1::1/128 dev eth0 nodad");
        let mut cell = cell(plane).await;
        cell.add_app("c1", "10.255.1.1", "s1").await;
        // A reject arrives only if there is a route back.
        assert_eq!(fate(&first, "fd00:255:1::1", CLOSED).await, Fate::Reject);
        assert_eq!(fate(&first, "fd00:666::1", CLOSED).await, Fate::Blocked);
        for from in ["fd00:255:1::1", "fd00:666::1"] {
            assert_eq!(fate(&first, from, OPEN).await, Fate::Accept, "from {from}");
        }
        // The other container has no entry: not even a known container's address helps.
        assert_eq!(fate(&second, "fd00:255:1::1", OPEN).await, Fate::Blocked);
        assert_eq!(fate(&second, "fd00:255:1::2", OPEN).await, Fate::Reject);
        eventually("it is told", async || cell.status().await.unattributed_packets >= 2).await;
        cell.stop().await;
    });
}

/// All containers share one interface, so only addresses identify them.
#[test]
fn all_addresses_of_an_entry_are_its_containers() {
    on_every_plane(async |plane, lab: Lab| {
        lab.inside
            .sh("for n in 66 77; do ip -6 address add fd00:255::$n/64 dev uplink nodad; done");
        let mut cell = cell(plane).await;
        cell.add_whole_entry("c1", entry("10.255.1.1", &json!(["fd00:255::2", "fd00:255::77"])))
            .await;
        for from in ["fd00:255::2", "fd00:255::77"] {
            assert_eq!(fate(&lab.inside, from, CLOSED).await, Fate::Reject, "from {from}");
            assert_eq!(fate(&lab.inside, from, OPEN).await, Fate::Accept, "from {from}");
        }
        // A source address that the container assigned to itself.
        assert_eq!(fate(&lab.inside, "fd00:255::66", OPEN).await, Fate::Reject);
        eventually("it is told", async || cell.status().await.unattributed_packets > 0).await;
        assert!(cell.log.data_of(REJECTED).is_some(), "{}", cell.log.text());
        let metrics = cell.debug("GET", "/metrics", "").await.1;
        assert!(!metrics.contains("cell_agent_unattributed_packets_total 0\n"), "{metrics}");
        // The container is deleted, and its addresses with it.
        cell.delete_entry("c1");
        eventually("its addresses are nobody's", async || {
            fate(&lab.inside, "fd00:255::2", OPEN).await == Fate::Reject
        })
        .await;
        cell.stop().await;
    });
}

#[test]
fn a_container_with_ipv6_alone_is_decided() {
    on_every_plane(async |plane, lab: Lab| {
        let mut cell = cell(plane).await;
        cell.add_whole_entry("c6", entry("fd00:255::2", &json!(null))).await;
        assert_eq!(fate(&lab.inside, "fd00:255::2", CLOSED).await, Fate::Reject);
        assert_eq!(fate(&lab.inside, "fd00:255::2", OPEN).await, Fate::Accept);
        cell.stop().await;
    });
}

/// On planes without silk-cni, where only the agent filters; beside silk-cni the
/// kernel's `rp_filter` does.
#[test]
fn a_self_assigned_ipv4_address_allows_nothing() {
    lab(async |lab| {
        let stranger = Ipv4Addr::new(192, 168, 7, 7);
        lab.container(C1);
        lab.container(C2);
        lab.container(stranger);
        sh("ip route add 192.168.7.0/24 dev containers");
        let prober = Prober::new(&lab);
        let mut cell = cell(Plane::Nftables).await;
        cell.add_app("c1", "10.255.1.1", "s1").await;
        let open = Ipv4Addr::new(10, 1, 0, 1);
        assert_eq!(prober.probe(C1, open, connection(80)).await, Fate::Accept);
        assert_eq!(prober.probe(stranger, open, connection(80)).await, Fate::Reject);
        assert_eq!(prober.probe(C2, open, connection(80)).await, Fate::Reject);
        let told = async || cell.log.text().contains("containers 192.168.7.7");
        eventually("interface and source are told", told).await;
        cell.stop().await;
    });
}

/// The usual setup of a cell.
#[test]
fn forwarded_packets_to_containers_pass() {
    on_every_plane(async |plane, lab: Lab| {
        let container = lab.silk(C1, "fd00:255:1::1");
        let mut cell = cell(plane).await;
        cell.add_app("c1", "10.255.1.1", "s1").await;
        let server = container.run(|| UdpSocket::bind("[fd00:255:1::1]:5000").unwrap());
        let client = lab.outside.run(|| UdpSocket::bind("[fd00:99::2]:0").unwrap());
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        }
        client.send_to(b"ask", "[fd00:255:1::1]:5000").unwrap();
        let (_, from) = server.recv_from(&mut [0; 9]).unwrap();
        server.send_to(b"answer", from).unwrap();
        assert_eq!(client.recv(&mut [0; 9]).unwrap(), 6);
        cell.stop().await;
    });
}

/// Like the original: packets within the cell are left to container network policy.
#[test]
fn without_an_underlay_only_packets_that_leave_the_cell_are_filtered() {
    lab(async |lab| {
        let (first, second) = (lab.silk(C1, "fd00:255:1::1"), lab.silk(C2, "fd00:255:1::2"));
        let mut cell = Cell::running(json!({"underlay_ips": []})).await;
        cell.store.set(vec![global("g1", vec![all("10.1.0.0/16")])]);
        cell.add_app("c1", "10.255.1.1", "s1").await;
        cell.add_app("c2", "10.255.1.2", "s1").await;
        let server = second.run(|| UdpSocket::bind("10.255.1.2:5000").unwrap());
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let client = first.run(|| UdpSocket::bind("10.255.1.1:0").unwrap());
        client.send_to(b"ask", "10.255.1.2:5000").unwrap();
        assert_eq!(server.recv(&mut [0; 9]).unwrap(), 3);
        client.connect("10.9.0.1:5000").unwrap();
        client.send(b"ask").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let error = client.recv(&mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        cell.stop().await;
    });
}

/// A cell without IPv6 does not need rules that ip6tables refuses there.
#[test]
fn where_ipv6_is_not_forwarded_ip6tables_may_refuse() {
    for silk in BACKENDS {
        lab(async move |lab| {
            sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
            let refuses = "case \"$0 $input\" in *ip6tables*restore*'*filter'*) \
                echo 'ip6tables-restore: line 1 failed' >&2; exit 1;; esac";
            let programs = Programs::new(Plane::Iptables(silk), refuses, "");
            lab.container(C1);
            let prober = Prober::new(&lab);
            let config = programs.config(json!({"force_timeout": "10s"}));
            let mut cell = Cell::running(config).await;
            cell.store.set(vec![global("g1", vec![all("10.1.0.0/16")])]);
            cell.caught_up().await;
            cell.add_app("c1", "10.255.1.1", "s1").await;
            let open = Ipv4Addr::new(10, 1, 0, 1);
            assert_eq!(prober.probe(C1, open, connection(80)).await, Fate::Accept);
            assert_eq!(cell.status().await.last_error, "");
            // Once the cell forwards IPv6, a refusal is an error.
            sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
            cell.store.set(vec![global("g1", vec![all("10.1.0.0/16"), all("fd00:1::/32")])]);
            eventually("the refusal is an error", async || {
                !cell.status().await.last_error.is_empty()
            })
            .await;
            assert_eq!(prober.probe(C1, open, connection(80)).await, Fate::Accept);
            cell.stop().await;
        });
    }
}
