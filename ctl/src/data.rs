//! Records as JSON and YAML. Both have every field, in the order of the fields.

use std::fmt::Write as _;

use serde_json::json;

use crate::{
    escape,
    field::{Entry, Row, Value},
};

/// One JSON object on one line.
pub(crate) fn json(row: &Row) -> String {
    escape::json(&object(row)).into_owned()
}

fn object(row: &Row) -> String {
    let members = row.iter().map(|entry| format!("\"{}\":{}", entry.column.key, value(entry)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

fn array(rows: &[Row]) -> String {
    format!("[{}]", rows.iter().map(object).collect::<Vec<_>>().join(","))
}

/// The JSON value; null if absent.
fn value(entry: &Entry) -> String {
    let value = match &entry.value {
        None => serde_json::Value::Null,
        Some(Value::Text(text)) => json!(text),
        Some(Value::Integer(number)) => json!(number),
        Some(Value::Boolean(yes)) => json!(yes),
        Some(Value::Texts(texts)) => json!(texts),
        Some(Value::Time(time)) => json!(time.to_string()),
        Some(Value::Milliseconds(time)) => {
            json!((time.as_secs_f64() * 1e6).round() / 1e3)
        }
        Some(Value::Rows(rows)) => return array(rows),
    };
    value.to_string()
}

/// A value as plain text, for `-o fields=`: texts as they are, other values as in JSON.
pub(crate) fn plain(entry: &Entry) -> String {
    match &entry.value {
        None => "-".to_owned(),
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Texts(texts)) => texts.join(","),
        Some(Value::Time(time)) => time.to_string(),
        Some(Value::Integer(_) | Value::Boolean(_) | Value::Milliseconds(_) | Value::Rows(_)) => {
            value(entry)
        }
    }
}

/// A YAML list of the records.
pub(crate) fn yaml_list(rows: &[Row]) -> String {
    let mut text = String::new();
    list(&mut text, rows, 0);
    text
}

/// A YAML mapping.
pub(crate) fn yaml(row: &Row) -> String {
    let mut text = String::new();
    mapping(&mut text, row, 0, "");
    text
}

/// `first` precedes the first line in place of spaces.
fn mapping(text: &mut String, row: &Row, indent: usize, first: &str) {
    for (n, entry) in row.iter().enumerate() {
        let lead = if n == 0 && !first.is_empty() { first } else { &" ".repeat(indent) };
        text.push_str(lead);
        text.push_str(entry.column.key);
        text.push(':');
        match &entry.value {
            Some(Value::Texts(texts)) if !texts.is_empty() => {
                text.push('\n');
                for item in texts {
                    let _ = writeln!(text, "{}- {}", " ".repeat(indent), escape::yaml(item));
                }
            }
            Some(Value::Rows(rows)) if !rows.is_empty() => {
                text.push('\n');
                list(text, rows, indent);
            }
            Some(Value::Text(item)) => {
                let _ = writeln!(text, " {}", escape::yaml(item));
            }
            _ => {
                let _ = writeln!(text, " {}", value(entry));
            }
        }
    }
}

fn list(text: &mut String, rows: &[Row], indent: usize) {
    for row in rows {
        mapping(text, row, indent + 2, &format!("{}- ", " ".repeat(indent)));
    }
    if rows.is_empty() {
        text.push_str("[]\n");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::field::{Field, moment, rows};

    const RULES: &[Field<u64>] = &[
        Field::integer("rule_index", |number| Some(*number)),
        Field::texts("spaces", |_| vec!["a".to_owned()]),
    ];

    const FIELDS: &[Field<Vec<u64>>] = &[
        Field::text("name", |_| "yes: \"\u{1b}\u{e0041}東".to_owned()),
        Field::boolean("log", |_| true),
        Field::milliseconds("lag_ms", |_| Some(Duration::from_nanos(1_234_567))),
        Field::texts("none", |_| Vec::new()),
        Field::time("seen_at", |_| moment(0, 0)),
        Field::text("absent", |_| String::new()),
        Field::rows("rules", |numbers| rows(RULES, numbers.clone())),
    ];

    #[test]
    fn json_has_every_field_in_order() {
        let row = rows(FIELDS, [vec![3]]).remove(0);
        assert_eq!(
            json(&row),
            "{\"name\":\"yes: \\\"\\u001b\\udb40\\udc41東\",\"log\":true,\"lag_ms\":1.235,\
             \"none\":[],\"seen_at\":\"1970-01-01T00:00:00Z\",\"absent\":null,\
             \"rules\":[{\"rule_index\":3,\"spaces\":[\"a\"]}]}"
        );
    }

    #[test]
    fn yaml_quotes_every_text() {
        assert_eq!(
            yaml_list(&rows(FIELDS, [vec![3, 4], vec![]])),
            "- name: \"yes: \\\"\\U0000001b\\U000e0041東\"\n  log: true\n  lag_ms: 1.235\n  none: []\n  \
             seen_at: \"1970-01-01T00:00:00Z\"\n  absent: null\n  rules:\n  - rule_index: 3\n    \
             spaces:\n    - \"a\"\n  - rule_index: 4\n    spaces:\n    - \"a\"\n\
             - name: \"yes: \\\"\\U0000001b\\U000e0041東\"\n  log: true\n  lag_ms: 1.235\n  none: []\n  \
             seen_at: \"1970-01-01T00:00:00Z\"\n  absent: null\n  rules: []\n"
        );
        assert_eq!(yaml_list(&[]), "[]\n");
    }
}
