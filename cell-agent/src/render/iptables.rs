//! A ruleset as the chains of iptables that the original's agent writes
//! (docs/compatibility/vxlan-policy-agent.md#chains, #rule-order).
//!
//! Beside silk-cni a container has a chain `netout--…` that the CNI plugin made
//! and that its packets come through. Ours is the chain `asg-…`, its jump at the
//! head of that parent, and the reject behind the jump; everything else is the
//! plugin's.
//!
//! What always holds:
//! - Rules stand as `iptables -S` prints them, so equal text is an equal rule.
//! - A chain ends in a reject, and so does its parent: a container without a
//!   chain, or with an empty one, is closed.
//! - Names are cut and may collide; who gets the name is decided where it is
//!   known who has it ([`crate::batch`]).

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
    guard::Guard,
    table::TO_STRING,
};
use crate::plan::{Assignment, Planned, Policy, Ruleset, Settings};

/// What the filter table of one family should hold of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// In the original's order: the last handle first.
    pub chains: Vec<Chain>,
    /// Chains of containers whose groups nobody told yet: what an earlier process
    /// left in them stays (law 5), so they are as they are, if they are there.
    pub unknown: Vec<Chain>,
    /// More chains that stay as they are.
    pub kept: BTreeSet<String>,
    /// What leads to the chains beside the CNI plugin; where there is none, it stays as it is.
    pub guard: Option<Guard>,
    /// Containers whose chain cannot be named, with the reason.
    pub nameless: Vec<(ContainerHandle, String)>,
}

impl Filter {
    /// The containers that need no chain of the CNI plugin to lead to theirs.
    #[must_use]
    pub fn led_to(&self) -> HashSet<&ContainerHandle> {
        self.guard.iter().flat_map(Guard::containers).collect()
    }

    /// What this process wrote itself into a chain counts for nothing once the
    /// groups of its container are unknown: it is closed (law 7).
    pub fn close(&mut self, written: &BTreeSet<String>) {
        let own = self.unknown.extract_if(.., |chain| written.contains(&chain.names.asg));
        self.chains.extend(own);
        self.chains.sort_by(|one, other| other.handle.cmp(&one.handle));
    }
}

/// The chain of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Whose.
    pub handle: ContainerHandle,
    /// The names of the chain and those around it.
    pub names: Names,
    /// Whether the container's address is of this family, so that its parent is
    /// to be expected.
    pub expected: bool,
    /// Its rules.
    pub body: Body,
    /// Chains of the CNI plugin that rules lead to.
    pub targets: Vec<String>,
    /// The rules without log lines, for where those chains are not made.
    pub silent: Option<Body>,
}

/// The rules of a chain. Containers share the middle where it is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    head: String,
    permits: Arc<str>,
    tail: String,
}

/// Which part of a body a rule is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The permit of the policy with this place among those of the family.
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

    /// The rules in order, without `-A` and the chain.
    pub fn rules(&self) -> impl Iterator<Item = &str> {
        self.head.lines().chain(self.permits.lines()).chain(self.tail.lines())
    }

    /// What the rule at this place is.
    #[must_use]
    pub fn part(&self, place: usize) -> Part {
        let head = self.head.lines().count();
        match place.checked_sub(head) {
            Some(permit) if permit < self.permits.lines().count() => Part::Permit(permit),
            _ => Part::Fixed,
        }
    }

    /// What containers do not share.
    pub fn own(&self) -> impl Iterator<Item = &str> {
        self.head.lines().chain(self.tail.lines())
    }
}

/// The chains for a ruleset.
#[must_use]
pub fn render(ruleset: &Ruleset, family: Family) -> Filter {
    let mut filter = Filter { guard: Guard::of(ruleset, family), ..Filter::default() };
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

/// The same rules, but the CNI plugin's chains for log lines are not needed.
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
        tail: denied(&settings, family, handle),
    }
}

/// Texts of permits that several containers have; logging ones are for one log
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
            // Whatever is wrong with it may be in its other rules, too.
            return (Body::of(&[arguments::ESTABLISHED, family.reject()]), targets);
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
    (Body { head, permits, tail: denied(settings, family, handle) }, targets)
}

/// The places 0 to 4.
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
        rule(&format!("{}{}", within("-d", *net), family.reject()));
    }
    head
}

/// A match of a network, which is none when it is all of them.
fn within(flag: &str, net: IpNet) -> String {
    if net.prefix_len() == 0 { String::new() } else { format!("{flag} {net} ") }
}

/// The place 5.
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

/// Equal for policies that let the same packets pass and log the same.
#[must_use]
pub fn fingerprint(policy: &Policy) -> String {
    let deny: Vec<String> = policy.deny.iter().map(ToString::to_string).collect();
    let permits = Family::ALL.map(|family| permits(policy, family, "log"));
    super::table::name("rules", &[&deny.join(" "), &permits[0], &permits[1]])
}

/// The permits of all policies, one a line; those that log lead to this chain.
#[must_use]
pub fn all_permits(ruleset: &Ruleset, family: Family, log_chain: &str) -> String {
    let texts = ruleset.policies.values().map(|policy| permits(policy, family, log_chain));
    texts.fold(String::new(), |all, text| all + &text)
}

/// The places 6 and 7, which are also what the CNI plugin fills a parent with.
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
#[path = "iptables_tests.rs"]
mod tests;
