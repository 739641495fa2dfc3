//! Computes the desired [`Ruleset`] from containers, groups and configuration.
//!
//! Pure and deterministic. The ruleset is independent of the data plane, and leaves a
//! renderer no choice about packets or log lines: it fixes order, deduplication, the
//! groups that apply, and which container is denied and why.
//!
//! - A container is either bound to a policy, or its egress is denied; there is no
//!   third case (law 7).
//! - Containers of one space and lifecycle share a policy; policies share segments when
//!   the same rules of a group remain in them.
//! - Rules and containers that the data plane refused, and only those, are left out and
//!   reported (law 6).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::Display,
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use model::{
    effective::{EffectiveRules, Permit, ReadGroup, effective_rules},
    generation::{Generation, Stamp},
    group::Lifecycle,
    ids::{ContainerHandle, GroupGuid, SpaceGuid},
    rule::{RuleSpec, Unenforceable},
    trace::TraceContext,
};

use crate::{
    containers::{Belongs, Container, Snapshot},
    interfaces,
};

/// Cell-wide settings from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The network of all containers.
    pub overlay: IpNet,
    /// Containers are identified by source address, as in our own nftables table,
    /// instead of by the CNI plugin's chain for the container.
    pub by_address: bool,
    /// Rules apply only to packets that leave through these interfaces; empty: all.
    pub underlay: Vec<String>,
    /// Accept everything within the overlay before anything else.
    pub disable_network_policy: bool,
    /// Rejected before any rule.
    pub deny_networks: DenyNetworks,
    /// Log every new connection, allowed or denied.
    pub log_all: bool,
    /// Rate limit of `DENY_` log lines, per second and container.
    pub denied_logs_per_second: u32,
    /// Rate limit of `OK_` log lines for UDP, per second and container.
    pub udp_logs_per_second: u32,
    /// Limits new TCP connections of a container to one destination and port.
    pub connection_limit: Option<ConnectionLimit>,
    /// Sends denied packets to the agent's record of them, see [`Settings::records_denied`].
    pub record_denied: Option<RecordDenied>,
    /// Counts the packets of each rule, in the table of our own.
    pub count_use: bool,
}

/// Bytes of a denied packet that the kernel sends to the agent: an IPv6 header with some
/// extension headers, and the port.
pub const COPIED: u32 = 128;

/// How the kernel sends denied packets to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordDenied {
    /// NFLOG group.
    pub group: u16,
    /// Packets per second and container; also the burst.
    pub per_second: u32,
    /// Whether the configuration asks for this: the default is for the plane with a table
    /// of our own only, since the original's chains have no such rules.
    pub asked_for: bool,
}

impl Settings {
    /// How denied packets are sent to the agent on the data plane in use.
    #[must_use]
    pub fn records_denied(&self) -> Option<RecordDenied> {
        self.record_denied.filter(|record| self.by_address || record.asked_for)
    }
}

impl RecordDenied {
    /// Packets per second of all containers; also the burst.
    #[must_use]
    pub fn cell_per_second(self) -> u32 {
        20 * self.per_second
    }
}

/// Networks that are denied even if a rule allows them, in the operator's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DenyNetworks {
    /// For every container.
    pub always: Vec<IpNet>,
    /// For apps and tasks.
    pub running: Vec<IpNet>,
    /// For staging containers.
    pub staging: Vec<IpNet>,
}

/// Settings of a cell without options.
#[cfg(test)]
pub(crate) fn test_settings() -> Arc<Settings> {
    Arc::new(Settings {
        by_address: true,
        overlay: "10.255.0.0/16".parse().expect("a network"),
        underlay: Vec::new(),
        disable_network_policy: false,
        deny_networks: DenyNetworks::default(),
        log_all: false,
        denied_logs_per_second: 1,
        udp_logs_per_second: 1,
        connection_limit: None,
        record_denied: None,
        count_use: false,
    })
}

/// At most `burst` new connections at once, and `per_second` after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// New connections a second.
    pub per_second: u32,
    /// Burst size.
    pub burst: u32,
    /// Connections over the limit are logged.
    pub log: bool,
    /// Destination and port pairs of one container that are counted at a time; new
    /// connections to others are rejected.
    pub destinations: u32,
}

/// The security groups that the policy store sent to this cell.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Sequence number of the states that this process received, from 1; 0 for none.
    /// The store repeats its generation for a new set of spaces, and a restored store
    /// goes back, so the generation does not order states.
    pub revision: u64,
    /// When this process received it; `None` for groups that are not from the source.
    pub arrived: Option<Instant>,
    /// The sync that made the generation, if the store says.
    pub trace: Option<TraceContext>,
    /// The store's generation for the whole set.
    pub generation: Generation,
    /// When the store created this state, if `groups` are exactly the groups of
    /// `spaces` at that moment, so that the store may send only later changes; else 0.
    pub stamp: Stamp,
    /// The spaces whose groups are all in `groups`.
    pub spaces: BTreeSet<SpaceGuid>,
    /// Groups by GUID.
    pub groups: BTreeMap<GroupGuid, Arc<ReadGroup>>,
}

/// Rules and containers that the data plane refused. An entry is valid as long as the
/// refused rule or container is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refused {
    /// Rules, by group and index in the group, with the reason.
    pub rules: BTreeMap<(GroupGuid, usize), (RuleSpec, String)>,
    /// Containers, with the reason.
    pub containers: BTreeMap<ContainerHandle, (Container, String)>,
}

impl Refused {
    /// Adds the entries of another value.
    pub fn add(&mut self, Self { rules, containers }: Self) {
        self.rules.extend(rules);
        self.containers.extend(containers);
    }
}

/// The complete desired state of the cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// The settings that the plan used.
    pub settings: Arc<Settings>,
    /// Every container of the cell.
    pub containers: BTreeMap<ContainerHandle, Planned>,
    /// The policies of all containers.
    pub policies: BTreeMap<Belongs, Arc<Policy>>,
    /// Addresses outside the overlay that are filtered. Addresses that are assigned to
    /// no container are denied.
    pub claimed: BTreeSet<IpAddr>,
    /// Containers that the original ignores.
    pub ignored: BTreeSet<ContainerHandle>,
    /// Interfaces of containers, other than those of silk.
    pub interfaces: BTreeSet<String>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its address; `None` when it has no address of its own.
    pub address: Option<IpAddr>,
    /// Its other addresses.
    pub more: BTreeSet<IpAddr>,
    /// Which rules apply to the container.
    pub assignment: Assignment,
}

impl Planned {
    /// All of its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.address.iter().chain(&self.more).copied()
    }

    /// The interface that silk-cni creates for the container, named after its IPv4
    /// address.
    #[must_use]
    pub fn interface(&self) -> Option<String> {
        self.addresses().find_map(|address| match address {
            IpAddr::V4(v4) => Some(interfaces::of_silk(v4)),
            IpAddr::V6(_) => None,
        })
    }
}

/// Which rules apply to a container, or why its egress is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assignment {
    /// The policy of this space and lifecycle applies.
    Bound(Belongs),
    /// Denied: the store has not sent the groups of this space.
    Unknown(SpaceGuid),
    /// Denied: no group applies to the container, for this reason.
    Ungrouped(String),
    /// Denied: the container's metadata entry is unusable, for this reason.
    Isolated(String),
}

/// The rules of all containers of one space and lifecycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Networks that are rejected first, in the order of the packet filter.
    pub deny: Vec<IpNet>,
    /// Permits after the denied networks, in the order of the packet filter.
    pub segments: Vec<Arc<Segment>>,
    /// The same permits in the operator's order, with the source of each.
    pub rules: EffectiveRules,
    /// Rules that the data plane refused: group, index and reason.
    pub refused: Vec<(GroupGuid, usize, String)>,
}

/// Consecutive permits of one group, in the order of the packet filter: the reverse of
/// the operator's. The first match decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The group.
    pub group: GroupGuid,
    /// Never empty.
    pub permits: Vec<Permit>,
}

impl Policy {
    /// Whether any permit logs.
    #[must_use]
    pub fn logs(&self) -> bool {
        self.segments.iter().any(|segment| segment.permits.iter().any(|permit| permit.log))
    }

    /// Number of rules that are not enforced.
    #[must_use]
    pub fn isolated(&self) -> usize {
        self.not_enforced().count()
    }

    /// Rules that are not enforced: group, index, the problem of an unreadable rule, and the
    /// reason.
    pub fn not_enforced(
        &self,
    ) -> impl Iterator<Item = (&GroupGuid, usize, Option<&Unenforceable>, &dyn Display)> {
        let unreadable = self.rules.isolated.iter();
        let unreadable = unreadable
            .map(|(problem, at)| (&at.group, at.rule, Some(problem), problem as &dyn Display));
        let refused = self.refused.iter();
        unreadable.chain(refused.map(|(group, rule, reason)| (group, *rule, None, reason as _)))
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

    /// Number of distinct rules that are not enforced.
    #[must_use]
    pub fn isolated_rules(&self) -> usize {
        let mut isolated = BTreeSet::new();
        for policy in self.policies.values() {
            isolated.extend(policy.not_enforced().map(|(group, rule, ..)| (group, rule)));
        }
        isolated.len()
    }
}

/// Computes a ruleset once.
#[must_use]
pub fn plan(
    settings: &Arc<Settings>,
    snapshot: &Snapshot,
    known: &Known,
    refused: &Refused,
) -> Ruleset {
    Shared::default().plan(settings, snapshot, known, refused)
}

/// Incremental [`plan`] with the same result. Unchanged parts are reused as the same
/// `Arc`, so callers can skip them by comparing pointers.
#[derive(Debug)]
pub struct Planner {
    settings: Arc<Settings>,
    shared: Shared,
    /// The inputs of the cached policies.
    known: Arc<Known>,
    refused: BTreeMap<(GroupGuid, usize), (RuleSpec, String)>,
}

impl Planner {
    /// A planner with an empty cache.
    #[must_use]
    pub fn new(settings: Arc<Settings>) -> Self {
        let (shared, known, refused) = (Shared::default(), Arc::default(), BTreeMap::new());
        Self { settings, shared, known, refused }
    }

    /// Computes the ruleset.
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

/// Policies and segments that plans share.
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
            // Also plan the policy of an isolated container: an error in the policy's
            // rules must not be reported as an error of the container.
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

/// Removes the refused rules, and returns them.
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
