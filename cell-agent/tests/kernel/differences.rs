//! What `what-if` says opens and closes is what opens and closes in the kernel, on every plane:
//! random changes of random groups, and packets at the borders of each area of the difference.

use std::{
    env,
    net::{IpAddr, Ipv4Addr},
};

use model::{
    connections::{Area, Connections, Traffic},
    effective::{Probe, ProbeKind, ReadGroup, effective_rules},
    group::Lifecycle,
    ids::SpaceGuid,
    rule::AddressRange,
};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use serde_json::json;

use crate::{
    agent::Cell,
    lab::Lab,
    laws::{groups, packet, read},
    packets::{Fate, Prober},
    planes::{Plane, on_every_plane},
    stage::C1,
};

/// Number of changes on each plane.
fn changes() -> u32 {
    env::var("PORTCULLIS_WHAT_IF_CHANGES").map_or(8, |text| text.parse().unwrap())
}

/// Limit of probed areas of a difference.
const AREAS: usize = 12;
/// Addresses outside that have a route and are not those of the cell.
const OUTSIDE: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 2, 0, 9));

fn allowed(groups: &[ReadGroup]) -> Connections {
    let space = SpaceGuid::parse("s1").unwrap();
    let rules = effective_rules(groups, Lifecycle::Running, &space, false);
    Connections::of(rules.permits.iter().map(|(permit, _)| permit))
}

/// The first and last packet of an area that can be sent.
fn borders(area: &Area) -> Vec<Probe> {
    let AddressRange::V4(first, last) = area.addresses else { return Vec::new() };
    let (first, last) = (first.max(OUTSIDE.0), last.min(OUTSIDE.1));
    if first > last {
        return Vec::new();
    }
    let kinds = match area.traffic {
        Traffic::Tcp(ports) => [ports.first(), ports.last()].map(ProbeKind::Tcp).to_vec(),
        Traffic::Udp(ports) => [ports.first(), ports.last()].map(ProbeKind::Udp).to_vec(),
        Traffic::Icmp { types, codes } => {
            // Of the other types, conntrack takes no packet as a new connection.
            let requests = [8, 13].into_iter().filter(|of| (types.0..=types.1).contains(of));
            requests.map(|icmp_type| ProbeKind::Icmp { icmp_type, code: codes.0 }).collect()
        }
        Traffic::Other => vec![ProbeKind::Other],
    };
    let probe = |kind| [first, last].map(|to| Probe { destination: IpAddr::V4(to), kind });
    kinds.into_iter().flat_map(probe).collect()
}

fn probes(difference: &Connections) -> Vec<Probe> {
    difference.areas().iter().take(AREAS).flat_map(borders).collect()
}

#[test]
fn what_opens_and_closes_is_what_the_difference_says() {
    on_every_plane(as_the_difference_says);
}

async fn as_the_difference_says(plane: Plane, lab: Lab) {
    lab.container(C1);
    let prober = Prober::new(&lab);
    let mut cell = Cell::running(plane.config(json!({}))).await;
    let mut runner = TestRunner::default();
    let mut next = || groups().new_tree(&mut runner).unwrap().current();
    let mut now = next();
    cell.store.set(now.clone());
    cell.caught_up().await;
    cell.add_app("c1", &C1.to_string(), "s1").await;
    cell.caught_up().await;
    let mut sent = [0, 0];
    for change in 0..changes() {
        let then = next();
        let (before, after) = (allowed(&read(&now)), allowed(&read(&then)));
        let [opens, closes] = [probes(&after.minus(&before)), probes(&before.minus(&after))];
        let all = |first, second| {
            let opens = opens.iter().map(move |probe| (*probe, first));
            opens.chain(closes.iter().map(move |probe| (*probe, second)))
        };
        let verify = async |expected: Vec<(Probe, Fate)>, when: &str| {
            for (probe, wanted) in expected {
                let IpAddr::V4(to) = probe.destination else { continue };
                let fate = prober.probe(C1, to, packet(probe.kind)).await;
                assert_eq!(
                    fate, wanted,
                    "{plane:?} {change}: {when} {probe:?}\n{now:#?}\n{then:#?}"
                );
            }
        };
        verify(all(Fate::Reject, Fate::Accept).collect(), "before").await;
        cell.store.set(then.clone());
        cell.caught_up().await;
        verify(all(Fate::Accept, Fate::Reject).collect(), "after").await;
        sent[0] += opens.len();
        sent[1] += closes.len();
        now = then;
    }
    println!("{plane:?}: {} packets opened and {} closed, all as computed", sent[0], sent[1]);
    assert!(sent[0] > 0 && sent[1] > 0, "{sent:?} tell little");
    cell.stop().await;
}
