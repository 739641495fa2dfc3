//! Shared fixture of most tests: a cell with one container and one group.

use std::{fs, net::Ipv4Addr};

use serde_json::Value;

use crate::{
    agent::{Cell, all, bound, eventually},
    lab::Lab,
    packets::{Fate, Prober, connection},
};

/// Addresses of two containers.
pub(crate) const C1: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
pub(crate) const C2: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 2);
/// A destination that the group allows.
pub(crate) const OPEN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// A destination that other groups allow.
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// A destination that no group allows.
pub(crate) const CLOSED: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// A cell with one container in s1 that may connect to `OPEN`.
pub(crate) async fn cell(lab: &Lab, overrides: Value) -> (Cell, Prober) {
    lab.container(C1);
    lab.container(C2);
    let prober = Prober::new(lab);
    let mut cell = Cell::running(overrides).await;
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
    cell.caught_up().await;
    cell.add_app("c1", "10.255.1.1", "s1").await;
    cell.caught_up().await;
    assert_eq!(prober.probe(C1, OPEN, connection(80)).await, Fate::Accept);
    (cell, prober)
}

/// Restarts the agent after one of its inputs was damaged, so that the desired state is
/// unknown.
pub(crate) async fn restart_unknowing(cell: &mut Cell, damage: impl AsyncFnOnce(&mut Cell)) {
    cell.settled().await;
    cell.stop().await;
    damage(cell).await;
    cell.start().await;
    let told = async || cell.log.text().contains("keeping-last-rules-until-groups-are-known");
    eventually("the agent waits", told).await;
}

/// Stops the store, and makes the agent's saved groups unreadable.
pub(crate) async fn lose_the_groups(cell: &mut Cell) {
    cell.store.down().await;
    fs::write(cell.directory.path().join("state/groups"), "damaged").unwrap();
}
