//! The pages of one cell and of one change.

use std::time::Duration;

use ratatui_core::text::{Line, Span};

use super::{
    data::{Cell, Change, Container, Details},
    format::{ago, count, counts, millis, packets, plural},
    model::{Model, Moment, Page},
    overview::standing,
    paint::fit,
    theme::{Theme, columns},
};

/// Rows of a page in a terminal of this height.
pub(crate) fn rows(height: u16) -> usize {
    usize::from(height.saturating_sub(1))
}

/// All lines of the page; none for the overview.
pub(crate) fn lines(model: &Model, now: Moment, theme: Theme) -> Vec<Line<'static>> {
    match &model.page {
        Page::Overview => Vec::new(),
        Page::Cell(id) => match model.data().cell(id) {
            Some(cell) => cell_lines(model, now, theme, cell),
            None => vec![Line::raw("the policy store does not know this cell any more")],
        },
        Page::Change(generation) => match model.data().change(*generation) {
            Some(change) => change_lines(model, now, theme, change),
            None => vec![Line::raw("the policy store does not know this change any more")],
        },
    }
}

fn heading(theme: Theme, text: String) -> Line<'static> {
    Line::styled(text, theme.title())
}

fn fields(
    theme: Theme,
    fields: Vec<(&'static str, String)>,
) -> impl Iterator<Item = Line<'static>> {
    fields.into_iter().map(move |(name, value)| {
        Line::from(vec![Span::styled(format!("{name:<16}"), theme.title()), Span::raw(value)])
    })
}

fn cell_lines(model: &Model, now: Moment, theme: Theme, cell: &Cell) -> Vec<Line<'static>> {
    let data = model.data();
    let level = data.level(cell, now);
    let title = format!("{} {}: {}", level.symbol(), cell.name, level.meaning());
    let mut lines = vec![Line::styled(title, theme.level(level))];
    let reported = ago(data.age(cell.reported_at, now));
    lines.extend(fields(
        theme,
        vec![
            ("generation", format!("{} in force, {}", cell.generation, standing(model, now, cell))),
            ("last report", reported),
        ],
    ));
    match &cell.details {
        None => lines.push(Line::raw("this policy store does not know more of the cell")),
        Some(details) => lines.extend(detail_lines(model, now, theme, cell, details)),
    }
    lines.push(Line::default());
    lines.extend(container_lines(model, theme, cell));
    lines
}

fn detail_lines(
    model: &Model,
    now: Moment,
    theme: Theme,
    cell: &Cell,
    details: &Details,
) -> Vec<Line<'static>> {
    let data = model.data();
    let change = if cell.connected { "connected" } else { "disconnected" };
    let (allowed, denied) = data.rates(cell);
    let counters = details.counters.unwrap_or_default();
    let optional = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), millis);
    let mut lines: Vec<Line<'static>> = fields(
        theme,
        vec![
            (
                "connection",
                format!("{change} {}", ago(data.age(details.connection_changed_at, now))),
            ),
            ("agent", format!("{} {}", details.version, details.plane)),
            ("confirmed", ago(data.age(details.enforced_at, now))),
            ("apply time", optional(details.apply_time)),
            ("allowed", packets(counters.allowed, allowed)),
            ("denied", packets(counters.denied, denied)),
            ("unattributed", count(counters.unattributed)),
            ("drift healed", details.drift_healed.to_string()),
        ],
    )
    .collect();
    if details.last_error.is_empty() {
        lines.extend(fields(theme, vec![("last error", "-".to_owned())]));
    } else {
        lines.push(Line::from(vec![
            Span::styled(format!("{:<16}", "last error"), theme.title()),
            Span::styled(details.last_error.clone(), theme.alarm()),
        ]));
    }
    lines.push(Line::default());
    let total = details.isolated_total.into();
    lines.push(heading(theme, format!("{} isolated", plural(total, "rule"))));
    lines.extend(details.isolated.iter().map(|rule| {
        Line::raw(format!("  {} rule {}: {}", rule.group, rule.rule_index, rule.reason))
    }));
    let unshown = total.saturating_sub(details.isolated.len() as u64);
    lines.extend((unshown > 0).then(|| Line::raw(format!("  and {} more", count(unshown)))));
    lines
}

fn container_lines(model: &Model, theme: Theme, cell: &Cell) -> Vec<Line<'static>> {
    let Some(known) = model.data().containers(&cell.id) else {
        return vec![heading(theme, "containers ...".to_owned())];
    };
    let mut lines = vec![heading(theme, plural(known.total, "container"))];
    if !known.unknown.is_empty() {
        lines.push(Line::raw(format!("  {}", known.unknown)));
    }
    let row = |[handle, app, space, address]: [&str; 4], rest: String| {
        let guid = |text: &str| fit(text, 8);
        let (handle, app, space) = (guid(handle), guid(app), guid(space));
        Line::raw(format!("  {handle} {app} {space} {} {rest}", fit(address, 15)))
    };
    if !known.list.is_empty() {
        lines.push(row(["handle", "app", "space", "address"], "workload  rules  state".to_owned()));
    }
    let passes = |of: &&Container| model.passes([&*of.handle, &*of.app, &*of.space, &*of.address]);
    lines.extend(known.list.iter().filter(passes).map(|of| {
        let state = match (of.problem.as_str(), of.isolated_rules) {
            ("", 0) => "enforced".to_owned(),
            ("", isolated) => format!("{isolated} isolated"),
            (problem, _) => problem.to_owned(),
        };
        let rest = format!("{:<8} {:>6}  {state}", of.workload, of.rules);
        row([&of.handle, &of.app, &of.space, &of.address], rest)
    }));
    lines
}

fn change_lines(model: &Model, now: Moment, theme: Theme, change: &Change) -> Vec<Line<'static>> {
    let data = model.data();
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let optional = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), millis);
    let title = format!("change {}: {} groups", change.generation, counts(change));
    let mut lines = vec![heading(theme, title)];
    lines.extend(fields(
        theme,
        vec![
            ("committed", ago(data.age(change.committed_at, now))),
            ("by", or_dash(&change.owner)),
            ("trace id", or_dash(&change.trace)),
            ("enforced on", format!("{} of {} cells", change.enforced, change.cells)),
            (
                "after commit",
                format!(
                    "median {}, p99 {}, slowest {}",
                    optional(change.median),
                    optional(change.p99),
                    optional(change.slowest)
                ),
            ),
        ],
    ));
    lines.push(Line::default());
    lines.extend(hop_lines(model, now, theme, change));
    lines.push(Line::default());
    lines.push(heading(theme, "groups".to_owned()));
    let groups = change.groups.iter().filter(|group| model.passes([&*group.name, &*group.guid]));
    lines.extend(groups.map(|group| {
        Line::raw(format!("  {} {}  {}", group.sign, fit(&group.name, 36), group.guid))
    }));
    let unshown =
        (change.added + change.changed + change.removed).saturating_sub(change.groups.len() as u64);
    lines.extend((unshown > 0).then(|| Line::raw(format!("  and {} more", count(unshown)))));
    lines.push(Line::default());
    lines.push(heading(theme, "slowest cells".to_owned()));
    lines.extend(change.slowest_cells.iter().map(|cell| {
        let time = match (cell.after, cell.connected) {
            (Some(time), _) => millis(time),
            (None, true) => "not yet".to_owned(),
            (None, false) => "not connected".to_owned(),
        };
        Line::raw(format!("  {} {time:>13}", fit(&cell.name, 36)))
    }));
    lines
}

/// A bar for each hop, each beginning where the one before ends.
fn hop_lines(model: &Model, now: Moment, theme: Theme, change: &Change) -> Vec<Line<'static>> {
    let hops = change.hops(model.data().clock(now));
    let width = usize::from(model.size.0).saturating_sub(32);
    let total = hops.total();
    let mut start = Duration::ZERO;
    let mut lines = Vec::new();
    for (at, (name, time)) in hops.all().into_iter().enumerate() {
        let shown = time.map_or_else(|| "unknown".to_owned(), millis);
        let mut line = Line::from(vec![
            Span::styled(format!("  {name:<14}"), theme.title()),
            Span::raw(format!("{shown:>10}  ")),
        ]);
        if let Some(time) = time {
            let before = columns(start, total, width);
            let (character, style) = theme.hop(at);
            let length = columns(time, total, width).clamp(1, (width - before).max(1));
            line.push_span(Span::raw(" ".repeat(before.min(width.saturating_sub(1)))));
            line.push_span(Span::styled(character.repeat(length), style));
            start += time;
        }
        lines.push(line);
    }
    let what = if change.is_complete() { "total" } else { "so far" };
    lines.push(Line::from(vec![
        Span::styled(format!("  {what:<14}"), theme.title()),
        Span::raw(format!("{:>10}", millis(total))),
    ]));
    lines
}
