//! WhatIf: requests to changes of a group, and results to messages.

use std::{collections::BTreeSet, sync::Arc};

use model::{
    connections::{Area, Connections, Traffic},
    group::{Lifecycle, SecurityGroup, StoredGroup},
    ids::{GroupGuid, SpaceGuid},
};
use proto::policy_v1::{
    self, Binding, WhatIfRequest, WhatIfResponse,
    what_if_response::{self, Remark},
};

use super::{
    cells::text,
    status::{Error, invalid},
};
use crate::{
    feed::{
        cells::KnownCell,
        cursor::MAX_SPACES,
        survey::{Inhabitants, Inhabited},
    },
    groups::{
        snapshot::{Entry, Snapshot},
        what_if::{Change, Difference, Finding, Width, what_if},
    },
};

/// Limit of spaces of a difference.
const SPACES: usize = 100;
/// Limit of areas that a difference opens, and of those that it closes.
const AREAS: usize = 1_000;
/// Limit of areas in an answer.
const AREAS_IN_ALL: usize = 100_000;
/// Limit of differences, and of remarks.
const LISTED: usize = 1_000;
/// Guid of a new group in the computation; answers do not have it.
const NEW: &str = "new";

/// Answers a WhatIf.
pub(super) fn answer(
    snapshot: &Snapshot,
    cells: &[KnownCell],
    request: WhatIfRequest,
) -> Result<WhatIfResponse, Error> {
    let width = width(request.wide_prefix)?;
    let change = change(snapshot, request)?;
    let new_group = change.before.is_none();
    let found = what_if(snapshot, change, width);
    let inhabitants = Inhabitants::of(cells);
    let (mut spaces, mut apps) = (BTreeSet::new(), BTreeSet::new());
    let (mut containers, mut room) = (0, AREAS_IN_ALL);
    let mut differences = Vec::new();
    for difference in &found.differences {
        let inhabited = inhabited(&inhabitants, difference, &found.named_spaces);
        spaces.extend(&difference.spaces);
        containers += inhabited.containers;
        // Without room for areas, a difference says nothing, but takes the time to compute them.
        if differences.len() < LISTED && room > 0 {
            differences.push(message(difference, &inhabited, &mut room));
        }
        apps.extend(inhabited.apps);
    }
    let remarks = found.remarks.iter().take(LISTED).map(|remark| Remark {
        finding: finding(remark.finding).into(),
        rule: Some(sourced(remark.rule.clone())),
        others: remark.others.iter().cloned().map(sourced).collect(),
        reason: remark.reason.clone(),
    });
    Ok(WhatIfResponse {
        differences,
        spaces: spaces.len() as u64,
        apps: apps.len() as u64,
        containers,
        remarks: remarks.collect(),
        generation: snapshot.state.generation.0,
        new_group,
        differences_total: found.differences.len() as u64,
        remarks_total: found.remarks.len() as u64,
    })
}

fn width(prefix: u32) -> Result<Width, Error> {
    match u8::try_from(prefix) {
        Ok(0) => Ok(Width::default()),
        Ok(prefix) if prefix <= 32 => Ok(Width { prefix }),
        Ok(_) | Err(_) => {
            Err(invalid("wide_prefix", format_args!("{prefix} is not a prefix length of IPv4")))
        }
    }
}

/// The change that the request means.
fn change(snapshot: &Snapshot, request: WhatIfRequest) -> Result<Change, Error> {
    let WhatIfRequest { group: name, rules, bind, unbind, delete, wide_prefix: _ } = request;
    let Some(name) = text("group", name)? else { return Err(invalid("group", "is empty")) };
    let before = find(snapshot, &name)?;
    if delete {
        if rules.is_some() || !bind.is_empty() || !unbind.is_empty() {
            let problem = "rules, bind and unbind must be absent when the group is deleted";
            return Err(invalid("delete", problem));
        }
        let before = before.ok_or_else(|| unknown(&name))?;
        return Ok(Change { before: Some(before), after: None });
    }
    let mut after = match (&before, &rules) {
        (Some(stored), _) => SecurityGroup::clone(&stored.group),
        (None, Some(_)) => SecurityGroup {
            guid: GroupGuid::parse(NEW).map_err(|error| invalid("group", error))?,
            name,
            rules: Vec::new(),
            running: model::group::Scope::default(),
            staging: model::group::Scope::default(),
        },
        (None, None) => return Err(unknown(&name)),
    };
    if let Some(rules) = rules {
        after.rules = rules.rules.into_iter().map(Into::into).collect();
    }
    for (field, bindings, binds) in [("unbind", unbind, false), ("bind", bind, true)] {
        for (lifecycle, space) in parsed(field, bindings)? {
            rebind(&mut after, field, lifecycle, space, binds)?;
        }
    }
    Ok(Change { before, after: Some(Arc::new(after)) })
}

fn unknown(name: &str) -> Error {
    Error::NotFound(format!("no security group has the guid or name {name:?}"))
}

/// The group with this guid, or else with this name.
fn find(snapshot: &Snapshot, name: &str) -> Result<Option<StoredGroup>, Error> {
    let stored = |entry: &Entry| StoredGroup { id: entry.id, group: Arc::new(entry.group()) };
    let entries = || snapshot.entries().iter();
    if let Some(entry) = entries().find(|entry| entry.guid.as_str() == name) {
        return Ok(Some(stored(entry)));
    }
    let named = entries().filter(|entry| proto::group_name(entry.encoded.clone()) == name);
    let named: Vec<&Arc<Entry>> = named.collect();
    match named.as_slice() {
        [] => Ok(None),
        [entry] => Ok(Some(stored(entry))),
        [first, ..] => {
            let (count, first) = (named.len(), &first.guid);
            let problem = format!("{count} groups have the name {name:?}, such as {first}");
            Err(invalid("group", problem))
        }
    }
}

fn parsed(
    field: &str,
    bindings: Vec<Binding>,
) -> Result<Vec<(Lifecycle, Option<SpaceGuid>)>, Error> {
    let count = bindings.len();
    if count > MAX_SPACES {
        let problem = format_args!("has {count} entries, at most {MAX_SPACES} are allowed");
        return Err(invalid(field, problem));
    }
    let parse = |(index, binding): (usize, Binding)| {
        let lifecycle = match binding.lifecycle() {
            policy_v1::Lifecycle::Running => Lifecycle::Running,
            policy_v1::Lifecycle::Staging => Lifecycle::Staging,
            policy_v1::Lifecycle::Unspecified => {
                let field = format!("{field}[{index}].lifecycle");
                return Err(invalid(&field, "must be running or staging"));
            }
        };
        let space = match binding.space_guid.as_str() {
            "" => None,
            text => Some(
                SpaceGuid::parse(text)
                    .map_err(|error| invalid(&format!("{field}[{index}].space_guid"), error))?,
            ),
        };
        Ok((lifecycle, space))
    };
    bindings.into_iter().enumerate().map(parse).collect()
}

/// Binds or unbinds a group. Unbinding where the group is not bound is an error, since the space
/// may be mistyped.
fn rebind(
    group: &mut SecurityGroup,
    field: &str,
    lifecycle: Lifecycle,
    space: Option<SpaceGuid>,
    binds: bool,
) -> Result<(), Error> {
    let (scope, word) = match lifecycle {
        Lifecycle::Running => (&mut group.running, "running"),
        Lifecycle::Staging => (&mut group.staging, "staging"),
    };
    let name = &group.name;
    match (space, binds) {
        (Some(space), true) => _ = scope.spaces.insert(space),
        (Some(space), false) => {
            if !scope.spaces.remove(&space) {
                let problem = format!("group {name:?} is not bound to space {space} ({word})");
                return Err(invalid(field, problem));
            }
        }
        (None, true) => scope.everywhere = true,
        (None, false) => {
            if !std::mem::take(&mut scope.everywhere) {
                return Err(invalid(field, format!("group {name:?} is not global ({word})")));
            }
        }
    }
    Ok(())
}

/// Apps and containers of a difference.
fn inhabited<'a>(
    inhabitants: &Inhabitants<'a>,
    difference: &Difference,
    named: &BTreeSet<SpaceGuid>,
) -> Inhabited<'a> {
    let mut all = Inhabited::default();
    let Some(of_spaces) = inhabitants.of_lifecycle(difference.lifecycle) else { return all };
    for of in difference.spaces.iter().filter_map(|space| of_spaces.get(space)) {
        all.add(of);
    }
    if difference.all_other_spaces {
        let others = of_spaces.iter().filter(|(space, _)| !named.contains(**space));
        others.for_each(|(_, of)| all.add(of));
    }
    all
}

fn message(
    difference: &Difference,
    inhabited: &Inhabited<'_>,
    room: &mut usize,
) -> what_if_response::Difference {
    let Difference { lifecycle, spaces, all_other_spaces, .. } = difference;
    let mut listed = |set: &Connections| {
        let areas = set.areas();
        let first: Vec<_> = areas.iter().take(AREAS.min(*room)).map(area).collect();
        *room -= first.len();
        (first, areas.len() as u64)
    };
    let (opens, opens_total) = listed(&difference.opens());
    let (closes, closes_total) = listed(&difference.closes());
    what_if_response::Difference {
        lifecycle: policy_v1::Lifecycle::from(*lifecycle).into(),
        space_guids: spaces.iter().take(SPACES).map(|space| space.as_str().to_owned()).collect(),
        spaces_total: spaces.len() as u64,
        all_other_spaces: *all_other_spaces,
        apps: inhabited.apps.len() as u64,
        containers: inhabited.containers,
        opens,
        opens_total,
        closes,
        closes_total,
    }
}

fn area(area: &Area) -> policy_v1::Area {
    let number = |number: u8| Some(u32::from(number));
    let (ports, codes) = match area.traffic {
        Traffic::Tcp(ports) | Traffic::Udp(ports) => {
            ([ports.first(), ports.last()].map(|port| Some(u32::from(port))), [None; 2])
        }
        Traffic::Icmp { types, codes } => {
            ([number(types.0), number(types.1)], [number(codes.0), number(codes.1)])
        }
        Traffic::Other => ([None; 2], [None; 2]),
    };
    policy_v1::Area {
        protocol: area.protocol().to_owned(),
        first_address: area.addresses.first().to_string(),
        last_address: area.addresses.last().to_string(),
        first_port: ports[0],
        last_port: ports[1],
        first_code: codes[0],
        last_code: codes[1],
    }
}

fn finding(finding: Finding) -> what_if_response::Finding {
    match finding {
        Finding::Covered => what_if_response::Finding::Covered,
        Finding::Overlaps => what_if_response::Finding::Overlaps,
        Finding::Wide => what_if_response::Finding::Wide,
        Finding::NotEnforceable => what_if_response::Finding::NotEnforceable,
    }
}

fn sourced(rule: crate::groups::explain::SourcedRule) -> policy_v1::SourcedRule {
    let mut rule = policy_v1::SourcedRule::from(rule);
    if rule.group_guid == NEW {
        rule.group_guid.clear();
    }
    rule
}
