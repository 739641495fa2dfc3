//! Explains why a new connection of a container is allowed or denied.
//!
//! Uses the ruleset in force and the packet's route ([`Way`]), which the caller gets
//! from the kernel. Checks in the packet's order: whether the packet passes the
//! security group chains at all, deny networks, rules. The limit on new connections
//! depends on other traffic, so the reason only mentions the limit.

mod way;

use std::{cmp::Reverse, net::IpAddr};

use model::{
    effective::{Permit, Probe, ProbeKind, Source, Verdict},
    explain::{Fit, describe, fit, near_misses},
    ids::{ContainerHandle, GroupGuid},
};

pub use self::way::Way;
use crate::{
    plan::{Assignment, Known, Policy, Ruleset},
    route::Route,
};

/// The result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explanation<'a> {
    /// A rule allows it.
    Allowed {
        /// The part of the rule that matches.
        permit: &'a Permit,
        /// The rule.
        source: &'a Source,
        /// The reason as a sentence.
        reason: String,
    },
    /// Allowed before any rule.
    AllowedAlways {
        /// The reason as a sentence.
        reason: String,
    },
    /// Security groups do not apply.
    NotDecided {
        /// The reason as a sentence.
        reason: String,
    },
    /// The agent does not know.
    Untold {
        /// The reason as a sentence.
        reason: String,
    },
    /// It is denied.
    Denied {
        /// The reason as a sentence.
        reason: String,
        /// Rules that nearly match, the closest first, each with the reason why it does
        /// not.
        nearest: Vec<(&'a Source, String)>,
        /// Rules that would allow the connection but are not enforced, with the reason.
        isolated: Vec<NotEnforced>,
    },
}

/// A rule that is not enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotEnforced {
    /// The group.
    pub group: GroupGuid,
    /// Index of the rule in the group, from 0.
    pub rule: usize,
    /// Why it is not enforced.
    pub reason: String,
}

/// Explains a new connection that takes this way; `None` for an unknown container.
/// `known` are the groups that the ruleset was made from.
#[must_use]
pub fn explain<'a>(
    ruleset: &'a Ruleset,
    known: &Known,
    handle: &ContainerHandle,
    probe: Probe,
    way: &Way,
) -> Option<Explanation<'a>> {
    let planned = ruleset.containers.get(handle)?;
    let settings = &ruleset.settings;
    let to = probe.destination;
    if let Some(reason) = way::undecided(ruleset, planned, to, way) {
        return Some(Explanation::NotDecided { reason });
    }
    let within = |address| settings.overlay.contains(&address);
    if settings.disable_network_policy && within(to) && planned.address.is_some_and(within) {
        let overlay = settings.overlay;
        let reason = format!("container network policy is disabled within {overlay}");
        return Some(Explanation::AllowedAlways { reason });
    }
    let policy = match &planned.assignment {
        Assignment::Bound(belongs) => ruleset.policies.get(belongs)?,
        assignment => return Some(denied(why_denied(assignment))),
    };
    if let Some(net) = policy.deny.iter().find(|net| net.contains(&to)) {
        return Some(denied(format!(
            "{to} is in {net} of deny_networks in this cell's configuration; no security group opens it"
        )));
    }
    Some(match policy.rules.verdict(probe) {
        Verdict::Allowed(permit, source) => {
            let limit = match (settings.connection_limit, probe.kind) {
                (Some(limit), ProbeKind::Tcp(_)) => {
                    format!(", at most {} new connections a second to one port", limit.per_second)
                }
                _ => String::new(),
            };
            let logged = if permit.log { " and logs the connection" } else { "" };
            let rule = named(known, &source.group, source.rule);
            let reason =
                format!("{rule} allows {}{logged}{limit}{}", describe(permit), no_route(to, way));
            Explanation::Allowed { permit, source, reason }
        }
        Verdict::Denied => {
            let isolated = isolated(policy, known, probe);
            let reason = match isolated.first() {
                None => no_rule(policy),
                Some((fit, rule)) => not_enforced(policy, known, *fit, rule),
            };
            let isolated = isolated.into_iter().map(|(_, rule)| rule).collect();
            Explanation::Denied {
                reason,
                nearest: near_misses(&policy.rules.permits, probe),
                isolated,
            }
        }
    })
}

/// Denied for a reason other than rules.
#[must_use]
pub fn denied(reason: String) -> Explanation<'static> {
    Explanation::Denied { reason, nearest: Vec::new(), isolated: Vec::new() }
}

/// Why a container without a policy is denied, as a sentence.
#[must_use]
pub fn why_denied(assignment: &Assignment) -> String {
    match assignment {
        Assignment::Bound(_) => String::new(),
        Assignment::Unknown(space) => {
            format!("the policy store has not sent the security groups of space {space} yet")
        }
        Assignment::Ungrouped(reason) | Assignment::Isolated(reason) => reason.clone(),
    }
}

/// The rules in force; a rule with several destinations and ports occurs once.
#[must_use]
pub fn in_force(policy: &Policy) -> Vec<&Source> {
    let mut sources: Vec<&Source> = policy.rules.permits.iter().map(|(_, source)| source).collect();
    sources.dedup();
    sources
}

fn no_rule(policy: &Policy) -> String {
    match in_force(policy).len() {
        0 => "no rule applies to the container".to_owned(),
        1 => "the only rule of the container does not match".to_owned(),
        rules => format!("none of the {rules} rules of the container matches"),
    }
}

fn not_enforced(policy: &Policy, known: &Known, fit: Fit, rule: &NotEnforced) -> String {
    let NotEnforced { group, rule, reason } = rule;
    let rule = named(known, group, *rule);
    match fit {
        Fit::Yes => format!("{rule} would allow it, but is not enforced: {reason}"),
        Fit::No | Fit::Maybe => {
            format!("{}; {rule} may be meant, but is not enforced: {reason}", no_rule(policy))
        }
    }
}

/// Rules that match but are not enforced, the most certain first.
fn isolated(policy: &Policy, known: &Known, probe: Probe) -> Vec<(Fit, NotEnforced)> {
    let fitting = policy.not_enforced().filter_map(|(group, rule, problem, reason)| {
        let spec = known.groups.get(group)?.rule(rule)?;
        let fit = fit(spec, problem, probe);
        let not_enforced =
            || NotEnforced { group: group.clone(), rule, reason: reason.to_string() };
        (fit != Fit::No).then(|| (fit, not_enforced()))
    });
    let mut fitting: Vec<_> = fitting.collect();
    fitting.sort_by_key(|(fit, _)| Reverse(*fit));
    fitting
}

/// `rule 3 of security group web (0e2b...)`.
fn named(known: &Known, group: &GroupGuid, rule: usize) -> String {
    match known.groups.get(group).map(|read| read.stored.group.name.as_str()) {
        None | Some("") => format!("rule {rule} of security group {group}"),
        Some(name) => format!("rule {rule} of security group {name} ({group})"),
    }
}

fn no_route(to: IpAddr, way: &Way) -> String {
    match way {
        Way::Known(Route::None) => format!("; this cell has no route to {to}"),
        Way::Known(Route::Local | Route::Leaves(_)) | Way::Unknown => String::new(),
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
