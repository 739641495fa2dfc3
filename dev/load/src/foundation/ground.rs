//! The network of the foundation. The tool itself is in the namespace of the services, the
//! hub; each real cell and the container in it that sends packets have one each. They have no
//! names, so nothing is left when the tool ends, for whatever reason.
//!
//! A bridge in the hub links all cells. The hub owns all destinations of probing packets, so a
//! packet that a cell forwards arrives at a socket of the tool.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::Context;
use cni::namespace::Resident;
use cni::tools;
use nix::unistd::gettid;

/// The hub's address, at which cells find the services.
pub(super) const HUB: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
/// The network of all containers of all cells.
pub(super) const OVERLAY: &str = "10.192.0.0/10";
/// Destinations of probing packets.
const TARGETS: &str = "10.20.0.0/16";
/// Largest number of ports of a bridge, less the hub's.
pub(super) const MOST: u32 = 1_000;

/// A cell's namespace.
#[derive(Debug)]
pub(super) struct Place {
    /// The cell itself, where the agent runs.
    pub(super) cell: Resident,
    /// A socket of the container that sends packets.
    pub(super) container: UdpSocket,
}

/// Prepares the hub: the tool's own namespace.
pub(super) fn raise_hub() -> anyhow::Result<()> {
    for family in ["all", "default"] {
        // Packets arrive from containers, to which the hub has no route.
        let path = format!("/proc/sys/net/ipv4/conf/{family}/rp_filter");
        std::fs::write(&path, "0").with_context(|| format!("writing {path}"))?;
    }
    batch(&[
        "link add cells type bridge".to_owned(),
        format!("address add {HUB}/16 dev cells"),
        "link set cells up".to_owned(),
        format!("route add local {TARGETS} dev lo"),
    ])
}

/// A cell, linked to the hub, with one container.
pub(super) async fn raise_cell(number: u32) -> anyhow::Result<Place> {
    let cell = Resident::apart(&format!("cell-{number}"))?;
    let thread = cell.run(gettid).await?;
    batch(&[
        format!("link add cell{number} type veth peer name uplink netns {thread}"),
        format!("link set cell{number} master cells up"),
    ])?;
    let container = Resident::apart(&format!("app-{number}"))?;
    let inside = container.run(gettid).await?;
    let gate = container_address(number, 1);
    within(
        &cell,
        vec![
            "link set lo up".to_owned(),
            format!("address add {}/16 dev uplink", cell_address(number)),
            "link set uplink up".to_owned(),
            format!("route add default via {HUB}"),
            format!("link add apps type veth peer name eth0 netns {inside}"),
            format!("address add {gate}/24 dev apps"),
            "link set apps up".to_owned(),
        ],
    )
    .await?;
    cell.set("net/ipv4/ip_forward", "1").await?;
    let address = container_address(number, FIRST);
    within(
        &container,
        vec![
            "link set lo up".to_owned(),
            format!("address add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via {gate}"),
        ],
    )
    .await?;
    // The socket keeps the container's namespace.
    let socket = container.run(move || UdpSocket::bind((address, 0))).await?;
    let container = socket.context("a socket in the container")?;
    Ok(Place { cell, container })
}

/// The last part of the first container's address.
const FIRST: u32 = 2;

/// The address of a cell.
fn cell_address(number: u32) -> Ipv4Addr {
    let [_, _, high, low] = (number + 256).to_be_bytes();
    Ipv4Addr::new(10, 98, high, low)
}

/// The address of a container of a cell; the first one sends packets.
pub(super) fn address(cell: u32, container: u32) -> Ipv4Addr {
    container_address(cell, container + FIRST)
}

fn container_address(cell: u32, last: u32) -> Ipv4Addr {
    let [_, _, high, low] = cell.to_be_bytes();
    let last = u8::try_from(last).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, 192 + high, low, last)
}

async fn within(resident: &Resident, lines: Vec<String>) -> anyhow::Result<()> {
    resident.run(move || batch(&lines)).await?
}

fn batch(lines: &[String]) -> anyhow::Result<()> {
    tools::run_with_input("ip", ["-batch", "-"], &(lines.join("\n") + "\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_addresses_differ_and_containers_are_in_the_overlay() {
        let cells: BTreeSet<_> = (0..MOST).map(cell_address).collect();
        assert!(cells.len() == MOST as usize && !cells.contains(&HUB));
        let containers = (0..MOST).flat_map(|cell| (0..250).map(move |n| address(cell, n)));
        let unlike: BTreeSet<_> = containers.collect();
        assert_eq!(unlike.len(), MOST as usize * 250);
        assert!(unlike.iter().all(|address| address.octets()[1] & 0b1100_0000 == 192));
    }
}
