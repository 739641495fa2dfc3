//! Behaviour when a kernel object of fixed size is full (docs/limits.md).

use std::net::Ipv4Addr;

use serde_json::json;

use crate::{
    agent::{Cell, all, eventually, global},
    lab::Lab,
    packets::{Fate, Kind, Prober, connection},
    planes::{Plane, on_every_plane},
};

const C1: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
const C2: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 2);
const TO: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const FULL: &str = "cfnetworking.vxlan-policy-agent.connection-limit-full";

/// More entries than the set of any plane holds.
const FILL: u16 = 35_000;

#[test]
fn a_full_limit_limits_its_container_alone() {
    on_every_plane(async |plane, lab: Lab| {
        lab.container(C1);
        lab.container(C2);
        let prober = Prober::new(&lab);
        let limit = json!({"limit": true, "burst": 300, "rate_per_sec": 5});
        let config = plane.config(json!({"outbound_connections": limit, "force_timeout": "10s"}));
        let mut cell = Cell::running(config).await;
        cell.store.set(vec![global("g1", vec![all("10.0.0.0/8")])]);
        cell.add_app("c1", "10.255.1.1", "s1").await;
        cell.add_app("c2", "10.255.1.2", "s1").await;
        cell.caught_up().await;
        let accepted = async |from, to| {
            let mut accepted = 0;
            for _ in 0..400 {
                let fate = prober.probe(from, to, connection(443)).await;
                accepted += u32::from(fate == Fate::Accept);
                if fate == Fate::Blocked {
                    break;
                }
            }
            accepted
        };
        assert_eq!(prober.probe(C1, TO, connection(443)).await, Fate::Accept);
        for to in [Ipv4Addr::new(10, 2, 0, 1), Ipv4Addr::new(10, 2, 0, 2)] {
            for port in 1..=FILL {
                prober.send(C1, to, Kind::Tcp { port, source: port, flags: 2 });
            }
        }
        // This container: connections without an entry are rejected, others are
        // unaffected.
        let new = async || prober.probe(C1, Ipv4Addr::new(10, 3, 0, 1), connection(443)).await;
        let fate = new().await;
        if let Plane::Nftables = plane {
            assert_eq!(fate, Fate::Reject, "a new destination of the noisy container");
        } else {
            assert_eq!(fate, Fate::Blocked, "a new destination of the noisy container");
        }
        assert_eq!(prober.probe(C1, TO, connection(443)).await, Fate::Accept);
        // Other containers: limited as before.
        let count = accepted(C2, TO).await;
        assert!((300..399).contains(&count), "{count} of 400 connections of the quiet container");
        // A full hashlimit table is logged by the kernel itself.
        if let Plane::Nftables = plane {
            eventually("it is told", async || cell.status().await.connection_limit_full == ["c1"])
                .await;
            assert_eq!(cell.log.data_of(FULL).unwrap()["container"], "c1");
        }
        cell.stop().await;
    });
}
