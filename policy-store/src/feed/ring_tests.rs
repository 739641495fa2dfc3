use proptest::prelude::*;

use model::ids::GroupGuid;

use super::*;

fn cell(id: &str) -> CellId {
    CellId::parse(id).unwrap()
}

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

fn change(generation: u64, groups: &[&str]) -> Committed {
    let group = |text: &&str| ChangedGroup {
        guid: GroupGuid::parse(text).unwrap(),
        name: format!("name of {text}").into(),
        kind: Kind::Changed,
    };
    Committed {
        generation: Generation(generation),
        origin: Origin::default(),
        owner: None,
        watermark: None,
        at: at(1000 * i64::try_from(generation).unwrap()),
        groups: groups.iter().map(group).collect(),
    }
}

fn ring(changes: u64, cells: &[&str]) -> Ring {
    let mut ring = Ring::default();
    for generation in 1..=changes {
        ring.push(change(generation, &["g"]), cells.iter().map(|id| cell(id)).collect());
    }
    ring
}

/// What a reader gets at this time, in milliseconds.
fn read(ring: &Ring, reader: &mut Reader, now: u64) -> Vec<(u64, usize)> {
    let next = || match ring.next(reader, Duration::from_millis(now)) {
        Next::Change(shown) => Some((shown.change.generation.0, shown.enforced)),
        Next::Update { .. } => None,
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn a_report_counts_for_each_generation_that_it_passes() {
    let mut ring = ring(3, &["a", "b"]);
    let times = ring.enforced(&cell("a"), Generation(1), Generation(3), at(3500));
    let times: Vec<_> = times.into_iter().map(|(of, time)| (of.0, time.as_millis())).collect();
    assert_eq!(times, [(2, 1500), (3, 500)]);
    assert!(ring.enforced(&cell("a"), Generation(1), Generation(3), at(9000)).is_empty());
    assert!(ring.enforced(&cell("c"), Generation(0), Generation(3), at(9000)).is_empty());
    let early = ring.enforced(&cell("b"), Generation(2), Generation(3), at(0));
    assert_eq!(early, [(Generation(3), Duration::ZERO)], "the clock was set back");
}

#[test]
fn a_summary_has_percentiles_and_the_slowest_cells_first() {
    let ids: Vec<String> = (0..200).map(|at| format!("c{at:03}")).collect();
    let mut ring = ring(1, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    for (place, id) in ids.iter().enumerate().skip(1) {
        let now = at(1000 + i64::try_from(place).unwrap());
        ring.enforced(&cell(id), Generation(0), Generation(1), now);
    }
    let next = ring.next(&mut ring.reader(Filter::default(), 1), Duration::ZERO);
    let Next::Change(shown) = next else { panic!("{next:?}") };
    assert_eq!((shown.cells, shown.enforced), (200, 199));
    assert_eq!(shown.times.unwrap().map(|time| time.as_millis()), [100, 198, 199]);
    let slowest: Vec<_> =
        shown.slowest.iter().map(|(id, time)| (id.as_str(), time.map(|t| t.as_millis()))).collect();
    assert_eq!(slowest.len(), SLOWEST);
    assert_eq!(slowest[..2], [("c000", None), ("c199", Some(199))]);
}

#[test]
fn a_reader_gets_the_last_changes_then_new_ones_and_updates() {
    let mut ring = ring(3, &["a", "b"]);
    let mut reader = ring.reader(Filter::default(), 2);
    assert_eq!(read(&ring, &mut reader, 0), [(2, 0), (3, 0)]);
    assert_eq!(ring.next(&mut reader, Duration::ZERO), Next::Update { due: None });
    ring.enforced(&cell("a"), Generation(0), Generation(3), at(4000));
    let later = ring.next(&mut reader, Duration::from_millis(99));
    assert_eq!(later, Next::Update { due: Some(COALESCED) });
    assert_eq!(read(&ring, &mut reader, 100), [(2, 1), (3, 1)]);
    ring.enforced(&cell("b"), Generation(1), Generation(2), at(4000));
    ring.push(change(4, &["g"]), Vec::new());
    assert_eq!(read(&ring, &mut reader, 101), [(4, 0), (2, 2)], "the last update comes at once");
    ring.enforced(&cell("b"), Generation(2), Generation(3), at(4000));
    assert_eq!(read(&ring, &mut reader, 102), [(3, 2)]);
}

#[test]
fn a_filter_selects_by_generation_and_group() {
    let mut ring = Ring::default();
    for (generation, groups) in [(1, &["x"][..]), (2, &["y", "x"]), (3, &["y"]), (5, &[])] {
        ring.push(change(generation, groups), Vec::new());
    }
    let found = |filter, last| read(&ring, &mut ring.reader(filter, last), 0);
    let group = |text: &str| Filter { group: Some(text.to_owned()), ..Filter::default() };
    assert_eq!(found(group("x"), 9), [(1, 0), (2, 0)]);
    assert_eq!(found(group("name of y"), 1), [(3, 0)]);
    assert_eq!(found(group("z"), 9), []);
    let only = |number| Filter { generation: Some(Generation(number)), group: None };
    assert_eq!(found(only(2), 1), [(2, 0)]);
    assert_eq!(found(only(4), 1), []);
    assert_eq!(found(Filter::default(), 0), []);
    assert_eq!(found(Filter::default(), 9).len(), 4);
}

#[test]
fn the_oldest_changes_are_forgotten() {
    let ring = ring(MAX_CHANGES as u64 + 5, &["a"]);
    assert_eq!(ring.len(), MAX_CHANGES);
    let mut reader = ring.reader(Filter::default(), usize::MAX);
    assert_eq!(read(&ring, &mut reader, 0)[0], (6, 0));
    let many: Vec<String> = (0..MAX_GROUPS / 2).map(|at| at.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut ring = Ring::default();
    for generation in 1..=4 {
        ring.push(change(generation, &many), Vec::new());
    }
    assert_eq!(ring.len(), 2, "they are large");
}

proptest! {
    /// After any interleaving the reader has seen the final state of every change that is
    /// still remembered.
    #[test]
    fn a_reader_ends_with_the_newest_state(
        steps in prop::collection::vec((0..3u8, 0..4u8), 1..60)
    ) {
        let ids = ["a", "b", "c", "d"];
        let (mut ring, mut committed) = (Ring::default(), 0);
        let mut in_force = [0; 4];
        let mut reader = ring.reader(Filter::default(), 1);
        let mut seen = BTreeMap::new();
        for (now, (step, who)) in (0..).step_by(40).zip(steps) {
            match step {
                0 => {
                    committed += 1;
                    ring.push(change(committed, &["g"]), ids.map(cell).to_vec());
                }
                1 => {
                    let who = usize::from(who);
                    let before = Generation(in_force[who]);
                    ring.enforced(&cell(ids[who]), before, Generation(committed), at(0));
                    in_force[who] = committed;
                }
                _ => seen.extend(read(&ring, &mut reader, now)),
            }
        }
        seen.extend(read(&ring, &mut reader, 1_000_000));
        for (generation, enforced) in seen {
            let expected = in_force.iter().filter(|had| **had >= generation).count();
            prop_assert_eq!(enforced, expected, "generation {}", generation);
        }
    }
}
