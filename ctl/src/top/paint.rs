//! Writes lines into a buffer.

use ratatui_core::{
    buffer::Buffer,
    layout::Rect,
    style::Style,
    text::{Line, Span},
};

/// Writes one line below the other, as long as there is room.
#[derive(Debug)]
pub(crate) struct Painter<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    row: u16,
}

impl<'a> Painter<'a> {
    /// Begins at the top of the area.
    pub(crate) fn new(buffer: &'a mut Buffer, area: Rect) -> Self {
        Self { row: area.y, buffer, area }
    }

    /// Writes a line; a too long one is cut.
    pub(crate) fn line(&mut self, line: &Line<'_>) {
        if self.row < self.area.bottom() {
            self.buffer.set_line(self.area.x, self.row, line, self.area.width);
        }
        self.row += 1;
    }

    /// Writes a line in reverse video over the whole width.
    pub(crate) fn bar(&mut self, line: &Line<'_>, style: Style) {
        let row = Rect { y: self.row, height: 1, ..self.area }.intersection(self.area);
        self.line(line);
        self.buffer.set_style(row, style);
    }

    /// Writes at the right end of the line that was written last.
    pub(crate) fn right(&mut self, text: &Span<'_>) {
        let width = u16::try_from(text.width()).unwrap_or(u16::MAX).min(self.area.width);
        let row = self.row.saturating_sub(1);
        if (self.area.y..self.area.bottom()).contains(&row) {
            self.buffer.set_span(self.area.right() - width, row, text, width);
        }
    }

    /// Skips to a row of the area.
    pub(crate) fn skip_to(&mut self, row: u16) {
        self.row = self.area.y + row;
    }
}

/// The text in exactly so many columns: cut or filled.
pub(crate) fn fit(text: &str, width: usize) -> String {
    let mut fitted = String::with_capacity(width);
    let mut used = 0;
    for c in text.chars() {
        let columns = Span::raw(c.to_string()).width();
        if used + columns > width {
            break;
        }
        used += columns;
        fitted.push(c);
    }
    fitted.push_str(&" ".repeat(width - used));
    fitted
}
