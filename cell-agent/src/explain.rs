//! Why a new connection of a container is allowed or denied.
//!
//! Pure, on what is in force. Follows the packet's way: overlay, deny networks,
//! rules. The limit on new connections depends on what else happens, so it is
//! mentioned only.

use std::net::IpAddr;

use model::{
    effective::{Permit, Probe, ProbeKind, Service, Source, Verdict},
    ids::ContainerHandle,
};

use crate::plan::{Policy, Ruleset, Standing};

/// How many rules that do not match are shown.
const NEAREST: usize = 5;

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explanation<'a> {
    /// A rule allows it.
    Allowed {
        /// What of the rule matches.
        permit: &'a Permit,
        /// The rule.
        source: &'a Source,
        /// In words.
        reason: String,
    },
    /// It is allowed before any rule is looked at.
    AllowedAlways {
        /// In words.
        reason: String,
    },
    /// Nobody can tell.
    Untold {
        /// In words.
        reason: String,
    },
    /// It is denied.
    Denied {
        /// In words.
        reason: String,
        /// Rules that come close, with what keeps each from matching.
        nearest: Vec<(&'a Source, String)>,
    },
}

/// Explains what happens to a new connection; `None` when there is no such
/// container.
#[must_use]
pub fn explain<'a>(
    ruleset: &'a Ruleset,
    handle: &ContainerHandle,
    probe: Probe,
) -> Option<Explanation<'a>> {
    let planned = ruleset.containers.get(handle)?;
    let settings = &ruleset.settings;
    let within = |address: IpAddr| settings.overlay.contains(&address);
    if settings.disable_network_policy
        && within(probe.destination)
        && planned.address.is_some_and(within)
    {
        let overlay = settings.overlay;
        let reason = format!("container network policy is disabled within {overlay}");
        return Some(Explanation::AllowedAlways { reason });
    }
    let policy = match &planned.standing {
        Standing::Bound(belongs) => ruleset.policies.get(belongs)?,
        standing => return Some(denied(why_denied(standing))),
    };
    if let Some(net) = policy.deny.iter().find(|net| net.contains(&probe.destination)) {
        return Some(denied(format!("{} is in the denied network {net}", probe.destination)));
    }
    Some(match policy.rules.verdict(probe) {
        Verdict::Allowed(permit, source) => {
            let limit = match (settings.connection_limit, probe.kind) {
                (Some(limit), ProbeKind::Tcp(_)) => {
                    format!(", at most {} new connections a second to one port", limit.per_second)
                }
                _ => String::new(),
            };
            let logged = if permit.log { ", and logged" } else { "" };
            let reason = format!(
                "rule {} of security group {} allows {}{logged}{limit}",
                source.rule,
                source.group,
                shown(permit)
            );
            Explanation::Allowed { permit, source, reason }
        }
        Verdict::Denied => {
            Explanation::Denied { reason: no_rule(policy), nearest: nearest(policy, probe) }
        }
    })
}

fn denied(reason: String) -> Explanation<'static> {
    Explanation::Denied { reason, nearest: Vec::new() }
}

/// Why a container without a policy is denied, as a sentence.
#[must_use]
pub fn why_denied(standing: &Standing) -> String {
    match standing {
        Standing::Bound(_) => String::new(),
        Standing::Unknown(space) => {
            format!("the policy store has not told the security groups of space {space} yet")
        }
        Standing::Ungrouped(reason) | Standing::Isolated(reason) => reason.clone(),
    }
}

fn no_rule(policy: &Policy) -> String {
    match policy.rules.permits.len() {
        0 => "no rule applies to the container".to_owned(),
        1 => "the only rule of the container does not match".to_owned(),
        rules => format!("none of the {rules} rules of the container matches"),
    }
}

/// Rules that miss by the least: the right address first, then the right service.
fn nearest(policy: &Policy, probe: Probe) -> Vec<(&Source, String)> {
    let mut missed = Vec::new();
    for (permit, source) in &policy.rules.permits {
        if permit.destination.contains(probe.destination) {
            let reason = format!("allows {} only", service(permit.service));
            missed.push((0, source, reason));
        } else if permit.matches_service(probe) {
            let reason = format!("allows {} only", permit.destination);
            missed.push((1 + distance(permit, probe.destination), source, reason));
        }
    }
    missed.sort_by_key(|(distance, ..)| *distance);
    missed.into_iter().take(NEAREST).map(|(_, source, reason)| (source, reason)).collect()
}

/// How many addresses lie between; the most for another family.
fn distance(permit: &Permit, to: IpAddr) -> u128 {
    let (first, last) = (permit.destination.first(), permit.destination.last());
    if first.is_ipv4() != to.is_ipv4() {
        return u128::MAX - 1;
    }
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let (first, last, to) = (number(first), number(last), number(to));
    if to < first { first - to } else { to - last }.min(u128::MAX - 2)
}

fn shown(permit: &Permit) -> String {
    format!("{} to {}", service(permit.service), permit.destination)
}

fn service(service: Service) -> String {
    use model::rule::IcmpMatch;
    let icmp = |name: &str, wanted: IcmpMatch| match wanted.exact() {
        None => format!("every {name} message"),
        Some((icmp_type, code)) => format!("{name} type {icmp_type} code {code}"),
    };
    match service {
        Service::All => "everything".to_owned(),
        Service::Tcp(ports) => format!("tcp port {ports}"),
        Service::Udp(ports) => format!("udp port {ports}"),
        Service::Icmp(wanted) => icmp("icmp", wanted),
        Service::Icmpv6(wanted) => icmp("icmpv6", wanted),
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
