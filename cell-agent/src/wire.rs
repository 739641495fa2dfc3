//! The state in force as messages of `portcullis.cell.v1`.

use std::sync::Arc;

use model::{
    effective::Source,
    ids::{ContainerHandle, GroupGuid},
};
use proto::cell_v1::{
    Container, EffectiveRule, Enforcement, ExplainResponse, IsolatedRule, Lifecycle, NearMiss,
    RuleSource, explain_response,
};

use crate::{
    explain::{Explanation, NotEnforced, in_force, why_denied},
    plan::{Assignment, Planned, Policy, Ruleset},
    reconcile::Enforced,
};

/// The rules of a container whose groups are known.
pub(crate) fn policy<'a>(enforced: &'a Enforced, handle: &ContainerHandle) -> Option<&'a Policy> {
    policy_of(&enforced.ruleset, handle).map(Arc::as_ref)
}

/// [`policy`], to compare pointers.
pub(crate) fn policy_of<'a>(
    ruleset: &'a Ruleset,
    handle: &ContainerHandle,
) -> Option<&'a Arc<Policy>> {
    match &ruleset.containers.get(handle)?.assignment {
        Assignment::Bound(belongs) => ruleset.policies.get(belongs),
        _ => None,
    }
}

/// A container of this cell.
pub(crate) fn container(enforced: &Enforced, handle: &ContainerHandle) -> Option<Container> {
    let Planned { address, more: _, assignment } = enforced.ruleset.containers.get(handle)?;
    let entry = enforced.snapshot.containers.get(handle)?;
    let waits = enforced.waiting.get(handle);
    let enforcement = match assignment {
        Assignment::Bound(_) if waits.is_some() => Enforcement::DeniedUntilKnown,
        Assignment::Bound(_) => Enforcement::Enforced,
        Assignment::Unknown(_) if enforced.kept.contains(handle) => Enforcement::KeptUntilKnown,
        Assignment::Unknown(_) => Enforcement::DeniedUntilKnown,
        Assignment::Ungrouped(_) => Enforcement::DeniedNoGroups,
        Assignment::Isolated(_) => Enforcement::DeniedBadEntry,
    };
    let belongs = entry.belongs.as_ref().ok();
    let lifecycle = belongs.map(|belongs| Lifecycle::from(belongs.lifecycle));
    let policy = policy(enforced, handle);
    let rules = policy.map_or(0, |policy| in_force(policy).len());
    let isolated = policy.map_or(0, Policy::isolated);
    Some(Container {
        handle: handle.as_str().to_owned(),
        ip: address.map(|address| address.to_string()).unwrap_or_default(),
        space_guid: belongs.map(|belongs| belongs.space.as_str().to_owned()).unwrap_or_default(),
        app_guid: entry.app.clone(),
        workload: entry.workload.clone(),
        lifecycle: lifecycle.unwrap_or_default().into(),
        enforcement: enforcement.into(),
        rules: count(rules),
        reason: reason(enforced, handle),
        isolated_rules: count(isolated),
    })
}

/// Why the container's rules are not in force; empty if they are.
pub(crate) fn reason(enforced: &Enforced, handle: &ContainerHandle) -> String {
    if let Some(waits) = enforced.waiting.get(handle) {
        return waits.clone();
    }
    let planned = enforced.ruleset.containers.get(handle);
    let reason = planned.map(|planned| why_denied(&planned.assignment)).unwrap_or_default();
    match enforced.kept.contains(handle) {
        true => format!("{reason}; it keeps the rules that it had when the agent started"),
        false => reason,
    }
}

/// The rules in force of a policy.
pub(crate) fn effective(enforced: &Enforced, policy: &Policy) -> Vec<EffectiveRule> {
    in_force(policy).into_iter().map(|source| rule(enforced, source)).collect()
}

fn rule(enforced: &Enforced, source: &Source) -> EffectiveRule {
    let (rule, source) = written(enforced, &source.group, source.rule);
    EffectiveRule { rule, source: Some(source) }
}

/// A rule as written, with its source.
pub(crate) fn written(
    enforced: &Enforced,
    group: &GroupGuid,
    index: usize,
) -> (Option<proto::policy_v1::Rule>, RuleSource) {
    let read = enforced.known.groups.get(group);
    let source = RuleSource {
        group_guid: group.as_str().to_owned(),
        group_name: read.map(|read| read.stored.group.name.clone()).unwrap_or_default(),
        rule_index: count(index),
    };
    (read.and_then(|read| read.rule(index)).cloned().map(Into::into), source)
}

/// The rules of a policy that are not enforced.
pub(crate) fn isolated(enforced: &Enforced, policy: &Policy) -> Vec<IsolatedRule> {
    let isolated = policy.not_enforced().map(|(group, index, _, reason)| {
        let (rule, source) = written(enforced, group, index);
        IsolatedRule { rule, source: Some(source), reason: reason.to_string() }
    });
    isolated.collect()
}

/// The answer to Explain, without the container.
pub(crate) fn explained(enforced: &Enforced, explanation: Explanation<'_>) -> ExplainResponse {
    use explain_response::Verdict;
    let answer = |verdict: Verdict, reason| ExplainResponse {
        verdict: verdict.into(),
        reason,
        ..ExplainResponse::default()
    };
    match explanation {
        Explanation::Allowed { permit, source, reason } => {
            let verdict = if permit.log { Verdict::AllowedAndLogged } else { Verdict::Allowed };
            let decisive = Some(rule(enforced, source));
            ExplainResponse { decisive, ..answer(verdict, reason) }
        }
        Explanation::Untold { reason } => answer(Verdict::Unspecified, reason),
        Explanation::AllowedAlways { reason } => answer(Verdict::Allowed, reason),
        Explanation::NotDecided { reason } => answer(Verdict::NotDecided, reason),
        Explanation::Denied { reason, nearest, isolated } => {
            let nearest = nearest.into_iter();
            let nearest = nearest.map(|(source, reason)| near_miss(enforced, source, reason));
            let isolated = isolated.into_iter().map(|NotEnforced { group, rule, reason }| {
                let (rule, source) = written(enforced, &group, rule);
                IsolatedRule { rule, source: Some(source), reason }
            });
            ExplainResponse {
                near_misses: nearest.collect(),
                isolated: isolated.collect(),
                ..answer(Verdict::Denied, reason)
            }
        }
    }
}

/// A rule that nearly matches, with the reason why it does not.
pub(crate) fn near_miss(enforced: &Enforced, source: &Source, reason: String) -> NearMiss {
    NearMiss { rule: Some(rule(enforced, source)), reason }
}

/// A number of things, at most what the message can hold.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
