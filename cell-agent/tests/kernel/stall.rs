//! Packets are forwarded while the rules of a full cell are applied for the first time.
//!
//! One flow comes from outside, so that no container's rules apply to it: each of its
//! packets is sent when the previous one has arrived, so the longest wait is the
//! latency of a packet. `PORTCULLIS_STALL=250x1000` runs the test at the size of a
//! large cell.

use std::{
    env,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    agent::{Cell, app, bound, rule},
    lab::{Lab, lab, sh},
    planes::{PLANES, Plane},
};

/// Latency limit of a packet.
const MOST: Duration = Duration::from_millis(100);
/// On a loaded machine a thread also waits for a CPU; a stalling kernel fails every
/// try.
const TRIES: usize = 4;

fn size() -> (usize, usize) {
    let size = env::var("PORTCULLIS_STALL").unwrap_or_else(|_| "40x200".to_owned());
    let (containers, rules) = size.split_once('x').unwrap();
    (containers.parse().unwrap(), rules.parse().unwrap())
}

/// The highest latency, and the number of packets.
fn probe(lab: &Lab, stop: &Arc<AtomicBool>) -> thread::JoinHandle<(Duration, u64)> {
    let from = lab.outside.run(|| UdpSocket::bind("10.99.0.2:0").unwrap());
    let to = lab.inside.run(|| UdpSocket::bind("10.255.0.2:0").unwrap());
    to.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    from.connect(to.local_addr().unwrap()).unwrap();
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let (mut most, mut packets) = (Duration::ZERO, 0);
        while !stop.load(Ordering::Relaxed) {
            let sent = Instant::now();
            from.send(b"ping").unwrap();
            // The send fails only when the receiver is gone.
            to.recv(&mut [0; 9]).unwrap();
            most = most.max(sent.elapsed());
            packets += 1;
            thread::park_timeout(Duration::from_millis(1));
        }
        (most, packets)
    })
}

async fn cell(plane: Plane) -> Cell {
    let (containers, rules) = size();
    let config = json!({"force_timeout": "60s", "overlay_network": "10.255.128.0/17"});
    let mut cell = Cell::new(plane.config(config)).await;
    // Containers share no rules.
    let groups = (0..containers).map(|n| {
        let of_group = (0..rules).map(|k| match k % 2 {
            0 => {
                rule("tcp", &format!("10.{n}.{}.{}", k / 250, k % 250 + 1), &(1000 + k).to_string())
            }
            _ => rule("udp", &format!("11.{n}.{}.{}/29", k / 30, k % 30 * 8), "53"),
        });
        bound(&format!("g{n}"), &format!("s{n}"), of_group.collect())
    });
    cell.store.set(groups.collect());
    let handle = |n: usize| (format!("c{n}"), format!("10.255.{}.{}", 129 + n / 250, n % 250 + 1));
    (0..containers).map(handle).for_each(|(handle, ip)| cell.plug(&handle, &ip));
    cell.change_store(|entries| {
        for n in 0..containers {
            let (handle, ip) = handle(n);
            let entry = json!({"handle": handle, "ip": ip, "metadata": app(&format!("s{n}"))});
            entries.insert(handle, entry);
        }
    });
    cell
}

#[test]
fn no_packet_waits_while_a_cold_cell_gets_its_rules() {
    for plane in PLANES {
        let mut waits: Vec<Duration> = Vec::new();
        while waits.len() < TRIES && waits.iter().all(|wait| *wait > MOST) {
            let (most, answer) = mpsc::channel();
            lab(async move |lab| most.send(one(plane, lab).await).unwrap());
            waits.push(answer.recv().unwrap());
        }
        assert!(waits.iter().any(|wait| *wait <= MOST), "on {plane:?} a packet waited {waits:?}");
    }
}

async fn one(plane: Plane, lab: Lab) -> Duration {
    lab.container(Ipv4Addr::new(10, 255, 0, 2));
    let mut cell = cell(plane).await;
    let stop = Arc::default();
    let before = probe(&lab, &stop);
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (quiet, _) = before.join().unwrap();
    let stop = Arc::default();
    let during = probe(&lab, &stop);
    let began = Instant::now();
    cell.start().await;
    let (containers, rules) = size();
    let generation = cell.store.generation();
    let in_force = || {
        let report = cell.store.last_report();
        report.is_some_and(|report| report.enforced_generation >= generation)
    };
    while !in_force() {
        assert!(began.elapsed() < Duration::from_secs(300), "the rules are not in force");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = began.elapsed();
    cell.settled().await;
    stop.store(true, Ordering::Relaxed);
    let (most, packets) = during.join().unwrap();
    println!(
        "{plane:?}, {containers} containers of {rules} rules in {took:?}: the longest wait of \
         {packets} packets is {most:?}, before it {quiet:?}"
    );
    cell.stop().await;
    sh("nft delete table inet portcullis 2>/dev/null || true");
    most
}
