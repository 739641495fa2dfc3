//! `what-if`: what a change of one security group would open and close.

mod file;
mod request;

use std::net::IpAddr;

use proto::policy_v1::{
    Area, Lifecycle, SourcedRule, WhatIfResponse,
    what_if_response::{Difference, Finding, Remark},
};

use crate::{
    cli::WhatIf,
    connect::Connection,
    field::{Field, Row, Tone, rows},
    reach::written,
    report::{Report, warn},
    stores::foundation,
};

/// Spaces that text output names.
const NAMED: usize = 3;

/// The answer.
#[derive(Debug)]
pub(crate) struct Answered {
    group: String,
    answer: WhatIfResponse,
}

/// A difference with its position, from 1.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    number: u64,
    difference: Difference,
}

/// An area of a place.
#[derive(Debug, Clone)]
pub(crate) struct Changed {
    place: u64,
    opens: bool,
    area: Area,
}

pub(crate) const ANSWERED: &[Field<Answered>] = &[
    Field::toned(Field::text("result", |of| result(&of.answer).to_owned()), |of| {
        if of.answer.differences_total == 0 { Tone::Good } else { Tone::Warning }
    }),
    Field::text("group", |of| of.group.clone()),
    Field::boolean("new_group", |of| of.answer.new_group),
    Field::integer("generation", |of| Some(of.answer.generation)),
    Field::integer("spaces", |of| Some(of.answer.spaces)),
    Field::integer("apps", |of| Some(of.answer.apps)),
    Field::integer("containers", |of| Some(of.answer.containers)),
    Field::only_json(Field::integer("places_total", |of| Some(of.answer.differences_total))),
    Field::rows("places", |of| rows(PLACES, places(&of.answer))),
    Field::rows("areas", |of| areas(&of.answer)),
    Field::only_json(Field::integer("remarks_total", |of| Some(of.answer.remarks_total))),
    Field::rows("remarks", |of| rows(REMARKS, of.answer.remarks.iter().cloned())),
];

pub(crate) const PLACES: &[Field<Place>] = &[
    Field::integer("place", |of| Some(of.number)),
    Field::text("lifecycle", |of| lifecycle(&of.difference).to_owned()),
    Field::text("spaces", |of| spaces(&of.difference)),
    Field::only_json(Field::texts("space_guids", |of| of.difference.space_guids.clone())),
    Field::only_json(Field::integer("spaces_total", |of| Some(of.difference.spaces_total))),
    Field::only_json(Field::boolean("all_other_spaces", |of| of.difference.all_other_spaces)),
    Field::integer("apps", |of| Some(of.difference.apps)),
    Field::integer("containers", |of| Some(of.difference.containers)),
    Field::integer("opens", |of| Some(of.difference.opens_total)),
    Field::integer("closes", |of| Some(of.difference.closes_total)),
];

pub(crate) const AREAS: &[Field<Changed>] = &[
    Field::integer("place", |of| Some(of.place)),
    Field::toned(
        Field::text("change", |of| if of.opens { "+ opens" } else { "- closes" }.to_owned()),
        |of| if of.opens { Tone::Good } else { Tone::Bad },
    ),
    Field::text("protocol", |of| of.area.protocol.clone()),
    Field::text("destination", |of| destination(&of.area)),
    Field::text("ports", |of| ports(&of.area)),
    Field::only_json(Field::text("first_address", |of| of.area.first_address.clone())),
    Field::only_json(Field::text("last_address", |of| of.area.last_address.clone())),
    Field::only_json(Field::integer("first_port", |of| of.area.first_port.map(u64::from))),
    Field::only_json(Field::integer("last_port", |of| of.area.last_port.map(u64::from))),
    Field::only_json(Field::integer("first_code", |of| of.area.first_code.map(u64::from))),
    Field::only_json(Field::integer("last_code", |of| of.area.last_code.map(u64::from))),
];

pub(crate) const REMARKS: &[Field<Remark>] = &[
    Field::integer("rule", |of| of.rule.as_ref().map(|rule| u64::from(rule.rule_index))),
    Field::toned(Field::text("finding", |of| finding(of).to_owned()), |of| match of.finding() {
        Finding::NotEnforceable => Tone::Bad,
        Finding::Wide => Tone::Warning,
        Finding::Covered | Finding::Overlaps | Finding::Unspecified => Tone::Plain,
    }),
    Field::text("text", |of| of.rule.clone().map(words).unwrap_or_default()),
    Field::text("reason", |of| of.reason.clone()),
    Field::texts("others", |of| of.others.iter().map(other).collect()),
];

/// Computes a change. Also returns whether it opens or closes anything.
pub(crate) async fn what_if(
    connection: &Connection,
    change: &WhatIf,
) -> anyhow::Result<(Report, bool)> {
    let request = request::request(change)?;
    let call = async |channel| Ok(foundation(channel).what_if(request.clone()).await?.into_inner());
    let answers = connection.ask_stores("what-if", call).await?;
    let answer = together(answers);
    let changes = answer.differences_total > 0;
    truncated(&answer);
    Ok((Report::record(ANSWERED, Answered { group: request.group, answer }), changes))
}

/// The answer of all instances. Each knows the containers of the cells that watch it; an app with
/// containers on cells of two instances counts twice.
fn together(answers: Vec<WhatIfResponse>) -> WhatIfResponse {
    let newest = answers.iter().map(|answer| answer.generation).max();
    let mut answers = answers.into_iter().filter(|answer| Some(answer.generation) == newest);
    let mut all = answers.next().unwrap_or_default();
    for answer in answers {
        all.apps += answer.apps;
        all.containers += answer.containers;
        // The same generation has the same differences, in the same order.
        for (all, other) in all.differences.iter_mut().zip(answer.differences) {
            all.apps += other.apps;
            all.containers += other.containers;
        }
    }
    all
}

/// Warns about parts that are not listed.
fn truncated(answer: &WhatIfResponse) {
    let listed = |what: &str, listed: usize, total: u64| {
        if (listed as u64) < total {
            warn(&format!("what-if: {listed} of {total} {what} are listed"));
        }
    };
    let areas = answer.differences.iter().map(|of| of.opens_total + of.closes_total).sum();
    let known = answer.differences.iter().map(|of| of.opens.len() + of.closes.len()).sum();
    listed("places", answer.differences.len(), answer.differences_total);
    listed("areas", known, areas);
    listed("remarks", answer.remarks.len(), answer.remarks_total);
}

fn result(answer: &WhatIfResponse) -> &'static str {
    let has = |total: fn(&Difference) -> u64| answer.differences.iter().any(|of| total(of) > 0);
    match (has(|of| of.opens_total), has(|of| of.closes_total)) {
        (true, true) => "opens and closes connections",
        (true, false) => "opens connections",
        (false, true) => "closes connections",
        (false, false) => "no connection is opened or closed",
    }
}

fn places(answer: &WhatIfResponse) -> impl Iterator<Item = Place> {
    let numbered = (1..).zip(&answer.differences);
    numbered.map(|(number, difference)| Place {
        number,
        // The areas are in another table.
        difference: Difference { opens: Vec::new(), closes: Vec::new(), ..difference.clone() },
    })
}

fn areas(answer: &WhatIfResponse) -> Vec<Row> {
    let areas = (1..).zip(&answer.differences).flat_map(|(place, difference)| {
        let changed = move |opens| move |area: &Area| Changed { place, opens, area: area.clone() };
        let opens = difference.opens.iter().map(changed(true));
        opens.chain(difference.closes.iter().map(changed(false)))
    });
    rows(AREAS, areas)
}

fn lifecycle(difference: &Difference) -> &'static str {
    match difference.lifecycle() {
        Lifecycle::Staging => "staging",
        Lifecycle::Running | Lifecycle::Unspecified => "running",
    }
}

/// The first spaces, and the number of the others.
fn spaces(difference: &Difference) -> String {
    let Difference { space_guids, spaces_total, all_other_spaces, .. } = difference;
    let named: Vec<&str> = space_guids.iter().take(NAMED).map(String::as_str).collect();
    let others = spaces_total.saturating_sub(named.len() as u64);
    let more = match (others, all_other_spaces) {
        (0, false) => None,
        (0, true) => Some("all spaces without a group".to_owned()),
        (others, false) => Some(format!("{others} more")),
        (others, true) => Some(format!("{others} more, all spaces without a group")),
    };
    named.into_iter().map(str::to_owned).chain(more).collect::<Vec<_>>().join(", ")
}

/// An address, a CIDR if the range is one, or a range.
fn destination(area: &Area) -> String {
    let Area { first_address: first, last_address: last, .. } = area;
    if first == last {
        return first.clone();
    }
    let ends = first.parse().ok().zip(last.parse().ok());
    match ends.and_then(|(first, last)| prefix(first, last)) {
        Some(prefix) => format!("{first}/{prefix}"),
        None => format!("{first}-{last}"),
    }
}

/// Prefix length of the CIDR from `first` to `last`.
fn prefix(first: IpAddr, last: IpAddr) -> Option<u32> {
    let (bits, first, last) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (32, u128::from(u32::from(a)), u128::from(u32::from(b))),
        (IpAddr::V6(a), IpAddr::V6(b)) => (128, u128::from(a), u128::from(b)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    // The bits in which the two differ are the host bits: 0 in the first and 1 in the last.
    let hosts = first ^ last;
    let is_cidr = hosts & hosts.wrapping_add(1) == 0 && first & hosts == 0;
    is_cidr.then_some(bits - (128 - hosts.leading_zeros()))
}

/// Ports, or types and codes of ICMP.
fn ports(area: &Area) -> String {
    let range = |first: Option<u32>, last: Option<u32>, most: u32| match (first, last) {
        (Some(0), Some(last)) if last == most => "all".to_owned(),
        (Some(first), Some(last)) if first == last => first.to_string(),
        (Some(first), Some(last)) => format!("{first}-{last}"),
        _ => "all".to_owned(),
    };
    let Area { protocol, first_port, last_port, first_code, last_code, .. } = area;
    match protocol.as_str() {
        "icmp" | "icmpv6" => {
            let types = range(*first_port, *last_port, 255);
            let codes = range(*first_code, *last_code, 255);
            match (types.as_str(), codes.as_str()) {
                ("all", "all") => types,
                (_, "all") => format!("type {types}"),
                _ => format!("type {types} code {codes}"),
            }
        }
        _ => range(*first_port, *last_port, 65_535),
    }
}

fn finding(remark: &Remark) -> &'static str {
    match remark.finding() {
        Finding::Unspecified => "unknown",
        Finding::Covered => "covered",
        Finding::Overlaps => "overlaps",
        Finding::Wide => "wide",
        Finding::NotEnforceable => "not enforceable",
    }
}

fn words(rule: SourcedRule) -> String {
    written(rule).words()
}

/// `rule 3 of web: tcp ...`.
fn other(rule: &SourcedRule) -> String {
    let SourcedRule { group_guid, group_name, rule_index, .. } = rule;
    let group = if group_name.is_empty() { group_guid } else { group_name };
    format!("rule {rule_index} of {group}: {}", words(rule.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(protocol: &str, addresses: [&str; 2], ports: [u32; 2], codes: [u32; 2]) -> Area {
        Area {
            protocol: protocol.to_owned(),
            first_address: addresses[0].to_owned(),
            last_address: addresses[1].to_owned(),
            first_port: Some(ports[0]),
            last_port: Some(ports[1]),
            first_code: Some(codes[0]),
            last_code: Some(codes[1]),
        }
    }

    #[test]
    fn ranges_that_are_networks_are_written_as_such() {
        for (first, last, text) in [
            ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.0", "10.0.0.1", "10.0.0.0/31"),
            ("10.0.0.1", "10.0.0.2", "10.0.0.1-10.0.0.2"),
            ("10.0.0.128", "10.0.0.255", "10.0.0.128/25"),
            ("10.0.0.0", "10.0.0.254", "10.0.0.0-10.0.0.254"),
            ("0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
            ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"),
            ("fd00::", "fd00::ffff", "fd00::/112"),
            ("?", "10.0.0.1", "?-10.0.0.1"),
        ] {
            assert_eq!(destination(&area("tcp", [first, last], [1, 1], [0, 0])), text);
        }
    }

    #[test]
    fn ports_types_and_codes_have_a_short_form() {
        let to = ["10.0.0.1"; 2];
        for (area, text) in [
            (area("tcp", to, [443, 443], [0, 0]), "443"),
            (area("udp", to, [1, 65_535], [0, 0]), "1-65535"),
            (area("tcp", to, [0, 65_535], [0, 0]), "all"),
            (area("icmp", to, [0, 255], [0, 255]), "all"),
            (area("icmp", to, [3, 4], [0, 255]), "type 3-4"),
            (area("icmpv6", to, [8, 8], [0, 0]), "type 8 code 0"),
            (Area { protocol: "other".to_owned(), ..Area::default() }, "all"),
        ] {
            assert_eq!(ports(&area), text);
        }
    }

    #[test]
    fn instances_add_their_containers() {
        let answer = |generation, containers| WhatIfResponse {
            generation,
            apps: 1,
            containers,
            differences: vec![Difference { containers, apps: 1, ..Difference::default() }],
            differences_total: 1,
            ..WhatIfResponse::default()
        };
        let all = together(vec![answer(4, 100), answer(5, 2), answer(5, 3)]);
        assert_eq!((all.generation, all.containers, all.apps), (5, 5, 2));
        assert_eq!((all.differences[0].containers, all.differences.len()), (5, 1));
    }

    #[test]
    fn a_long_list_of_spaces_is_cut() {
        let difference = |guids: &[&str], spaces_total, all_other_spaces| Difference {
            space_guids: guids.iter().map(|&guid| guid.to_owned()).collect(),
            spaces_total,
            all_other_spaces,
            ..Difference::default()
        };
        assert_eq!(spaces(&difference(&["a"], 1, false)), "a");
        assert_eq!(spaces(&difference(&[], 0, true)), "all spaces without a group");
        let many = ["a", "b", "c", "d"];
        assert_eq!(spaces(&difference(&many, 9, false)), "a, b, c, 6 more");
        let text = "a, b, c, 6 more, all spaces without a group";
        assert_eq!(spaces(&difference(&many, 9, true)), text);
    }
}
