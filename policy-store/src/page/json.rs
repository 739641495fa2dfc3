//! JSON of the page. Times are milliseconds since 1970, durations milliseconds.

use std::collections::HashMap;

use proto::{
    cell_v1::{Container, Enforcement, IsolatedRule},
    policy_v1::{
        Change, Connection, ExplainResponse, Frozen, IsolatedRules, PlacedContainer, ReachResponse,
        RefusedRemoval, Release, Rollout, Rule, SecurityGroup, SourcedRule, StatusResponse,
        cells_response::Cell, change, explain_response::Remark,
    },
};
use serde_json::{Value, json};

pub(super) fn moment(at: Option<&prost_types::Timestamp>) -> Option<i64> {
    at.map(|at| at.seconds * 1000 + i64::from(at.nanos) / 1_000_000)
}

#[expect(clippy::cast_precision_loss, reason = "no duration has 2^52 seconds")]
fn milliseconds(duration: Option<&prost_types::Duration>) -> Option<f64> {
    duration.map(|time| time.seconds as f64 * 1e3 + f64::from(time.nanos) / 1e6)
}

/// Time from one moment to a later one; 0 where the clocks differ.
#[expect(clippy::cast_precision_loss, reason = "no duration has 2^52 milliseconds")]
fn between(
    from: Option<&prost_types::Timestamp>,
    to: Option<&prost_types::Timestamp>,
) -> Option<f64> {
    let nanoseconds =
        |at: &prost_types::Timestamp| i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    Some((nanoseconds(to?) - nanoseconds(from?)).max(0) as f64 / 1e6)
}

fn frozen(release: &Release) -> Option<Value> {
    let Frozen { reason, by, since, until } = release.frozen.as_ref()?;
    Some(json!({
        "generation": release.generation,
        "reason": reason,
        "by": by,
        "since": moment(since.as_ref()),
        "until": moment(until.as_ref()),
    }))
}

fn rollout(release: &Release) -> Option<Value> {
    let Rollout { generation, step, steps, percent, since, stopped, cells, reached } =
        release.rollout.as_ref()?;
    Some(json!({
        "generation": generation,
        "step": step,
        "steps": steps,
        "percent": percent,
        "since": moment(since.as_ref()),
        "stopped": stopped,
        "cells": cells,
        "reached": reached,
    }))
}

/// State of the store.
pub(super) fn summary(status: &StatusResponse) -> Value {
    let writer = status.writer.as_ref();
    json!({
        "generation": status.generation,
        "groups": status.groups,
        "watermark": moment(status.watermark.as_ref()),
        "synced_at": moment(status.synced_at.as_ref()),
        "writer": writer.map(|writer| writer.owner.as_str()),
        "refused_removal": status.refused_removal.as_ref().map(refused_removal),
        "token": writer.map(|writer| writer.fencing_token).filter(|token| *token > 0),
        "frozen": status.release.as_ref().and_then(frozen),
        "rollout": status.release.as_ref().and_then(rollout),
    })
}

fn refused_removal(refused: &RefusedRemoval) -> Value {
    let RefusedRemoval { at, owner, removed, stored, groups, accepted_until } = refused;
    json!({
        "at": moment(at.as_ref()),
        "owner": owner,
        "removed": removed,
        "stored": stored,
        "groups": groups.iter().map(|group| named(group.name.clone(), group.guid.clone())).collect::<Vec<_>>(),
        "accepted_until": moment(accepted_until.as_ref()),
    })
}

/// A cell, while the store is at `generation`.
pub(super) fn cell(cell: &Cell, generation: u64) -> Value {
    let status = cell.status.clone().unwrap_or_default();
    let counters = cell.counters.as_ref();
    json!({
        "id": status.cell_id,
        "connected": status.connected,
        "enforced": status.enforced_generation,
        "behind": generation.saturating_sub(status.enforced_generation),
        "behind_since": moment(status.behind_since.as_ref()),
        "reported_at": moment(status.reported_at.as_ref()),
        "containers": status.containers,
        "isolated_rules": status.isolated_rules,
        "version": cell.version,
        "plane": cell.plane,
        "lag": milliseconds(cell.lag.as_ref()),
        "drift_healed": cell.drift_healed,
        "last_error": cell.last_error,
        "allowed": counters.and_then(|counters| counters.allowed),
        "denied": counters.and_then(|counters| counters.denied),
        "unattributed": counters.map(|counters| counters.unattributed),
    })
}

/// A change, with the time of each hop.
pub(super) fn change(change: &Change) -> Value {
    let Change { watermark, noticed_at, read_at, committed_at, .. } = change;
    let (watermark, noticed, read, committed) =
        (watermark.as_ref(), noticed_at.as_ref(), read_at.as_ref(), committed_at.as_ref());
    let groups = change.groups.iter().map(|group| {
        let kind = match group.kind() {
            change::Kind::Unspecified | change::Kind::Changed => "changed",
            change::Kind::Added => "added",
            change::Kind::Removed => "removed",
        };
        json!({ "guid": group.guid, "name": group.name, "kind": kind })
    });
    let slowest = change.slowest_cells.iter().map(|cell| {
        let after = milliseconds(cell.after_commit.as_ref());
        json!({ "id": cell.cell_id, "after_commit": after, "connected": cell.connected })
    });
    json!({
        "generation": change.generation,
        "owner": change.owner,
        "trace_id": change.traceparent.split('-').nth(1).unwrap_or_default(),
        "committed_at": moment(committed),
        "added": change.added,
        "changed": change.changed,
        "removed": change.removed,
        "groups": groups.collect::<Vec<_>>(),
        "hops": {
            "notice": between(watermark, noticed),
            "read": between(noticed, read),
            "commit": between(read, committed),
            "enforce": milliseconds(change.slowest.as_ref()),
        },
        "cells": change.cells,
        "cells_enforced": change.cells_enforced,
        "median": milliseconds(change.median.as_ref()),
        "p99": milliseconds(change.p99.as_ref()),
        "slowest": milliseconds(change.slowest.as_ref()),
        "slowest_cells": slowest.collect::<Vec<_>>(),
    })
}

/// A container, and where it is.
pub(super) fn container(placed: &PlacedContainer) -> Value {
    let container = placed.container.clone().unwrap_or_default();
    let state = state(container.enforcement());
    let Container { handle, ip, space_guid, app_guid, rules, reason, isolated_rules, .. } =
        container;
    json!({
        "cell": placed.cell_id,
        "connected": placed.connected,
        "handle": handle,
        "ip": ip,
        "space": space_guid,
        "app": app_guid,
        "rules": rules,
        "state": state,
        "reason": reason,
        "isolated_rules": isolated_rules,
    })
}

fn state(enforcement: Enforcement) -> &'static str {
    match enforcement {
        Enforcement::Unspecified => "unknown",
        Enforcement::Enforced => "enforced",
        Enforcement::DeniedUntilKnown => "denied until its groups are known",
        Enforcement::DeniedNoGroups => "denied: no groups apply",
        Enforcement::DeniedBadEntry => "denied: bad entry in the container metadata",
        Enforcement::KeptUntilKnown => "keeps earlier rules until its groups are known",
    }
}

/// The isolated rules of a cell.
pub(super) fn isolated(rules: Option<&IsolatedRules>) -> (Vec<Value>, u32) {
    let Some(IsolatedRules { rules, total }) = rules else { return (Vec::new(), 0) };
    let rule = |isolated: &IsolatedRule| {
        let source = isolated.source.clone().unwrap_or_default();
        let group = named(source.group_name, source.group_guid);
        json!({ "group": group, "index": source.rule_index, "reason": isolated.reason })
    };
    (rules.iter().map(rule).collect(), *total)
}

fn named(name: String, guid: String) -> String {
    if name.is_empty() { guid } else { name }
}

/// A group with its rules.
pub(super) fn group(group: &SecurityGroup) -> Value {
    json!({
        "guid": group.guid,
        "name": group.name,
        "running_default": group.running_default,
        "staging_default": group.staging_default,
        "running": group.running_space_guids,
        "staging": group.staging_space_guids,
        "rules": group.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn rule(rule: &Rule) -> Value {
    let ports = match rule.protocol.as_str() {
        "icmp" | "icmpv6" => format!("{}/{}", rule.r#type, rule.code),
        _ => rule.ports.clone(),
    };
    json!({
        "protocol": rule.protocol,
        "destination": rule.destination,
        "ports": ports,
        "log": rule.log,
        "description": rule.description,
    })
}

/// An explanation; `elsewhere`: the groups that allow the connection.
pub(super) fn explained(answer: &ExplainResponse, elsewhere: &ReachResponse) -> Value {
    let elsewhere = elsewhere.groups.iter();
    let elsewhere = elsewhere.map(|group| json!({ "guid": group.guid, "name": group.name }));
    json!({
        "allowed": answer.allowed,
        "reason": answer.reason,
        "space_known": answer.space_known,
        "near_misses": answer.near_misses.iter().map(remark).collect::<Vec<_>>(),
        "not_enforced": answer.not_enforced.iter().map(remark).collect::<Vec<_>>(),
        "elsewhere": elsewhere.collect::<Vec<_>>(),
        "containers": answer.containers.iter().map(container).collect::<Vec<_>>(),
        "containers_total": answer.containers_total,
    })
}

fn remark(remark: &Remark) -> Value {
    let SourcedRule { rule, group_guid, group_name, rule_index } =
        remark.rule.clone().unwrap_or_default();
    let Rule { protocol, destination, ports, .. } = rule.unwrap_or_default();
    let text = format!("{protocol} {destination} {ports}");
    let group = named(group_name, group_guid);
    json!({ "group": group, "index": rule_index, "text": text.trim_end(), "reason": remark.reason })
}

/// Value of a parameter; empty when it is absent.
pub(super) fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> &'a str {
    let found = parameters.iter().find(|(key, _)| key == name);
    found.map_or("", |(_, value)| value.trim())
}

/// The connection that a query describes.
///
/// # Errors
/// The port is not a number.
pub(super) fn connection(parameters: &[(String, String)]) -> Result<Connection, String> {
    let text = |name| parameter(parameters, name).to_owned();
    let port = match parameter(parameters, "port") {
        "" => 0,
        port => port.parse().map_err(|_| format!("port: {port:?} is not a number"))?,
    };
    let (protocol, destination) = (text("protocol"), text("destination"));
    // Type 8: an echo request.
    let icmp_type = if protocol == "icmp" { 8 } else { 0 };
    Ok(Connection { protocol, destination, port, icmp_type, icmp_code: 0 })
}

/// The newest JSON of each cell or change, to find what changed.
#[derive(Debug, Default)]
pub(super) struct Sent(HashMap<String, String>);

impl Sent {
    /// The values that differ from those of the last call, and the keys that are gone.
    pub(super) fn difference(&mut self, now: Vec<(String, Value)>) -> (Vec<Value>, Vec<String>) {
        let mut next = HashMap::with_capacity(now.len());
        let mut changed = Vec::new();
        for (key, value) in now {
            let text = value.to_string();
            if self.0.remove(&key).as_ref() != Some(&text) {
                changed.push(value);
            }
            next.insert(key, text);
        }
        let gone = std::mem::replace(&mut self.0, next).into_keys().collect();
        (changed, gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_sent() {
        let mut sent = Sent::default();
        let cell = |id: &str, behind: u64| (id.to_owned(), json!({ "id": id, "behind": behind }));
        let (changed, gone) = sent.difference(vec![cell("a", 0), cell("b", 0)]);
        assert_eq!((changed.len(), gone.len()), (2, 0));
        let (changed, gone) = sent.difference(vec![cell("a", 1), cell("c", 0)]);
        assert_eq!(changed, [cell("a", 1).1, cell("c", 0).1]);
        assert_eq!(gone, ["b"]);
        let (changed, gone) = sent.difference(vec![cell("a", 1), cell("c", 0)]);
        assert_eq!((changed.len(), gone.len()), (0, 0));
    }

    #[test]
    fn hops_are_milliseconds_and_never_negative() {
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let change = Change {
            watermark: at(100, 0),
            noticed_at: at(100, 250_000_000),
            // The syncer's clock is ahead of the store's.
            read_at: at(100, 300_000_000),
            committed_at: at(100, 200_000_000),
            slowest: Some(prost_types::Duration { seconds: 1, nanos: 500_000 }),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            ..Change::default()
        };
        let json = super::change(&change);
        let hops = json!({ "notice": 250.0, "read": 50.0, "commit": 0.0, "enforce": 1000.5 });
        assert_eq!(json["hops"], hops);
        assert_eq!(json["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        let unknown = super::change(&Change { noticed_at: None, ..change });
        assert_eq!(unknown["hops"]["notice"], Value::Null);
    }
}
