//! The result of a command, printed as text or JSON.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use jiff::Timestamp;

use crate::{
    connect::Refused,
    escape,
    field::{Entry, Field},
};

/// Columns whose content is narrower than this are never wrapped.
const NARROW: u16 = 16;

/// Records of one kind. JSON output has one object for each; text output is a table, or
/// for a single record one line per field.
#[derive(Debug)]
pub(crate) struct Report {
    headings: Vec<String>,
    rows: Vec<Vec<Entry>>,
    shape: Shape,
    /// The server's clock, from which ages count; the local clock if unknown.
    now: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    List,
    Record,
    /// A record without absent fields.
    Brief,
    /// A record that only text output shows.
    Heading,
}

/// Properties of the terminal.
#[derive(Debug, Clone, Copy)]
struct Screen {
    now: Timestamp,
    /// Columns of the terminal, if the output is one.
    width: Option<u16>,
}

impl Report {
    fn new<T>(fields: &[Field<T>], things: impl IntoIterator<Item = T>, shape: Shape) -> Self {
        let shown = fields.iter().filter(|field| field.is_shown());
        let row = |thing| fields.iter().map(|field| field.of(&thing)).collect();
        Self {
            headings: shown.map(Field::heading).collect(),
            rows: things.into_iter().map(row).collect(),
            shape,
            now: None,
        }
    }

    /// A report of several records.
    pub(crate) fn list<T>(fields: &[Field<T>], things: impl IntoIterator<Item = T>) -> Self {
        Self::new(fields, things, Shape::List)
    }

    /// A report of one record.
    pub(crate) fn record<T>(fields: &[Field<T>], thing: T) -> Self {
        Self::new(fields, [thing], Shape::Record)
    }

    /// A report of one record; text output omits absent fields.
    pub(crate) fn brief<T>(fields: &[Field<T>], thing: T) -> Self {
        Self::new(fields, [thing], Shape::Brief)
    }

    /// A record that introduces another report; not in JSON.
    pub(crate) fn heading<T>(fields: &[Field<T>], thing: T) -> Self {
        Self::new(fields, [thing], Shape::Heading)
    }

    /// Sets the time from which ages count.
    pub(crate) fn at(self, now: Option<Timestamp>) -> Self {
        Self { now, ..self }
    }

    /// Prints to stdout.
    pub(crate) fn print(self, json: bool) -> anyhow::Result<()> {
        if json {
            return write(&self.to_json());
        }
        let terminal = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
        let width = terminal.map(|(terminal_size::Width(width), _)| width);
        write(&self.to_text(Screen { now: self.now.unwrap_or_else(Timestamp::now), width }))
    }

    /// One object per line, with the keys in field order.
    pub(crate) fn to_json(&self) -> String {
        let object = |row: &Vec<Entry>| {
            let members: Vec<String> =
                row.iter().map(|entry| format!("\"{}\":{}", entry.key, entry.json())).collect();
            format!("{}\n", escape::json(&format!("{{{}}}", members.join(","))))
        };
        match self.shape {
            Shape::Heading => String::new(),
            Shape::List | Shape::Record | Shape::Brief => self.rows.iter().map(object).collect(),
        }
    }

    fn to_text(&self, screen: Screen) -> String {
        let records = || -> Vec<String> {
            self.rows.iter().map(|row| record(row, screen, self.shape)).collect()
        };
        match self.shape {
            Shape::List if self.rows.is_empty() => "none\n".to_owned(),
            Shape::List => self.table(screen).unwrap_or_else(|| records().join("\n")),
            Shape::Record | Shape::Brief => records().concat(),
            Shape::Heading => records().concat() + "\n",
        }
    }

    /// `None` if the terminal is too narrow for a readable table.
    fn table(&self, screen: Screen) -> Option<String> {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(&self.headings);
        for row in &self.rows {
            table.add_row(shown(row).map(|entry| cell(entry, screen.now)));
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
        Some(lines.join("\n") + "\n")
    }
}

fn shown(row: &[Entry]) -> impl Iterator<Item = &Entry> {
    row.iter().filter(|entry| !entry.only_json)
}

/// The items of a list on one line.
fn cell(entry: &Entry, now: Timestamp) -> String {
    let lines = entry.lines(now);
    if lines.is_empty() { "-".to_owned() } else { escape::escape(&lines.join(", ")).into_owned() }
}

/// The items of a list on separate lines.
fn record(row: &[Entry], screen: Screen, shape: Shape) -> String {
    let lines: Vec<(String, Vec<String>)> = shown(row)
        .map(|entry| (entry.heading(), entry.lines(screen.now)))
        .filter(|(_, lines)| shape != Shape::Brief || !lines.is_empty())
        .collect();
    let width = lines.iter().map(|(heading, _)| heading.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (heading, lines) in lines {
        let lines = if lines.is_empty() { vec!["-".to_owned()] } else { lines };
        for (n, line) in lines.iter().enumerate() {
            let heading = if n == 0 { heading.as_str() } else { "" };
            text += &format!("{heading:width$}  {}\n", escape::escape(line));
        }
    }
    text
}

/// Prints one line immediately, for streamed output. The text is escaped already.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    write(&format!("{text}\n"))
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints the final error: one line on stderr with all causes, or an object with
/// `--json`.
#[expect(clippy::print_stderr, reason = "the end of the program, for its user")]
pub(crate) fn complain(error: &anyhow::Error, json: bool) {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<Refused>());
    if json {
        let text = serde_json::json!({
            "error": format!("{error:#}"),
            "code": code.map(|refused| refused.code.as_str()),
        });
        eprintln!("{}", escape::json(&text.to_string()));
    } else {
        let code = code.map(|refused| format!(" (rpc error: code = {})", refused.code));
        let text = format!("{error:#}{}", code.unwrap_or_default());
        eprintln!("portcullisctl: {}", escape::escape(&text));
    }
}

/// Prints a warning.
#[expect(clippy::print_stderr, reason = "a remark for the user, beside what is printed")]
pub(crate) fn warn(text: &str) {
    eprintln!("portcullisctl: {}", escape::escape(text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::moment;

    struct Thing {
        name: &'static str,
        spaces: Vec<String>,
    }

    const FIELDS: &[Field<Thing>] = &[
        Field::text("name", |thing| thing.name.to_owned()),
        Field::texts("spaces", |thing| thing.spaces.clone()),
        Field::integer("behind_seconds", |_| None),
        Field::time("reported_at", |_| moment(88, 5)),
        Field::boolean("well", |_| true),
        Field::text("code", |_| "7".to_owned()).only_json(),
    ];

    fn things() -> Report {
        Report::list(
            FIELDS,
            [
                Thing { name: "long enough to wrap it", spaces: vec!["a".into(), "b".into()] },
                Thing { name: "\u{1b}[31m", spaces: vec![] },
            ],
        )
    }

    fn screen(width: Option<u16>) -> Screen {
        Screen { now: moment(100, 0).unwrap(), width }
    }

    #[test]
    fn people_get_columns_in_the_order_of_the_fields() {
        assert_eq!(
            things().to_text(screen(None)),
            "name                    spaces  behind seconds  reported  well\n\
             long enough to wrap it  a, b    -               12s ago   true\n\
             \\u{1b}[31m              -       -               12s ago   true\n"
        );
        assert_eq!(Report::list(FIELDS, []).to_text(screen(None)), "none\n");
    }

    #[test]
    fn programs_get_every_key_with_one_type() {
        let json = things().to_json();
        let lines: Vec<&str> = json.lines().collect();
        assert_eq!(
            lines[0],
            "{\"name\":\"long enough to wrap it\",\"spaces\":[\"a\",\"b\"],\"behind_seconds\":null,\
             \"reported_at\":\"1970-01-01T00:01:28.000000005Z\",\"well\":true,\"code\":\"7\"}"
        );
        let second: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!((second["name"].as_str(), lines.len()), (Some("\u{1b}[31m"), 2));
        assert_eq!(second["spaces"], serde_json::json!([]));
    }

    #[test]
    fn a_table_is_as_wide_as_the_terminal() {
        let wrapped = things().to_text(screen(Some(62)));
        assert!(wrapped.lines().all(|line| line.len() <= 62), "{wrapped}");
        assert!(wrapped.starts_with("name") && wrapped.lines().count() > 3, "{wrapped}");
        assert_eq!(things().to_text(screen(Some(200))), things().to_text(screen(None)));
        let records = things().to_text(screen(Some(40)));
        assert!(records.starts_with("name            long enough to wrap it\n"), "{records}");
    }

    #[test]
    fn a_record_is_one_line_a_field_and_item() {
        let thing = || Thing { name: "", spaces: vec!["a".into(), "b\nc".into()] };
        assert_eq!(
            Report::record(FIELDS, thing()).to_text(screen(None)),
            "name            -\nspaces          a\n                b\\nc\n\
             behind seconds  -\nreported        12s ago\nwell            true\n"
        );
        assert_eq!(
            Report::brief(FIELDS, thing()).to_text(screen(None)),
            "spaces    a\n          b\\nc\nreported  12s ago\nwell      true\n"
        );
    }
}
