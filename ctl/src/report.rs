//! What a command found, printed for people or for programs.

use std::io::Write as _;

use comfy_table::{Table, presets};
use serde_json::{Map, Value};

/// Rows of named values. One row is one JSON object; people get a table, or
/// for a single record one line a field.
#[derive(Debug)]
pub(crate) struct Report {
    rows: Vec<Map<String, Value>>,
    record: bool,
}

impl Report {
    /// Many things of one kind.
    pub(crate) fn list(rows: impl IntoIterator<Item = Value>) -> Self {
        let rows = rows.into_iter().filter_map(|row| match row {
            Value::Object(map) => Some(map),
            _ => None,
        });
        Self { rows: rows.collect(), record: false }
    }

    /// One thing.
    pub(crate) fn record(row: Value) -> Self {
        Self { record: true, ..Self::list([row]) }
    }

    /// Prints to stdout.
    pub(crate) fn print(self, json: bool) -> anyhow::Result<()> {
        let text = if json { self.to_json() } else { self.to_text() };
        write(&text)
    }

    fn to_json(&self) -> String {
        self.rows.iter().map(|row| format!("{}\n", Value::Object(row.clone()))).collect()
    }

    fn to_text(&self) -> String {
        match self.rows.first() {
            None => "none\n".to_owned(),
            Some(row) if self.record => fields(row),
            Some(first) => self.table(first),
        }
    }

    fn table(&self, first: &Map<String, Value>) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(first.keys().map(|key| key.replace('_', " ")));
        for row in &self.rows {
            table.add_row(row.values().map(plain));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    }
}

fn fields(row: &Map<String, Value>) -> String {
    let width = row.keys().map(String::len).max().unwrap_or(0);
    row.iter()
        .map(|(key, value)| format!("{:width$}  {}\n", key.replace('_', " "), plain(value)))
        .collect()
}

/// Text without quotes; lists with commas.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

/// One line now, for output that goes on.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    write(&format!("{text}\n"))
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// One line on stderr with the whole chain of causes.
#[expect(clippy::print_stderr, reason = "the end of the program, for its user")]
pub(crate) fn complain(error: &anyhow::Error) {
    eprintln!("portcullisctl: {error:#}");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_get_columns_and_programs_get_objects() {
        let report = || {
            Report::list([
                json!({"key": "k", "owner": "", "spaces": ["a", "b"]}),
                json!({"key": "longer", "owner": "o", "spaces": []}),
            ])
        };
        let text = report().to_text();
        assert!(text.contains("a, b"), "{text}");
        assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
        assert_eq!(report().to_json().lines().count(), 2);
        assert_eq!(Report::list([]).to_text(), "none\n");
    }

    #[test]
    fn a_record_is_one_line_a_field() {
        let text = Report::record(json!({"generation": 7, "synced_at": null})).to_text();
        assert_eq!(text, "generation  7\nsynced at   -\n");
    }
}
