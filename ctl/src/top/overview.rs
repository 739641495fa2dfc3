//! Changes and cells of the overview.

use std::time::Duration;

use ratatui_core::text::{Line, Span};

use super::{
    data::{Cell, Change, Level},
    format::{counts, millis, span},
    layout::{Needs, Overview, Shape, offset},
    model::{Census, Model, Moment, Pane},
    paint::{Painter, fit},
    theme::Theme,
};

/// Columns of a change without its bar and the names of its groups.
const CHANGE: usize = 61;

/// Terminals from this width show the names of a change's groups.
const WIDE: u16 = 110;

/// The rows of the overview.
pub(crate) fn place(model: &Model, now: Moment) -> Overview {
    let cells = model.cells();
    let longest = cells.iter().map(|cell| cell.name.chars().count()).max();
    Overview::new(Needs {
        size: model.size,
        problems: u16::try_from(model.data().problems(now).len()).unwrap_or(0),
        changes: model.changes().len(),
        cells: cells.len(),
        longest_name: longest.unwrap_or(0),
    })
}

/// Draws the changes and the cells below the header.
pub(crate) fn draw(model: &Model, now: Moment, theme: Theme, painter: &mut Painter<'_>) {
    let place = place(model, now);
    changes(model, now, theme, place, painter);
    cells(model, now, theme, place, painter);
}

/// A title over the whole width, with text at its right end.
fn title(model: &Model, theme: Theme, left: Vec<Span<'static>>, right: String) -> Line<'static> {
    let width = usize::from(model.size.0);
    let used: usize = left.iter().map(Span::width).sum();
    let right = Span::raw(right);
    let rule = theme.rule().repeat(width.saturating_sub(used + right.width() + 2));
    let mut line = Line::from(left);
    line.push_span(Span::raw(format!(" {rule} ")));
    line.push_span(right);
    line
}

fn pane(model: &Model, theme: Theme, pane: Pane, name: &'static str) -> Span<'static> {
    let marker = if model.pane == pane { ">" } else { " " };
    Span::styled(format!("{marker}{name}"), theme.title())
}

fn changes(model: &Model, now: Moment, theme: Theme, place: Overview, painter: &mut Painter<'_>) {
    let mut left = vec![pane(model, theme, Pane::Changes, "changes ")];
    for (at, name) in ["noticed", "read", "committed", "enforced"].into_iter().enumerate() {
        let (character, style) = theme.hop(at);
        left.push(Span::styled(format!(" {character}"), style));
        left.push(Span::raw(name));
    }
    left.push(Span::raw(" ms"));
    painter.line(&title(model, theme, left, "cells  total".to_owned()));

    let changes = model.changes();
    let rows = usize::from(place.change_rows);
    let selected =
        changes.iter().position(|change| Some(change.generation) == model.selected_change);
    let first = offset(selected.unwrap_or(0), rows);
    let shown = &changes[first.min(changes.len())..(first + rows).min(changes.len())];
    let clock = model.data().clock(now);
    let longest = shown.iter().filter(|change| change.is_complete());
    let longest = longest.map(|change| change.hops(clock).total()).max();
    let longest = longest.unwrap_or(Duration::from_secs(1));
    for row in 0..rows {
        match shown.get(row) {
            Some(change) => {
                let line = change_line(model, now, theme, change, longest);
                let is_selected = model.pane == Pane::Changes && Some(first + row) == selected;
                if is_selected {
                    painter.bar(&line, Theme::selected());
                } else {
                    painter.line(&line);
                }
            }
            None if row == 0 => painter.line(&Line::raw(format!("  {}", no_changes(model)))),
            None => painter.line(&Line::default()),
        }
    }
}

fn no_changes(model: &Model) -> &'static str {
    if model.data().lacks_changes() {
        "this policy store is older and does not report changes"
    } else if model.filter.is_empty() {
        "no change since this policy store started"
    } else {
        "no change of such a group"
    }
}

fn change_line(
    model: &Model,
    now: Moment,
    theme: Theme,
    change: &Change,
    longest: Duration,
) -> Line<'static> {
    let width = usize::from(model.size.0);
    let clock = model.data().clock(now);
    let age = model.data().age(change.committed_at, now).map(age).unwrap_or_default();
    let hops = change.hops(clock);
    let mut line =
        Line::raw(format!("{:>6} {age:>6} {} ", change.generation, fit(&counts(change), 9)));
    let names = if model.size.0 >= WIDE { (width - CHANGE) / 2 } else { 0 };
    if names > 0 {
        let groups = change.groups.iter().map(|group| group.name.as_str());
        let groups = groups.collect::<Vec<_>>().join(", ");
        line.push_span(Span::raw(fit(&groups, names - 1) + " "));
    }
    for (at, (_, time)) in hops.all().into_iter().enumerate() {
        let (_, style) = theme.hop(at);
        line.push_span(Span::styled(
            format!("{:>4} ", time.map_or_else(|| "-".to_owned(), short)),
            style,
        ));
    }
    let bar = width.saturating_sub(CHANGE + names);
    line.extend(theme.bar(&hops, longest, bar));
    let cells = format!(" {:>9}", format!("{}/{}", change.enforced, change.cells));
    let style =
        if change.is_complete() { theme.level(Level::Current) } else { theme.level(Level::Behind) };
    line.push_span(Span::styled(cells, style));
    let total = if change.is_complete() { short(hops.total()) } else { "...".to_owned() };
    line.push_span(Span::raw(format!(" {total:>6}")));
    line
}

/// Milliseconds in four columns; from 10 s on with a unit.
fn short(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        time.as_millis().to_string()
    } else if time < Duration::from_secs(1_000) {
        format!("{}s", time.as_secs())
    } else {
        span(time)
    }
}

/// An age in whole seconds at most.
fn age(age: Duration) -> String {
    if age < Duration::from_secs(60) { format!("{}s", age.as_secs()) } else { span(age) }
}

fn cells(model: &Model, now: Moment, theme: Theme, place: Overview, painter: &mut Painter<'_>) {
    let cells = model.cells();
    let selected = cells.iter().position(|cell| Some(&cell.id) == model.selected_cell.as_ref());
    let selected = selected.filter(|_| model.pane == Pane::Cells);
    let census = model.data().census(now);
    let mut left = vec![pane(model, theme, Pane::Cells, "cells ")];
    left.extend(legend(theme, &census));
    let right = match (selected.and_then(|at| cells.get(at)), place.shape) {
        (Some(cell), Shape::Names { .. } | Shape::Symbols) => summary(model, now, cell),
        _ => String::new(),
    };
    painter.line(&title(model, theme, left, right));
    let rows = usize::from(place.cell_rows);
    match place.shape {
        Shape::Table => {
            painter.line(&Line::raw(HEADING));
            let rows = rows.saturating_sub(1);
            let first = offset(selected.unwrap_or(0), rows);
            for (at, cell) in cells.iter().enumerate().skip(first).take(rows) {
                let line = cell_row(model, now, theme, cell);
                if Some(at) == selected {
                    painter.bar(&line, Theme::selected());
                } else {
                    painter.line(&line);
                }
            }
        }
        Shape::Names { .. } | Shape::Symbols => {
            let first = offset(selected.map_or(0, |at| at / place.columns), rows) * place.columns;
            let shown = cells.get(first..).unwrap_or_default();
            for (row, chunk) in shown.chunks(place.columns).take(rows).enumerate() {
                let start = first + row * place.columns;
                let mut line = Line::raw(" ");
                for (at, cell) in chunk.iter().enumerate() {
                    let is_selected = Some(start + at) == selected;
                    line.push_span(grid_cell(model, now, theme, place.shape, cell, is_selected));
                }
                painter.line(&line);
            }
        }
    }
    if cells.is_empty() && model.data().store().is_some() {
        let text = if model.filter.is_empty() { "no cell ever reported" } else { "no such cell" };
        painter.line(&Line::raw(format!("  {text}")));
    }
}

fn legend(theme: Theme, census: &Census) -> Vec<Span<'static>> {
    let levels = census.levels.iter().rev();
    levels
        .map(|(level, cells)| {
            Span::styled(format!(" {} {cells}", level.symbol()), theme.level(*level))
        })
        .collect()
}

fn grid_cell(
    model: &Model,
    now: Moment,
    theme: Theme,
    shape: Shape,
    cell: &Cell,
    is_selected: bool,
) -> Span<'static> {
    let level = model.data().level(cell, now);
    let mut style = theme.level(level);
    if is_selected {
        style = style.patch(Theme::selected());
    }
    let text = match shape {
        Shape::Names { width } => {
            let name = fit(&cell.name, usize::from(width).saturating_sub(3));
            format!("{} {name} ", level.symbol())
        }
        Shape::Symbols | Shape::Table => level.symbol().to_string(),
    };
    Span::styled(text, style)
}

/// The state of a cell in one line.
fn summary(model: &Model, now: Moment, cell: &Cell) -> String {
    let isolated = match cell.isolated_rules {
        0 => String::new(),
        rules => format!(", {rules} isolated"),
    };
    format!(
        "{}: {}, {} containers{isolated}",
        cell.name,
        standing(model, now, cell),
        cell.containers
    )
}

/// The lag of an up-to-date cell, or how long the cell is behind or gone.
pub(crate) fn standing(model: &Model, now: Moment, cell: &Cell) -> String {
    let data = model.data();
    let released = data.store().map_or(0, |store| store.released);
    let details = cell.details.as_ref();
    if !cell.connected {
        let since = details.and_then(|details| details.connection_changed_at);
        let gone = data.age(since.or(cell.reported_at), now);
        return gone.map_or_else(|| "gone".to_owned(), |gone| format!("gone {}", age(gone)));
    }
    if cell.generation < released {
        let behind = released - cell.generation;
        let time = cell.behind_for(data.clock(now)).map(|time| format!(" {}", span(time)));
        return format!("-{behind}{}", time.unwrap_or_default());
    }
    details.and_then(|details| details.lag).map_or_else(|| "-".to_owned(), millis)
}

const HEADING: &str =
    "   cell               generation        lag  report containers isolated  denied";

fn cell_row(model: &Model, now: Moment, theme: Theme, cell: &Cell) -> Line<'static> {
    let data = model.data();
    let level = data.level(cell, now);
    let report = data.age(cell.reported_at, now).map_or_else(|| "-".to_owned(), age);
    let denied = cell.details.as_ref().and_then(|details| details.counters?.denied);
    let denied = denied.map_or_else(|| "-".to_owned(), |denied| denied.to_string());
    let details = cell.details.as_ref();
    let remark = details.map_or_else(String::new, |details| match details.last_error.as_str() {
        "" => format!("{} {}", details.plane, details.version),
        error => error.to_owned(),
    });
    Line::from(vec![
        Span::styled(format!(" {} {}", level.symbol(), fit(&cell.name, 18)), theme.level(level)),
        Span::raw(format!(
            " {:>10} {:>10} {report:>7} {:>10} {:>8} {denied:>7}  {remark}",
            cell.generation,
            standing(model, now, cell),
            cell.containers,
            cell.isolated_rules,
        )),
    ])
}
