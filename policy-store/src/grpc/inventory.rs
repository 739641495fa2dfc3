//! Conversions of what cells report about themselves: messages to bounded values where
//! they arrive, and back where they leave.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use model::{
    group::Lifecycle,
    ids::{ContainerHandle, MAX_CHARS, SpaceGuid},
};
use proto::{
    cell_v1::{self, RuleSource},
    policy_v1::{
        IsolatedRules, PlacedContainer,
        watch_request::{self, Hello, Report},
    },
};

use super::status::{Error, invalid};
use crate::{
    feed::{
        inventory::{Container, Isolated, IsolatedRule, MAX_CONTAINERS, MAX_RULES, Update},
        survey::Placed,
    },
    reports::{Agent, Counters, Details},
};

/// Limit of free texts, such as an error, in characters; longer ones are cut.
pub(super) const TEXT: usize = 1_000;
/// Limit of a cell's isolated rules, in bytes. They are the same on most cells, and most
/// of their text is a list of destinations.
const RULES_BYTES: usize = 64 << 10;

/// At most the first `chars` characters.
pub(super) fn cut(mut text: String, chars: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(chars) {
        text.truncate(end);
    }
    text
}

fn short(text: &str) -> Box<str> {
    cut(text.to_owned(), MAX_CHARS).into()
}

pub(super) fn agent(hello: &Hello) -> Agent {
    let Hello { version, plane, answers_questions, .. } = hello;
    let answers_questions = *answers_questions;
    Agent { version: short(version), plane: short(plane), answers_questions }
}

/// Parses a time. Nothing depends on it, so an impossible one counts as absent.
pub(super) fn time(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    let prost_types::Timestamp { seconds, nanos } = at?;
    Timestamp::new(seconds, nanos).ok()
}

pub(super) fn details(report: &Report) -> Details {
    let Report { enforced_at, apply_time, drift_healed, last_error, counters, .. } = report;
    Details {
        enforced_at: time(*enforced_at),
        apply_time: apply_time.and_then(|time| Duration::try_from(time).ok()),
        drift_healed: *drift_healed,
        last_error: cut(last_error.clone(), TEXT).into(),
        counters: counters.map(|counters| {
            let watch_request::Counters { allowed, denied, unattributed } = counters;
            Counters { allowed, denied, unattributed }
        }),
    }
}

pub(super) fn update(inventory: watch_request::Inventory) -> Result<Update, Error> {
    let watch_request::Inventory { reset, upserted, removed_handles, isolated } = inventory;
    for (field, count) in [("upserted", upserted.len()), ("removed_handles", removed_handles.len())]
    {
        if count > MAX_CONTAINERS {
            let problem = format_args!("has {count} entries, at most {MAX_CONTAINERS} are allowed");
            return Err(invalid(&format!("inventory.{field}"), problem));
        }
    }
    let handle = |field: &str, text: &str| {
        let handle = ContainerHandle::parse(text);
        handle.map_err(|error| invalid(&format!("inventory.{field}"), error))
    };
    let removed = removed_handles.iter().enumerate();
    let removed = removed.map(|(at, text)| handle(&format!("removed_handles[{at}]"), text));
    let upserted = upserted.into_iter().enumerate().map(|(at, message)| {
        let handle = handle(&format!("upserted[{at}].handle"), &message.handle)?;
        let parsed = container(message);
        let parsed = parsed.map_err(|(field, problem)| {
            invalid(&format!("inventory.upserted[{at}].{field}"), problem)
        })?;
        Ok((handle, parsed))
    });
    Ok(Update {
        reset,
        removed: removed.collect::<Result<_, _>>()?,
        upserted: upserted.collect::<Result<_, Error>>()?,
        isolated: isolated.map(self::isolated).transpose()?,
    })
}

fn container(message: cell_v1::Container) -> Result<Container, (&'static str, String)> {
    let lifecycle = match message.lifecycle() {
        cell_v1::Lifecycle::Unspecified => None,
        cell_v1::Lifecycle::Running => Some(Lifecycle::Running),
        cell_v1::Lifecycle::Staging => Some(Lifecycle::Staging),
    };
    let cell_v1::Container {
        handle: _,
        ip,
        space_guid,
        app_guid,
        workload,
        lifecycle: _,
        enforcement,
        rules,
        reason,
        isolated_rules,
    } = message;
    let address = match ip.as_str() {
        "" => None,
        text => Some(text.parse::<IpAddr>().map_err(|error| ("ip", format!("{text:?}: {error}")))?),
    };
    let space = match space_guid.as_str() {
        "" => None,
        text => Some(SpaceGuid::parse(text).map_err(|error| ("space_guid", error.to_string()))?),
    };
    Ok(Container {
        address,
        space,
        app: short(&app_guid),
        workload: short(&workload),
        lifecycle,
        enforcement,
        rules,
        reason: cut(reason, TEXT).into(),
        isolated_rules,
    })
}

fn isolated(message: IsolatedRules) -> Result<Isolated, Error> {
    let IsolatedRules { rules, total } = message;
    if rules.len() > MAX_RULES {
        let problem = format_args!("has {} entries, at most {MAX_RULES} are allowed", rules.len());
        return Err(invalid("inventory.isolated.rules", problem));
    }
    let mut bytes = 0;
    let rules = rules.into_iter().map(isolated_rule).take_while(|isolated| {
        let IsolatedRule { rule, group_guid, group_name, rule_index: _, reason } = isolated;
        let texts = [&rule.protocol, &rule.destination, &rule.ports, &rule.description];
        let texts = texts.into_iter().chain([group_guid, group_name, reason]);
        bytes += texts.map(String::len).sum::<usize>();
        bytes <= RULES_BYTES
    });
    Ok(Isolated { rules: rules.collect(), total })
}

fn isolated_rule(message: cell_v1::IsolatedRule) -> IsolatedRule {
    let cell_v1::IsolatedRule { rule, source, reason } = message;
    let mut rule = model::rule::RuleSpec::from(rule.unwrap_or_default());
    for text in [&mut rule.protocol, &mut rule.destination, &mut rule.ports, &mut rule.description]
    {
        *text = cut(std::mem::take(text), TEXT);
    }
    let RuleSource { group_guid, group_name, rule_index } = source.unwrap_or_default();
    IsolatedRule {
        rule,
        group_guid: cut(group_guid, MAX_CHARS),
        group_name: cut(group_name, TEXT),
        rule_index,
        reason: cut(reason, TEXT),
    }
}

impl From<Placed<'_>> for PlacedContainer {
    fn from(placed: Placed<'_>) -> Self {
        let Placed { cell, connected, handle, container } = placed;
        let Container {
            address,
            space,
            app,
            workload,
            lifecycle,
            enforcement,
            rules,
            reason,
            isolated_rules,
        } = container;
        let lifecycle = lifecycle.map_or(cell_v1::Lifecycle::Unspecified, Into::into);
        Self {
            cell_id: cell.as_str().to_owned(),
            container: Some(cell_v1::Container {
                handle: handle.as_str().to_owned(),
                ip: address.map(|address| address.to_string()).unwrap_or_default(),
                space_guid: space
                    .as_ref()
                    .map(|space| space.as_str().to_owned())
                    .unwrap_or_default(),
                app_guid: app.to_string(),
                workload: workload.to_string(),
                lifecycle: lifecycle.into(),
                enforcement: *enforcement,
                rules: *rules,
                reason: reason.to_string(),
                isolated_rules: *isolated_rules,
            }),
            connected,
        }
    }
}

pub(super) fn rules(isolated: &Isolated) -> IsolatedRules {
    let rule = |isolated: &IsolatedRule| {
        let IsolatedRule { rule, group_guid, group_name, rule_index, reason } = isolated.clone();
        cell_v1::IsolatedRule {
            rule: Some(rule.into()),
            source: Some(RuleSource { group_guid, group_name, rule_index }),
            reason,
        }
    };
    IsolatedRules { rules: isolated.rules.iter().map(rule).collect(), total: isolated.total }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handled(handle: &str) -> cell_v1::Container {
        cell_v1::Container { handle: handle.to_owned(), ..cell_v1::Container::default() }
    }

    #[test]
    fn a_bad_inventory_names_the_field_and_the_value() {
        use watch_request::Inventory;
        let one = |container| Inventory { upserted: vec![container], ..Inventory::default() };
        let many = vec![cell_v1::IsolatedRule::default(); MAX_RULES + 1];
        let handles = vec!["h".to_owned(); MAX_CONTAINERS + 1];
        for (inventory, problem) in [
            (one(handled("")), "inventory.upserted[0].handle: container handle is empty"),
            (
                one(cell_v1::Container { ip: "10.0.0.300".to_owned(), ..handled("h") }),
                "inventory.upserted[0].ip: \"10.0.0.300\": invalid IP address syntax",
            ),
            (
                one(cell_v1::Container { space_guid: "\n".to_owned(), ..handled("h") }),
                "inventory.upserted[0].space_guid: space guid \"\\n\" holds a control character",
            ),
            (
                Inventory { removed_handles: handles, ..Inventory::default() },
                "inventory.removed_handles: has 5001 entries, at most 5000 are allowed",
            ),
            (
                Inventory {
                    isolated: Some(IsolatedRules { rules: many, total: 101 }),
                    ..Inventory::default()
                },
                "inventory.isolated.rules: has 101 entries, at most 100 are allowed",
            ),
        ] {
            assert_eq!(update(inventory).unwrap_err().to_string(), problem);
        }
    }

    #[test]
    fn long_texts_are_cut() {
        let long = cell_v1::IsolatedRule {
            rule: Some(proto::policy_v1::Rule {
                destination: "ü".repeat(2 * TEXT),
                ..proto::policy_v1::Rule::default()
            }),
            ..cell_v1::IsolatedRule::default()
        };
        let message = IsolatedRules { rules: vec![long; MAX_RULES], total: 500 };
        let Isolated { rules, total } = isolated(message).unwrap();
        assert_eq!((rules.len(), total), (RULES_BYTES / (2 * TEXT), 500));
        assert_eq!(rules[0].rule.destination.chars().count(), TEXT);
    }
}
