//! The addresses in an entry of the metadata store.
//!
//! The key `ip` holds the primary address. Other versions of the CNI plugin add keys,
//! for IPv6 above all: each value that is an address, or a list with addresses, belongs
//! to the container, unless its key names another machine.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::text;

/// Parts of keys that hold addresses of other machines.
const OTHERS: [&str; 7] = ["gateway", "dns", "nameserver", "route", "host", "server", "handle"];

/// The primary address. An IPv4 address may be written as IPv6.
pub(super) fn primary(entry: &Map<String, Value>) -> Result<IpAddr, String> {
    let Some(ip) = text(entry, "ip") else {
        return all(entry).first().copied().ok_or_else(|| "it has no address".to_owned());
    };
    let address: Result<IpAddr, _> = ip.parse();
    let address = address.map_err(|_| format!("the address {ip:?} is not an IP address"))?;
    Ok(address.to_canonical())
}

/// All usable addresses.
pub(super) fn all(entry: &Map<String, Value>) -> BTreeSet<IpAddr> {
    let metadata = entry.get("metadata").and_then(Value::as_object);
    let values = entry.iter().chain(metadata.into_iter().flatten());
    let own = values.filter(|(key, _)| {
        let key = key.to_ascii_lowercase();
        !OTHERS.iter().any(|other| key.contains(other))
    });
    own.flat_map(|(_, value)| match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    })
    .filter_map(Value::as_str)
    .filter_map(parse)
    .filter(|address| is_usable(*address))
    .collect()
}

/// An address, with or without a prefix length; not a network.
fn parse(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok().or_else(|| {
        let net = text.parse::<IpNet>().ok()?;
        let is_host = net.addr() != net.network() || net.prefix_len() == net.max_prefix_len();
        is_host.then(|| net.addr())
    })?;
    Some(address.to_canonical())
}

/// Whether the address is valid as the source of forwarded packets.
fn is_usable(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}
