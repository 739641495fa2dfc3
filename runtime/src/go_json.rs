//! JSON text as Go's `encoding/json` writes it.
//!
//! Strings have the escapes that JSON requires, and escapes for `<`, `>`, `&` and the two line
//! separators of Unicode. Numbers with a fraction are formatted as Go formats a float64.

use std::io;

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// How Go escapes backspace and form feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// As `\u0008` and `\u000c`: before Go 1.22.
    V1_21,
    /// As `\b` and `\f`: since Go 1.22.
    V1_22,
}

impl Go {
    /// Encodes like `json.Marshal`.
    ///
    /// # Errors
    /// The value cannot be JSON, such as a map whose keys are not strings.
    pub fn to_string<T: Serialize + ?Sized>(self, value: &T) -> Result<String, serde_json::Error> {
        let mut text = String::new();
        self.push(&mut text, value)?;
        Ok(text)
    }

    /// Appends the encoded value to `out`.
    ///
    /// # Errors
    /// As [`Self::to_string`]; `out` may have a part of the value.
    pub fn push<T: Serialize + ?Sized>(
        self,
        out: &mut String,
        value: &T,
    ) -> Result<(), serde_json::Error> {
        value.serialize(&mut Serializer::with_formatter(Append(out), self))
    }
}

struct Append<'a>(&'a mut String);

impl io::Write for Append<'_> {
    /// The serializer passes whole characters.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push_str(std::str::from_utf8(bytes).map_err(io::Error::other)?);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Formatter for Go {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        // Both line separators begin with this byte, as few other characters do.
        let may_be_special = |byte: u8| matches!(byte, b'<' | b'>' | b'&' | 0xe2);
        while rest.bytes().any(may_be_special) {
            let is_special = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
            let Some((at, special)) = rest.char_indices().find(|(_, c)| is_special(*c)) else {
                break;
            };
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", u32::from(special))?;
            rest = &rest[at + special.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    /// The characters that only Go escapes occur in JSON only inside strings.
    fn write_raw_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        self.write_string_fragment(writer, fragment)
    }

    fn write_char_escape<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let short: &[u8] = match (escape, *self) {
            (CharEscape::Quote, _) => b"\\\"",
            (CharEscape::ReverseSolidus, _) => b"\\\\",
            (CharEscape::Solidus, _) => b"/",
            (CharEscape::LineFeed, _) => b"\\n",
            (CharEscape::CarriageReturn, _) => b"\\r",
            (CharEscape::Tab, _) => b"\\t",
            (CharEscape::Backspace, Self::V1_22) => b"\\b",
            (CharEscape::Backspace, Self::V1_21) => b"\\u0008",
            (CharEscape::FormFeed, Self::V1_22) => b"\\f",
            (CharEscape::FormFeed, Self::V1_21) => b"\\u000c",
            (CharEscape::AsciiControl(byte), _) => return write!(writer, "\\u{byte:04x}"),
        };
        writer.write_all(short)
    }

    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let magnitude = value.abs();
        if magnitude == 0.0 || (1e-6..1e21).contains(&magnitude) {
            return write!(writer, "{value}");
        }
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').expect("{:e} writes an exponent");
        let sign = if exponent.starts_with('-') { "" } else { "+" };
        write!(writer, "{digits}e{sign}{exponent}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_written_as_go_writes_them() {
        let text =
            "<a href='x'>&\u{2028}\u{2029}é\u{20ac}\u{1f600}\u{7f}\"\\/\n\r\t\u{8}\u{c}\u{1}";
        let start = "\"\\u003ca href='x'\\u003e\\u0026\\u2028\\u2029é\u{20ac}\u{1f600}\u{7f}\\\"\\\\/\\n\\r\\t";
        for (go, end) in [(Go::V1_21, "\\u0008\\u000c\\u0001\""), (Go::V1_22, "\\b\\f\\u0001\"")] {
            assert_eq!(go.to_string(text).unwrap(), format!("{start}{end}"));
        }
    }

    #[test]
    fn encoded_json_gets_the_same_escapes() {
        let raw = serde_json::value::to_raw_value(&["<", "\u{2028}"]).unwrap();
        assert_eq!(Go::V1_22.to_string(&raw).unwrap(), r#"["\u003c","\u2028"]"#);
    }

    #[test]
    fn floats_are_written_as_go_writes_them() {
        let values = [1.0, 0.0, 1e20, 1e21, 2.5e-7, f64::NAN];
        let text = "[1,0,100000000000000000000,1e+21,2.5e-7,null]";
        assert_eq!(Go::V1_22.to_string(&values).unwrap(), text);
    }
}
