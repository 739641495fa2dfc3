use model::generation::Point;

use super::*;
use crate::{feed::questions::desk, groups::history::Step};

fn cell(id: &str) -> CellId {
    CellId::parse(id).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn report(enforced: u64) -> Report {
    Report { enforced: Generation(enforced), containers: 1, isolated_rules: 0, at: at(0) }
}

fn connect(cells: &Cells, cell: CellId) -> Connection {
    cells.connect(cell, Agent::default(), desk().0, at(0))
}

fn enforced_of(cells: &Cells) -> u64 {
    cells.status()[0].report.unwrap().enforced.0
}

#[test]
fn a_cell_is_connected_while_one_of_its_streams_lives() {
    let cells = Cells::default();
    let old = connect(&cells, cell("c1"));
    let new = connect(&cells, cell("c1"));
    drop(old);
    assert!(cells.status()[0].connected);
    drop(new);
    assert!(!cells.status()[0].connected);
}

#[test]
fn a_late_word_of_a_dead_stream_does_not_count() {
    let cells = Cells::default();
    let (old, new) = (connect(&cells, cell("c1")), connect(&cells, cell("c1")));
    new.report(report(7), Generation(9));
    old.report(Report { containers: 99, ..report(8) }, Generation(9));
    assert_eq!(enforced_of(&cells), 7);
    assert_eq!(cells.status()[0].report.unwrap().containers, 1);
}

#[test]
fn what_is_in_force_never_goes_back() {
    let cells = Cells::default();
    let stream = connect(&cells, cell("c1"));
    stream.report(report(7), Generation(9));
    stream.report(report(5), Generation(9));
    assert_eq!(enforced_of(&cells), 7);
    let next = connect(&cells, cell("c1"));
    next.report(report(6), Generation(9));
    assert_eq!(enforced_of(&cells), 7);
}

#[test]
fn generations_that_do_not_exist_count_for_nothing() {
    let cells = Cells::new(vec![(cell("c1"), report(500))]);
    let stream = connect(&cells, cell("c1"));
    stream.report(report(3), Generation(4));
    assert_eq!(enforced_of(&cells), 3, "the store was restored from a backup");
    stream.report(report(400), Generation(4));
    assert_eq!(enforced_of(&cells), 3);
}

fn history() -> History {
    let point = |generation| Point { generation: Generation(generation), stamp: Stamp(100) };
    let step = Step { point: Point { stamp: Stamp(200), ..point(2) }, changes: Vec::new() };
    History::starting(point(1)).followed_by([step])
}

#[test]
fn those_behind_are_all_that_are_known_with_less() {
    let cells = Cells::new(vec![(cell("c0"), report(2))]);
    let [behind, current, silent, gone] =
        ["c1", "c2", "c3", "c4"].map(|id| connect(&cells, cell(id)));
    let count = || cells.count(Generation(2), &history());
    let all = Count { known: 5, connected: 4, behind: 4, behind_since: None };
    assert_eq!(count(), all, "nobody has reported");
    current.report(report(2), Generation(2));
    gone.report(report(1), Generation(2));
    let since = Some(Stamp(200));
    assert_eq!(count(), Count { behind: 3, behind_since: since, ..all });
    behind.report(report(2), Generation(2));
    drop((gone, silent));
    assert_eq!(count(), Count { connected: 2, behind: 2, behind_since: since, ..all });
    let back = connect(&cells, cell("c4"));
    let progress = Progress { before: Some(Generation(1)), enforced: Generation(2) };
    assert_eq!(back.report(report(2), Generation(2)), Some(progress));
    assert_eq!(back.report(report(2), Generation(2)), None, "it was not behind");
    assert_eq!(count(), Count { connected: 3, behind: 1, behind_since: None, ..all });
}

#[test]
fn what_changed_is_handed_out_once_and_again_when_it_was_not_saved() {
    let cells = Cells::default();
    let stream = connect(&cells, cell("c1"));
    assert!(cells.unsaved(at(0)).is_empty(), "nothing reported yet");
    stream.report(report(1), Generation(2));
    let unsaved = cells.unsaved(at(0));
    assert_eq!(unsaved.reports, [(cell("c1"), report(1))]);
    assert!(cells.unsaved(at(0)).is_empty());
    cells.not_saved(&unsaved);
    assert_eq!(cells.unsaved(at(0)), unsaved);
}

#[test]
fn what_others_heard_counts_for_cells_that_are_elsewhere() {
    let cells = Cells::default();
    let later = |enforced, second| Report { at: at(second), ..report(enforced) };
    cells.merge(vec![(cell("c1"), later(3, 10))]);
    cells.merge(vec![(cell("c1"), later(2, 5))]);
    assert_eq!(enforced_of(&cells), 3, "the older word came late");
    assert!(!cells.status()[0].connected);
    let here = connect(&cells, cell("c1"));
    here.report(later(4, 11), Generation(9));
    cells.merge(vec![(cell("c1"), later(8, 99))]);
    assert_eq!(enforced_of(&cells), 4);
    assert_eq!(cells.unsaved(at(12)).reports, [(cell("c1"), later(4, 11))]);
    drop(here);
    cells.merge(vec![(cell("c1"), later(8, 99))]);
    assert_eq!(enforced_of(&cells), 8);
    assert!(cells.unsaved(at(100)).is_empty(), "it is written already");
}

#[test]
fn who_is_long_gone_is_forgotten() {
    let cells = Cells::new(vec![(cell("c1"), report(1)), (cell("c2"), report(1))]);
    let stays = connect(&cells, cell("c2"));
    let week = FORGOTTEN_AFTER.as_secs();
    assert!(cells.unsaved(at(week)).forgotten.is_empty());
    assert_eq!(cells.unsaved(at(week + 1)).forgotten, [(cell("c1"), at(0))]);
    assert_eq!(cells.status().len(), 1);
    drop(stays);
}
