//! Finds the interfaces of this cell's containers.
//!
//! silk-cni gives each container an interface of its own, named after the container's
//! IPv4 address: the interface identifies the container, whatever the packet's source
//! address is. Interfaces of other plugins have other names; they are found by the
//! routes to the containers' addresses. Such an interface may serve several containers,
//! so the source address identifies the container, and a packet with any other source
//! is unattributed.
//!
//! An interface of a default route, or with an underlay address, is never one of these:
//! its packets come from other machines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;

/// Name prefix of silk's interfaces.
pub const SILK: &str = "s-";
/// The interface to containers of other cells.
pub const OVERLAY: &str = "silk-vtep";
/// `RTF_GATEWAY`, and for IPv6 `RTF_LOCAL`.
const GATEWAY: u32 = 2;
const LOCAL: u32 = 0x8000_0000;

/// The interface name that silk-cni uses for this address.
#[must_use]
pub fn of_silk(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{SILK}{a:03}{b:03}{c:03}{d:03}")
}

/// Routes and interface addresses of the kernel.
#[derive(Debug, Default)]
pub struct Routes {
    /// The interfaces of routes to a single address without a gateway.
    hosts: BTreeMap<IpAddr, BTreeSet<String>>,
    /// The networks of the interfaces' own addresses.
    networks: Vec<(IpNet, String)>,
    /// The interfaces of default routes.
    defaults: BTreeSet<String>,
    /// All interfaces.
    names: BTreeSet<String>,
}

impl Routes {
    /// Reads the routes of the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    pub fn read() -> io::Result<Self> {
        let mut routes = Self::default();
        // The file is missing without IPv6.
        let read = |name: &str| match fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        };
        routes.add_v4(&read("route")?);
        routes.add_v6(&read("ipv6_route")?);
        for interface in getifaddrs()? {
            routes.names.insert(interface.interface_name.clone());
            let ip = |address: Option<nix::sys::socket::SockaddrStorage>| {
                let address = address?;
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            };
            if let (Some(address), Some(mask)) = (ip(interface.address), ip(interface.netmask))
                && let Ok(network) = IpNet::with_netmask(address, mask)
                && network.prefix_len() < network.max_prefix_len()
            {
                routes.networks.push((network.trunc(), interface.interface_name));
            }
        }
        Ok(routes)
    }

    /// Reads `/proc/net/route`: interface, destination, gateway, flags, 3 numbers, mask.
    fn add_v4(&mut self, text: &str) {
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [name, to, _, flags, _, _, _, mask, ..] = fields.as_slice() else { continue };
            let number = |text: &str| u32::from_str_radix(text, 16).ok();
            let (Some(to), Some(flags), Some(mask)) = (number(to), number(flags), number(mask))
            else {
                continue;
            };
            // Addresses are printed in native byte order.
            let to = IpAddr::V4(Ipv4Addr::from(to.to_ne_bytes()));
            let length = mask.count_ones();
            self.add(name, to, (length, 32), flags & GATEWAY != 0);
        }
    }

    /// Reads `/proc/net/ipv6_route`: destination, its prefix length, source, its prefix
    /// length, gateway, 3 numbers, flags, interface.
    fn add_v6(&mut self, text: &str) {
        for line in text.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [to, length, _, _, gateway, _, _, _, flags, name] = fields.as_slice() else {
                continue;
            };
            let Ok(to) = u128::from_str_radix(to, 16) else { continue };
            let number = |text: &str| u32::from_str_radix(text, 16).ok();
            let (Some(length), Some(flags)) = (number(length), number(flags)) else { continue };
            if flags & LOCAL == 0 {
                let gateway = gateway.bytes().any(|digit| digit != b'0');
                self.add(name, IpAddr::V6(Ipv6Addr::from(to)), (length, 128), gateway);
            }
        }
    }

    fn add(&mut self, name: &str, to: IpAddr, (length, most): (u32, u32), gateway: bool) {
        if length == 0 {
            self.defaults.insert(name.to_owned());
        } else if length == most && !gateway {
            self.hosts.entry(to).or_default().insert(name.to_owned());
        }
    }

    /// The interfaces of these addresses, without those of silk. A previously known
    /// interface stays as long as it exists: a container that was deleted from the
    /// store may still send.
    #[must_use]
    pub fn behind(
        &self,
        addresses: impl IntoIterator<Item = IpAddr>,
        before: &BTreeSet<String>,
        underlay: &[String],
    ) -> BTreeSet<String> {
        let mut found: BTreeSet<String> = before.intersection(&self.names).cloned().collect();
        for address in addresses {
            found.extend(self.hosts.get(&address).into_iter().flatten().cloned());
            let networks = self.networks.iter().filter(|(network, _)| network.contains(&address));
            found.extend(networks.map(|(_, name)| name.clone()));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        found.retain(|name| {
            let other = name == "lo" || name == OVERLAY || name.starts_with(SILK);
            let uplink = self.defaults.contains(name) || underlay.contains(name);
            !other && !uplink && name.chars().all(plain)
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n\
        cali1\t0101FF0A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\n\
        s-010255001002\t0201FF0A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\n\
        eth0\t0301FF0A\t010200C0\t0007\t0\t0\t0\tFFFFFFFF\n\
        silk-vtep\t0000FF0A\t00000000\t0001\t0\t0\t0\t0000FFFF\n\
        torn\n";
    const V6: &str = "fd000000000000000000000000000005 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001    cali2\n\
        fd000000000000000000000000000006 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000003 00000000 80200001     eth0\n\
        00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003     eth1\n";

    fn routes() -> Routes {
        let mut routes = Routes::default();
        routes.add_v4(V4);
        routes.add_v6(V6);
        for (network, name) in
            [("10.254.0.0/16", "cni0"), ("192.0.2.0/24", "eth0"), ("198.51.100.0/24", "eth2")]
        {
            routes.networks.push((network.parse().unwrap(), name.to_owned()));
        }
        routes
    }

    fn behind(addresses: &[&str]) -> Vec<String> {
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        routes().behind(addresses, &BTreeSet::new(), &["eth2".to_owned()]).into_iter().collect()
    }

    #[test]
    fn the_interfaces_of_containers_are_found_by_their_routes() {
        assert_eq!(behind(&["10.255.1.1", "fd00::5"]), ["cali1", "cali2"]);
        assert_eq!(behind(&["10.254.9.9"]), ["cni0"]);
    }

    #[test]
    fn uplinks_and_the_overlay_are_never_taken_for_containers() {
        let none: [&str; 0] = [];
        for address in ["192.0.2.9", "198.51.100.7", "10.255.1.3", "10.255.77.1", "fd00::6", "::"] {
            assert_eq!(behind(&[address]), none, "{address}");
        }
        assert_eq!(behind(&["10.255.1.2"]), none, "silk's are known by their names");
    }

    #[test]
    fn an_interface_is_known_as_long_as_it_exists() {
        let mut routes = routes();
        let before = BTreeSet::from(["cni0".to_owned()]);
        assert!(routes.behind([], &before, &[]).is_empty());
        routes.names.extend(["cni0".to_owned(), "cni1".to_owned()]);
        assert_eq!(routes.behind([], &before, &[]), before);
    }

    #[test]
    fn silk_names_interfaces_after_addresses() {
        assert_eq!(of_silk(Ipv4Addr::new(10, 255, 1, 5)), "s-010255001005");
    }
}
