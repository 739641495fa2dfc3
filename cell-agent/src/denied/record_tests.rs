use std::net::IpAddr;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::denied::packet::{Detail, TCP};

const LIMITS: Limits = Limits { cell: 6, container: 4, kept: Duration::from_secs(3600) };

fn handle(text: &str) -> ContainerHandle {
    ContainerHandle::parse(text).unwrap()
}

fn to(port: u16) -> Target {
    let destination = IpAddr::from([192, 0, 2, 1]);
    Target { destination, protocol: TCP, detail: Detail::Port(port) }
}

/// Seconds after the start.
#[expect(clippy::disallowed_methods, reason = "any instant is a start")]
fn clock() -> impl Fn(u64) -> Moment {
    let (instant, time) = (Instant::now(), SystemTime::UNIX_EPOCH);
    move |seconds| {
        let by = Duration::from_secs(seconds);
        Moment { instant: instant + by, time: time + by }
    }
}

fn add(record: &mut Record, name: &str, port: u16, now: Moment) {
    let about = Arc::new(Container { handle: name.to_owned(), ..Container::default() });
    record.add(&handle(name), &about, to(port), now);
}

/// Container, port and packets, the most recent first.
fn shown(record: &Record, cursor: u64) -> Vec<(String, u16, u64)> {
    let flows = record.after(cursor).map(|(handle, about, target, flow)| {
        assert_eq!(about.handle, handle.as_str());
        let Detail::Port(port) = target.detail else { panic!("{target:?}") };
        (handle.as_str().to_owned(), port, flow.packets)
    });
    flows.collect()
}

fn row(name: &str, port: u16, packets: u64) -> (String, u16, u64) {
    (name.to_owned(), port, packets)
}

#[test]
fn packets_to_one_target_are_a_flow() {
    let (at, mut record) = (clock(), Record::new(LIMITS, 100));
    for (name, port, second) in [("a", 1, 0), ("a", 2, 1), ("b", 1, 2), ("a", 1, 3)] {
        add(&mut record, name, port, at(second));
    }
    assert_eq!(shown(&record, 0), [row("a", 1, 2), row("b", 1, 1), row("a", 2, 1)]);
    let (_, _, _, flow) = record.after(0).next().unwrap();
    assert_eq!((flow.first, flow.last), (at(0).time, at(3).time));
    assert_eq!(shown(&record, 102), [row("a", 1, 2), row("b", 1, 1)]);
    let cursor = record.cursor();
    assert_eq!(shown(&record, cursor), []);
    assert_eq!(shown(&record, u64::MAX), []);
    add(&mut record, "a", 2, at(4));
    assert_eq!(shown(&record, cursor), [row("a", 2, 2)]);
}

#[test]
fn a_full_record_forgets_the_oldest_flows_and_counts_their_packets() {
    let (at, mut record) = (clock(), Record::new(LIMITS, 0));
    for port in [1, 1, 2, 3, 4] {
        add(&mut record, "a", port, at(0));
    }
    add(&mut record, "a", 5, at(0));
    assert_eq!(shown(&record, 0).len(), 4, "the container's own bound");
    assert_eq!(record.recorded(), 4, "two packets of the flow to port 1 are forgotten");
    for port in [1, 2, 3] {
        add(&mut record, "b", port, at(1));
    }
    assert_eq!(record.flows(), 6);
    assert_eq!(shown(&record, 0).last(), Some(&row("a", 3, 1)), "the oldest of the cell");
    assert_eq!(record.recorded(), 6);
}

#[test]
fn a_flow_without_packets_is_dropped_but_stays_recorded() {
    let (at, mut record) = (clock(), Record::new(LIMITS, 0));
    add(&mut record, "a", 1, at(0));
    add(&mut record, "b", 1, at(10));
    record.expire(at(3599).instant);
    assert_eq!(record.flows(), 2);
    record.expire(at(3600).instant);
    assert_eq!(shown(&record, 0), [row("b", 1, 1)]);
    record.expire(at(3610).instant);
    assert_eq!((record.flows(), record.recorded()), (0, 2));
    assert!(record.containers.is_empty());
}

proptest! {
    #[test]
    fn the_record_stays_bounded_and_loses_no_packet(
        packets in vec((0_u8..4, 0_u16..9, 0_u64..2000), 0..200),
    ) {
        let (at, mut record, mut now) = (clock(), Record::new(LIMITS, 7), 0);
        let mut dropped = 0;
        for (sent, (name, port, wait)) in packets.into_iter().enumerate() {
            now += wait;
            let before: u64 = shown(&record, 0).iter().map(|(_, _, packets)| packets).sum();
            record.expire(at(now).instant);
            let after: u64 = shown(&record, 0).iter().map(|(_, _, packets)| packets).sum();
            dropped += before - after;
            add(&mut record, &format!("c{name}"), port, at(now));
            let rows = shown(&record, 0);
            let held: u64 = rows.iter().map(|(_, _, packets)| packets).sum();
            prop_assert_eq!(record.recorded(), held + dropped);
            prop_assert_eq!(record.recorded() + record.forgotten, sent as u64 + 1);
            prop_assert!(rows.len() <= LIMITS.cell && rows.len() == record.flows());
            let of_first = rows.iter().filter(|(of, _, _)| of == "c0").count();
            prop_assert!(of_first <= LIMITS.container);
            let ordered: usize = record.containers.values().map(|flows| flows.order.len()).sum();
            prop_assert_eq!(ordered, record.order.len());
        }
    }
}
