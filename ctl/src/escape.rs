//! Escapes untrusted text for a terminal.
//!
//! Names, GUIDs, handles and error texts come from other machines and may hold escape
//! sequences, newlines or bidirectional control characters. All output of this program
//! passes one of these functions.

use std::borrow::Cow;

/// For text: control and invisible characters are written as `\u{1b}`. A backslash is
/// doubled, so that no text looks like an escaped one.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' | '\'' => escaped.push(c),
            // Escaped after another character, so that combining accents stay.
            _ => escaped.extend(format!("a{c}").escape_debug().skip(1)),
        }
    }
    Cow::Owned(escaped)
}

fn is_plain(c: char) -> bool {
    (c.is_ascii_graphic() && c != '\\') || c == ' '
}

/// For JSON: the same JSON with control characters written as `\u001b`. JSON has such
/// characters only in strings.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        let shown = format!("a{c}");
        if c == '\\' || c == '"' || c == '\'' || shown.escape_debug().eq(shown.chars()) {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Cow::Owned(escaped)
}

/// A quoted YAML text; characters that are not plain are written as `\U0000001b`.
pub(crate) fn yaml(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        let shown = format!("a{c}");
        match c {
            '\\' | '"' => quoted.extend(['\\', c]),
            '\'' => quoted.push(c),
            _ if shown.escape_debug().eq(shown.chars()) => quoted.push(c),
            _ => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_is_left() {
        for (text, expected) in [
            ("plain-1 (a)", "plain-1 (a)"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("two\nlines\r", "two\\nlines\\r"),
            ("C1: \u{9b}31m \u{7f}", "C1: \\u{9b}31m \\u{7f}"),
            ("\u{202e}gnp.exe\u{2066}", "\\u{202e}gnp.exe\\u{2066}"),
            ("\u{200b}\u{2028}\u{feff}\u{e0041}", "\\u{200b}\\u{2028}\\u{feff}\\u{e0041}"),
            ("back\\u{1b}", "back\\\\u{1b}"),
            ("\"it's\"", "\"it's\""),
            ("Zürich 東京 e\u{301} \u{301}", "Zürich 東京 e\u{301} \u{301}"),
        ] {
            assert_eq!(escape(text), expected);
        }
    }

    #[test]
    fn json_keeps_the_whole_text() {
        for text in ["\u{1b}[31m\"\\", "\u{202e}\u{9b}\u{7f}\n", "Zürich \u{e0041}", "it's"] {
            let line = serde_json::to_string(text).unwrap();
            let safe = json(&line);
            assert!(escape(&safe.replace('\\', "")) == safe.replace('\\', ""), "{safe:?}");
            assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
        }
        assert_eq!(json("\"Zürich\""), "\"Zürich\"");
    }
}
