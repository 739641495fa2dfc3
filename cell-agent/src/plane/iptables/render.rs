//! Renders a ruleset as the iptables chains that the original's agent writes
//! (docs/compatibility/vxlan-policy-agent.md#chains, #rule-order).
//!
//! With silk-cni a container has a chain `netout--…`, which the CNI plugin creates and
//! which the container's packets pass. Ours is the chain `asg-…`, its jump at the head
//! of that parent, and the reject after the jump; everything else is the plugin's.
//!
//! Invariants:
//! - Rules are in the format of `iptables -S`, so equal text is an equal rule.
//! - A chain ends in a reject, and so does its parent: a container without a chain, or
//!   with an empty one, is denied.
//! - Names are truncated and may collide; [`batch`](super::batch), which knows the current
//!   owner, resolves collisions.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
};

use ipnet::IpNet;
use model::{effective::Permit, ids::ContainerHandle};

use super::{
    arguments,
    chains::{Family, Names},
    guard::{self, Guard, TO_RECORD},
};
use crate::{
    plan::{Assignment, Planned, Policy, Ruleset, Settings},
    plane::{TO_STRING, nftables::table},
};

/// The agent's part of one family's filter table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Chains in the original's order: the last handle first.
    pub chains: Vec<Chain>,
    /// Chains of containers whose groups are not known yet: rules of an earlier process
    /// stay unchanged (law 5).
    pub unknown: Vec<Chain>,
    /// Further chains that stay unchanged.
    pub kept: BTreeSet<String>,
    /// The jumps to the chains without the CNI plugin; `None` leaves them unchanged.
    pub guard: Option<Guard>,
    /// The rules of the chain that records denied packets, if they are recorded.
    pub record: Option<Vec<String>>,
    /// Containers whose chain name is invalid, with the reason.
    pub nameless: Vec<(ContainerHandle, String)>,
}

impl Filter {
    /// Containers whose chains are reached without a chain of the CNI plugin.
    #[must_use]
    pub fn led_to(&self) -> HashSet<&ContainerHandle> {
        self.guard.iter().flat_map(Guard::containers).collect()
    }

    /// Denies containers with unknown groups whose chain this process wrote itself:
    /// those rules no longer count (law 7).
    pub fn close(&mut self, written: &BTreeSet<String>) {
        let own = self.unknown.extract_if(.., |chain| written.contains(&chain.names.asg));
        self.chains.extend(own);
        self.chains.sort_by(|one, other| other.handle.cmp(&one.handle));
    }
}

/// The chain of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The container.
    pub handle: ContainerHandle,
    /// Names of the chain and its related chains.
    pub names: Names,
    /// Whether the container's address is of this family, so that its parent is
    /// expected.
    pub expected: bool,
    /// Its rules.
    pub body: Body,
    /// Chains of the CNI plugin that the rules jump to.
    pub targets: Vec<String>,
    /// The rules without log lines, for use when those chains do not exist.
    pub silent: Option<Body>,
}

/// The rules of a chain. Containers share the middle part if it is equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    head: String,
    permits: Arc<str>,
    tail: String,
}

/// The part of a body that a rule belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The policy's permit with this index among those of the family.
    Permit(usize),
    /// A rule that every container has.
    Fixed,
}

impl Body {
    /// A body of these rules, one a line.
    #[must_use]
    pub fn of(rules: &[&str]) -> Self {
        Self { head: rules.join("\n"), permits: Arc::from(""), tail: String::new() }
    }

    /// A body of the rules in this text, one a line.
    #[must_use]
    pub fn shared(rules: Arc<str>) -> Self {
        Self { head: String::new(), permits: rules, tail: String::new() }
    }

    /// The rules in order, without `-A` and the chain name.
    pub fn rules(&self) -> impl Iterator<Item = &str> {
        self.head.lines().chain(self.permits.lines()).chain(self.tail.lines())
    }

    /// The part at this index.
    #[must_use]
    pub fn part(&self, place: usize) -> Part {
        let head = self.head.lines().count();
        match place.checked_sub(head) {
            Some(permit) if permit < self.permits.lines().count() => Part::Permit(permit),
            _ => Part::Fixed,
        }
    }

    /// The rules that containers do not share.
    pub fn own(&self) -> impl Iterator<Item = &str> {
        self.head.lines().chain(self.tail.lines())
    }
}

/// Renders the chains of one family.
#[must_use]
pub fn render(ruleset: &Ruleset, family: Family) -> Filter {
    let record = ruleset.settings.records_denied().map(guard::record);
    let guard = Guard::of(ruleset, family);
    let mut filter = Filter { guard, record, ..Filter::default() };
    let mut shared = HashMap::new();
    for (handle, planned) in ruleset.containers.iter().rev() {
        let names = match Names::of(handle) {
            Ok(names) => names,
            Err(reason) => {
                filter.nameless.push((handle.clone(), reason));
                continue;
            }
        };
        let Planned { address, more: _, assignment } = planned;
        if ruleset.ignored.contains(handle) {
            continue;
        }
        let (body, targets) = body(ruleset, family, handle, assignment, &names, &mut shared);
        let silent = (filter.guard.is_some() && !targets.is_empty())
            .then(|| silent(ruleset, family, handle, assignment, &names));
        let chain = Chain {
            handle: handle.clone(),
            expected: address.is_some_and(|address| Family::of(address) == family),
            names,
            body,
            targets,
            silent,
        };
        match assignment {
            Assignment::Unknown(_) => filter.unknown.push(chain),
            _ => filter.chains.push(chain),
        }
    }
    filter
}

/// The same rules without the CNI plugin's log chains.
fn silent(
    ruleset: &Ruleset,
    family: Family,
    handle: &ContainerHandle,
    assignment: &Assignment,
    names: &Names,
) -> Body {
    let mut settings = (*ruleset.settings).clone();
    if let Some(limit) = &mut settings.connection_limit {
        limit.log = false;
    }
    let policy = match assignment {
        Assignment::Bound(belongs) => ruleset.policies.get(belongs),
        _ => None,
    };
    let always = ruleset.settings.deny_networks.always.iter().rev().copied().collect();
    let deny = policy.map_or(&always, |policy| &policy.deny);
    let mut text = String::new();
    let permits = policy.iter().flat_map(|policy| &policy.segments).flat_map(|of| &of.permits);
    for permit in permits.filter(|permit| Family::of(permit.destination.first()) == family) {
        arguments::permit(&mut text, &Permit { log: false, ..*permit }, "");
        text.push('\n');
    }
    Body {
        head: head(&settings, family, handle, names, deny),
        permits: Arc::from(text),
        tail: tail(&settings, family, handle),
    }
}

/// Permit texts that several containers share; those of logging permits are for one log
/// chain each.
type Shared<'a> = HashMap<(*const Policy, &'a str), Arc<str>>;

fn body<'a>(
    ruleset: &'a Ruleset,
    family: Family,
    handle: &'a ContainerHandle,
    assignment: &Assignment,
    names: &Names,
    shared: &mut Shared<'a>,
) -> (Body, Vec<String>) {
    let settings = &*ruleset.settings;
    let mut targets = Vec::new();
    let (policy, always) = match assignment {
        Assignment::Isolated(_) => {
            // The container's other rules may be invalid as well.
            let mut rules = vec![arguments::ESTABLISHED, family.reject()];
            if settings.records_denied().is_some() {
                rules.insert(1, TO_RECORD);
            }
            return (Body::of(&rules), targets);
        }
        Assignment::Bound(belongs) => (ruleset.policies.get(belongs).map(Arc::as_ref), Vec::new()),
        Assignment::Unknown(_) | Assignment::Ungrouped(_) => {
            (None, settings.deny_networks.always.iter().rev().copied().collect())
        }
    };
    let deny = policy.map_or(&always, |policy| &policy.deny);
    let head = head(settings, family, handle, names, deny);
    if settings.connection_limit.is_some_and(|limit| limit.log) {
        targets.push(names.limit_log.clone());
    }
    let permits = policy.map_or_else(
        || Arc::from(""),
        |policy| {
            let logs = policy.logs();
            if logs {
                targets.push(names.log.clone());
            }
            let key = (std::ptr::from_ref(policy), if logs { handle.as_str() } else { "" });
            Arc::clone(shared.entry(key).or_insert_with(|| permits(policy, family, &names.log)))
        },
    );
    (Body { head, permits, tail: tail(settings, family, handle) }, targets)
}

/// Positions 0 to 4.
fn head(
    settings: &Settings,
    family: Family,
    handle: &ContainerHandle,
    names: &Names,
    deny: &[IpNet],
) -> String {
    let mut head = String::new();
    let mut rule = |text: &str| writeln!(head, "{text}").expect(TO_STRING);
    if settings.disable_network_policy && Family::of(settings.overlay.addr()) == family {
        let (from, to) = (within("-s", settings.overlay), within("-d", settings.overlay));
        rule(&format!("{from}{to}-j ACCEPT"));
    }
    rule(arguments::ESTABLISHED);
    rule(arguments::INVALID);
    if let Some(limit) = &settings.connection_limit {
        let over =
            if limit.log { format!("-j {}", names.limit_log) } else { family.reject().into() };
        rule(&format!("{} {over}", arguments::over_limit(limit, handle)));
    }
    for net in deny.iter().filter(|net| Family::of(net.addr()) == family) {
        if settings.records_denied().is_some() {
            rule(&format!("{}{TO_RECORD}", within("-d", *net)));
        }
        rule(&format!("{}{}", within("-d", *net), family.reject()));
    }
    head
}

/// A match of a network; empty for all addresses.
fn within(flag: &str, net: IpNet) -> String {
    if net.prefix_len() == 0 { String::new() } else { format!("{flag} {net} ") }
}

/// Position 5.
fn permits(policy: &Policy, family: Family, log_chain: &str) -> Arc<str> {
    let mut text = String::new();
    for permit in policy.segments.iter().flat_map(|segment| &segment.permits) {
        if Family::of(permit.destination.first()) == family {
            arguments::permit(&mut text, permit, log_chain);
            text.push('\n');
        }
    }
    Arc::from(text)
}

/// Equal for policies that pass the same packets and log the same.
#[must_use]
pub fn fingerprint(policy: &Policy) -> String {
    let deny: Vec<String> = policy.deny.iter().map(ToString::to_string).collect();
    let permits = Family::ALL.map(|family| permits(policy, family, "log"));
    table::name("rules", &[&deny.join(" "), &permits[0], &permits[1]])
}

/// The permits of all policies, one a line; logging ones jump to this chain.
#[must_use]
pub fn all_permits(ruleset: &Ruleset, family: Family, log_chain: &str) -> String {
    let texts = ruleset.policies.values().map(|policy| permits(policy, family, log_chain));
    texts.fold(String::new(), |all, text| all + &text)
}

/// The end of a chain: positions 6 and 7, after the jump to the record.
fn tail(settings: &Settings, family: Family, handle: &ContainerHandle) -> String {
    let denied = denied(settings, family, handle);
    match settings.records_denied() {
        Some(_) => format!("{TO_RECORD}\n{denied}"),
        None => denied,
    }
}

/// Positions 6 and 7, which the CNI plugin also puts into a parent.
#[must_use]
pub fn denied(settings: &Settings, family: Family, handle: &ContainerHandle) -> String {
    let reject = family.reject();
    if settings.log_all {
        let log = arguments::log_denied(settings.denied_logs_per_second, handle);
        return format!("{log}\n{reject}");
    }
    reject.to_owned()
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
