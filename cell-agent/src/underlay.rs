//! The interfaces of the underlay network.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, bail};
use nix::ifaddrs::getifaddrs;

/// The names of the interfaces that have these addresses.
pub(crate) fn interfaces(addresses: &[IpAddr]) -> anyhow::Result<Vec<String>> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let mut names = BTreeSet::new();
    for wanted in addresses {
        let found = getifaddrs().context("looking up interface names")?.find(|interface| {
            let address = interface.address.as_ref();
            let v4 = address.and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::V4(a.ip()));
            let v6 = address.and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::V6(a.ip()));
            v4.or(v6) == Some(*wanted)
        });
        let Some(found) = found else {
            bail!("looking up interface names: no interface has the underlay address {wanted}");
        };
        names.insert(found.interface_name);
    }
    Ok(names.into_iter().collect())
}
