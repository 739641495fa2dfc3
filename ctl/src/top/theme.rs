//! Colours and characters of the view.

use std::time::Duration;

use ratatui_core::{
    style::{Color, Modifier, Style},
    text::Span,
};

use super::data::{Hops, Level};

/// Whether the terminal shows colours and characters beyond ASCII.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Theme {
    pub(crate) has_colour: bool,
    pub(crate) is_ascii: bool,
}

const HOP_COLOURS: [Color; 4] = [Color::Blue, Color::Cyan, Color::Magenta, Color::Green];

impl Theme {
    /// A colour as foreground, if there are colours.
    pub(crate) fn colour(self, colour: Color) -> Style {
        if self.has_colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// Of titles and names of fields.
    pub(crate) fn title(self) -> Style {
        self.colour(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// Of things that need attention.
    pub(crate) fn alarm(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// Of a selected row or cell.
    pub(crate) fn selected() -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Of a cell.
    pub(crate) fn level(self, level: Level) -> Style {
        match level {
            Level::Lost | Level::Failing | Level::Late => self.alarm(),
            Level::Behind | Level::Slow | Level::Isolating => self.colour(Color::Yellow),
            Level::Current => self.colour(Color::Green),
        }
    }

    /// The horizontal line of titles.
    pub(crate) fn rule(self) -> &'static str {
        if self.is_ascii { "-" } else { "─" }
    }

    /// Character and style of the bar of a hop, by its position.
    pub(crate) fn hop(self, hop: usize) -> (&'static str, Style) {
        let shades =
            if self.is_ascii { [":", "=", "%", "#"] } else { ["░", "▒", "▓", "█"] };
        (shades[hop % 4], self.colour(HOP_COLOURS[hop % 4]))
    }

    /// The hops as one bar; `longest` fills the width. A known hop has one column at least.
    pub(crate) fn bar(self, hops: &Hops, longest: Duration, width: usize) -> Vec<Span<'static>> {
        let hops = hops.all().into_iter().enumerate();
        let known: Vec<_> = hops.filter_map(|(at, (_, time))| Some((at, time?))).collect();
        let mut left = width;
        let mut spans = Vec::new();
        for (n, (at, time)) in known.iter().enumerate() {
            let for_later = known.len() - n - 1;
            let most = left.saturating_sub(for_later);
            let columns = columns(*time, longest, width).max(1).min(most);
            left -= columns;
            let (character, style) = self.hop(*at);
            spans.push(Span::styled(character.repeat(columns), style));
        }
        spans.push(Span::raw(" ".repeat(left)));
        spans
    }
}

/// Columns of a time in a bar.
pub(crate) fn columns(time: Duration, longest: Duration, width: usize) -> usize {
    let share = time.as_secs_f64() / longest.as_secs_f64().max(0.001);
    // The share is at most 1 and the width that of a terminal.
    (share.clamp(0.0, 1.0) * width as f64).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_the_width_of_its_column() {
        let theme = Theme { has_colour: false, is_ascii: true };
        let ms = |millis| Some(Duration::from_millis(millis));
        for (hops, expected) in [
            (
                Hops { notice: ms(250), read: ms(10), commit: ms(40), enforce: ms(100) },
                "::::::=%##",
            ),
            (Hops { notice: None, read: None, commit: ms(400), enforce: ms(100) }, "%%%%%%%%%#"),
            (Hops { notice: ms(9_000), read: ms(1), commit: ms(1), enforce: ms(1) }, ":::::::=%#"),
            (Hops::default(), ""),
        ] {
            let bar = theme.bar(&hops, Duration::from_millis(400), 10);
            let text: String = bar.iter().map(|span| span.content.as_ref()).collect();
            assert_eq!(text.len(), 10, "{text:?}");
            assert_eq!(text.trim_end(), expected);
        }
    }
}
