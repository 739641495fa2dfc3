//! Whole screens, compared with text files in `ctl/tests/top`. `UPDATE_GOLDEN=1` writes them.

use std::{fs, path::PathBuf, time::Duration};

use jiff::Timestamp;
use ratatui_core::{backend::TestBackend, terminal::Terminal};

use super::{
    data::{
        Cell, Change, ChangedGroup, Container, Containers, Counters, Details, Isolated, Lock,
        Owner, SlowCell, Store,
    },
    keys::{self, Key, Next},
    lines,
    model::{Message, Model, Moment, Page},
    theme::Theme,
    view,
};

const THEME: Theme = Theme { has_colour: true, is_ascii: false };

/// Milliseconds of the store's clock.
fn at(millis: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(1_700_000_000_000 + millis).ok()
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The cell of this number: every 50th is unusual.
fn cell(number: u32, newest: u64, reported: i64) -> Cell {
    let index = number - 1;
    let unusual = if index % 50 == 7 { index / 50 % 6 + 1 } else { 0 };
    let counters = Counters {
        allowed: Some(u64::from(number) * 100),
        denied: Some(u64::from(number)),
        unattributed: 0,
    };
    let rule = Isolated { group: "broken".into(), rule_index: 2, reason: "no such mask".into() };
    let isolated = if unusual == 1 { 1 } else { 0 };
    let details = Details {
        version: "0.1.0".into(),
        plane: "nftables".into(),
        connection_changed_at: at(-3_600_000),
        enforced_at: at(reported),
        apply_time: Some(ms(12)),
        lag: Some(if unusual == 2 { ms(1_800) } else { ms(90 + u64::from(number % 7) * 10) }),
        drift_healed: 1,
        last_error: if unusual == 5 { "nft: no space left".into() } else { String::new() },
        counters: Some(counters),
        isolated: (0..isolated).map(|_| rule.clone()).collect(),
        isolated_total: isolated,
    };
    let is_behind = unusual == 3 || unusual == 4;
    Cell {
        id: format!("cell-{number}"),
        name: format!("cell-{number}"),
        connected: unusual != 6,
        generation: newest - u64::from(is_behind),
        reported_at: at(reported),
        containers: 25,
        isolated_rules: isolated,
        behind_since: if is_behind { at(if unusual == 3 { -800 } else { -8_000 }) } else { None },
        details: Some(details),
    }
}

fn change(generation: u64, cells: u32, enforced: u32, committed: i64) -> Change {
    Change {
        generation,
        trace: "0af7651916cd43dd8448eb211c80319c".into(),
        owner: "syncer-1".into(),
        watermark: at(committed - 300),
        noticed_at: at(committed - 60),
        read_at: at(committed - 25),
        committed_at: at(committed),
        added: 1,
        changed: generation % 3,
        removed: 0,
        groups: vec![ChangedGroup {
            sign: '+',
            name: format!("group-{generation}"),
            guid: format!("0000{generation:04}-5f2c-4a3e-9b1d-0123456789ab"),
        }],
        cells,
        enforced,
        median: Some(ms(70)),
        p99: Some(ms(110)),
        slowest: Some(ms(100 + generation % 5 * 60)),
        slowest_cells: vec![
            SlowCell { name: "cell-2".into(), after: None, connected: true },
            SlowCell { name: "cell-1".into(), after: Some(ms(110)), connected: true },
        ],
    }
}

fn store(cells: u32, reported: i64) -> Store {
    Store {
        generation: 42,
        released: 42,
        groups: 123,
        watermark: at(-12_000),
        synced_at: at(-400),
        writer: Some(Owner { name: "syncer-1".into(), token: Some(7) }),
        now: at(0),
        cells: (1..=cells).map(|number| cell(number, 42, reported)).collect(),
        silent: Vec::new(),
        warnings: Vec::new(),
    }
}

fn locks(name: &str, token: u64) -> Message {
    let owner = Owner { name: name.into(), token: Some(token) };
    Message::Locks(vec![Lock { key: "policy-server-asg-syncer".into(), owner }])
}

/// The moment of the screens.
const NOW: Moment = Duration::from_secs(100);

/// A view with this number of cells, and some changes, the last one on its way.
fn model(size: (u16, u16), cells: u32) -> Model {
    let mut model = Model::new("127.0.0.1:4004".into(), size);
    model.update(locks("syncer-2", 6), ms(10));
    model.update(locks("syncer-1", 7), ms(30_000));
    let mut earlier = store(cells, -5_000);
    for cell in &mut earlier.cells {
        let counters = cell.details.as_mut().and_then(|details| details.counters.as_mut());
        let counters = counters.expect("each cell has counters");
        counters.allowed = counters.allowed.map(|allowed| allowed - 50);
    }
    model.update(Message::Store(earlier), NOW - ms(5_000));
    model.update(Message::Store(store(cells, -200)), NOW - ms(300));
    model.update(Message::ChangesOpen(0), ms(20));
    for generation in 30..=42 {
        let enforced = if generation == 42 { cells - 1 } else { cells };
        let age = i64::try_from(42 - generation).expect("it is small") * 20_000 + 100;
        let change = change(generation, cells, enforced, -age);
        model.update(Message::Change(0, Box::new(change)), NOW - ms(200));
    }
    model
}

fn screen(model: &Model) -> String {
    let (width, height) = model.size;
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it has a size");
    let drawn = terminal.draw(|frame| view::draw(model, NOW, THEME, frame.buffer_mut()));
    let buffer = drawn.expect("a test backend cannot fail").buffer.clone();
    let rows = buffer.content.chunks(usize::from(width));
    let text = |row: &[ratatui_core::buffer::Cell]| -> String {
        row.iter().map(|cell| cell.symbol()).collect()
    };
    rows.map(|row| text(row).trim_end().to_owned() + "\n").collect()
}

fn compare(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/top/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{} differs; UPDATE_GOLDEN=1 writes it:\n{found}", path.display());
}

fn press(model: &mut Model, keys: &[Key]) {
    for key in keys {
        assert_eq!(keys::press(model, *key, NOW), Next::Continue, "{key:?}");
    }
}

#[test]
fn overviews_of_all_sizes() {
    for (width, height) in [(80, 24), (160, 50)] {
        for cells in [2, 20, 1_000] {
            let model = model((width, height), cells);
            compare(&format!("overview-{width}x{height}-{cells}"), &screen(&model));
        }
    }
}

#[test]
fn before_the_first_answer_and_with_an_older_store() {
    let mut model = Model::new("127.0.0.1:4004".into(), (80, 24));
    compare("start", &screen(&model));
    let mut older = store(2, 0);
    older.cells.iter_mut().for_each(|cell| cell.details = None);
    model.update(Message::Store(older), NOW);
    model.update(Message::Locks(Vec::new()), NOW);
    model.update(Message::ChangesUnserved, NOW);
    compare("older-store", &screen(&model));
}

#[test]
fn lost_servers_leave_their_last_data() {
    let mut model = model((80, 24), 20);
    model.update(Message::StoreLost("status: no connection".into()), NOW);
    model.update(Message::ChangesLost(0, "broken pipe".into()), NOW);
    model.update(Message::LocksLost("locks: no connection".into()), NOW);
    compare("lost", &screen(&model));
    model.update(Message::Store(store(20, -200)), NOW);
    model.update(locks("syncer-2", 8), NOW);
    model.update(Message::ChangesOpen(0), NOW);
    assert_eq!(model.data().problems(NOW), Vec::<String>::new());
    assert!(screen(&model).contains("last sync by syncer-1 (token 7)"));
}

#[test]
fn a_cell_with_its_containers() {
    let mut model = model((80, 24), 20);
    press(&mut model, &[Key::Down, Key::Down, Key::Enter]);
    assert_eq!(model.page, Page::Cell("cell-8".into()));
    assert_eq!(model.wanted_containers(), Some("cell-8"));
    let container = |number: u32| Container {
        handle: format!("{number:08}-5f2c-4a3e-9b1d-0123456789ab"),
        address: format!("10.255.8.{number}"),
        app: format!("aaaa{number:04}-5f2c-4a3e-9b1d-0123456789ab"),
        space: "5ace0001-5f2c-4a3e-9b1d-0123456789ab".into(),
        workload: "app".into(),
        rules: 13,
        isolated_rules: u32::from(number == 3),
        problem: if number == 2 { "groups not known yet".into() } else { String::new() },
    };
    let list: Vec<Container> = (1..=25).map(container).collect();
    let containers = Containers { cell: "cell-8".into(), list, total: 25, unknown: String::new() };
    model.update(Message::Containers(containers), NOW);
    compare("cell", &screen(&model));
    press(&mut model, &[Key::PageDown, Key::PageDown, Key::PageDown, Key::PageDown]);
    let end = model.scroll;
    compare("cell-end", &screen(&model));
    press(&mut model, &[Key::Down, Key::End]);
    assert_eq!(model.scroll, end, "the end of the page is the end");
    press(&mut model, &[Key::Escape]);
    assert_eq!((&model.page, model.scroll), (&Page::Overview, 0));
    assert_eq!(model.wanted_containers(), None);
}

#[test]
fn a_change_with_its_hops() {
    let mut model = model((80, 24), 20);
    press(&mut model, &[Key::Tab, Key::Char('j'), Key::Down, Key::Enter]);
    assert_eq!(model.page, Page::Change(41));
    compare("change", &screen(&model));
    press(&mut model, &[Key::Escape, Key::Char('g'), Key::Enter]);
    assert_eq!(model.page, Page::Change(42));
    compare("change-on-its-way", &screen(&model));
}

#[test]
fn selections_stay_with_their_item_and_are_visible() {
    let mut model = model((80, 24), 1_000);
    press(&mut model, &[Key::End]);
    assert_eq!(model.selected_cell.as_deref(), Some("cell-1000"));
    let shown = screen(&model);
    assert!(shown.contains("cell-1000: "), "{shown}");
    let mut fewer = store(1_000, 0);
    fewer.cells.drain(..500);
    model.update(Message::Store(fewer), NOW);
    assert_eq!(model.selected_cell.as_deref(), Some("cell-1000"));
    press(&mut model, &[Key::Up]);
    assert_eq!(model.selected_cell.as_deref(), Some("cell-922"), "one row up");
}

#[test]
fn a_filter_selects_cells_and_changes() {
    let mut model = model((80, 24), 1_000);
    let typed = "/CELL-99".chars().map(Key::Char);
    typed.for_each(|key| press(&mut model, &[key]));
    compare("typing", &screen(&model));
    press(&mut model, &[Key::Char('q'), Key::Backspace, Key::Enter]);
    assert_eq!(model.cells().len(), 11, "cell-99 and cell-990 to cell-999");
    press(&mut model, &[Key::Escape]);
    assert_eq!(model.cells().len(), 1_000);
    "/group-41".chars().map(Key::Char).for_each(|key| press(&mut model, &[key]));
    assert_eq!(model.changes().len(), 1);
}

#[test]
fn a_pause_freezes_the_screen() {
    let mut model = model((80, 24), 2);
    press(&mut model, &[Key::Char('p')]);
    let before = screen(&model);
    assert!(before.contains("PAUSED"), "{before}");
    model.update(Message::Store(Store { generation: 43, released: 43, ..store(2, 0) }), NOW);
    assert_eq!(screen(&model), before);
    press(&mut model, &[Key::Char('p')]);
    assert!(screen(&model).contains("generation 43"));
}

#[test]
fn the_help_fits() {
    let mut model = model((80, 24), 2);
    press(&mut model, &[Key::Char('?')]);
    compare("help", &screen(&model));
    press(&mut model, &[Key::Char('x')]);
    assert!(!model.shows_help);
    assert_eq!(keys::press(&mut model, Key::Char('q'), NOW), Next::Quit);
}

/// At each size from nothing on, with each page.
#[test]
fn no_size_is_too_small() {
    let mut model = model((80, 24), 1_000);
    model.update(Message::StoreLost("gone".into()), NOW);
    let changes = [Key::Tab, Key::Down, Key::Enter];
    for keys in [&[][..], &[Key::Down, Key::Enter], &[Key::Escape], &changes, &[Key::Char('?')]] {
        press(&mut model, keys);
        for width in [1, 2, 39, 40, 41, 79, 80, 109, 110, 300] {
            for height in [1, 2, 9, 10, 11, 12, 13, 24, 100] {
                model.size = (width, height);
                let _drawn = screen(&model);
            }
        }
    }
}

#[test]
fn plain_lines() {
    let model = model((80, 24), 20);
    let mut text = lines::status_line(model.data(), NOW) + "\n";
    let change = model.data().last_complete_change().expect("one is complete");
    text += &(lines::change_line(change) + "\n");
    let mut lost = Model::new(String::new(), (80, 24));
    lost.update(Message::StoreLost("status: no connection".into()), NOW);
    text += &(lines::status_line(lost.data(), NOW) + "\n");
    compare("lines", &text);
}
