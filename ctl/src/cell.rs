//! What the agent of this machine knows.

use proto::cell_v1::{
    Container, EffectiveRulesRequest, Enforcement, ListContainersRequest, ReconcileRequest,
    StatusRequest, cell_client::CellClient,
};
use proto::policy_v1::Rule;
use serde_json::{Value, json};

use crate::{cli::Connection, connect::explained, report::Report, store::moment};

/// The containers and how they stand.
pub(crate) async fn containers(connection: &Connection) -> anyhow::Result<Report> {
    let mut client = CellClient::new(connection.to_cell());
    let answer = client.list_containers(ListContainersRequest {}).await;
    let containers = answer.map_err(|status| explained("list containers", &status))?.into_inner();
    Ok(Report::list(containers.containers.iter().map(container)))
}

fn container(container: &Container) -> Value {
    json!({
        "handle": container.handle,
        "ip": container.ip,
        "space": container.space_guid,
        "workload": container.workload,
        "rules": container.rules,
        "state": state(container.enforcement()),
        "reason": container.reason,
    })
}

fn state(enforcement: Enforcement) -> &'static str {
    match enforcement {
        Enforcement::Unspecified => "unknown",
        Enforcement::Enforced => "enforced",
        Enforcement::DeniedUntilKnown => "denied: not in force yet",
        Enforcement::DeniedNoGroups => "denied: no groups apply",
        Enforcement::DeniedBadEntry => "denied: bad entry",
        Enforcement::KeptUntilKnown => "kept: groups not known yet",
    }
}

/// The rules of one container, in the operator's order.
pub(crate) async fn rules(connection: &Connection, handle: String) -> anyhow::Result<Report> {
    let mut client = CellClient::new(connection.to_cell());
    let answer = client.effective_rules(EffectiveRulesRequest { handle }).await;
    let answer = answer.map_err(|status| explained("rules", &status))?.into_inner();
    let in_force = answer.rules.into_iter().map(|rule| (rule.rule, rule.source, String::new()));
    let isolated = answer.isolated.into_iter().map(|rule| (rule.rule, rule.source, rule.reason));
    let rows = in_force.chain(isolated).map(|(rule, source, problem)| {
        let (rule, source) = (rule.unwrap_or_default(), source.unwrap_or_default());
        let mut row = rule_fields(&rule);
        row["group"] = source.group_name.into();
        row["rule_index"] = source.rule_index.into();
        row["not_enforced"] = problem.into();
        row
    });
    Ok(Report::list(rows))
}

/// A rule, as far as people want it in a table.
pub(crate) fn rule_fields(rule: &Rule) -> Value {
    let what = match rule.protocol.as_str() {
        "icmp" | "icmpv6" => format!("type {} code {}", rule.r#type, rule.code),
        _ => rule.ports.clone(),
    };
    json!({
        "protocol": rule.protocol,
        "destination": rule.destination,
        "ports": what,
        "log": rule.log,
    })
}

/// Has the agent compare and repair.
pub(crate) async fn reconcile(connection: &Connection) -> anyhow::Result<Report> {
    let mut client = CellClient::new(connection.to_cell());
    let answer = client.reconcile(ReconcileRequest {}).await;
    let answer = answer.map_err(|status| explained("reconcile", &status))?.into_inner();
    Ok(Report::record(json!({ "generation": answer.generation, "repaired": answer.repaired })))
}

/// How the agent stands.
pub(crate) async fn status(connection: &Connection) -> anyhow::Result<Report> {
    let mut client = CellClient::new(connection.to_cell());
    let answer = client.status(StatusRequest {}).await;
    let status = answer.map_err(|status| explained("cell status", &status))?.into_inner();
    Ok(Report::record(json!({
        "cell": status.cell_id,
        "store_connected": status.store_connected,
        "received_generation": status.received_generation,
        "enforced_generation": status.enforced_generation,
        "enforced_at": status.enforced_at.map(|at| moment(at.seconds, at.nanos)),
        "containers": status.containers,
        "isolated_rules": status.isolated_rules,
        "drift_healed": status.drift_healed,
        "unattributed_packets": status.unattributed_packets,
        "connection_limit_full": status.connection_limit_full,
        "last_error": status.last_error,
        "certificate_error": status.certificate_error,
    })))
}
