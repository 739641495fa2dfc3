//! The state to the cells of a terminal.

use ratatui_core::{
    buffer::Buffer,
    style::{Modifier, Style},
    text::{Line, Span},
};

use super::{
    data::Level,
    format::{ago, count, packets, plural, span},
    keys, layout,
    lines::leader,
    model::{Model, Moment, Page, Pane},
    overview, page,
    paint::Painter,
    theme::Theme,
};

/// Draws everything.
pub(crate) fn draw(model: &Model, now: Moment, theme: Theme, buffer: &mut Buffer) {
    let area = buffer.area;
    if area.width < layout::SMALLEST.0 || area.height < layout::SMALLEST.1 {
        let (width, height) = layout::SMALLEST;
        let text = format!("needs {width} x {height}");
        return Painter::new(buffer, area).line(&Line::raw(text));
    }
    let mut painter = Painter::new(buffer, area);
    if model.shows_help {
        help(theme, &mut painter);
    } else {
        match &model.page {
            Page::Overview => {
                header(model, now, theme, &mut painter);
                overview::draw(model, now, theme, &mut painter);
            }
            Page::Cell(_) | Page::Change(_) => details(model, now, theme, &mut painter),
        }
    }
    painter.skip_to(area.height - 1);
    painter.bar(&Line::raw(footer(model)), Theme::selected());
    if model.is_paused() {
        painter.right(&Span::styled(" PAUSED ", Theme::selected().add_modifier(Modifier::BOLD)));
    }
}

fn field(theme: Theme, name: &str, value: String) -> Line<'static> {
    Line::from(vec![Span::styled(format!("{name:<10}"), theme.title()), Span::raw(value)])
}

fn header(model: &Model, now: Moment, theme: Theme, painter: &mut Painter<'_>) {
    let data = model.data();
    let title = format!("portcullis {}", model.address);
    painter.line(&Line::styled(title, Style::new().add_modifier(Modifier::BOLD)));
    if let Some(age) = data.store_age(now) {
        painter.right(&Span::raw(format!("{} old", span(age))));
    }
    let mut line = field(theme, "leader", leading(model, now));
    if let Some(remark) = disagreement(model) {
        line.push_span(Span::styled(format!("; {remark}"), theme.alarm()));
    }
    painter.line(&line);
    let census = data.census(now);
    let store = data.store().map_or_else(
        || "no data yet".to_owned(),
        |store| {
            let watermark = ago(data.age(store.watermark, now));
            let synced = ago(data.age(store.synced_at, now));
            let groups = plural(store.groups, "group");
            format!(
                "generation {}, {groups}; watermark {watermark}, synced {synced}",
                store.generation
            )
        },
    );
    painter.line(&field(theme, "store", store));
    let cells = format!(
        "{} of {} connected, {} behind; {}; isolated: {}",
        count(census.connected),
        count(census.cells),
        count(census.behind()),
        plural(census.containers, "container"),
        plural(census.isolated_rules, "rule"),
    );
    painter.line(&field(theme, "cells", cells));
    let traffic = data.traffic();
    let text = if traffic.is_known {
        let ((allowed, allowed_rate), (denied, denied_rate)) = (traffic.allowed, traffic.denied);
        let unattributed = count(traffic.unattributed);
        let allowed = packets(allowed, allowed_rate);
        let denied = packets(denied, denied_rate);
        format!("allowed {allowed}, denied {denied}, unattributed {unattributed}")
    } else {
        "no cell reports packet counters".to_owned()
    };
    painter.line(&field(theme, "packets", text));
    for problem in data.problems(now) {
        painter.line(&Line::styled(problem, theme.alarm()));
    }
}

fn leading(model: &Model, now: Moment) -> String {
    match model.data().leader() {
        Some(held) => leader(held, now),
        None if model.data().knows_locks() => "none: the leader lock is free".to_owned(),
        None => "unknown: no answer of the lock server yet".to_owned(),
    }
}

/// The lock server does not know standbys. Another writer than the owner has either lost the
/// lock, or the owner has not synced yet.
fn disagreement(model: &Model) -> Option<String> {
    let owner = &model.data().leader()?.owner;
    let writer = model.data().store()?.writer.as_ref()?;
    let same_token = owner.token.is_none() || owner.token == writer.token;
    if writer.name == owner.name && same_token {
        return None;
    }
    let token = writer.token.map(|token| format!(" (token {token})")).unwrap_or_default();
    Some(format!("last sync by {}{token}", writer.name))
}

fn details(model: &Model, now: Moment, theme: Theme, painter: &mut Painter<'_>) {
    let lines = page::lines(model, now, theme);
    let rows = page::rows(model.size.1);
    let scroll = model.scroll.min(lines.len().saturating_sub(rows));
    for line in lines.iter().skip(scroll).take(rows) {
        painter.line(line);
    }
}

fn footer(model: &Model) -> String {
    if model.is_typing {
        return format!("/{}_  Enter: keep, Esc: clear", model.filter);
    }
    let filter = match model.filter.as_str() {
        "" => "/ filter".to_owned(),
        filter => format!("/{filter}"),
    };
    let keys = match (model.shows_help, &model.page, model.pane) {
        (true, ..) => "any key: back  q quit".to_owned(),
        (_, Page::Overview, Pane::Cells) => {
            format!("? help  {filter}  p pause  Tab changes  Enter cell  q quit")
        }
        (_, Page::Overview, Pane::Changes) => {
            format!("? help  {filter}  p pause  Tab cells  Enter change  q quit")
        }
        (_, Page::Cell(_) | Page::Change(_), _) => {
            format!("Esc back  ? help  {filter}  p pause  arrows scroll  q quit")
        }
    };
    format!(" {keys}")
}

fn help(theme: Theme, painter: &mut Painter<'_>) {
    painter.line(&Line::styled("Keys", theme.title()));
    for (key, meaning) in keys::HELP {
        painter.line(&Line::raw(format!("  {key:<14} {meaning}")));
    }
    painter.line(&Line::styled("Cells", theme.title()));
    for level in Level::ALL {
        let symbol = Span::styled(format!("  {} ", level.symbol()), theme.level(level));
        painter.line(&Line::from(vec![symbol, Span::raw(level.meaning())]));
    }
}
