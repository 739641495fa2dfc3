//! Ruby functions whose behaviour is visible in the Cloud Controller's responses.

use super::json::Json;

/// `String#to_i`: leading white space and sign, then digits (a single `_` may be
/// between two); the rest is ignored. Saturates.
pub(crate) fn to_i(text: &str) -> i128 {
    let text = text.trim_start_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut value: i128 = 0;
    let mut after_digit = false;
    for c in digits.chars() {
        match c.to_digit(10) {
            Some(digit) => {
                value = value.saturating_mul(10).saturating_add(i128::from(digit));
                after_digit = true;
            }
            None if c == '_' && after_digit => after_digit = false,
            None => break,
        }
    }
    if negative { -value } else { value }
}

/// Matches like `\s`.
pub(crate) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{b}' | '\u{c}')
}

/// `String#split` with a separator: an empty text has no parts, and trailing empty
/// parts are dropped.
pub(crate) fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts: Vec<&str> = text.split(separator).collect();
    while parts.last().is_some_and(|part| part.is_empty()) {
        parts.pop();
    }
    parts
}

/// `Array#inspect` of strings: `["a", "b"]`.
pub(crate) fn inspect_all<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = texts.into_iter().map(inspect).collect();
    format!("[{}]", quoted.join(", "))
}

fn inspect(text: &str) -> String {
    let mut out = String::from("\"");
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '#' if chars.peek().is_some_and(|next| matches!(next, '{' | '$' | '@')) => {
                out.push_str("\\#");
            }
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{1b}' => out.push_str("\\e"),
            '\u{7f}' => out.push_str("\\x7F"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Length in the sense of `length` validators: characters, elements, or the digits of a
/// number; `null` has none.
pub(crate) fn length(value: &Json) -> usize {
    match value {
        Json::Null => 0,
        Json::String(text) => text.chars().count(),
        Json::Array(items) => items.len(),
        Json::Object(object) => object.len(),
        Json::Bool(_) | Json::Number(_) => value.to_text().len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_as_to_i() {
        for (text, value) in [
            ("5", 5),
            (" -7x", -7),
            ("+3", 3),
            ("", 0),
            ("abc", 0),
            ("1_000", 1000),
            ("1__0", 1),
            ("_1", 0),
            ("99999999999999999999", 99_999_999_999_999_999_999),
        ] {
            assert_eq!(to_i(text), value, "{text:?}");
        }
    }

    #[test]
    fn splits_as_ruby_does() {
        assert_eq!(split("a-b-", '-'), ["a", "b"]);
        assert_eq!(split("-a", '-'), ["", "a"]);
        assert!(split("-", '-').is_empty());
        assert!(split("", '-').is_empty());
    }

    #[test]
    fn inspects_strings() {
        assert_eq!(
            inspect_all(["a", "q\"\\", "#{x}", "# y\u{1}\n"]),
            r##"["a", "q\"\\", "\#{x}", "# y\u0001\n"]"##
        );
    }
}
