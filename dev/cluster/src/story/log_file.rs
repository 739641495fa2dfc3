//! Parses the processes' logs: one lager JSON object a line. Pure.

use serde_json::Value;

/// One log line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// The message without the source prefix.
    pub(super) task: String,
    /// The data of the line.
    pub(super) data: Value,
    /// The original text.
    pub(super) text: String,
}

/// The lines of a log, in order. Other lines (a partial last one, a panic) are skipped.
pub(super) fn lines(text: &str) -> Vec<Line> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<Line> {
    let value: Value = serde_json::from_str(text).ok()?;
    let (source, message) = (value["source"].as_str()?, value["message"].as_str()?);
    let task = message.strip_prefix(source)?.strip_prefix('.')?.to_owned();
    Some(Line { task, data: value["data"].clone(), text: text.to_owned() })
}

/// The first lines that match `wanted` in order, with other lines in between; `Err` is
/// the index in `wanted` without a match.
pub(super) fn in_order<'a>(
    lines: &'a [Line],
    wanted: &[&dyn Fn(&Line) -> bool],
) -> Result<Vec<&'a Line>, usize> {
    let mut rest = lines.iter();
    let found = wanted
        .iter()
        .enumerate()
        .map(|(place, matches)| rest.find(|line| matches(line)).ok_or(place));
    found.collect()
}

/// A line for display, with long lists truncated.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{} ... ({} characters)", &text[..end], text.chars().count()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"{"timestamp":"t","level":"info","source":"a.b","message":"a.b.one","data":{}}
not a log line
{"timestamp":"t","level":"info","source":"a.b","message":"a.b.two.three","data":{"n":1}}
{"timestamp":"t","level":"info","source":"a.b","message":"other.two","data":{}}
{"timestamp":"t","level":"info","source":"a.b","message":"a.b.one","data":{"n":2}}
{"timestamp":"t","lev"#;

    #[test]
    fn messages_are_told_without_their_source() {
        let tasks: Vec<String> = lines(LOG).into_iter().map(|line| line.task).collect();
        assert_eq!(tasks, ["one", "two.three", "one"]);
    }

    #[test]
    fn order_matters() {
        let lines = lines(LOG);
        let one = |line: &Line| line.task == "one";
        let three = |line: &Line| line.task == "two.three";
        let found = in_order(&lines, &[&three, &one]).unwrap();
        assert_eq!(found[1].data["n"], 2);
        assert_eq!(in_order(&lines, &[&one, &three, &three]), Err(2));
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöüß", 2), "äö ... (4 characters)");
    }
}
