//! The result of a command, printed as text, JSON or YAML.

use std::io::{IsTerminal as _, Write as _};

use anyhow::bail;
use jiff::Timestamp;

use crate::{
    data, escape,
    field::{Column, Field, Row, rows},
    output::{Format, Output},
    refused::Refused,
    text::{self, Screen},
};

/// Records of one kind. JSON output has one object for each; text output is a table, or
/// for a single record one line per field.
#[derive(Debug)]
pub(crate) struct Report {
    columns: Vec<Column>,
    rows: Vec<Row>,
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

impl Report {
    fn new<T>(fields: &[Field<T>], things: impl IntoIterator<Item = T>, shape: Shape) -> Self {
        let columns = fields.iter().map(Field::column).collect();
        Self { columns, rows: rows(fields, things), shape, now: None }
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

    /// A record that introduces another report; only in text.
    pub(crate) fn heading<T>(fields: &[Field<T>], thing: T) -> Self {
        Self::new(fields, [thing], Shape::Heading)
    }

    /// Sets the time from which ages count.
    pub(crate) fn at(self, now: Option<Timestamp>) -> Self {
        Self { now, ..self }
    }

    /// Prints to stdout.
    pub(crate) fn print(&self, output: &Output) -> anyhow::Result<()> {
        let terminal = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
        let width = terminal.map(|(terminal_size::Width(width), _)| width);
        write(&self.render(output, width)?)
    }

    fn render(&self, output: &Output, width: Option<u16>) -> anyhow::Result<String> {
        let Output { format, headers, color } = output;
        let now = self.now.unwrap_or_else(Timestamp::now);
        let wide = *format == Format::Wide;
        let screen = Screen { now, width, wide, headers: *headers, color: *color };
        Ok(match format {
            Format::Table | Format::Wide => self.to_text(screen),
            Format::Json => self.to_json(),
            Format::Yaml => self.to_yaml(),
            Format::Fields(names) => self.to_fields(names, screen)?,
        })
    }

    /// One object per line, with the keys in field order.
    pub(crate) fn to_json(&self) -> String {
        match self.shape {
            Shape::Heading => String::new(),
            Shape::List | Shape::Record | Shape::Brief => {
                self.rows.iter().map(|row| data::json(row) + "\n").collect()
            }
        }
    }

    fn to_yaml(&self) -> String {
        match self.shape {
            Shape::Heading => String::new(),
            Shape::List => data::yaml_list(&self.rows),
            Shape::Record | Shape::Brief => self.rows.iter().map(data::yaml).collect(),
        }
    }

    fn to_fields(&self, names: &[String], screen: Screen) -> anyhow::Result<String> {
        if self.shape == Shape::Heading {
            return Ok(String::new());
        }
        let mut places = Vec::new();
        for name in names {
            let Some(place) = self.columns.iter().position(|column| column.key == name) else {
                let known: Vec<_> = self.columns.iter().map(|column| column.key).collect();
                bail!("--output fields: there is no field {name:?}; fields: {}", known.join(", "));
            };
            places.push(place);
        }
        let values = |row: &Row| places.iter().map(|place| data::plain(&row[*place])).collect();
        Ok(text::fields(names, self.rows.iter().map(values).collect(), screen))
    }

    fn to_text(&self, screen: Screen) -> String {
        let records = |brief| -> String {
            self.rows.iter().map(|row| text::record(row, screen, brief)).collect()
        };
        match self.shape {
            Shape::List => text::list(&self.columns, &self.rows, screen),
            Shape::Record => records(false),
            Shape::Brief => records(true),
            Shape::Heading => records(false) + "\n",
        }
    }
}

/// Prints one record of a stream immediately. `line` is its text output, escaped already.
pub(crate) fn event<T>(
    fields: &[Field<T>],
    thing: T,
    output: &Output,
    line: &str,
) -> anyhow::Result<()> {
    match &output.format {
        Format::Table | Format::Wide => write(&format!("{line}\n")),
        Format::Json => write(&Report::record(fields, thing).to_json()),
        Format::Yaml => write(&Report::list(fields, [thing]).to_yaml()),
        Format::Fields(_) => {
            let output = Output { headers: false, ..output.clone() };
            write(&Report::record(fields, thing).render(&output, None)?)
        }
    }
}

/// Prints text of this program immediately.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    write(text)
}

/// Prints one line immediately. The text is escaped already.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    write(&format!("{text}\n"))
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints the final error: one line on stderr with all causes, or an object with
/// JSON output.
#[expect(clippy::print_stderr, reason = "the end of the program, for its user")]
pub(crate) fn complain(error: &anyhow::Error, json: bool) {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<Refused>());
    if json {
        let text = serde_json::json!({
            "error": format!("{error:#}"),
            "code": code.map(|refused| refused.name.as_str()),
        });
        eprintln!("{}", escape::json(&text.to_string()));
    } else {
        let code = code.map(|refused| format!(" (rpc error: code = {})", refused.name));
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
    use crate::field::{Tone, moment};

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
        let now = moment(100, 0).unwrap();
        Screen { now, width, wide: false, headers: true, color: false }
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

    fn rendered(format: Format) -> Result<String, String> {
        let output = Output { format, headers: true, color: false };
        things().at(moment(100, 0)).render(&output, None).map_err(|error| error.to_string())
    }

    #[test]
    fn wide_tables_headings_and_colours_are_options() {
        const TONED: &[Field<u64>] = &[
            Field::toned(Field::integer("one", |n| Some(*n)), |_| Tone::Bad),
            Field::wide(Field::integer("two", |n| Some(*n))),
        ];
        let report = || Report::list(TONED, [1, 22]);
        let wide = Screen { wide: true, ..screen(None) };
        assert_eq!(report().to_text(screen(None)), "one\n1\n22\n");
        assert_eq!(report().to_text(wide), "one  two\n1    1\n22   22\n");
        let bare = Screen { headers: false, ..wide };
        assert_eq!(report().to_text(bare), "1   1\n22  22\n");
        assert_eq!(Report::list(TONED, []).to_text(bare), "");
        let color = Screen { color: true, ..wide };
        let red = |text: &str| format!("\u{1b}[31m{text}\u{1b}[0m");
        let expected = format!("one  two\n{}    1\n{}   22\n", red("1"), red("22"));
        assert_eq!(report().to_text(color), expected);
        assert_eq!(Report::record(TONED, 7).to_text(color), format!("one  {}\ntwo  7\n", red("7")));
    }

    #[test]
    fn fields_are_chosen_by_name() {
        let names = |names: &[&str]| Format::Fields(names.iter().map(|&n| n.to_owned()).collect());
        assert_eq!(
            rendered(names(&["code", "spaces", "reported_at"])).unwrap(),
            "code  spaces  reported_at\n\
             7     a,b     1970-01-01T00:01:28.000000005Z\n\
             7             1970-01-01T00:01:28.000000005Z\n"
        );
        let error = rendered(names(&["nmae"])).unwrap_err();
        assert!(error.contains("\"nmae\"") && error.contains("name, spaces"), "{error}");
        assert!(rendered(Format::Yaml).unwrap().starts_with("- name: \"long enough"));
    }
}
