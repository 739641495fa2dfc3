//! Messages of the servers to values: all texts are escaped and shortened here.

use std::time::Duration;

use jiff::Timestamp;
use proto::{
    cell_v1::{self, Enforcement},
    policy_v1::{
        ChangesResponse, IsolatedRules, PlacedContainer, StatusResponse, cells_response,
        change::Kind, status_response, watch_request,
    },
};

use super::data::{
    Cell, Change, ChangedGroup, Container, Counters, Details, Isolated, Owner, SlowCell, Store,
};
use crate::{cells::Seen, escape::escape, freeze, rollout};

/// Longest displayed text in characters, before escaping.
const LONGEST: usize = 200;

/// Text for display.
pub(crate) fn text(raw: &str) -> String {
    match raw.char_indices().nth(LONGEST) {
        None => escape(raw).into_owned(),
        Some((end, _)) => escape(&raw[..end]).into_owned() + "...",
    }
}

/// The Cloud Controller's stamp is the beginning of 1970 until the first change: no time.
fn time(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    let at = at.filter(|at| at.seconds > 0)?;
    Timestamp::new(at.seconds, at.nanos).ok()
}

/// A negative one is 0.
fn duration(of: Option<prost_types::Duration>) -> Option<Duration> {
    of.map(|of| Duration::try_from(of).unwrap_or_default())
}

/// The state of the store, with the cells of all its instances.
pub(crate) fn store(status: StatusResponse, cells: Vec<Seen>) -> Store {
    let released = freeze::released(&status);
    let release = status.release.as_ref();
    let sentences = [freeze::sentence(release), rollout::sentence(release)];
    let warnings = sentences.into_iter().flatten().map(|sentence| text(&sentence)).collect();
    let StatusResponse { generation, watermark, writer, synced_at, groups, now, .. } = status;
    Store {
        generation,
        released,
        groups,
        watermark: time(watermark),
        synced_at: time(synced_at),
        writer: writer.map(|status_response::Writer { owner, fencing_token }| Owner {
            name: text(&owner),
            token: Some(fencing_token),
        }),
        now: time(now),
        cells: cells.into_iter().filter_map(|seen| detailed(seen.cell)).collect(),
        silent: Vec::new(),
        warnings,
    }
}

fn cell(cell: status_response::Cell) -> Cell {
    let status_response::Cell {
        cell_id,
        connected,
        enforced_generation,
        reported_at,
        containers,
        isolated_rules,
        behind_since,
    } = cell;
    Cell {
        name: text(&cell_id),
        id: cell_id,
        connected,
        generation: enforced_generation,
        reported_at: time(reported_at),
        containers,
        isolated_rules,
        behind_since: time(behind_since),
        details: None,
    }
}

fn detailed(of: cells_response::Cell) -> Option<Cell> {
    let cells_response::Cell {
        status,
        detailed,
        version,
        plane,
        answers_questions: _,
        connection_changed_at,
        enforced_at,
        apply_time,
        lag,
        drift_healed,
        last_error,
        counters,
        isolated,
    } = of;
    let IsolatedRules { rules, total } = isolated.unwrap_or_default();
    let details = detailed.then(|| Details {
        version: text(&version),
        plane: text(&plane),
        connection_changed_at: time(connection_changed_at),
        enforced_at: time(enforced_at),
        apply_time: duration(apply_time),
        lag: duration(lag),
        drift_healed,
        last_error: text(&last_error),
        counters: counters.map(|watch_request::Counters { allowed, denied, unattributed }| {
            Counters { allowed, denied, unattributed }
        }),
        isolated: rules.into_iter().map(isolated_rule).collect(),
        isolated_total: total,
    });
    Some(Cell { details, ..cell(status?) })
}

fn isolated_rule(rule: cell_v1::IsolatedRule) -> Isolated {
    let source = rule.source.unwrap_or_default();
    let group = if source.group_name.is_empty() { &source.group_guid } else { &source.group_name };
    Isolated { group: text(group), rule_index: source.rule_index, reason: text(&rule.reason) }
}

/// A container.
pub(crate) fn container(placed: PlacedContainer) -> Container {
    let container = placed.container.unwrap_or_default();
    let problem = match container.enforcement() {
        Enforcement::Enforced => String::new(),
        other if container.reason.is_empty() => {
            other.as_str_name().to_lowercase().replace('_', " ")
        }
        _ => text(&container.reason),
    };
    Container {
        handle: text(&container.handle),
        address: text(&container.ip),
        app: text(&container.app_guid),
        space: text(&container.space_guid),
        workload: text(&container.workload),
        rules: container.rules,
        isolated_rules: container.isolated_rules,
        problem,
    }
}

/// A change.
pub(crate) fn change(response: ChangesResponse) -> Option<Change> {
    let change = response.change?;
    let sign = |kind: Kind| match kind {
        Kind::Added => '+',
        Kind::Changed => '~',
        Kind::Removed => '-',
        Kind::Unspecified => ' ',
    };
    let groups = change.groups.iter().map(|group| ChangedGroup {
        sign: sign(group.kind()),
        name: text(&group.name),
        guid: text(&group.guid),
    });
    let slowest_cells = change.slowest_cells.iter().map(|cell| SlowCell {
        name: text(&cell.cell_id),
        after: duration(cell.after_commit),
        connected: cell.connected,
    });
    Some(Change {
        generation: change.generation,
        trace: trace(&change.traceparent),
        owner: text(&change.owner),
        watermark: time(change.watermark),
        noticed_at: time(change.noticed_at),
        read_at: time(change.read_at),
        committed_at: time(change.committed_at),
        added: change.added,
        changed: change.changed,
        removed: change.removed,
        groups: groups.collect(),
        cells: change.cells,
        enforced: change.cells_enforced,
        median: duration(change.median),
        p99: duration(change.p99),
        slowest: duration(change.slowest),
        slowest_cells: slowest_cells.collect(),
    })
}

/// The trace id of a `traceparent`, as in log lines.
fn trace(traceparent: &str) -> String {
    text(traceparent.split('-').nth(1).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proto::policy_v1;

    use super::*;

    #[test]
    fn texts_are_escaped_and_shortened() {
        assert_eq!(text("\u{1b}[2Jcell"), "\\u{1b}[2Jcell");
        let long = text(&"é".repeat(LONGEST + 1));
        assert_eq!(long.chars().count(), LONGEST + 3);
        let evil = "\u{1b}]0;owned\u{7}\n";
        let group = policy_v1::change::Group { name: evil.into(), guid: evil.into(), kind: 1 };
        let slow = policy_v1::change::Cell { cell_id: evil.into(), ..Default::default() };
        let change = policy_v1::Change {
            owner: evil.into(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            groups: vec![group],
            slowest_cells: vec![slow],
            ..Default::default()
        };
        let response = ChangesResponse { change: Some(change), now: None };
        let made = super::change(response).unwrap();
        assert_eq!(made.trace, "0af7651916cd43dd8448eb211c80319c");
        for text in [&made.owner, &made.groups[0].name, &made.groups[0].guid] {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
        assert!(!made.slowest_cells[0].name.chars().any(char::is_control));
    }

    #[test]
    fn a_stamp_before_the_first_change_is_no_time() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        assert_eq!(time(at(0)), None);
        assert_eq!(time(at(1_700_000_000)).map(Timestamp::as_second), Some(1_700_000_000));
        assert_eq!(time(at(i64::MAX)), None);
    }

    #[test]
    fn a_cell_has_its_id_and_a_name_for_display() {
        let status = |id: &str| status_response::Cell { cell_id: id.into(), ..Default::default() };
        let cell = |status, detailed| cells_response::Cell {
            status,
            detailed,
            last_error: "two\nlines".into(),
            ..Default::default()
        };
        let seen = |cell| Seen { cell, generation: 0, now: None };
        let cells = vec![
            seen(cell(Some(status("c-9\u{1b}")), true)),
            seen(cell(Some(status("c-10")), false)),
            seen(cell(None, true)),
        ];
        let store = store(StatusResponse::default(), cells);
        let names: Vec<_> =
            store.cells.iter().map(|cell| (cell.id.as_str(), cell.name.as_str())).collect();
        assert_eq!(names, [("c-9\u{1b}", "c-9\\u{1b}"), ("c-10", "c-10")]);
        let errors = store.cells.iter().map(|cell| cell.details.as_ref());
        let errors: Vec<_> = errors.map(|of| of.map(|of| of.last_error.as_str())).collect();
        assert_eq!(errors, [Some("two\\nlines"), None]);
    }
}
