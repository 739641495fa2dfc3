//! The network plan: names, addresses and the `ip` lines that build the network. Pure.
//!
//! ```text
//!  container ── veth ── apps0 (bridge) [cell 1] under0 ── veth ──┐
//!  container ── veth ── apps0 (bridge) [cell 2] under0 ── veth ──┤ router ── veth ── outside
//! ```
//!
//! Everything named here is in network namespaces of the cluster. The launcher's own
//! namespace gets no interface, address or route, so nothing outside can be reached by
//! mistake, and nothing can clash.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Maximum number of cells.
pub const MOST_CELLS: u8 = 32;

/// The range of all cells' container subnets.
pub const OVERLAY: &str = "10.255.0.0/16";

/// The bridge of a cell's containers.
pub const BRIDGE: &str = "apps0";

/// A cell's interface towards the router.
pub const UNDERLAY: &str = "under0";

/// Addresses of the simulated internet: public ones, and private ones that
/// `public_networks` leaves out.
pub const OUTSIDE: [Ipv4Addr; 8] = [
    Ipv4Addr::new(1, 2, 3, 4),
    Ipv4Addr::new(5, 6, 7, 8),
    Ipv4Addr::new(8, 8, 8, 8),
    Ipv4Addr::new(23, 96, 32, 148),
    Ipv4Addr::new(10, 0, 11, 12),
    Ipv4Addr::new(10, 20, 30, 40),
    Ipv4Addr::new(172, 20, 0, 3),
    Ipv4Addr::new(192, 168, 7, 7),
];

/// Maximum length of a cluster name: with the longest suffix it is still a valid file
/// name, and is readable in a shell.
const LONGEST_NAME: usize = 32;

/// A cluster's name: part of every namespace's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Lower-case letters, digits and inner dashes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edges = !text.starts_with('-') && !text.ends_with('-');
        if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(legal) || !edges {
            return Err(format!(
                "a name is 1 to {LONGEST_NAME} lower-case letters, digits and inner dashes"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace between the cells and the simulated internet.
    pub fn router(&self) -> String {
        format!("{}-router", self.0)
    }

    /// The namespace of the simulated internet.
    pub fn outside(&self) -> String {
        format!("{}-outside", self.0)
    }

    /// The namespace of a cell.
    pub fn cell(&self, cell: Cell) -> String {
        format!("{}-{}", self.0, cell.name())
    }

    /// The namespace of a container.
    pub fn container(&self, cell: Cell, container: &str) -> String {
        format!("{}-{}-{container}", self.0, cell.name())
    }
}

/// A cell's number in the plan, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell(u8);

impl Cell {
    /// The cells 1 to `count`.
    pub fn all(count: u8) -> impl Iterator<Item = Self> {
        (1..=count.min(MOST_CELLS)).map(Self)
    }

    /// The cell of that name, such as `cell-2`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cell-").and_then(|number| number.parse().ok());
        match number {
            Some(number @ 1..=MOST_CELLS) => Ok(Self(number)),
            _ => Err(format!("{text:?} is no cell: expected cell-1 to cell-{MOST_CELLS}")),
        }
    }

    /// `cell-1`, and so on.
    pub fn name(self) -> String {
        format!("cell-{}", self.0)
    }

    /// The subnet of the cell's containers.
    pub fn subnet(self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(10, 255, self.0, 0), 24)
    }

    /// The bridge's address: the gateway of the containers.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 255, self.0, 1)
    }

    /// The cell's own address on the link to the router.
    pub fn underlay(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, self.0, 2)
    }

    /// The bridge's own MAC address. By default a bridge takes the lowest MAC of its
    /// ports, so that adding or removing a container would make the gateway unreachable
    /// for the others until their next ARP request.
    fn bridge_mac(self) -> String {
        format!("02:00:0a:ff:{:02x}:01", self.0)
    }

    /// The router's address on the link to the cell.
    pub fn router(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, self.0, 1)
    }

    /// The router's interface towards this cell.
    pub fn router_interface(self) -> String {
        format!("cell{}", self.0)
    }
}

/// A container's index on its cell: the host part of its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(u8);

impl Seat {
    /// The lowest index that is not in `taken`.
    pub fn free(taken: &[Self]) -> Option<Self> {
        (2..=254).map(Self).find(|seat| !taken.contains(seat))
    }

    /// The container's address on that cell.
    pub fn address(self, cell: Cell) -> Ipv4Addr {
        Ipv4Addr::new(10, 255, cell.0, self.0)
    }

    /// The container's interface on the cell's side.
    pub fn cell_interface(self) -> String {
        format!("app{}", self.0)
    }
}

const OUTSIDE_ROUTER: &str = "172.30.0.1";
const OUTSIDE_OWN: &str = "172.30.0.2";

/// `ip -batch` lines, grouped by namespace.
#[derive(Debug, PartialEq, Eq)]
pub struct Links {
    /// Namespace, and its lines.
    pub blocks: Vec<(String, Vec<String>)>,
}

/// The router, the simulated internet and the link between them.
pub fn backbone(name: &Name) -> Links {
    let (router, outside) = (name.router(), name.outside());
    let mut there = vec![
        "link set lo up".to_owned(),
        format!("addr add {OUTSIDE_OWN}/30 dev router0"),
        "link set router0 up".to_owned(),
        format!("route add default via {OUTSIDE_ROUTER}"),
    ];
    // On the loopback interface, since not every kernel has dummy interfaces.
    there.extend(OUTSIDE.iter().map(|address| format!("addr add {address}/32 dev lo")));
    let here = vec![
        "link set lo up".to_owned(),
        format!("link add outside0 type veth peer name router0 netns {outside}"),
        format!("addr add {OUTSIDE_ROUTER}/30 dev outside0"),
        "link set outside0 up".to_owned(),
        format!("route add default via {OUTSIDE_OWN}"),
    ];
    Links { blocks: vec![(router, here), (outside, there)] }
}

/// One cell: its bridge, and its link to the router.
pub fn cell(name: &Name, cell: Cell) -> Links {
    let here = name.cell(cell);
    let port = cell.router_interface();
    let (underlay, router) = (cell.underlay(), cell.router());
    let own = vec![
        "link set lo up".to_owned(),
        format!("link add {BRIDGE} address {} type bridge", cell.bridge_mac()),
        format!("addr add {}/{} dev {BRIDGE}", cell.gateway(), cell.subnet().prefix_len()),
        format!("link set {BRIDGE} up"),
        format!("link add {UNDERLAY} type veth peer name {port} netns {}", name.router()),
        format!("addr add {underlay}/30 dev {UNDERLAY}"),
        format!("link set {UNDERLAY} up"),
        format!("route add default via {router}"),
    ];
    let at_router = vec![
        format!("addr add {router}/30 dev {port}"),
        format!("link set {port} up"),
        format!("route add {} via {underlay}", cell.subnet()),
    ];
    Links { blocks: vec![(here, own), (name.router(), at_router)] }
}

/// One container: its interface, the bridge's interface, and its default route.
pub fn container(name: &Name, cell: Cell, seat: Seat, container: &str) -> Links {
    let inside = name.container(cell, container);
    let port = seat.cell_interface();
    let own = vec![
        "link set lo up".to_owned(),
        format!("addr add {}/{} dev eth0", seat.address(cell), cell.subnet().prefix_len()),
        "link set eth0 up".to_owned(),
        format!("route add default via {}", cell.gateway()),
    ];
    let at_cell = vec![
        format!("link add {port} type veth peer name eth0 netns {inside}"),
        format!("link set {port} master {BRIDGE}"),
        format!("link set {port} up"),
    ];
    Links { blocks: vec![(name.cell(cell), at_cell), (inside, own)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name::parse("portcullis").unwrap()
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "portcullis", "p-1"] {
            assert_eq!(Name::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "..", &"x".repeat(33)] {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cells_are_known_by_name() {
        for cell in Cell::all(MOST_CELLS) {
            assert_eq!(Cell::parse(&cell.name()), Ok(cell));
        }
        for bad in ["", "1", "cell-0", "cell-33", "cell-x", "cell-256"] {
            let error = Cell::parse(bad).unwrap_err();
            assert_eq!(error, format!("{bad:?} is no cell: expected cell-1 to cell-32"));
        }
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        for cell in Cell::all(MOST_CELLS) {
            assert!(cell.router_interface().len() <= 15);
        }
        assert!(Seat(254).cell_interface().len() <= 15);
    }

    #[test]
    fn cells_do_not_overlap() {
        let cells: Vec<_> = Cell::all(MOST_CELLS).collect();
        let overlay: Ipv4Net = OVERLAY.parse().unwrap();
        for (place, one) in cells.iter().enumerate() {
            assert!(overlay.contains(&one.subnet()));
            assert!(one.subnet().contains(&one.gateway()));
            for other in &cells[place + 1..] {
                assert!(!one.subnet().contains(&other.subnet()));
                assert_ne!(one.underlay(), other.underlay());
            }
        }
    }

    #[test]
    fn no_address_of_the_outside_is_one_of_the_clusters_own() {
        let overlay: Ipv4Net = OVERLAY.parse().unwrap();
        let underlay: Ipv4Net = "172.30.0.0/16".parse().unwrap();
        for address in OUTSIDE {
            assert!(!overlay.contains(&address) && !underlay.contains(&address), "{address}");
        }
    }

    #[test]
    fn seats_are_given_out_lowest_first_and_end() {
        assert_eq!(Seat::free(&[]), Some(Seat(2)));
        assert_eq!(Seat::free(&[Seat(2), Seat(4)]), Some(Seat(3)));
        let all: Vec<_> = (2..=254).map(Seat).collect();
        assert_eq!(Seat::free(&all), None);
    }

    #[test]
    fn a_container_is_one_veth_into_the_bridge() {
        let links = container(&name(), Cell(1), Seat(2), "appA");
        assert_eq!(
            links.blocks[0],
            (
                "portcullis-cell-1".to_owned(),
                vec![
                    "link add app2 type veth peer name eth0 netns portcullis-cell-1-appA"
                        .to_owned(),
                    "link set app2 master apps0".to_owned(),
                    "link set app2 up".to_owned(),
                ]
            )
        );
        assert_eq!(
            links.blocks[1],
            (
                "portcullis-cell-1-appA".to_owned(),
                vec![
                    "link set lo up".to_owned(),
                    "addr add 10.255.1.2/24 dev eth0".to_owned(),
                    "link set eth0 up".to_owned(),
                    "route add default via 10.255.1.1".to_owned(),
                ]
            )
        );
    }
}
