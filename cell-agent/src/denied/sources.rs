//! Finds the container that sent a packet, in the order of the rules: by the input
//! interface, or else by the source address.
//!
//! Pure.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use model::ids::ContainerHandle;
use proto::cell_v1::Container;

use super::packet::Denied;
use crate::{plan::Ruleset, reconcile::Enforced, wire};

/// The containers by interface and address.
#[derive(Debug, Default)]
pub struct Sources {
    /// The state that the maps are made from.
    of: Option<(Arc<Ruleset>, u64)>,
    by_interface: HashMap<String, ContainerHandle>,
    by_address: HashMap<IpAddr, ContainerHandle>,
    /// Descriptions of the containers with denied packets.
    about: HashMap<ContainerHandle, Arc<Container>>,
    /// Names of interfaces by index, as far as they were asked for.
    names: HashMap<u32, Option<String>>,
}

impl Sources {
    /// Follows the state in force.
    pub fn update(&mut self, enforced: &Enforced) {
        let same = |(ruleset, reading): &(Arc<Ruleset>, u64)| {
            Arc::ptr_eq(ruleset, &enforced.ruleset) && *reading == enforced.attempted
        };
        if self.of.as_ref().is_some_and(same) {
            return;
        }
        *self = Self {
            of: Some((Arc::clone(&enforced.ruleset), enforced.attempted)),
            ..Self::default()
        };
        for (handle, planned) in &enforced.ruleset.containers {
            self.by_address.extend(planned.addresses().map(|address| (address, handle.clone())));
            self.by_interface.extend(planned.interface().map(|name| (name, handle.clone())));
        }
    }

    /// The container of a packet; `name` looks up an interface by its index.
    pub fn find(
        &mut self,
        enforced: &Enforced,
        packet: &Denied,
        name: impl FnOnce(u32) -> Option<String>,
    ) -> Option<(&ContainerHandle, &Arc<Container>)> {
        let index = packet.interface;
        let interface = self.names.entry(index).or_insert_with(|| name(index));
        let by_interface = interface.as_ref().and_then(|name| self.by_interface.get(name));
        let handle = by_interface.or_else(|| self.by_address.get(&packet.source))?;
        if !self.about.contains_key(handle) {
            let about = wire::container(enforced, handle)?;
            self.about.insert(handle.clone(), Arc::new(about));
        }
        self.about.get_key_value(handle)
    }
}
