//! What should be in force: containers, groups and configuration in, a
//! [`Ruleset`] out.
//!
//! Pure and deterministic. The ruleset knows no data plane, but leaves a
//! renderer no choice about packets or log lines: order, deduplication, which
//! groups apply, and who is denied and why are decided here.
//!
//! - A container is either bound to a policy, or its egress is denied; there is
//!   no third case (law 7).
//! - Containers of one space and lifecycle have the same policy; policies share
//!   their segments where the same rules of a group are left in them.
//! - What the data plane refused is left out and told, never more (law 6).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use model::{
    effective::{EffectiveRules, Permit, ReadGroup, effective_rules},
    generation::{Generation, Stamp},
    group::Lifecycle,
    ids::{ContainerHandle, GroupGuid, SpaceGuid},
    rule::RuleSpec,
};

use crate::{
    containers::{Belongs, Container, Snapshot},
    interfaces,
};

/// What the operator fixed for the whole cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The network of all containers.
    pub overlay: IpNet,
    /// Whether packets are known by the address of their container, as in a table of
    /// our own, and not by the chain of the CNI plugin that they come through.
    pub by_address: bool,
    /// Only packets that leave by these interfaces are decided; empty: all.
    pub underlay: Vec<String>,
    /// Accept everything within the overlay before anything else.
    pub disable_network_policy: bool,
    /// Rejected before any rule.
    pub deny_networks: DenyNetworks,
    /// Log every new connection, allowed or denied.
    pub log_all: bool,
    /// `DENY_` lines a second and container.
    pub denied_logs_per_second: u32,
    /// `OK_` lines for UDP a second and container.
    pub udp_logs_per_second: u32,
    /// Bounds new TCP connections of a container to one destination and port.
    pub connection_limit: Option<ConnectionLimit>,
}

/// Networks that no rule opens, in the operator's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DenyNetworks {
    /// For every container.
    pub always: Vec<IpNet>,
    /// For apps and tasks.
    pub running: Vec<IpNet>,
    /// For staging containers.
    pub staging: Vec<IpNet>,
}

/// At most `burst` new connections at once, and `per_second` after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// New connections a second.
    pub per_second: u32,
    /// How many may come at once.
    pub burst: u32,
    /// Whether those over the limit are logged.
    pub log: bool,
    /// How many destinations and ports of one container are counted at a time; new
    /// connections to others are rejected.
    pub destinations: u32,
}

/// The security groups as far as the policy store told them to this cell.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Position among the states that this process learned, from 1; 0 for none.
    /// The store repeats its generation for a new set of spaces, and a restored
    /// store goes back, so the generation does not order states.
    pub revision: u64,
    /// Of the store, for the whole set.
    pub generation: Generation,
    /// When the store made it, if these are exactly the groups of `spaces` at that
    /// moment, so that the store may tell only what comes after it; else 0.
    pub stamp: Stamp,
    /// The spaces whose groups are all among `groups`.
    pub spaces: BTreeSet<SpaceGuid>,
    /// By guid.
    pub groups: BTreeMap<GroupGuid, Arc<ReadGroup>>,
}

/// What the data plane refused to take. An entry counts as long as what was
/// refused is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refused {
    /// Rules, by group and place in it, with the reason.
    pub rules: BTreeMap<(GroupGuid, usize), (RuleSpec, String)>,
    /// Containers, with the reason.
    pub containers: BTreeMap<ContainerHandle, (Container, String)>,
}

impl Refused {
    /// Remembers these as well.
    pub fn add(&mut self, Self { rules, containers }: Self) {
        self.rules.extend(rules);
        self.containers.extend(containers);
    }
}

/// Everything that should be in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// As given.
    pub settings: Arc<Settings>,
    /// Every container of the cell.
    pub containers: BTreeMap<ContainerHandle, Planned>,
    /// Every policy that concerns a container.
    pub policies: BTreeMap<Belongs, Arc<Policy>>,
    /// Addresses that are decided beside the overlay, also those that nobody
    /// gets: they are denied.
    pub claimed: BTreeSet<IpAddr>,
    /// Containers that the original does not look at.
    pub ignored: BTreeSet<ContainerHandle>,
    /// Interfaces that containers are behind, other than those of silk.
    pub interfaces: BTreeSet<String>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its address; `None` when it has none that is its own.
    pub address: Option<IpAddr>,
    /// Its other addresses.
    pub more: BTreeSet<IpAddr>,
    /// Whether its rules are in force.
    pub assignment: Assignment,
}

impl Planned {
    /// All of its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.address.iter().chain(&self.more).copied()
    }

    /// The interface that silk-cni gives it, which is named after its IPv4 address.
    #[must_use]
    pub fn interface(&self) -> Option<String> {
        self.addresses().find_map(|address| match address {
            IpAddr::V4(v4) => Some(interfaces::of_silk(v4)),
            IpAddr::V6(_) => None,
        })
    }
}

/// How a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assignment {
    /// Its policy decides.
    Bound(Belongs),
    /// Denied: the store has not told the groups of its space.
    Unknown(SpaceGuid),
    /// Denied: no group applies to it, for this reason.
    Ungrouped(String),
    /// Denied: its entry cannot be used, for this reason.
    Isolated(String),
}

/// The rules of all containers of one space and lifecycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Rejected first, in the order of the packet filter.
    pub deny: Vec<IpNet>,
    /// Then allowed, in the order of the packet filter.
    pub segments: Vec<Arc<Segment>>,
    /// The same in the operator's order, with where each was written.
    pub rules: EffectiveRules,
    /// Rules that the data plane refused, with where they are and why.
    pub refused: Vec<(GroupGuid, usize, String)>,
}

/// A run of permits that one group contributes, in the order of the packet
/// filter: the reverse of the operator's. The first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The group.
    pub group: GroupGuid,
    /// At least one.
    pub permits: Vec<Permit>,
}

impl Policy {
    /// Whether any of its rules logs.
    #[must_use]
    pub fn logs(&self) -> bool {
        self.segments.iter().any(|segment| segment.permits.iter().any(|permit| permit.log))
    }

    /// How many rules are not enforced.
    #[must_use]
    pub fn isolated(&self) -> usize {
        self.rules.isolated.len() + self.refused.len()
    }
}

impl Ruleset {
    /// An empty cell.
    #[must_use]
    pub fn empty(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            containers: BTreeMap::new(),
            policies: BTreeMap::new(),
            claimed: BTreeSet::new(),
            ignored: BTreeSet::new(),
            interfaces: BTreeSet::new(),
        }
    }

    /// How many different rules of groups are not enforced.
    #[must_use]
    pub fn isolated_rules(&self) -> usize {
        let mut isolated = BTreeSet::new();
        for policy in self.policies.values() {
            isolated.extend(policy.rules.isolated.iter().map(|(_, at)| (&at.group, at.rule)));
            isolated.extend(policy.refused.iter().map(|(group, rule, _)| (group, *rule)));
        }
        isolated.len()
    }
}

/// The whole plan.
#[must_use]
pub fn plan(
    settings: &Arc<Settings>,
    snapshot: &Snapshot,
    known: &Known,
    refused: &Refused,
) -> Ruleset {
    Shared::default().plan(settings, snapshot, known, refused)
}

/// Plans again and again, to the same effect as [`plan`]. What has not changed is
/// not worked out again, and is the same in memory: whoever goes on from there need
/// not compare it.
#[derive(Debug)]
pub struct Planner {
    settings: Arc<Settings>,
    shared: Shared,
    /// What the policies were made of.
    known: Arc<Known>,
    refused: BTreeMap<(GroupGuid, usize), (RuleSpec, String)>,
}

impl Planner {
    /// Nothing was planned yet.
    #[must_use]
    pub fn new(settings: Arc<Settings>) -> Self {
        let (shared, known, refused) = (Shared::default(), Arc::default(), BTreeMap::new());
        Self { settings, shared, known, refused }
    }

    /// The whole plan.
    pub fn plan(&mut self, snapshot: &Snapshot, known: &Arc<Known>, refused: &Refused) -> Ruleset {
        if !Arc::ptr_eq(&self.known, known) || self.refused != refused.rules {
            self.shared.policies.clear();
            self.known = Arc::clone(known);
            self.refused.clone_from(&refused.rules);
        }
        let ruleset = self.shared.plan(&self.settings, snapshot, known, refused);
        self.shared.policies.clone_from(&ruleset.policies);
        self.shared.segments.retain(|segment| Arc::strong_count(segment) > 1);
        ruleset
    }
}

/// What plans have in common.
#[derive(Debug, Default)]
struct Shared {
    policies: BTreeMap<Belongs, Arc<Policy>>,
    segments: HashSet<Arc<Segment>>,
}

impl Shared {
    fn plan(
        &mut self,
        settings: &Arc<Settings>,
        snapshot: &Snapshot,
        known: &Known,
        refused: &Refused,
    ) -> Ruleset {
        let mut ruleset = Ruleset::empty(Arc::clone(settings));
        ruleset.claimed.clone_from(&snapshot.claimed);
        for (handle, container) in &snapshot.containers {
            let assignment = assignment(settings, container, known, refused);
            if container.ignored {
                ruleset.ignored.insert(handle.clone());
            }
            // Also for a container that is isolated: what is wrong with the policy's
            // rules must not look like a fault of the container.
            if let Ok(belongs) = &container.belongs
                && known.spaces.contains(&belongs.space)
                && !ruleset.policies.contains_key(belongs)
            {
                let made = self.policies.get(belongs).cloned().unwrap_or_else(|| {
                    let segments = &mut self.segments;
                    Arc::new(policy(settings, belongs, known, refused, segments))
                });
                ruleset.policies.insert(belongs.clone(), made);
            }
            let address = container.address.as_ref().ok().copied();
            let usable = !matches!(assignment, Assignment::Isolated(_));
            let address = address.filter(|_| usable);
            let more = if usable { container.more.clone() } else { BTreeSet::new() };
            ruleset.containers.insert(handle.clone(), Planned { address, more, assignment });
        }
        ruleset
    }
}

fn assignment(
    settings: &Settings,
    container: &Container,
    known: &Known,
    refused: &Refused,
) -> Assignment {
    if let Err(problem) = &container.address {
        return Assignment::Isolated(problem.clone());
    }
    if let Some(problem) = container.shared.as_ref().filter(|_| settings.by_address) {
        return Assignment::Isolated(problem.clone());
    }
    if let Some((as_it_was, reason)) = refused.containers.get(&container.handle)
        && as_it_was == container
    {
        return Assignment::Isolated(reason.clone());
    }
    match &container.belongs {
        Err(reason) => Assignment::Ungrouped(reason.clone()),
        Ok(belongs) if known.spaces.contains(&belongs.space) => Assignment::Bound(belongs.clone()),
        Ok(belongs) => Assignment::Unknown(belongs.space.clone()),
    }
}

fn policy(
    settings: &Settings,
    belongs: &Belongs,
    known: &Known,
    refused: &Refused,
    shared: &mut HashSet<Arc<Segment>>,
) -> Policy {
    let Belongs { space, lifecycle } = belongs;
    let groups = known.groups.values().map(Arc::as_ref);
    let mut rules = effective_rules(groups, *lifecycle, space, settings.log_all);
    let refused = take_refused(&mut rules, known, refused);
    let runs = rules.permits.chunk_by(|(_, one), (_, next)| one.group == next.group);
    let segments = runs.rev().map(|run| {
        let group = run[0].1.group.clone();
        let permits = run.iter().rev().map(|(permit, _)| *permit).collect();
        let segment = Arc::new(Segment { group, permits });
        match shared.get(&segment) {
            Some(same) => Arc::clone(same),
            None => {
                shared.insert(Arc::clone(&segment));
                segment
            }
        }
    });
    let segments = segments.collect();
    let DenyNetworks { always, running, staging } = &settings.deny_networks;
    let own = match lifecycle {
        Lifecycle::Running => running,
        Lifecycle::Staging => staging,
    };
    let deny = own.iter().rev().chain(always.iter().rev()).copied().collect();
    Policy { deny, segments, rules, refused }
}

/// Takes out what the data plane refused, and says what that was.
fn take_refused(
    rules: &mut EffectiveRules,
    known: &Known,
    refused: &Refused,
) -> Vec<(GroupGuid, usize, String)> {
    let mut taken = BTreeMap::new();
    let counts = |group: &GroupGuid, rule: usize| {
        let (as_it_was, reason) = refused.rules.get(&(group.clone(), rule))?;
        let same = known.groups.get(group)?.rule(rule)? == as_it_was;
        same.then(|| reason.clone())
    };
    if !refused.rules.is_empty() {
        rules.permits.retain(|(_, source)| match counts(&source.group, source.rule) {
            None => true,
            Some(reason) => {
                taken.insert((source.group.clone(), source.rule), reason);
                false
            }
        });
    }
    taken.into_iter().map(|((group, rule), reason)| (group, rule, reason)).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
