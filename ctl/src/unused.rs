//! `unused`: groups, rules and ports of rules that no new connection used in a period.

use clap::Args;
use jiff::Timestamp;
use proto::policy_v1::{
    Rule, UnusedRequest, UnusedResponse,
    unused_response::{self, Coverage, Problem},
};

use crate::{
    connect::Connection,
    field::{Field, Tone, instant},
    report::{Report, warn},
    stores::foundation,
};

/// Size limit of a page, which may hold groups as large as the Cloud Controller allows.
const LARGEST_PAGE: usize = 64 << 20;
const DAY: i64 = 86_400;

/// What may be unused, and what is known of it.
#[derive(Debug, Args)]
pub struct Unused {
    /// Length of the period until now, in days
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=365))]
    pub days: u32,
    /// Only the group with this GUID or name
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// A cell that no longer exists, or that does not matter; may be repeated
    #[arg(long, value_name = "CELL")]
    pub ignore_cell: Vec<String>,
    /// Seconds that each cell may have missed in the period
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub tolerate: u64,
}

/// A group, a rule, or ports of a rule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    group: String,
    guid: String,
    part: &'static str,
    index: Option<u64>,
    rule: Rule,
    ports: Vec<String>,
    last_day: Option<i64>,
    is_known: bool,
}

pub(crate) const UNUSED: &[Field<Part>] = &[
    Field::text("group", |of| of.group.clone()),
    Field::text("part", |of| of.part.to_owned()),
    Field::integer("rule_index", |of| of.index),
    Field::text("protocol", |of| of.rule.protocol.clone()),
    Field::text("destination", |of| of.rule.destination.clone()),
    Field::texts("ports", |of| of.ports.clone()),
    Field::toned(
        Field::text("use", |of| {
            if of.is_known { "no new connection" } else { "unknown" }.to_owned()
        }),
        |of| if of.is_known { Tone::Plain } else { Tone::Warning },
    ),
    Field::time("last_used_day", |of| Timestamp::from_second(of.last_day? * DAY).ok()),
    Field::wide(Field::text("guid", |of| of.guid.clone())),
];

pub(crate) const COVERAGE: &[Field<Coverage>] = &[
    Field::time("recorded_since", |of| instant(of.since)),
    Field::integer("cells", |of| Some(of.cells.into())),
    Field::integer("complete_cells", |of| Some(of.complete_cells.into())),
    Field::boolean("complete", |of| of.complete),
];

/// The parts of a page.
fn parts(group: unused_response::Group, is_known: bool) -> Vec<Part> {
    let unused_response::Group { id: _, guid, name, whole, last_day, rules } = group;
    let of_group = Part { group: name, guid, is_known, ..Part::default() };
    if whole {
        return vec![Part { part: "group", last_day, ..of_group }];
    }
    let part = |rule: unused_response::Rule| {
        let unused_response::Rule { index, rule, whole, last_day, ports } = rule;
        let rule = rule.unwrap_or_default();
        let (part, ports) = match whole {
            true => ("rule", vec![rule.ports.clone()]),
            false => ("ports", ports),
        };
        let ports = ports.into_iter().filter(|ports| !ports.is_empty()).collect();
        let index = Some(index.into());
        Part { part, index, rule, ports, last_day, ..of_group.clone() }
    };
    rules.into_iter().map(part).collect()
}

/// The unused parts, with the coverage before them in text, and whether all uses of the period
/// are known.
pub(crate) async fn list(
    connection: &Connection,
    what: Unused,
) -> anyhow::Result<(Vec<Report>, bool)> {
    let Unused { days, group, ignore_cell, tolerate } = what;
    let mut request = UnusedRequest {
        days,
        group: group.unwrap_or_default(),
        ignored_cells: ignore_cell,
        tolerated_seconds: tolerate,
        page_size: 0,
        page_token: 0,
    };
    let mut groups = Vec::new();
    let coverage = loop {
        let call = async |channel| {
            let mut client = foundation(channel).max_decoding_message_size(LARGEST_PAGE);
            Ok(client.unused(request.clone()).await?.into_inner())
        };
        let UnusedResponse { groups: page, next_page_token, coverage, .. } =
            connection.ask_a_store("unused", call).await?;
        groups.extend(page);
        request.page_token = next_page_token;
        if next_page_token == 0 {
            break coverage.unwrap_or_default();
        }
    };
    let complete = coverage.complete;
    if !complete {
        warn(&incomplete(&coverage, days));
    }
    for Problem { cell_id, reason } in &coverage.problems {
        warn(&format!("cell {cell_id}: {reason}"));
    }
    let parts = groups.into_iter().flat_map(|group| parts(group, complete));
    let list = Report::list(UNUSED, parts);
    Ok((vec![Report::heading(COVERAGE, coverage), list], complete))
}

fn incomplete(coverage: &Coverage, days: u32) -> String {
    let Some(since) = instant(coverage.since) else {
        return "no cell records uses of rules: nothing is known about them".to_owned();
    };
    let Coverage { cells, complete_cells, .. } = coverage;
    format!(
        "not all uses of the last {days} days are known (recorded since {since}; complete on \
         {complete_cells} of {cells} cells): a listed part may have been used"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_group_is_one_part_and_others_are_listed_by_rule() {
        let rule = |index, whole, ports: &[&str]| unused_response::Rule {
            index,
            rule: Some(Rule { ports: "80,443".to_owned(), ..Rule::default() }),
            whole,
            last_day: Some(3),
            ports: ports.iter().map(|ports| (*ports).to_owned()).collect(),
        };
        let group = unused_response::Group {
            name: "g".to_owned(),
            rules: vec![rule(0, true, &[]), rule(2, false, &["443"])],
            ..unused_response::Group::default()
        };
        let shown = |group, is_known| {
            let parts = parts(group, is_known).into_iter();
            parts.map(|of| (of.part, of.index, of.ports.join(","))).collect::<Vec<_>>()
        };
        let all = ("rule", Some(0), "80,443".to_owned());
        let some = ("ports", Some(2), "443".to_owned());
        assert_eq!(shown(group.clone(), true), [all, some]);
        let whole = unused_response::Group { whole: true, ..group };
        assert_eq!(shown(whole, false), [("group", None, String::new())]);
    }

    #[test]
    fn without_records_nothing_is_known() {
        assert!(incomplete(&Coverage::default(), 30).contains("no cell records"));
    }
}
