//! Parses statement texts into code and quoted parts.
//!
//! Quotes inside quotes are doubled, as in standard SQL; statements of these crates contain no
//! backslash escapes and no dollar quotes.

use std::borrow::Cow;

/// The bytes outside of quotes and comments, with their offsets.
fn code(sql: &str) -> impl Iterator<Item = (usize, u8)> {
    let bytes = sql.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let byte = *bytes.get(at)?;
            let rest = &bytes[at + 1..];
            let skipped = match byte {
                b'\'' | b'"' | b'`' => find(rest, &[byte]),
                b'-' if rest.starts_with(b"-") => find(rest, b"\n"),
                b'/' if rest.starts_with(b"*") => find(rest, b"*/"),
                _ => {
                    at += 1;
                    return Some((at - 1, byte));
                }
            };
            at += 1 + skipped;
        }
    })
}

/// Length of `bytes` up to and including the first `end`.
fn find(bytes: &[u8], end: &[u8]) -> usize {
    bytes
        .windows(end.len())
        .position(|window| window == end)
        .map_or(bytes.len(), |at| at + end.len())
}

/// Replaces `?` with PostgreSQL's parameters `$1`, `$2` ...
pub(super) fn numbered(sql: &str) -> Cow<'_, str> {
    let mut places = code(sql).filter(|(_, byte)| *byte == b'?').map(|(at, _)| at).peekable();
    if places.peek().is_none() {
        return Cow::Borrowed(sql);
    }
    let mut text = String::with_capacity(sql.len() + 16);
    let mut copied = 0;
    for (number, at) in (1..).zip(places) {
        text.push_str(&sql[copied..at]);
        text.push_str(&format!("${number}"));
        copied = at + 1;
    }
    text.push_str(&sql[copied..]);
    Cow::Owned(text)
}

/// Replaces each `?` with its value.
pub(super) fn filled(sql: &str, values: &[String]) -> String {
    let mut text = String::with_capacity(sql.len() + values.iter().map(String::len).sum::<usize>());
    let mut copied = 0;
    let places = code(sql).filter(|(_, byte)| *byte == b'?').map(|(at, _)| at);
    for (at, value) in places.zip(values) {
        text.push_str(&sql[copied..at]);
        text.push_str(value);
        copied = at + 1;
    }
    text.push_str(&sql[copied..]);
    text
}

/// Splits a text into statements.
pub(super) fn statements(sql: &str) -> Vec<&str> {
    let mut from = 0;
    let ends = code(sql).filter(|(_, byte)| *byte == b';').map(|(at, _)| at);
    ends.chain([sql.len()])
        .map(|at| {
            let statement = sql[from..at].trim();
            from = (at + 1).min(sql.len());
            statement
        })
        .filter(|statement| code(statement).any(|(_, byte)| !byte.is_ascii_whitespace()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbered() {
        for (given, expected) in [
            ("SELECT 1", "SELECT 1"),
            ("a = ? AND b = ?", "a = $1 AND b = $2"),
            ("'?' \"?\" `?` ? 'it''s ?' ?", "'?' \"?\" `?` $1 'it''s ?' $2"),
            ("? -- ?\n? /* ? */ ? - ? / ?", "$1 -- ?\n$2 /* ? */ $3 - $4 / $5"),
            ("'open ?", "'open ?"),
            ("é?é", "é$1é"),
        ] {
            assert_eq!(numbered(given), expected);
        }
    }

    #[test]
    fn places_are_filled() {
        let values = ["'?'".to_owned(), "2".to_owned()];
        assert_eq!(filled("'?' ? -- ?\n ?;", &values), "'?' '?' -- ?\n 2;");
    }

    #[test]
    fn statements_are_split() {
        assert_eq!(statements("a; b ;\n c"), ["a", "b", "c"]);
        assert_eq!(statements("a ';' ;; -- x;\n"), ["a ';'"]);
        assert_eq!(statements(" ; "), [""; 0]);
        assert_eq!(statements("a /* ; */ b;-- last"), ["a /* ; */ b"]);
    }
}
