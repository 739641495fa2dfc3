//! Unused: groups, rules and ports without a known use, and how far uses are known.

use std::collections::BTreeSet;

use jiff::Timestamp;
use model::{
    group::GroupId,
    ids::{CellId, MAX_CHARS},
};
use proto::policy_v1::{
    Rule, UnusedRequest, UnusedResponse,
    unused_response::{self, Problem},
};

use super::{
    cells::text,
    messages::timestamp,
    status::{Error, invalid},
};
use crate::{
    groups::{
        snapshot::Snapshot,
        unused::{Coverage, Period, UnusedGroup, UnusedRule, coverage, unused},
    },
    uses::{DAY, Recorded},
};

/// Size of a page by default, and at most.
const PAGE: usize = 500;
const PAGE_MOST: usize = 5_000;
/// Longest period in days.
const DAYS_MOST: u32 = 365;
/// Limit of ignored cells.
const IGNORED_MOST: usize = 5_000;
/// Limit of named problems.
const PROBLEMS: usize = 20;
/// Limit of the bytes of the rules in a page; one group may exceed it.
const BYTES: usize = 16 << 20;

/// Answers an Unused.
pub(super) fn answer(
    snapshot: &Snapshot,
    recorded: &Recorded,
    connected: Vec<CellId>,
    request: &UnusedRequest,
    now: Timestamp,
) -> Result<UnusedResponse, Error> {
    let size = match request.page_size {
        0 => PAGE,
        size => (size as usize).min(PAGE_MOST),
    };
    let from = GroupId(request.page_token);
    let group = text("group", request.group.clone())?;
    let period = period(request, now)?;
    let is_named = |entry: &crate::groups::snapshot::Entry| {
        let Some(wanted) = group.as_deref() else { return true };
        entry.guid.as_str() == wanted || entry.group().name == wanted
    };
    let (mut groups, mut next, mut bytes, mut found) = (Vec::new(), 0, 0, false);
    for entry in snapshot.entries().iter().filter(|entry| entry.id > from) {
        if !is_named(entry) {
            continue;
        }
        found = true;
        let Some(unused) = unused(entry, recorded, &period) else { continue };
        bytes += entry.encoded.len();
        if groups.len() == size || (bytes > BYTES && !groups.is_empty()) {
            // The group before this one was the last of the page.
            next = groups.last().map_or(0, |group: &unused_response::Group| group.id);
            break;
        }
        groups.push(message(entry.id, unused));
    }
    if let (Some(group), false, 0) = (&group, found, from.0) {
        return Err(Error::NotFound(format!("no security group has the GUID or name {group}")));
    }
    Ok(UnusedResponse {
        groups,
        next_page_token: next,
        coverage: Some(coverage(recorded, connected, &period).into()),
        generation: snapshot.state.generation.0,
        groups_total: snapshot.entries().len() as u64,
    })
}

fn period(request: &UnusedRequest, now: Timestamp) -> Result<Period, Error> {
    let days = request.days;
    if !(1..=DAYS_MOST).contains(&days) {
        return Err(invalid("days", format_args!("{days} is not from 1 to {DAYS_MOST}")));
    }
    if request.ignored_cells.len() > IGNORED_MOST {
        let problem = format_args!("at most {IGNORED_MOST} cells of {MAX_CHARS} characters");
        return Err(invalid("ignored_cells", problem));
    }
    let ignored = request.ignored_cells.iter().map(|cell| CellId::parse(cell));
    let ignored = ignored.collect::<Result<BTreeSet<_>, _>>();
    let now = now.as_second();
    Ok(Period {
        start: now - i64::from(days) * DAY,
        now,
        tolerated: i64::try_from(request.tolerated_seconds).unwrap_or(i64::MAX),
        ignored: ignored.map_err(|error| invalid("ignored_cells", error))?,
    })
}

fn message(id: GroupId, unused: UnusedGroup) -> unused_response::Group {
    let UnusedGroup { group, whole, last, rules } = unused;
    let rule = |UnusedRule { index, whole, last, ports }: UnusedRule| unused_response::Rule {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        rule: group.rules.get(index).cloned().map(Rule::from),
        whole,
        last_day: last,
        ports,
    };
    unused_response::Group {
        id: id.0,
        guid: group.guid.as_str().to_owned(),
        name: group.name.clone(),
        whole,
        last_day: last,
        rules: rules.into_iter().map(rule).collect(),
    }
}

impl From<Coverage> for unused_response::Coverage {
    fn from(coverage: Coverage) -> Self {
        let Coverage { cells, problems, since, complete } = coverage;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let since = since.and_then(|since| Timestamp::from_second(since).ok());
        Self {
            cells: count(cells),
            complete_cells: count(cells - problems.len()),
            problems: problems
                .into_iter()
                .take(PROBLEMS)
                .map(|(cell, reason)| Problem { cell_id: cell.as_str().to_owned(), reason })
                .collect(),
            since: since.map(timestamp),
            complete,
        }
    }
}
