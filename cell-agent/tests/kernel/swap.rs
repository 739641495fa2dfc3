//! Law 8: while rules change, no packet meets a partial rule set.
//!
//! Two flows whose packets all count as new connections are sent at full speed. One is
//! allowed by every rule set, though each time by a different kind of rule in another
//! group; the other is never allowed. Counters in the same hook before and after our
//! table compare without loss.

use std::{
    env,
    fmt::Write as _,
    net::{SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::time::Instant;

use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use proto::policy_v1::{Rule, SecurityGroup};
use serde_json::json;

use crate::{
    agent::{Cell, bound, eventually, global, rule},
    lab::{Lab, sh},
    planes::{Plane, on_every_plane},
    silk::Silk,
};

const ALLOWED: &str = "10.1.0.77";
const FORBIDDEN: &str = "10.2.0.77";
const PORT: u16 = 4000;

/// Every way to allow the first flow, with all kinds of sets.
fn allowing() -> impl Strategy<Value = Rule> {
    let shapes = [
        ("all", "10.1.0.77", ""),
        ("all", "10.1.0.0/16", ""),
        ("udp", "10.1.0.77", "4000"),
        ("udp", "10.1.0.70-10.1.0.79,9.9.9.9", "4000"),
        ("udp", "10.1.0.0/24", "3999-4001,53"),
        ("udp", "10.0.0.0-10.1.255.255", "1-65535"),
    ];
    (proptest::sample::select(shapes.to_vec()), any::<bool>())
        .prop_map(|((protocol, to, ports), log)| Rule { log, ..rule(protocol, to, ports) })
}

/// Rules that allow neither flow.
fn other() -> impl Strategy<Value = Rule> {
    let ports = proptest::collection::vec(1_u16..3000, 1..6);
    let tcp = ("10.[12].0.(77|0/24)", ports).prop_map(|(to, ports)| {
        rule("tcp", &to, &ports.iter().map(u16::to_string).collect::<Vec<_>>().join(","))
    });
    let all = "10.[3-9].[0-9].0/24".prop_map(|to| rule("all", &to, ""));
    let udp = (1_u16..3000, 1_u16..900).prop_map(|(first, more)| {
        rule("udp", "10.1.0.0-10.2.255.255", &format!("{first}-{}", first + more))
    });
    (prop_oneof![tcp, all, udp], any::<bool>()).prop_map(|(rule, log)| Rule { log, ..rule })
}

fn versions() -> impl Strategy<Value = Vec<SecurityGroup>> {
    let rules = || proptest::collection::vec(other(), 0..12);
    (rules(), rules(), rules(), allowing(), 0_usize..3, any::<prop::sample::Index>()).prop_map(
        |(a, b, c, allowing, group, place)| {
            let mut groups = [a, b, c];
            let place = place.index(groups[group].len() + 1);
            groups[group].insert(place, allowing);
            let [a, b, c] = groups;
            vec![global("a", a), bound("b", "s1", b), bound("c", "s1", c)]
        },
    )
}

/// Sends datagrams until stopped.
fn flood(lab: &Lab, to: &str, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let to: SocketAddrV4 = format!("{to}:{PORT}").parse().unwrap();
    let socket = lab.inside.run(|| UdpSocket::bind("10.255.1.1:0").unwrap());
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let _refused = socket.send_to(b"ping", to);
        }
    })
}

/// Counts both flows in the forward hook, before and after our table.
fn count() {
    let mut script = "table inet measure {\n".to_owned();
    for (name, priority) in [("before", -100), ("after", 100)] {
        writeln!(script, "chain {name} {{ type filter hook forward priority {priority};").unwrap();
        for to in [ALLOWED, FORBIDDEN] {
            writeln!(script, "ip daddr {to} counter").unwrap();
        }
        script.push_str("}\n");
    }
    script.push('}');
    sh(&format!("nft '{script}'"));
}

fn counted(chain: &str, to: &str) -> u64 {
    let listing = sh(&format!("nft list chain inet measure {chain}"));
    let line = listing.lines().find(|line| line.contains(to)).unwrap();
    line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// Duration of the test on each plane.
fn length() -> Duration {
    let seconds = env::var("PORTCULLIS_SWAP_SECONDS").map_or(5, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Concurrent foreign changes: first outside our rules, then in them.
fn others(plane: Plane) -> [String; 2] {
    match plane {
        Plane::Nftables => [
            "nft add table inet theirs; nft delete table inet theirs".to_owned(),
            "nft add rule inet portcullis denied counter".to_owned(),
        ],
        Plane::Iptables(Silk { backend }) => {
            let iptables = format!("iptables-{backend} -w");
            [
                format!("{iptables} -N theirs; {iptables} -X theirs"),
                format!("{iptables} -A asg-c1 -j DROP"),
            ]
        }
    }
}

#[test]
fn no_packet_meets_half_a_rule_set() {
    on_every_plane(whole);
}

async fn whole(plane: Plane, lab: Lab) {
    lab.container("10.255.1.1".parse().unwrap());
    count();
    let mut cell = Cell::running(plane.config(json!({}))).await;
    let mut runner = TestRunner::default();
    let mut version = || versions().new_tree(&mut runner).unwrap().current();
    cell.store.set(version());
    cell.add_app("c1", "10.255.1.1", "s1").await;
    cell.caught_up().await;
    let stop = Arc::default();
    let senders = [flood(&lab, ALLOWED, &stop), flood(&lab, FORBIDDEN, &stop)];
    let until = Instant::now() + length();
    let mut swaps = 0;
    let [elsewhere, here] = others(plane);
    while Instant::now() < until {
        cell.store.set(version());
        cell.caught_up().await;
        swaps += 1;
        // Some changes follow each other immediately, some follow a sweep, and some run
        // during foreign changes, so that everything is written again.
        if swaps % 8 == 0 {
            cell.settled().await;
        }
        if swaps % 11 == 0 {
            sh(&elsewhere);
        }
        if swaps % 13 == 0 {
            sh(&here);
        }
    }
    stop.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    // The flow has ended, so packets in flight arrive.
    let passed = async || counted("after", ALLOWED) == counted("before", ALLOWED);
    eventually(&format!("all allowed packets pass, {swaps} swaps on {plane:?}"), passed).await;
    let sent = counted("before", ALLOWED);
    let (tried, leaked) = (counted("before", FORBIDDEN), counted("after", FORBIDDEN));
    println!("{plane:?}: {swaps} swaps; {sent} allowed packets passed, of {tried} others {leaked}");
    assert!(swaps > 10 && sent > 5_000 && tried > 5_000, "{swaps} {sent} {tried}");
    assert_eq!(leaked, 0, "in {swaps} swaps on {plane:?}");
    cell.stop().await;
}
