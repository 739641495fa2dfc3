//! The chains that send IPv6 packets of containers to the containers' own chains.
//!
//! The CNI plugin sends packets to a container's chain by one address, and versions
//! that know IPv4 only send no IPv6 packet there. So the first rule of FORWARD in
//! ip6tables jumps to the chain [`GUARD`]: by the interface that silk-cni gave a
//! container, then by each address of a container, it jumps to the container's chain,
//! which decides. Everything else that arrives on an interface of containers goes to
//! [`STRAY`], which counts and rejects.

use std::collections::BTreeSet;

use model::ids::ContainerHandle;

use super::{
    arguments,
    chains::{Family, Names},
};
use crate::{
    interfaces::SILK,
    plan::{Assignment, RecordDenied, Ruleset},
};

/// Finds the container of a packet.
pub const GUARD: &str = "portcullis-guard";
/// Rejects packets that belong to no known container.
pub const STRAY: &str = "portcullis-stray";

/// Counts denied packets and sends them to the agent, and returns. Containers' chains jump here
/// before they reject.
pub const RECORD: &str = "portcullis-denied";
/// The jump to [`RECORD`].
pub const TO_RECORD: &str = "-j portcullis-denied";

/// The rules of [`RECORD`], as iptables prints them.
#[must_use]
pub fn record(record: RecordDenied) -> Vec<String> {
    vec![arguments::record(record, RECORD), "-j RETURN".to_owned()]
}

/// The jumps to the containers' chains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guard {
    /// A match, with the container and its chain; `None` if the chain has no name.
    ways: Vec<(String, Option<(ContainerHandle, String)>)>,
    /// Interfaces of containers other than silk's.
    interfaces: BTreeSet<String>,
}

impl Guard {
    /// The guard of a cell; `None` except for IPv6.
    #[must_use]
    pub fn of(ruleset: &Ruleset, family: Family) -> Option<Self> {
        if family == Family::V4 {
            return None;
        }
        let (mut by_interface, mut by_address) = (Vec::new(), Vec::new());
        for (handle, planned) in &ruleset.containers {
            let named = Names::of(handle).ok().filter(|_| !ruleset.ignored.contains(handle));
            let to = match planned.assignment {
                Assignment::Isolated(_) => None,
                _ => named.map(|names| (handle.clone(), names.asg)),
            };
            let interface = planned.interface();
            by_interface.extend(interface.map(|name| (format!("-i {name}"), to.clone())));
            let addresses = planned.addresses().filter(|address| Family::of(*address) == family);
            by_address.extend(addresses.map(|address| (format!("-s {address}/128"), to.clone())));
        }
        let ways = by_interface.into_iter().chain(by_address).collect();
        Some(Self { ways, interfaces: ruleset.interfaces.clone() })
    }

    /// The containers that the guard has a jump for.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerHandle> {
        self.ways.iter().filter_map(|(_, to)| to.as_ref()).map(|(handle, _)| handle)
    }

    /// The rules of [`GUARD`], as iptables prints them. Packets of a container without
    /// a chain are rejected.
    #[must_use]
    pub fn rules(&self, has_chain: impl Fn(&ContainerHandle) -> bool) -> Vec<String> {
        let reject = Family::V6.reject();
        let ways = self.ways.iter().map(|(way, to)| match to {
            Some((handle, asg)) if has_chain(handle) => format!("{way} -j {asg}"),
            _ => format!("{way} {reject}"),
        });
        let silk = format!("{SILK}+");
        let interfaces = [&silk].into_iter().chain(&self.interfaces);
        let strays = interfaces.map(|name| format!("-i {name} -j {STRAY}"));
        ways.chain(strays).collect()
    }
}
