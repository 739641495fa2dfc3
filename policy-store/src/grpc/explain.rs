//! Explain and Reach: requests to model types, and results to messages.

use std::fmt::{Display, Write as _};

use model::{effective::Probe, explain::describe, group::Lifecycle, ids::SpaceGuid};
use proto::policy_v1::{
    self, Connection, ExplainRequest, ExplainResponse, ReachRequest, ReachResponse,
    explain_response::Remark, reach_response,
};

use super::{
    cells::text,
    status::{Error, invalid},
};
use crate::{
    feed::{
        cells::KnownCell,
        survey::{App, Apps, Placed, Subject, unknown},
    },
    groups::{
        explain::{self, Explanation, SourcedRule},
        snapshot::Snapshot,
    },
};

/// Limit of containers and of apps of a group in an answer.
const LISTED: usize = 100;
/// Number of cells or containers that an error names.
const NAMED: usize = 5;
/// Limit of apps of all groups in an answer.
const LISTED_IN_ALL: usize = 10_000;

/// Answers an Explain.
pub(super) fn explain(
    snapshot: &Snapshot,
    cells: &[KnownCell],
    request: ExplainRequest,
) -> Result<ExplainResponse, Error> {
    let probe = probe(request.connection.clone())?;
    let Subject { space, lifecycle, containers } = subject(cells, request)?;
    let answer = ExplainResponse {
        generation: snapshot.state.generation.0,
        space_guid: space.as_ref().map(|space| space.as_str().to_owned()).unwrap_or_default(),
        lifecycle: lifecycle.map_or(policy_v1::Lifecycle::Unspecified, Into::into).into(),
        containers: containers.iter().take(LISTED).map(|&placed| placed.into()).collect(),
        containers_total: containers.len() as u64,
        ..ExplainResponse::default()
    };
    let (Some(space), Some(lifecycle)) = (space, lifecycle) else {
        let reason = containers.first().map(without_groups).unwrap_or_default();
        return Ok(ExplainResponse { reason, ..answer });
    };
    let space_known = snapshot.bound_to(&space).next().is_some();
    let answer = ExplainResponse { space_known, ..answer };
    Ok(match explain::explain(snapshot, &space, lifecycle, probe) {
        Explanation::Allowed(rule, permit) => ExplainResponse {
            allowed: true,
            logged: permit.log,
            reason: format!("{} allows {}", named(&rule), describe(&permit)),
            decisive: Some(rule.into()),
            ..answer
        },
        Explanation::Denied { rules, near_misses, not_enforced } => {
            let reason = denied(rules, &not_enforced);
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

/// The containers that the request means.
fn subject(cells: &[KnownCell], request: ExplainRequest) -> Result<Subject<'_>, Error> {
    let lifecycle = match request.lifecycle() {
        policy_v1::Lifecycle::Unspecified => None,
        policy_v1::Lifecycle::Running => Some(Lifecycle::Running),
        policy_v1::Lifecycle::Staging => Some(Lifecycle::Staging),
    };
    let ExplainRequest { space_guid, app_guid, handle, .. } = request;
    let given = [&space_guid, &app_guid, &handle].iter().filter(|text| !text.is_empty()).count();
    if given != 1 {
        let text = format!("one of space_guid, app_guid and handle must be set, {given} are");
        return Err(Error::Protocol(text));
    }
    if let Some(app) = text("app_guid", app_guid)? {
        let found = Subject::of_app(cells, &app, lifecycle);
        return found.ok_or_else(|| not_found(cells, &format!("of app {app:?}")));
    }
    if let Some(handle) = text("handle", handle)? {
        return Subject::of_handle(cells, &handle).map_err(|found| match found.as_slice() {
            [] => not_found(cells, &format!("whose handle is or begins with {handle:?}")),
            found => ambiguous(&handle, found),
        });
    }
    let space = SpaceGuid::parse(&space_guid).map_err(|error| invalid("space_guid", error))?;
    Ok(Subject::of_space(cells, space, lifecycle.unwrap_or(Lifecycle::Running)))
}

fn not_found(cells: &[KnownCell], which: &str) -> Error {
    let mut text = format!("no cell reported a container {which}");
    let unknown = unknown(cells);
    if !unknown.is_empty() {
        _ = write!(
            text,
            "; {} of {} known cells have not reported containers to this instance: {}",
            unknown.len(),
            cells.len(),
            list(unknown.iter(), unknown.len()),
        );
    }
    Error::NotFound(text)
}

fn ambiguous(handle: &str, found: &[Placed<'_>]) -> Error {
    let names = found.iter().map(|placed| format!("{} on {}", placed.handle, placed.cell));
    let problem = format!(
        "{} containers' handles begin with {handle:?}: {}",
        found.len(),
        list(names, found.len())
    );
    invalid("handle", problem)
}

/// The first names, and how many are left out.
fn list(names: impl Iterator<Item = impl Display>, count: usize) -> String {
    let mut text = names.take(NAMED).map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    if count > NAMED {
        _ = write!(text, " and {} more", count - NAMED);
    }
    text
}

fn without_groups(placed: &Placed<'_>) -> String {
    let Placed { cell, handle, container, .. } = placed;
    let why = match (&container.space, &*container.reason) {
        (_, reason) if !reason.is_empty() => reason.to_owned(),
        (None, _) => "it has no space".to_owned(),
        (Some(_), _) => format!("its workload is {:?}", container.workload),
    };
    format!("no security group applies to container {handle} on cell {cell}: {why}")
}

fn denied(rules: usize, not_enforced: &[(SourcedRule, bool, String)]) -> String {
    match not_enforced.first() {
        None => no_rule(rules),
        Some((rule, true, reason)) => {
            format!("{} would allow it, but cannot be enforced: {reason}", named(rule))
        }
        Some((rule, false, reason)) => format!(
            "{}; {} may be meant, but cannot be enforced: {reason}",
            no_rule(rules),
            named(rule)
        ),
    }
}

/// Answers a Reach.
pub(super) fn reach(
    snapshot: &Snapshot,
    cells: &[KnownCell],
    request: ReachRequest,
) -> Result<ReachResponse, Error> {
    let groups = explain::reach(snapshot, probe(request.connection)?).into_iter();
    let apps = Apps::of(cells);
    let mut room = LISTED_IN_ALL;
    let groups = groups.map(|(group, rules)| {
        let listed = apps.under(&group).take(LISTED.min(room));
        let listed: Vec<_> = listed.map(reach_response::App::from).collect();
        room -= listed.len();
        let apps_total = apps.under(&group).count() as u64;
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
            apps: listed,
            apps_total,
        }
    });
    Ok(ReachResponse { groups: groups.collect(), generation: snapshot.state.generation.0 })
}

impl From<App<'_>> for reach_response::App {
    fn from(app: App<'_>) -> Self {
        let App { app, space, lifecycle, containers } = app;
        Self {
            app_guid: app.to_owned(),
            space_guid: space.as_str().to_owned(),
            lifecycle: policy_v1::Lifecycle::from(lifecycle).into(),
            containers,
        }
    }
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
