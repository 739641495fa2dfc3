//! Effects of the configuration on the rules, with real packets.

use std::net::{Ipv4Addr, SocketAddrV6, UdpSocket};

use proto::policy_v1::{Rule, SecurityGroup};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    agent::{Cell, all, app, bound, eventually, global, listing, rule},
    lab::{Lab, lab, sh},
    packets::{Fate, Kind, Prober, connection as tcp},
    planes::{Plane, on_every_plane},
};

const C1: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
const C2: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 2);

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn udp(port: u16) -> Kind {
    match tcp(port) {
        Kind::Tcp { port, source, .. } => Kind::Udp { port, source },
        other => other,
    }
}

async fn cell(lab: &Lab, config: Value, groups: Vec<SecurityGroup>) -> (Cell, Prober) {
    lab.container(C1);
    lab.container(C2);
    let prober = Prober::new(lab);
    let mut cell = Cell::running(config).await;
    cell.store.set(groups);
    cell.add_app("c1", "10.255.1.1", "s1").await;
    cell.caught_up().await;
    (cell, prober)
}

/// Packet count of the log rules with this prefix.
fn logged(prefix: &str) -> u64 {
    let listing = sh("nft list table inet portcullis");
    let lines = listing.lines().filter(|line| line.contains(&format!("log prefix \"{prefix}")));
    let count =
        |line: &str| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    lines.filter_map(count).sum()
}

#[test]
fn deny_networks_come_before_every_rule() {
    lab(async |lab| {
        let deny = json!({"deny_networks": {
            "always": ["10.1.0.0/16"], "running": ["10.2.0.0/16"], "staging": ["10.3.0.0/16"],
        }});
        let mut everything = global("g1", vec![all("0.0.0.0/0")]);
        everything.staging_default = true;
        let (mut cell, prober) = cell(&lab, deny, vec![everything]).await;
        let mut staging = app("s1");
        staging["container_workload"] = json!("staging");
        cell.add_entry("c2", "10.255.1.2", &staging);
        assert_eq!(cell.force("c2").await.0, 200);
        for (from, denied, allowed) in [
            (C1, ["10.1.0.1", "10.2.0.1"], ["10.3.0.1", "10.4.0.1"]),
            (C2, ["10.1.0.1", "10.3.0.1"], ["10.2.0.1", "10.4.0.1"]),
        ] {
            for to in denied {
                assert_eq!(
                    prober.probe(from, address(to), tcp(80)).await,
                    Fate::Reject,
                    "{from} {to}"
                );
            }
            for to in allowed {
                assert_eq!(
                    prober.probe(from, address(to), tcp(80)).await,
                    Fate::Accept,
                    "{from} {to}"
                );
            }
        }
        cell.stop().await;
    });
}

#[test]
fn of_overlapping_rules_the_last_one_decides_about_the_log() {
    lab(async |lab| {
        let log = |rule: Rule| Rule { log: true, ..rule };
        let groups = vec![
            global("g1", vec![log(all("10.0.0.0/8")), all("20.0.0.0/8"), log(all("20.1.0.0/16"))]),
            bound("g2", "s1", vec![all("10.1.0.0/16"), log(all("20.2.0.1"))]),
            // The same destination again, without a log like in g1: the first rule
            // counts.
            bound("g3", "s1", vec![all("20.0.0.0/8")]),
        ];
        let (mut cell, prober) = cell(&lab, json!({}), groups).await;
        for (to, is_logged) in [
            ("10.2.0.1", true),
            ("10.1.0.1", false),
            ("20.9.0.1", false),
            ("20.1.0.1", true),
            ("20.2.0.1", true),
        ] {
            let before = logged("OK_c1 ");
            assert_eq!(prober.probe(C1, address(to), tcp(80)).await, Fate::Accept, "{to}");
            assert_eq!(logged("OK_c1 ") - before, u64::from(is_logged), "{to}");
        }
        cell.stop().await;
    });
}

#[test]
fn logging_everything_has_limits_for_each_container() {
    lab(async |lab| {
        let config = json!({
            "iptables_asg_logging": true,
            "iptables_denied_logs_per_sec": 2,
            "iptables_accepted_udp_logs_per_sec": 3,
        });
        let (mut cell, prober) =
            cell(&lab, config, vec![global("g1", vec![all("10.1.0.0/16")])]).await;
        cell.add_app("c2", "10.255.1.2", "s1").await;
        cell.add_entry("c3", "10.255.1.3", &Value::Null);
        lab.container(address("10.255.1.3"));
        assert_eq!(cell.force("c3").await.0, 200);
        let (open, closed) = (address("10.1.0.1"), address("10.2.0.1"));
        let send = async |from, to, kind: fn(u16) -> Kind| {
            for _ in 0..12 {
                prober.send(from, to, kind(80));
            }
            prober.probe(from, to, kind(80)).await
        };
        assert_eq!(send(C1, open, tcp).await, Fate::Accept);
        assert_eq!(logged("OK_c1 "), 13, "each connection but UDP");
        assert_eq!(send(C1, open, udp).await, Fate::Accept);
        let udp_lines = logged("OK_c1 ") - 13;
        assert!((3..13).contains(&udp_lines), "{udp_lines}");
        for (from, handle) in [(C1, "c1"), (C2, "c2"), (address("10.255.1.3"), "c3")] {
            assert_eq!(send(from, closed, tcp).await, Fate::Reject);
            let lines = logged(&format!("DENY_{handle} "));
            assert!((2..13).contains(&lines), "{handle}: {lines}");
        }
        cell.stop().await;
    });
}

#[test]
fn new_connections_are_limited_for_container_destination_and_port() {
    lab(async |lab| {
        let config = json!({"outbound_connections": {
            "limit": true, "logging": true, "burst": 5, "rate_per_sec": 1,
        }});
        let (mut cell, prober) =
            cell(&lab, config, vec![global("g1", vec![all("10.0.0.0/8")])]).await;
        cell.add_app("c2", "10.255.1.2", "s1").await;
        cell.settled().await;
        let (to, other) = (address("10.1.0.1"), address("10.1.0.2"));
        let accepted = async |from, to, kind: fn(u16) -> Kind, port| {
            let mut fates = Vec::new();
            for _ in 0..12 {
                fates.push(prober.probe(from, to, kind(port)).await);
            }
            assert!(!fates.contains(&Fate::Blocked), "{fates:?}");
            fates.iter().filter(|fate| **fate == Fate::Accept).count()
        };
        for (from, to, port) in [(C1, to, 80), (C1, to, 81), (C1, other, 80), (C2, to, 80)] {
            let count = accepted(from, to, tcp, port).await;
            assert!((5..9).contains(&count), "{from} {to} {port}: {count}");
        }
        assert_eq!(accepted(C1, to, udp, 80).await, 12);
        assert!(logged("DENY_ORL_c1 ") >= 1);
        // The buckets survive a change of rules, and are no drift.
        cell.store.set(vec![global("g1", vec![all("10.0.0.0/8"), all("11.0.0.0/8")])]);
        cell.caught_up().await;
        assert!(accepted(C1, to, tcp, 80).await < 5);
        cell.settled().await;
        assert_eq!(cell.status().await.drift_healed, 0);
        cell.stop().await;
    });
}

#[test]
fn within_the_overlay_network_policy_can_be_disabled() {
    lab(async |lab| {
        sh("ip route add 10.255.77.0/24 via 10.99.0.2");
        lab.inside.sh("ip route add 10.255.77.0/24 via 10.255.0.1");
        let config = json!({"disable_container_network_policy": true});
        let (mut cell, prober) = cell(&lab, config, Vec::new()).await;
        assert_eq!(prober.probe(C1, address("10.255.77.1"), tcp(80)).await, Fate::Accept);
        assert_eq!(prober.probe(C1, address("10.1.0.1"), tcp(80)).await, Fate::Reject);
        cell.stop().await;
    });
}

#[test]
fn only_the_underlay_is_guarded_where_it_is_named() {
    lab(async |lab| {
        sh(
            "ip link add other type veth peer name other-end && ip link set other up && ip link set other-end up && ip route add 10.7.0.0/16 dev other",
        );
        sh(
            "nft 'table inet measure { chain after { type filter hook forward priority 100; oifname \"other\" counter; }; }'",
        );
        let (mut cell, prober) =
            cell(&lab, json!({"underlay_ips": ["10.99.0.1"]}), Vec::new()).await;
        assert!(listing().contains("oifname \"eth0\""));
        assert_eq!(prober.probe(C1, address("10.1.0.1"), tcp(80)).await, Fate::Reject);
        prober.send(C1, address("10.7.0.1"), tcp(80));
        let passed = async || !sh("nft list table inet measure").contains("packets 0");
        eventually("a packet by another interface passes", passed).await;
        cell.stop().await;
    });
}

#[test]
fn an_address_outside_the_overlay_is_guarded_too() {
    lab(async |lab| {
        let outsider = address("172.30.0.5");
        lab.container(outsider);
        sh("ip route add 172.30.0.0/16 dev containers");
        let groups = vec![global("g1", vec![all("10.1.0.0/16")])];
        let (mut cell, prober) = cell(&lab, json!({}), groups).await;
        cell.add_app("c2", "172.30.0.5", "s1").await;
        assert_eq!(prober.probe(outsider, address("10.1.0.1"), tcp(80)).await, Fate::Accept);
        assert_eq!(prober.probe(outsider, address("10.2.0.1"), tcp(80)).await, Fate::Reject);
        cell.stop().await;
    });
}

#[test]
fn ipv6_is_filtered_for_containers_that_have_it() {
    on_every_plane(ipv6);
}

async fn ipv6(plane: Plane, lab: Lab) {
    sh("nft 'table inet measure { chain after { type filter hook forward priority 100;
        ip6 daddr fd00:1::1 counter; ip6 daddr fd00:2::1 counter; ip6 daddr fd00:3::1 counter;
        ip6 daddr fd00:4::1 counter; ip6 daddr fd00:5::1 counter; }; }'");
    let groups = vec![global(
        "g1",
        vec![
            all("fd00:1::/32,10.1.0.0/16"),
            rule("udp", "fd00:3::1", "53"),
            Rule { r#type: 128, code: 0, ..rule("icmpv6", "fd00:4::/32", "") },
            // An ICMP message other than the one that is sent.
            Rule { r#type: 1, code: 4, ..rule("icmpv6", "fd00:5::/32", "") },
        ],
    )];
    let (mut cell, prober) = cell(&lab, plane.config(json!({})), groups).await;
    cell.add_app("c6", "fd00:255::2", "s1").await;
    let socket = lab.inside.run(|| UdpSocket::bind("[fd00:255::2]:0").unwrap());
    let echo = lab.inside.run(|| {
        let echo = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        let from: SocketAddrV6 = "[fd00:255::2]:0".parse().unwrap();
        echo.bind(&from.into()).unwrap();
        echo
    });
    let passed = |to: &str| {
        let listing = sh("nft list table inet measure");
        !listing.lines().find(|line| line.contains(to)).unwrap().contains("packets 0 ")
    };
    eventually("what is allowed passes", async || {
        for to in ["[fd00:1::1]:80", "[fd00:2::1]:80", "[fd00:3::1]:53"] {
            let _refused = socket.send_to(b"ping", to);
        }
        for to in ["[fd00:5::1]:0", "[fd00:4::1]:0"] {
            let to: SocketAddrV6 = to.parse().unwrap();
            let request = [128, 0, 0, 0, 0, 1, 0, 1];
            let _refused = echo.send_to(&request, &to.into());
        }
        passed("fd00:1::1") && passed("fd00:3::1") && passed("fd00:4::1")
    })
    .await;
    assert!(!passed("fd00:2::1") && !passed("fd00:5::1"));
    assert_eq!(prober.probe(C1, address("10.1.0.1"), tcp(80)).await, Fate::Accept);
    cell.stop().await;
}
