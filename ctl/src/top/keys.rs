//! What a key does.

use super::{
    data::Change,
    model::{Model, Moment, Page, Pane},
    overview, page,
    theme::Theme,
};

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Tab,
    Backspace,
    Char(char),
}

/// What the program does after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Draws.
    Continue,
    /// Ends.
    Quit,
}

/// Longest filter in characters.
const LONGEST_FILTER: usize = 40;

/// Keys and their meaning, for the help page.
pub(crate) const HELP: [(&str, &str); 9] = [
    ("arrows, hjkl", "move, scroll"),
    ("Tab", "between changes and cells"),
    ("Enter", "cell: containers, isolated rules, last error"),
    ("", "change: hops, groups, slowest cells"),
    ("Esc", "back; clears the filter"),
    ("/", "filter cells by name, changes by group, containers by GUID"),
    ("p", "pause and continue"),
    ("g, G", "first, last"),
    ("q, Ctrl-C", "quit; Ctrl-Z suspends"),
];

/// Applies a key.
pub(crate) fn press(model: &mut Model, key: Key, now: Moment) -> Next {
    if model.is_typing {
        type_filter(model, key);
        return Next::Continue;
    }
    if key == Key::Char('q') {
        return Next::Quit;
    }
    if model.shows_help {
        model.shows_help = false;
        return Next::Continue;
    }
    match key {
        Key::Char('?') => model.shows_help = true,
        Key::Char('p') => model.toggle_pause(),
        Key::Char('/') => model.is_typing = true,
        Key::Escape if model.page != Page::Overview => leave(model),
        Key::Escape => model.filter.clear(),
        _ => match model.page {
            Page::Overview => overview_key(model, key, now),
            Page::Cell(_) | Page::Change(_) => scroll(model, key, now),
        },
    }
    Next::Continue
}

fn type_filter(model: &mut Model, key: Key) {
    match key {
        Key::Enter => model.is_typing = false,
        Key::Escape => {
            model.is_typing = false;
            model.filter.clear();
        }
        Key::Backspace => {
            model.filter.pop();
        }
        Key::Char(c) if !c.is_control() && model.filter.chars().count() < LONGEST_FILTER => {
            model.filter.push(c);
        }
        _ => {}
    }
}

fn leave(model: &mut Model) {
    model.page = Page::Overview;
    model.scroll = 0;
}

/// A move of the selection in rows and items.
enum Move {
    Rows(isize),
    Items(isize),
    Start,
    End,
}

fn movement(key: Key, rows: isize) -> Option<Move> {
    Some(match key {
        Key::Up | Key::Char('k') => Move::Rows(-1),
        Key::Down | Key::Char('j') => Move::Rows(1),
        Key::Left | Key::Char('h') => Move::Items(-1),
        Key::Right | Key::Char('l') => Move::Items(1),
        Key::PageUp => Move::Rows(-rows),
        Key::PageDown => Move::Rows(rows),
        Key::Home | Key::Char('g') => Move::Start,
        Key::End | Key::Char('G') => Move::End,
        Key::Enter | Key::Escape | Key::Tab | Key::Backspace | Key::Char(_) => return None,
    })
}

fn overview_key(model: &mut Model, key: Key, now: Moment) {
    let place = overview::place(model, now);
    match (key, model.pane) {
        (Key::Tab, Pane::Cells) => model.pane = Pane::Changes,
        (Key::Tab, Pane::Changes) => model.pane = Pane::Cells,
        (Key::Enter, Pane::Cells) => open_cell(model),
        (Key::Enter, Pane::Changes) => open_change(model),
        (key, Pane::Cells) => {
            let Some(movement) = movement(key, page_step(place.cell_rows)) else { return };
            let ids: Vec<&str> = model.cells().iter().map(|cell| cell.id.as_str()).collect();
            let at = ids.iter().position(|id| Some(*id) == model.selected_cell.as_deref());
            let next = moved(at, ids.len(), place.columns, &movement);
            model.selected_cell = next.map(|next| ids[next].to_owned());
        }
        (key, Pane::Changes) => {
            let Some(movement) = movement(key, page_step(place.change_rows)) else { return };
            let known: Vec<u64> = model.changes().iter().map(|change| change.generation).collect();
            let at = known.iter().position(|one| Some(*one) == model.selected_change);
            model.selected_change = moved(at, known.len(), 1, &movement).map(|next| known[next]);
        }
    }
}

/// Rows that Page Up and Page Down move by.
fn page_step(rows: u16) -> isize {
    isize::try_from(rows.max(2) - 1).unwrap_or(1)
}

/// The position after a move; the first move selects the first item.
fn moved(at: Option<usize>, items: usize, columns: usize, movement: &Move) -> Option<usize> {
    let last = items.checked_sub(1)?;
    let columns = isize::try_from(columns).unwrap_or(1);
    let step = |by: isize| match at {
        None => 0,
        Some(at) => at.saturating_add_signed(by).min(last),
    };
    Some(match movement {
        Move::Rows(rows) => step(rows * columns),
        Move::Items(items) => step(*items),
        Move::Start => 0,
        Move::End => last,
    })
}

fn open_cell(model: &mut Model) {
    let cells = model.cells();
    let selected = cells.iter().find(|cell| Some(&cell.id) == model.selected_cell.as_ref());
    let Some(id) = selected.or(cells.first()).map(|cell| cell.id.clone()) else { return };
    (model.selected_cell, model.page, model.scroll) = (Some(id.clone()), Page::Cell(id), 0);
}

fn open_change(model: &mut Model) {
    let changes = model.changes();
    let wanted = |change: &&&Change| Some(change.generation) == model.selected_change;
    let Some(change) = changes.iter().find(wanted).or(changes.first()) else { return };
    let generation = change.generation;
    (model.selected_change, model.scroll) = (Some(generation), 0);
    model.page = Page::Change(generation);
}

fn scroll(model: &mut Model, key: Key, now: Moment) {
    let rows = page::rows(model.size.1);
    let Some(movement) = movement(key, isize::try_from(rows).unwrap_or(1)) else { return };
    let theme = Theme { has_colour: false, is_ascii: true };
    let last = page::lines(model, now, theme).len().saturating_sub(rows);
    model.scroll = match movement {
        Move::Rows(by) => model.scroll.min(last).saturating_add_signed(by).min(last),
        Move::Items(_) => model.scroll,
        Move::Start => 0,
        Move::End => last,
    };
}
