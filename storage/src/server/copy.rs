//! Bulk insert with PostgreSQL's `COPY ... FROM STDIN`, in text format.

use std::{fmt::Write as _, mem};

use bytes::Bytes;

/// Approximate size of one chunk of rows.
const PIECE: usize = 64 << 10;

/// A column of a row.
#[derive(Debug, Clone, Copy)]
pub enum Field<'a> {
    /// Any integer column; a boolean is 0 or 1.
    Int(i64),
    /// Any text column.
    Text(&'a str),
    /// A binary column.
    Bytes(&'a [u8]),
}

impl From<i64> for Field<'_> {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Field<'_> {
    fn from(truth: bool) -> Self {
        Self::Int(truth.into())
    }
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Field<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

/// Rows in COPY text format, generated while they are sent. `write` appends one row per call, and
/// returns false when there are no more rows.
pub(super) struct Pieces<W> {
    write: W,
    is_over: bool,
}

impl<W: FnMut(&mut NewRows) -> bool> Pieces<W> {
    pub(super) fn new(write: W) -> Self {
        Self { write, is_over: false }
    }
}

impl<W: FnMut(&mut NewRows) -> bool> Iterator for Pieces<W> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut rows = NewRows::default();
        while !self.is_over && rows.text.len() < PIECE {
            self.is_over = !(self.write)(&mut rows);
        }
        let text = mem::take(&mut rows.text);
        (!text.is_empty()).then(|| text.into_bytes().into())
    }
}

/// Buffer for rows in COPY format.
#[derive(Debug, Default)]
pub struct NewRows {
    text: String,
}

impl NewRows {
    /// Appends a row.
    pub fn push<const COLUMNS: usize>(&mut self, row: [Field<'_>; COLUMNS]) {
        for (at, field) in row.into_iter().enumerate() {
            if at > 0 {
                self.text.push('\t');
            }
            match field {
                Field::Int(number) => {
                    write!(self.text, "{number}").expect("a text takes everything");
                }
                Field::Text(text) => self.escape(text),
                Field::Bytes(bytes) => self.hexadecimal(bytes),
            }
        }
        self.text.push('\n');
    }

    fn escape(&mut self, mut text: &str) {
        while let Some(at) = text.bytes().position(|b| matches!(b, b'\\' | b'\t' | b'\n' | b'\r')) {
            self.text.push_str(&text[..at]);
            self.text.push_str(match text.as_bytes()[at] {
                b'\t' => "\\t",
                b'\n' => "\\n",
                b'\r' => "\\r",
                _ => "\\\\",
            });
            text = &text[at + 1..];
        }
        self.text.push_str(text);
    }

    fn hexadecimal(&mut self, bytes: &[u8]) {
        const DIGITS: [char; 16] =
            ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
        self.text.push_str("\\\\x");
        for byte in bytes {
            self.text.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_written_as_the_server_reads_it() {
        let mut rows = NewRows::default();
        rows.push([(-7).into(), true.into(), "a\tb\\c\r\nd é".into(), b"\x00\xab"[..].into()]);
        rows.push(["".into(), "\\.".into()]);
        assert_eq!(rows.text, "-7\t1\ta\\tb\\\\c\\r\\nd é\t\\\\x00ab\n\t\\\\.\n");
    }

    #[test]
    fn rows_come_in_pieces() {
        let text = "x".repeat(PIECE / 2);
        let mut left = 5;
        let pieces = Pieces::new(|rows: &mut NewRows| {
            left -= 1;
            if left >= 0 {
                rows.push([text.as_str().into()]);
            }
            left >= 0
        });
        let lengths: Vec<usize> = pieces.map(|piece| piece.len()).collect();
        assert_eq!(lengths, [PIECE + 2, PIECE + 2, PIECE / 2 + 1]);
        assert_eq!(Pieces::new(|_: &mut NewRows| false).count(), 0);
    }
}
