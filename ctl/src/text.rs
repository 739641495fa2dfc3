//! Records as text: tables, and one line per field.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use jiff::Timestamp;

use crate::{
    escape,
    field::{Column, Entry, Row, Shown, Tone, Value},
};

/// Columns whose content is narrower than this are never wrapped.
const NARROW: u16 = 16;

/// Properties of the terminal, and the flags for text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) now: Timestamp,
    /// Columns of the terminal, if the output is one.
    pub(crate) width: Option<u16>,
    pub(crate) wide: bool,
    pub(crate) headers: bool,
    pub(crate) color: bool,
}

/// A table; one line per field if the terminal is too narrow for a readable table.
pub(crate) fn list(columns: &[Column], rows: &[Row], screen: Screen) -> String {
    if rows.is_empty() {
        return if screen.headers { "none\n".to_owned() } else { String::new() };
    }
    let shown = |column: Column| match column.shown {
        Shown::Always => true,
        Shown::Wide => screen.wide,
        Shown::Data => false,
    };
    let headings = columns.iter().filter(|column| shown(**column)).map(|column| column.heading());
    let cells = rows.iter().map(|row| {
        let entries = row.iter().filter(|entry| shown(entry.column));
        entries.map(|entry| cell(entry, screen)).collect()
    });
    let text = table(headings.collect(), cells.collect(), screen);
    paint(text.unwrap_or_else(|| {
        let records = rows.iter().map(|row| lines(row, screen, false));
        records.collect::<Vec<_>>().join("\n")
    }))
}

/// A table of some fields, with values as in JSON.
pub(crate) fn fields(names: &[String], rows: Vec<Vec<String>>, screen: Screen) -> String {
    let cells = |row: Vec<String>| row.iter().map(|text| escape::escape(text).into()).collect();
    let screen = Screen { width: None, ..screen };
    let rows = rows.into_iter().map(cells).collect();
    table(names.to_vec(), rows, screen).unwrap_or_default()
}

/// `None` if the terminal is too narrow for a readable table.
fn table(headings: Vec<String>, rows: Vec<Vec<String>>, screen: Screen) -> Option<String> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).add_rows(rows);
    if screen.headers {
        table.set_header(headings);
    }
    let widths = table.column_max_content_widths();
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let needed = |most: u16| -> usize {
        widths.iter().map(|width| usize::from(*width.min(&most)) + 2).sum()
    };
    if let Some(width) = screen.width.filter(|width| needed(u16::MAX) > usize::from(*width)) {
        if needed(NARROW) > usize::from(width) {
            return None;
        }
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        for (column, width) in table.column_iter_mut().zip(&widths) {
            if *width <= NARROW {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    Some(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// The items of a list on one line.
fn cell(entry: &Entry, screen: Screen) -> String {
    let lines = entry.lines(screen.now);
    let text = if lines.is_empty() { "-" } else { &lines.join(", ") };
    let text = escape::escape(text);
    // A long text may be wrapped, which would colour the next column.
    let tone = if text.len() > usize::from(NARROW) { Tone::Plain } else { entry.tone };
    toned(&text, tone, screen)
}

/// One record: one line per field, the items of a list on separate lines, then the tables of
/// the fields that have records. A brief record has no absent fields.
pub(crate) fn record(row: &Row, screen: Screen, brief: bool) -> String {
    paint(lines(row, screen, brief))
}

fn lines(row: &Row, screen: Screen, brief: bool) -> String {
    let shown = || row.iter().filter(|entry| entry.column.shown != Shown::Data);
    let lines: Vec<(&Entry, Vec<String>)> = shown()
        .filter(|entry| !matches!(entry.value, Some(Value::Rows(_))))
        .map(|entry| (entry, entry.lines(screen.now)))
        .filter(|(_, lines)| !brief || !lines.is_empty())
        .collect();
    let width = lines.iter().map(|(entry, _)| entry.column.heading().len()).max().unwrap_or(0);
    let mut text = String::new();
    for (entry, lines) in lines {
        let lines = if lines.is_empty() { vec!["-".to_owned()] } else { lines };
        for (n, line) in lines.iter().enumerate() {
            if screen.headers {
                let heading = if n == 0 { entry.column.heading() } else { String::new() };
                text += &format!("{heading:width$}  ");
            }
            text += &toned(&escape::escape(line), entry.tone, screen);
            text.push('\n');
        }
    }
    for entry in shown() {
        if let Some(Value::Rows(rows)) = &entry.value
            && !(brief && rows.is_empty())
        {
            let columns: Vec<Column> = rows
                .first()
                .map(|row| row.iter().map(|entry| entry.column).collect())
                .unwrap_or_default();
            let heading = entry.column.heading();
            text += &if screen.headers { format!("\n{heading}:\n") } else { "\n".to_owned() };
            text += &list(&columns, rows, screen);
        }
    }
    text
}

/// Invisible characters that begin and end a colour until [`paint`] replaces them. They have
/// no width, so that tables can be computed with them, and no escaped text contains them.
const MARKS: [(char, &str); 4] = [
    ('\u{2061}', "\u{1b}[32m"),
    ('\u{2062}', "\u{1b}[33m"),
    ('\u{2063}', "\u{1b}[31m"),
    ('\u{2064}', "\u{1b}[0m"),
];

fn toned(text: &str, tone: Tone, screen: Screen) -> String {
    let begin = match tone {
        Tone::Good => MARKS[0].0,
        Tone::Warning => MARKS[1].0,
        Tone::Bad => MARKS[2].0,
        Tone::Plain => return text.to_owned(),
    };
    if screen.color { format!("{begin}{text}{}", MARKS[3].0) } else { text.to_owned() }
}

fn paint(text: String) -> String {
    MARKS.iter().fold(
        text,
        |text, (mark, code)| {
            if text.contains(*mark) { text.replace(*mark, code) } else { text }
        },
    )
}
