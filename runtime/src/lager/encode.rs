//! JSON text as Go's `encoding/json` writes it.

use std::fmt::Write;

/// Appends `text` as a JSON string with Go's escapes: those that JSON requires, and `<`, `>`, `&`
/// and the two line separators of Unicode.
pub(super) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    push_escaped(out, text);
    out.push('"');
}

/// Appends `text` escaped, without the quotes.
pub(super) fn push_escaped(out: &mut String, text: &str) {
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        if !needs_escape(c) {
            continue;
        }
        out.push_str(&text[plain..at]);
        plain = at + c.len_utf8();
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            other => push_unicode_escape(out, other),
        }
    }
    out.push_str(&text[plain..]);
}

/// Appends JSON that has only the escapes JSON requires. The additional characters that Go escapes
/// occur only inside strings, so the text needs no parsing.
pub(super) fn push_json(out: &mut String, json: &str) {
    let mut plain = 0;
    for (at, c) in json.char_indices() {
        if is_escaped_by_go(c) {
            out.push_str(&json[plain..at]);
            plain = at + c.len_utf8();
            push_unicode_escape(out, c);
        }
    }
    out.push_str(&json[plain..]);
}

/// Appends a number as Go writes a float64; `null` for a number that JSON cannot represent.
pub(super) fn push_float(out: &mut String, value: f64) {
    let magnitude = value.abs();
    if !value.is_finite() {
        out.push_str("null");
    } else if magnitude == 0.0 || (1e-6..1e21).contains(&magnitude) {
        push(out, format_args!("{value}"));
    } else {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').expect("{:e} writes an exponent");
        let sign = if exponent.starts_with('-') { "" } else { "+" };
        push(out, format_args!("{digits}e{sign}{exponent}"));
    }
}

/// Appends a value whose text needs no quotes or escapes.
pub(super) fn push(out: &mut String, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("writing to a String cannot fail");
}

fn needs_escape(c: char) -> bool {
    c < ' ' || c == '"' || c == '\\' || is_escaped_by_go(c)
}

fn is_escaped_by_go(c: char) -> bool {
    matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}')
}

fn push_unicode_escape(out: &mut String, c: char) {
    push(out, format_args!("\\u{:04x}", u32::from(c)));
}
