//! Explain and Reach: requests to model types, and results to messages.

use model::{effective::Probe, explain::describe, group::Lifecycle, ids::SpaceGuid};
use proto::policy_v1::{
    self, Connection, ExplainRequest, ExplainResponse, ReachRequest, ReachResponse,
    explain_response::Remark, reach_response,
};

use super::{parse::invalid, status::Error};
use crate::groups::{
    explain::{self, Explanation, SourcedRule},
    snapshot::Snapshot,
};

/// Answers an Explain from a snapshot.
pub(super) fn explain(
    snapshot: &Snapshot,
    request: ExplainRequest,
) -> Result<ExplainResponse, Error> {
    let lifecycle = match request.lifecycle() {
        policy_v1::Lifecycle::Unspecified | policy_v1::Lifecycle::Running => Lifecycle::Running,
        policy_v1::Lifecycle::Staging => Lifecycle::Staging,
    };
    let space = SpaceGuid::parse(&request.space_guid);
    let space = space.map_err(|error| invalid("space_guid", error))?;
    let probe = probe(request.connection)?;
    let answer = ExplainResponse {
        generation: snapshot.state.generation.0,
        space_known: snapshot.bound_to(&space).next().is_some(),
        ..ExplainResponse::default()
    };
    Ok(match explain::explain(snapshot, &space, lifecycle, probe) {
        Explanation::Allowed(rule, permit) => ExplainResponse {
            allowed: true,
            logged: permit.log,
            reason: format!("{} allows {}", named(&rule), describe(&permit)),
            decisive: Some(rule.into()),
            ..answer
        },
        Explanation::Denied { rules, near_misses, not_enforced } => {
            let reason = match not_enforced.first() {
                None => no_rule(rules),
                Some((rule, true, reason)) => {
                    format!("{} would allow it, but cannot be enforced: {reason}", named(rule))
                }
                Some((rule, false, reason)) => format!(
                    "{}; {} may be meant, but cannot be enforced: {reason}",
                    no_rule(rules),
                    named(rule)
                ),
            };
            let remark = |rule: SourcedRule, reason| Remark { rule: Some(rule.into()), reason };
            let misses = near_misses.into_iter().map(|(rule, reason)| remark(rule, reason));
            let not_enforced =
                not_enforced.into_iter().map(|(rule, _, reason)| remark(rule, reason));
            ExplainResponse {
                reason,
                near_misses: misses.collect(),
                not_enforced: not_enforced.collect(),
                ..answer
            }
        }
    })
}

/// Answers a Reach from a snapshot.
pub(super) fn reach(snapshot: &Snapshot, request: ReachRequest) -> Result<ReachResponse, Error> {
    let groups = explain::reach(snapshot, probe(request.connection)?).into_iter();
    let groups = groups.map(|(group, rules)| {
        let policy_v1::SecurityGroup {
            guid,
            name,
            rules: _,
            running_default,
            staging_default,
            running_space_guids,
            staging_space_guids,
        } = model::group::SecurityGroup::clone(&group).into();
        reach_response::Group {
            guid,
            name,
            running_default,
            staging_default,
            running_space_guids,
            staging_space_guids,
            rules: rules.into_iter().map(Into::into).collect(),
            ..reach_response::Group::default()
        }
    });
    Ok(ReachResponse { groups: groups.collect(), generation: snapshot.state.generation.0 })
}

impl From<SourcedRule> for policy_v1::SourcedRule {
    fn from(rule: SourcedRule) -> Self {
        let SourcedRule { group, index, spec } = rule;
        Self {
            rule: Some(spec.into()),
            group_guid: group.guid.as_str().to_owned(),
            group_name: group.name.clone(),
            rule_index: u32::try_from(index).unwrap_or(u32::MAX),
        }
    }
}

fn named(rule: &SourcedRule) -> String {
    let SourcedRule { group, index, spec: _ } = rule;
    match group.name.as_str() {
        "" => format!("rule {index} of security group {}", group.guid),
        name => format!("rule {index} of security group {name} ({})", group.guid),
    }
}

fn no_rule(rules: usize) -> String {
    match rules {
        0 => "no rule applies to the space".to_owned(),
        1 => "the only rule of the space does not match".to_owned(),
        rules => format!("none of the {rules} rules of the space matches"),
    }
}

fn probe(connection: Option<Connection>) -> Result<Probe, Error> {
    let connection = connection.ok_or_else(|| invalid("connection", "is missing"))?;
    let Connection { protocol, destination, port, icmp_type, icmp_code } = connection;
    let probe = proto::probe(&protocol, &destination, port, icmp_type, icmp_code);
    probe.map_err(|error| Error::Protocol(format!("connection.{error}")))
}
