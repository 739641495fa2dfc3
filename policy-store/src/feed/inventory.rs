//! Containers and isolated rules of one cell, as the cell reported them.
//!
//! The first [`Update`] of a stream has everything, each later one only what changed.
//! After any sequence of updates an [`Inventory`] equals the cell's last state. Counts
//! and text lengths are bounded: a cell cannot make the store keep more.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    group::Lifecycle,
    ids::{ContainerHandle, SpaceGuid},
    rule::RuleSpec,
};

/// Maximum number of containers of a cell.
pub const MAX_CONTAINERS: usize = 5_000;
/// Maximum number of isolated rules that a cell lists.
pub const MAX_RULES: usize = 100;

/// A container without its handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Address; absent when the cell knows none.
    pub address: Option<IpAddr>,
    /// Space; absent when the cell knows none.
    pub space: Option<SpaceGuid>,
    /// Guid of the app; may be empty.
    pub app: Box<str>,
    /// Workload in the container's metadata, such as `app`.
    pub workload: Box<str>,
    /// Groups of this lifecycle apply; absent for an unknown workload.
    pub lifecycle: Option<Lifecycle>,
    /// `portcullis.cell.v1.Enforcement`, passed on as received: an agent can be newer.
    pub enforcement: i32,
    /// Number of rules in force.
    pub rules: u32,
    /// Why the container is not enforced; empty otherwise.
    pub reason: Box<str>,
    /// Number of rules that are not enforced.
    pub isolated_rules: u32,
}

/// A rule that the cell does not enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolatedRule {
    /// The rule.
    pub rule: RuleSpec,
    /// Guid of its group.
    pub group_guid: String,
    /// Name of its group.
    pub group_name: String,
    /// Position in the group's rules, from 0.
    pub rule_index: u32,
    /// Why the rule is not enforced.
    pub reason: String,
}

/// Isolated rules of a cell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Isolated {
    /// The first ones.
    pub rules: Vec<IsolatedRule>,
    /// Number of all.
    pub total: u32,
}

/// Change of an inventory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Update {
    /// Forget all containers first.
    pub reset: bool,
    /// Containers that are gone.
    pub removed: Vec<ContainerHandle>,
    /// New and changed containers.
    pub upserted: Vec<(ContainerHandle, Container)>,
    /// Isolated rules, if they changed.
    pub isolated: Option<Isolated>,
}

/// Reason why an update is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More than [`MAX_CONTAINERS`].
    #[error("inventory.upserted: the cell has more than {MAX_CONTAINERS} containers")]
    TooManyContainers,
    /// The first update of a stream lacks `reset`.
    #[error("inventory.reset: must be true in the first Inventory of a stream")]
    NoReset,
}

/// Containers and isolated rules of a cell; see the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    containers: BTreeMap<ContainerHandle, Container>,
    isolated: Isolated,
}

impl Inventory {
    /// Applies a change.
    ///
    /// # Errors
    /// Too many containers; the inventory is then incomplete.
    pub fn apply(&mut self, update: Update) -> Result<(), Error> {
        let Update { reset, removed, upserted, isolated } = update;
        if reset {
            self.containers.clear();
        }
        for handle in &removed {
            self.containers.remove(handle);
        }
        if let Some(isolated) = isolated {
            self.isolated = isolated;
        }
        for (handle, container) in upserted {
            self.containers.insert(handle, container);
            if self.containers.len() > MAX_CONTAINERS {
                return Err(Error::TooManyContainers);
            }
        }
        Ok(())
    }

    /// The containers, ascending by handle.
    #[must_use]
    pub fn containers(&self) -> &BTreeMap<ContainerHandle, Container> {
        &self.containers
    }

    /// The isolated rules.
    #[must_use]
    pub fn isolated(&self) -> &Isolated {
        &self.isolated
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handle(text: &str) -> ContainerHandle {
        ContainerHandle::parse(text).unwrap()
    }

    fn container(app: &str) -> Container {
        Container {
            address: None,
            space: None,
            app: app.into(),
            workload: "app".into(),
            lifecycle: Some(Lifecycle::Running),
            enforcement: 1,
            rules: 0,
            reason: "".into(),
            isolated_rules: 0,
        }
    }

    type State = BTreeMap<ContainerHandle, Container>;

    fn states() -> impl Strategy<Value = State> {
        let entry = (0..6u8, 0..3u8);
        prop::collection::vec(entry, 0..8).prop_map(|entries| {
            let entry =
                |(at, app): (u8, u8)| (handle(&format!("h{at}")), container(&app.to_string()));
            entries.into_iter().map(entry).collect()
        })
    }

    fn isolated(total: u32) -> Isolated {
        Isolated { rules: Vec::new(), total }
    }

    fn difference(before: &State, after: &State) -> Update {
        let is_new = |(handle, container): &(&ContainerHandle, &Container)| {
            before.get(*handle) != Some(*container)
        };
        let upserted = after.iter().filter(is_new);
        Update {
            reset: false,
            removed: before.keys().filter(|key| !after.contains_key(*key)).cloned().collect(),
            upserted: upserted.map(|(handle, kept)| (handle.clone(), kept.clone())).collect(),
            isolated: None,
        }
    }

    proptest! {
        #[test]
        fn any_sequence_of_updates_ends_in_the_last_state(
            steps in prop::collection::vec((states(), any::<bool>(), prop::option::of(0..4u32)), 1..12)
        ) {
            let (mut inventory, mut before, mut rules) = (Inventory::default(), State::new(), 0);
            for (after, reset, total) in steps {
                let update = match reset {
                    true => Update { reset, ..difference(&State::new(), &after) },
                    false => difference(&before, &after),
                };
                inventory.apply(Update { isolated: total.map(isolated), ..update }).unwrap();
                rules = total.unwrap_or(rules);
                prop_assert_eq!(inventory.containers(), &after);
                prop_assert_eq!(inventory.isolated().total, rules);
                before = after;
            }
        }
    }

    #[test]
    fn a_cell_has_a_limit_of_containers() {
        let some = |from: usize, count: usize| Update {
            upserted: (from..from + count)
                .map(|at| (handle(&at.to_string()), container("a")))
                .collect(),
            ..Update::default()
        };
        let mut inventory = Inventory::default();
        inventory.apply(some(0, MAX_CONTAINERS)).unwrap();
        inventory.apply(some(7, 100)).unwrap();
        let removed = vec![handle("0")];
        inventory.apply(Update { removed, ..some(MAX_CONTAINERS, 1) }).unwrap();
        let error = inventory.apply(some(MAX_CONTAINERS + 1, 1)).unwrap_err();
        assert_eq!(error.to_string(), "inventory.upserted: the cell has more than 5000 containers");
    }
}
