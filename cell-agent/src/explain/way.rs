//! Decides which packets of a container pass the security group chains.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use model::ids::ContainerHandle;
use nix::net::if_::if_nametoindex;

use crate::{
    interfaces,
    plan::{Planned, Ruleset},
    route::{Route, route},
};

/// Link-local addresses: every IPv6 router drops packets to them.
const LINK_LOCAL: [u16; 2] = [0xfe80, 0xffc0];

/// The route of a container's packets to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The kernel did not return a route.
    Unknown,
    /// The kernel's route.
    Known(Route),
}

impl Way {
    /// Asks the kernel, in the network namespace of this thread, for the route of a
    /// packet that arrives on the container's interface.
    #[must_use]
    pub fn of(planned: &Planned, to: IpAddr) -> Self {
        let from = planned.addresses().find(|address| address.is_ipv4() == to.is_ipv4());
        let silk = planned.interface().and_then(|name| if_nametoindex(name.as_str()).ok());
        let behind = || match route(planned.addresses().next()?, None).ok()? {
            Route::Leaves(name) => if_nametoindex(name.as_str()).ok(),
            Route::Local | Route::None => None,
        };
        let coming = from.and_then(|from| Some((silk.or_else(behind)?, from)));
        let incoming = coming.and_then(|coming| route(to, Some(coming)).ok());
        let found = incoming.or_else(|| route(to, None).ok());
        found.map_or(Self::Unknown, Self::Known)
    }
}

/// Why security groups do not apply to packets to a destination; `None` if they do.
#[must_use]
pub(super) fn undecided(
    ruleset: &Ruleset,
    planned: &Planned,
    to: IpAddr,
    way: &Way,
) -> Option<String> {
    let within = to.is_loopback() || to.is_unspecified();
    if within || planned.addresses().any(|address| address == to) {
        return Some(format!("packets to {to} do not leave the container"));
    }
    if let Some(kind) = not_forwarded(to) {
        return Some(format!("{to} is {kind} address, and packets to it are not forwarded"));
    }
    if *way == Way::Known(Route::Local) {
        return Some(format!(
            "{to} is an address of this cell: packets to it are not forwarded, and the cell's input \
             rules decide"
        ));
    }
    if !confined(ruleset, to) {
        return None;
    }
    let settings = &ruleset.settings;
    let within_overlay = settings.overlay.contains(&to);
    let elsewhere = match way {
        Way::Known(Route::Leaves(name)) if !settings.underlay.is_empty() => {
            (!settings.underlay.contains(name)).then_some(name.as_str())
        }
        Way::Known(Route::Leaves(name)) if !settings.by_address => {
            let container = name.starts_with(interfaces::SILK) || name == interfaces::OVERLAY;
            (container || ruleset.interfaces.contains(name)).then_some(name.as_str())
        }
        Way::Known(_) | Way::Unknown => None,
    };
    let leaves_by_underlay =
        matches!(way, Way::Known(Route::Leaves(name)) if settings.underlay.contains(name));
    if within_overlay && !leaves_by_underlay {
        return Some(overlay(ruleset, settings.overlay, to));
    }
    elsewhere.map(|name| {
        let underlay = match settings.underlay.as_slice() {
            [] => "the underlay".to_owned(),
            names => names.join(" or "),
        };
        format!(
            "packets to {to} leave by {name}, and only packets that leave by {underlay} are decided"
        )
    })
}

fn not_forwarded(to: IpAddr) -> Option<&'static str> {
    let [prefix, mask] = LINK_LOCAL;
    match to {
        _ if to.is_multicast() => Some("a multicast"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast"),
        IpAddr::V6(v6) if v6.segments()[0] & mask == prefix => Some("a link-local"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Whether the rules of this family depend on the output interface. In a table of our
/// own they do for IPv4 and for the family of the overlay; in the chains of the CNI
/// plugin for IPv4.
fn confined(ruleset: &Ruleset, to: IpAddr) -> bool {
    let settings = &ruleset.settings;
    to.is_ipv4() || (settings.by_address && settings.overlay.addr().is_ipv6())
}

/// Container network policy decides about packets within the overlay.
fn overlay(ruleset: &Ruleset, overlay: IpNet, to: IpAddr) -> String {
    let decides = match ruleset.settings.disable_network_policy {
        true => "container network policy would decide, and is disabled",
        false => "container network policy decides",
    };
    match container(ruleset, to) {
        Some(handle) => format!("{to} is the container {handle} of this cell: {decides}"),
        None => format!("{to} is in the overlay network {overlay}: {decides}"),
    }
}

fn container(ruleset: &Ruleset, to: IpAddr) -> Option<&ContainerHandle> {
    let mut containers = ruleset.containers.iter();
    let found = containers.find(|(_, planned)| planned.addresses().any(|address| address == to));
    found.map(|(handle, _)| handle)
}
