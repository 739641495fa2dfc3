//! Parameters and result columns of statements.

use crate::Error;

/// A parameter or a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// NULL.
    Null,
    /// Any integer column; a boolean is 0 or 1.
    Int(i64),
    /// Any text column.
    Text(String),
    /// Any binary column.
    Bytes(Vec<u8>),
}

impl Value {
    fn what(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Int(_) => "a number",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
        }
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Int(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Int(truth.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_owned())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A result row; columns are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    values: Vec<Value>,
}

impl Row {
    /// A row with these columns.
    #[must_use]
    pub fn new(values: Vec<Value>) -> Self {
        Self { values }
    }

    /// Returns a column as `i64`, `bool`, `&str`, `String`, `&[u8]` or `Vec<u8>`, or an `Option` of
    /// these. Fails when the column has another type.
    pub fn get<'a, T: FromValue<'a>>(&'a self, column: usize) -> Result<T, Error> {
        let value = self.values.get(column).unwrap_or(&Value::Null);
        T::from_value(value).ok_or(Error::Column { column, found: value.what(), wanted: T::WANTED })
    }

    /// All columns.
    pub fn values(&self) -> &[Value] {
        &self.values
    }
}

/// Types that a column can be converted to.
pub trait FromValue<'a>: Sized {
    /// Type name for messages.
    const WANTED: &'static str;

    /// `None` when the value has another type.
    fn from_value(value: &'a Value) -> Option<Self>;
}

impl FromValue<'_> for i64 {
    const WANTED: &'static str = "a number";

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Int(number) => Some(*number),
            Value::Null | Value::Text(_) | Value::Bytes(_) => None,
        }
    }
}

impl FromValue<'_> for bool {
    const WANTED: &'static str = "0 or 1";

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Int(0) => Some(false),
            Value::Int(1) => Some(true),
            Value::Int(_) | Value::Null | Value::Text(_) | Value::Bytes(_) => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const WANTED: &'static str = "text";

    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text),
            Value::Null | Value::Int(_) | Value::Bytes(_) => None,
        }
    }
}

impl FromValue<'_> for String {
    const WANTED: &'static str = "text";

    fn from_value(value: &Value) -> Option<Self> {
        <&str>::from_value(value).map(str::to_owned)
    }
}

impl<'a> FromValue<'a> for &'a [u8] {
    const WANTED: &'static str = "bytes";

    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Bytes(bytes) => Some(bytes),
            Value::Null | Value::Int(_) | Value::Text(_) => None,
        }
    }
}

impl FromValue<'_> for Vec<u8> {
    const WANTED: &'static str = "bytes";

    fn from_value(value: &Value) -> Option<Self> {
        <&[u8]>::from_value(value).map(<[u8]>::to_vec)
    }
}

impl<'a, T: FromValue<'a>> FromValue<'a> for Option<T> {
    const WANTED: &'static str = T::WANTED;

    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_converts_to_its_type() {
        let row = Row::new(vec![7.into(), "x".into(), b"b"[..].into(), Value::Null, true.into()]);
        assert_eq!(row.get::<i64>(0).unwrap(), 7);
        assert_eq!(row.get::<&str>(1).unwrap(), "x");
        assert_eq!(row.get::<Option<String>>(1).unwrap(), Some("x".to_owned()));
        assert_eq!(row.get::<&[u8]>(2).unwrap(), b"b");
        assert_eq!(row.get::<Option<Vec<u8>>>(3).unwrap(), None);
        assert!(row.get::<bool>(4).unwrap());
    }

    #[test]
    fn a_column_of_another_type_is_an_error() {
        let row = Row::new(vec![7.into(), Value::Null]);
        for (error, text) in [
            (row.get::<&str>(0).unwrap_err(), "column 0 is a number, not text"),
            (row.get::<i64>(1).unwrap_err(), "column 1 is NULL, not a number"),
            (row.get::<bool>(0).unwrap_err(), "column 0 is a number, not 0 or 1"),
            (row.get::<i64>(2).unwrap_err(), "column 2 is NULL, not a number"),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }
}
