//! Uses of rules, counted by the kernel and reported to the store.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use model::{
    effective::ReadGroup,
    group::{GroupId, StoredGroup},
    uses::PermitKey,
};
use proto::policy_v1::SecurityGroup;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    agent::{Cell, all, bound, eventually, global, listing, rule},
    lab::{Lab, lab, sh},
    packets::{Fate, Kind, Prober, connection},
};

const C1: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);

/// Group, rule, and port or port range, if there is one.
type Name = (String, usize, String);

fn groups() -> Vec<SecurityGroup> {
    let ranges = "1000-1001,1010-1011,1020-1021,1030-1031,1040-1041,1050-1051";
    let many: Vec<String> =
        (0..600).map(|n| format!("10.{}.{}.0/25", 60 + n / 200, n % 200)).collect();
    vec![
        global("wide", vec![all("10.1.0.0/16"), rule("tcp", "10.9.0.0/16", "1-65535")]),
        bound(
            "own",
            "s1",
            vec![
                rule("tcp", "10.1.0.1", "443"),
                rule("tcp", "10.1.0.1,10.1.0.2", "80,443"),
                rule("udp", "10.2.0.0-10.2.0.9,10.3.0.1-10.3.0.4", "53"),
                rule("tcp", "10.4.0.0/16,10.5.0.0/16", ranges),
                rule("tcp", &many.join(","), "22"),
            ],
        ),
        global("idle", vec![rule("tcp", "10.8.0.0/16", "1-65535")]),
    ]
}

/// The names of all permits with the keys of these groups.
fn names(groups: &[SecurityGroup], keys: &BTreeSet<(String, Vec<u8>)>) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    for group in groups {
        let group = model::group::SecurityGroup::try_from(group.clone()).unwrap();
        let guid = group.guid.as_str().to_owned();
        let read = ReadGroup::new(StoredGroup { id: GroupId(1), group: Arc::new(group) });
        for (index, permit) in read.permits() {
            let key = PermitKey::of(permit).as_bytes().to_vec();
            if keys.contains(&(guid.clone(), key)) {
                let text = format!("{:?}", permit.service);
                let ports = text.split_once('(').map_or("", |(_, rest)| rest).trim_end_matches(')');
                names.insert((guid.clone(), index, ports.to_owned()));
            }
        }
    }
    names
}

/// What the store was told of since message `from`.
fn told(cell: &Cell, from: usize) -> BTreeSet<(String, Vec<u8>)> {
    cell.store.told(|told| {
        let groups = told.uses[from..].iter().flat_map(|message| &message.groups);
        let keys = groups.flat_map(|group| {
            group.permits.iter().map(|permit| (group.guid.clone(), permit.clone()))
        });
        keys.collect()
    })
}

fn name(group: &str, rule: usize, ports: &str) -> Name {
    (group.to_owned(), rule, ports.to_owned())
}

async fn accepted(prober: &Prober, to: [u8; 4], kind: Kind) {
    assert_eq!(prober.probe(C1, to.into(), kind).await, Fate::Accept, "{to:?}");
}

async fn running(lab: &Lab) -> (Cell, Prober) {
    lab.container(C1);
    let config =
        json!({"data_plane": "nftables", "rule_use": {"enabled": true, "interval_seconds": 1}});
    let mut cell = Cell::running(config).await;
    cell.store.set(groups());
    cell.add_app("c1", "10.255.1.1", "s1").await;
    cell.caught_up().await;
    (cell, Prober::new(lab))
}

#[test]
fn each_used_rule_is_reported_and_no_other() {
    lab(async |lab| {
        let (mut cell, prober) = running(&lab).await;
        eventually("uses are reported", async || cell.store.told(|told| told.uses.len() > 1)).await;
        assert_eq!(told(&cell, 0), BTreeSet::new());
        accepted(&prober, [10, 1, 0, 1], connection(443)).await;
        accepted(&prober, [10, 3, 0, 2], Kind::Udp { port: 53, source: 9 }).await;
        accepted(&prober, [10, 4, 7, 7], connection(1021)).await;
        accepted(&prober, [10, 62, 5, 9], connection(22)).await;
        accepted(&prober, [10, 9, 1, 1], connection(9)).await;
        let ranges = ["1000-1001", "1010-1011", "1020-1021", "1030-1031", "1040-1041", "1050-1051"];
        let mut wanted = BTreeSet::from([
            name("own", 0, "443"),
            // The same permit.
            name("own", 1, "443"),
            name("own", 2, "53"),
            name("own", 4, "22"),
            name("wide", 1, "1-65535"),
            // Behind the rule that decided.
            name("wide", 0, ""),
        ]);
        // One counter for each range of addresses.
        wanted.extend(ranges.map(|ports| name("own", 3, ports)));
        let all = groups();
        eventually("all uses are reported", async || {
            names(&all, &told(&cell, 0)).is_superset(&wanted)
        })
        .await;
        assert_eq!(names(&all, &told(&cell, 0)), wanted);
        let of_own = told(&cell, 0).iter().filter(|(group, _)| group == "own").count();
        // Rule 4 with one network of 600; the two networks of rule 3 are one range in the kernel.
        assert_eq!(of_own, 1 + 1 + 1 + 2 * 6, "{:?}", told(&cell, 0));
        from_before_a_change(&cell, &prober).await;
        a_stranger_flushes(&cell).await;
        cell.stop().await;
    });
}

/// A rule that is used and deleted between two reads.
async fn from_before_a_change(cell: &Cell, prober: &Prober) {
    let from = cell.store.told(|told| told.uses.len());
    accepted(prober, [10, 8, 1, 1], connection(5)).await;
    let rest: Vec<_> = groups().into_iter().filter(|group| group.guid != "idle").collect();
    cell.store.set(rest);
    cell.caught_up().await;
    eventually("the use is reported", async || {
        names(&groups(), &told(cell, from)).contains(&name("idle", 0, "1-65535"))
    })
    .await;
    let windows = cell.store.told(|told| {
        let windows = told.uses.iter().filter_map(|message| message.from.zip(message.until));
        windows.collect::<Vec<_>>()
    });
    for pair in windows.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "no gap: {windows:?}");
    }
}

/// Counters that another process takes away may have counted.
async fn a_stranger_flushes(cell: &Cell) {
    cell.settled().await;
    let last = || cell.store.told(|told| told.uses.iter().rev().find_map(|uses| uses.until));
    let before = last().unwrap();
    sh("nft delete table inet portcullis");
    eventually("there is a gap", async || {
        cell.store.told(|told| told.uses.iter().any(|uses| uses.from > Some(before)))
    })
    .await;
    eventually("the table is back", async || listing().contains("counter")).await;
}

#[test]
fn without_the_setting_nothing_is_counted() {
    lab(async |lab| {
        lab.container(C1);
        let mut cell = Cell::running(json!({"data_plane": "nftables"})).await;
        cell.store.set(groups());
        cell.add_app("c1", "10.255.1.1", "s1").await;
        cell.caught_up().await;
        assert!(!listing().contains("10.3.0.1-10.3.0.4 counter"));
        assert_eq!(cell.store.told(|told| told.uses.len()), 0);
        cell.stop().await;
    });
}

/// The packet path with and without counters, in rounds that alternate.
#[test]
#[ignore = "measures for a minute: prints the figures of docs/performance.md"]
fn the_cost_of_counting() {
    lab(async |lab| {
        let mut best = [f64::MAX; 2];
        lab.container(C1);
        for round in 0..6 {
            let counts = round % 2 == 1;
            let config = json!({"data_plane": "nftables", "rule_use": {"enabled": counts}});
            let mut cell = Cell::running(config).await;
            cell.store.set(groups());
            cell.add_app("c1", "10.255.1.1", "s1").await;
            cell.caught_up().await;
            let prober = Prober::new(&lab);
            accepted(&prober, [10, 3, 0, 2], Kind::Udp { port: 53, source: 9 }).await;
            drop(prober);
            let took = packets(&lab);
            best[usize::from(counts)] = best[usize::from(counts)].min(took);
            println!("counters {counts}: {took:.3} us");
            cell.stop().await;
            sh("nft delete table inet portcullis");
        }
        println!(
            "best without {:.3} us, with {:.3} us: ratio {:.4}",
            best[0],
            best[1],
            best[1] / best[0]
        );
    });
}

/// Microseconds of a packet in the best round. Without an answer, each packet is that of a new
/// connection, and passes all rules.
fn packets(lab: &Lab) -> f64 {
    const ROUND: u32 = 512;
    let socket = lab.inside.run(|| UdpSocket::bind((C1, 0)).unwrap());
    let (begun, mut best) = (Instant::now(), f64::MAX);
    while begun.elapsed() < Duration::from_secs(4) {
        let round = Instant::now();
        for _ in 0..ROUND {
            // The error is that of an earlier packet.
            _ = socket.send_to(b"x", (Ipv4Addr::new(10, 3, 0, 2), 53));
        }
        best = f64::min(best, round.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND));
    }
    best
}
