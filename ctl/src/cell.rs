//! The commands of this VM's cell agent.

use std::time::Duration;

use anyhow::bail;
use proto::{
    cell_v1::{
        Container, EffectiveRulesRequest, EffectiveRulesResponse, Enforcement,
        ListContainersRequest, ReconcileRequest, ReconcileResponse, RuleSource, StatusRequest,
        StatusResponse, cell_client::CellClient,
    },
    policy_v1::{Rule, cell_request::Request, cell_response::Response},
};

use crate::{
    asking,
    connect::Connection,
    field::{Field, instant},
    report::Report,
};

/// Default timeout of a comparison with the kernel.
const RECONCILE: Duration = Duration::from_secs(60);

pub(crate) const CONTAINERS: &[Field<Container>] = &[
    Field::text("handle", |container| container.handle.clone()),
    Field::text("app", |container| container.app_guid.clone()),
    Field::text("space", |container| container.space_guid.clone()),
    Field::text("ip", |container| container.ip.clone()),
    Field::text("workload", |container| container.workload.clone()),
    Field::integer("rules", |container| Some(container.rules.into())),
    Field::integer("isolated_rules", |container| Some(container.isolated_rules.into())),
    Field::text("state", |container| state(container.enforcement()).to_owned()),
    Field::text("reason", |container| container.reason.clone()),
];

/// The containers and their enforcement state.
pub(crate) async fn containers(connection: &Connection) -> anyhow::Result<Report> {
    let mut client = CellClient::new(connection.to_cell());
    let call = client.list_containers(ListContainersRequest {});
    let answer = connection.ask("list containers", call).await?.into_inner();
    Ok(Report::list(CONTAINERS, answer.containers))
}

pub(crate) fn state(enforcement: Enforcement) -> &'static str {
    match enforcement {
        Enforcement::Unspecified => "unknown",
        Enforcement::Enforced => "enforced",
        Enforcement::DeniedUntilKnown => "denied: not in force yet",
        Enforcement::DeniedNoGroups => "denied: no groups apply",
        Enforcement::DeniedBadEntry => "denied: bad entry",
        Enforcement::KeptUntilKnown => "kept: groups not known yet",
    }
}

/// A rule with its source.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) rule: Rule,
    pub(crate) source: RuleSource,
    /// Why it is not enforced; empty if it is.
    pub(crate) problem: String,
}

impl Written {
    pub(crate) fn new(rule: Option<Rule>, source: Option<RuleSource>, problem: String) -> Self {
        Self { rule: rule.unwrap_or_default(), source: source.unwrap_or_default(), problem }
    }

    /// `tcp 10.0.0.0/8 80 (group web 0e2b..., rule 3)`.
    pub(crate) fn line(&self) -> String {
        let RuleSource { group_guid, group_name, rule_index } = &self.source;
        format!("{} (group {group_name} {group_guid}, rule {rule_index})", self.words())
    }

    /// `tcp 10.0.0.0/8 80`.
    pub(crate) fn words(&self) -> String {
        let Self { rule, .. } = self;
        let words = [rule.protocol.clone(), rule.destination.clone(), service(rule)];
        let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
        words.join(" ")
    }
}

pub(crate) const RULES: &[Field<Written>] = &[
    Field::text("group", |written| written.source.group_name.clone()),
    Field::integer("rule_index", |written| Some(written.source.rule_index.into())),
    Field::text("protocol", |written| written.rule.protocol.clone()),
    Field::text("destination", |written| written.rule.destination.clone()),
    Field::text("ports", |written| service(&written.rule)),
    Field::boolean("log", |written| written.rule.log),
    Field::text("not_enforced", |written| written.problem.clone()),
    Field::only_json(Field::text("description", |written| written.rule.description.clone())),
    Field::text("group_guid", |written| written.source.group_guid.clone()),
];

/// Ports, or the ICMP type and code.
pub(crate) fn service(rule: &Rule) -> String {
    match rule.protocol.as_str() {
        "icmp" | "icmpv6" => format!("type {} code {}", rule.r#type, rule.code),
        _ => rule.ports.clone(),
    }
}

/// The rules of one container, in the operator's order.
pub(crate) async fn rules(connection: &Connection, handle: String) -> anyhow::Result<Report> {
    let mut client = CellClient::new(connection.to_cell());
    let call = client.effective_rules(EffectiveRulesRequest { handle });
    let answer = connection.ask("rules", call).await?.into_inner();
    Ok(Report::list(RULES, written(answer)))
}

/// The rules in force, then those that are not enforced.
pub(crate) fn written(answer: EffectiveRulesResponse) -> Vec<Written> {
    let in_force =
        answer.rules.into_iter().map(|rule| Written::new(rule.rule, rule.source, String::new()));
    let isolated =
        answer.isolated.into_iter().map(|rule| Written::new(rule.rule, rule.source, rule.reason));
    in_force.chain(isolated).collect()
}

pub(crate) const RECONCILED: &[Field<ReconcileResponse>] = &[
    Field::integer("generation", |answer| Some(answer.generation)),
    Field::boolean("repaired", |answer| answer.repaired),
];

/// Makes the agent compare and repair the kernel's rules.
pub(crate) async fn reconcile(connection: &Connection) -> anyhow::Result<Report> {
    let mut client = CellClient::new(connection.to_cell());
    let call = client.reconcile(ReconcileRequest {});
    let answer = connection.ask_within(RECONCILE, "reconcile", call).await?.into_inner();
    Ok(Report::record(RECONCILED, answer))
}

/// Makes the agent of any cell compare and repair the kernel's rules.
pub(crate) async fn reconcile_on(connection: &Connection, cell: &str) -> anyhow::Result<Report> {
    let request = Request::Reconcile(ReconcileRequest {});
    match asking::ask(connection, cell, request, RECONCILE).await? {
        Response::Reconcile(answer) => Ok(Report::record(RECONCILED, answer)),
        _ => bail!("the answer of cell {cell:?} is not one to reconcile"),
    }
}

pub(crate) const AGENT: &[Field<StatusResponse>] = &[
    Field::text("cell", |status| status.cell_id.clone()),
    Field::boolean("store_connected", |status| status.store_connected),
    Field::integer("received_generation", |status| Some(status.received_generation)),
    Field::integer("enforced_generation", |status| Some(status.enforced_generation)),
    Field::time("enforced_at", |status| instant(status.enforced_at)),
    Field::integer("containers", |status| Some(status.containers.into())),
    Field::integer("isolated_rules", |status| Some(status.isolated_rules.into())),
    Field::integer("drift_healed", |status| Some(status.drift_healed)),
    Field::integer("unattributed_packets", |status| Some(status.unattributed_packets)),
    Field::texts("connection_limit_full", |status| status.connection_limit_full.clone()),
    Field::text("last_error", |status| status.last_error.clone()),
    Field::text("certificate_error", |status| status.certificate_error.clone()),
];

/// The agent's own status.
pub(crate) async fn status(connection: &Connection) -> anyhow::Result<Report> {
    let mut client = CellClient::new(connection.to_cell());
    let call = client.status(StatusRequest {});
    Ok(Report::record(AGENT, connection.ask("cell status", call).await?.into_inner()))
}
