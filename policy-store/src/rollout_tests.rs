use model::{
    generation::{Generation, Point, Stamp},
    ids::CellId,
    rule::RuleSpec,
};

use super::*;
use crate::{
    feed::{
        cells::CellStatus,
        inventory::{Inventory, Isolated, Update},
    },
    groups::rollout::Plan,
    reports::{Agent, Details, Report},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Generation 4 replaces 3 on the canaries since second 100, for 30 s.
fn rollout(max_failing_percent: u8) -> Rollout {
    let plan = Plan {
        canary_cells: ["canary-*".into()].into(),
        percent_steps: [].into(),
        pause: Duration::from_secs(30),
        max_failing_percent,
    };
    let point = |generation| Point { generation: Generation(generation), stamp: Stamp(0) };
    Rollout::begin((point(3), point(4)), Some(&Arc::new(plan)), at(100)).unwrap()
}

fn cell(id: &str, connected: bool, enforced: u64, changed_at: i64) -> KnownCell {
    let report = Report {
        enforced: Generation(enforced),
        containers: 1,
        isolated_rules: 0,
        at: at(changed_at),
    };
    let here = Here {
        agent: Arc::new(Agent::default()),
        changed_at: at(changed_at),
        details: None,
        lag: None,
        inventory: None,
    };
    let status = CellStatus { id: CellId::parse(id).unwrap(), connected, report: Some(report) };
    KnownCell { status, here: Some(here) }
}

fn isolating(mut cell: KnownCell, group: &str) -> KnownCell {
    let rule = IsolatedRule {
        rule: RuleSpec::default(),
        group_guid: group.into(),
        group_name: group.into(),
        rule_index: 2,
        reason: "ports: 70000".into(),
    };
    let mut inventory = Inventory::default();
    let isolated = Some(Isolated { rules: vec![rule], total: 1 });
    inventory.apply(Update { reset: true, isolated, ..Update::default() }).unwrap();
    cell.here.as_mut().unwrap().inventory = Some(Arc::new(inventory));
    cell
}

fn verdict(max_failing_percent: u8, cells: &[KnownCell], second: i64) -> Verdict {
    let is_new = |rule: &IsolatedRule| rule.group_guid == "new";
    judge(&rollout(max_failing_percent), cells, is_new, at(second))
}

fn stop(reason: &str) -> Verdict {
    Verdict::Stop(reason.to_owned())
}

#[test]
fn a_step_without_problems_takes_its_pause() {
    let cells = [cell("canary-1", true, 4, 90), cell("other", true, 3, 90)];
    assert_eq!(verdict(0, &cells, 129), Verdict::Wait);
    assert_eq!(verdict(0, &cells, 131), Verdict::Wait, "only a stop is possible");
    assert_eq!(verdict(0, &cells, 132), Verdict::Next);
    assert_eq!(verdict(0, &cells, 50), Verdict::Wait, "a clock that went back");
    assert_eq!(verdict(0, &[], 132), Verdict::Next, "no cell is included");
}

#[test]
fn a_new_isolated_rule_stops_at_once() {
    let fine = cell("canary-1", true, 4, 90);
    let old = isolating(fine.clone(), "old");
    let elsewhere = isolating(cell("other", true, 4, 90), "new");
    assert_eq!(verdict(0, &[old, elsewhere], 132), Verdict::Next);
    let bad = [fine, isolating(cell("canary-2", true, 4, 90), "new")];
    let reason = "1 of 2 cells: canary-2 does not enforce rule 2 of group \"new\": ports: 70000";
    assert_eq!(verdict(0, &bad, 101), stop(reason));
    assert_eq!(verdict(49, &bad, 101), stop(reason));
    assert_eq!(verdict(50, &bad, 132), Verdict::Next, "as many as may fail");
    let not_there_yet = [isolating(cell("canary-2", true, 3, 90), "new")];
    assert_eq!(verdict(0, &not_there_yet, 101), Verdict::Wait, "of a generation before");
}

#[test]
fn a_cell_that_does_not_apply_it_stops_at_the_end_of_the_step() {
    let mut late = cell("canary-1", true, 3, 90);
    assert_eq!(verdict(0, std::slice::from_ref(&late), 129), Verdict::Wait);
    let details = Details { last_error: "nft: no space".into(), ..Details::default() };
    late.here.as_mut().unwrap().details = Some(Arc::new(details));
    let reason = "1 of 1 cells: canary-1 has not applied generation 4: nft: no space";
    assert_eq!(verdict(0, &[late], 130), stop(reason));
}

#[test]
fn a_cell_that_vanishes_in_the_step_is_a_problem() {
    let long_gone = cell("canary-1", false, 3, 90);
    assert_eq!(verdict(0, &[long_gone], 132), Verdict::Next);
    let vanished = cell("canary-1", false, 4, 110);
    assert_eq!(
        verdict(0, std::slice::from_ref(&vanished), 130),
        stop("1 of 1 cells: canary-1 lost its connection")
    );
    let mut moved = vanished;
    moved.status.report.as_mut().unwrap().at = at(115);
    assert_eq!(verdict(0, &[moved], 132), Verdict::Next, "watches another instance");
}
