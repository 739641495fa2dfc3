//! Connections of every SQL database. What has the same form on all of them is written once,
//! for a [`Session`]; [`Set`] has the bulk operations, which are fast in a different way on each.

use std::future::Future;

use model::generation::Point;
use storage::server::{Dialect, Row, Server, Transaction, Value};

use super::{
    Error, Stored,
    rows::{Scopes, corrupt},
};
use crate::groups::decide::{Decision, Upsert};

/// Number of ids per statement.
pub(super) const IDS_AT_ONCE: usize = 500;

/// A kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Server(Dialect),
}

impl Kind {
    /// Before the name of each table: a database on a server can be that of the original.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Server(_) => "portcullis_",
        }
    }

    /// After a query: locks its rows until the transaction ends. SQLite has one writer.
    pub(super) fn for_update(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Server(_) => "FOR UPDATE",
        }
    }

    /// Free text. On a server its column is binary, since PostgreSQL's texts cannot hold every
    /// character.
    pub(super) fn text(self, text: String) -> Value {
        match self {
            Self::Sqlite => text.into(),
            Self::Server(_) => text.into_bytes().into(),
        }
    }
}

/// A connection, in a transaction or not. Parameters are `?` on every database.
pub(super) trait Session {
    fn kind(&self) -> Kind;

    /// Runs a statement, and returns its rows.
    fn query(
        &self,
        sql: &str,
        values: &[Value],
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;

    /// Runs a statement without rows.
    fn execute(
        &self,
        sql: &str,
        values: &[Value],
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Bulk operations on the set, in a transaction.
pub(super) trait Set: Session {
    /// All groups in the order of their ids, or those that changed since a generation.
    fn groups(
        &self,
        since: Option<Point>,
    ) -> impl Future<Output = Result<Vec<Stored>, Error>> + Send;

    /// Writes groups without their bindings; `most` is the size limit of a group's rules.
    fn store(
        &self,
        upserts: &[Upsert],
        most: usize,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Writes the difference of the bindings.
    fn bind(
        &self,
        decision: &Decision,
        before: &Scopes,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Session for Server {
    fn kind(&self) -> Kind {
        Kind::Server(self.dialect())
    }

    async fn query(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>, Error> {
        Ok(Self::query(self, sql, values).await?)
    }

    async fn execute(&self, sql: &str, values: &[Value]) -> Result<(), Error> {
        Self::execute(self, sql, values).await?;
        Ok(())
    }
}

impl Session for Transaction {
    fn kind(&self) -> Kind {
        Kind::Server(self.dialect())
    }

    async fn query(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>, Error> {
        Ok(Self::query(self, sql, values).await?)
    }

    async fn execute(&self, sql: &str, values: &[Value]) -> Result<(), Error> {
        Self::execute(self, sql, values).await?;
        Ok(())
    }
}

/// The only row of a result.
pub(super) fn only(rows: &[Row]) -> Result<&Row, Error> {
    match rows {
        [row] => Ok(row),
        rows => Err(corrupt("store_state")(format!("{} rows instead of one", rows.len()))),
    }
}

/// The number in the only column of the first row, if any.
pub(super) fn number(rows: &[Row]) -> Result<Option<i64>, Error> {
    match rows.first() {
        None => Ok(None),
        Some(row) => Ok(row.get(0)?),
    }
}

/// Reads a text, also from a binary column.
pub(super) fn text<'a>(row: &'a Row, column: usize, field: &'static str) -> Result<&'a str, Error> {
    match row.get::<&str>(column) {
        Ok(text) => Ok(text),
        Err(_) => str::from_utf8(row.get::<&[u8]>(column)?).map_err(corrupt(field)),
    }
}

/// Reads the columns of a row in their order.
pub(super) struct Columns<'a>(pub(super) std::slice::Iter<'a, Value>);

impl Columns<'_> {
    pub(super) fn int(&mut self, field: &'static str) -> Result<i64, Error> {
        self.optional(field)?.ok_or_else(|| corrupt(field)("NULL"))
    }

    pub(super) fn optional(&mut self, field: &'static str) -> Result<Option<i64>, Error> {
        match self.0.next() {
            Some(Value::Int(number)) => Ok(Some(*number)),
            None | Some(Value::Null) => Ok(None),
            Some(Value::Text(_) | Value::Bytes(_)) => Err(corrupt(field)("not a number")),
        }
    }

    /// Text, also of a binary column.
    pub(super) fn text(&mut self, field: &'static str) -> Result<Option<String>, Error> {
        match self.0.next() {
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(Value::Bytes(bytes)) => {
                Ok(Some(str::from_utf8(bytes).map_err(corrupt(field))?.to_owned()))
            }
            None | Some(Value::Null) => Ok(None),
            Some(Value::Int(_)) => Err(corrupt(field)("a number")),
        }
    }

    pub(super) fn bytes(&mut self, field: &'static str) -> Result<Option<Vec<u8>>, Error> {
        match self.0.next() {
            Some(Value::Bytes(bytes)) => Ok(Some(bytes.clone())),
            None | Some(Value::Null) => Ok(None),
            Some(Value::Text(_) | Value::Int(_)) => Err(corrupt(field)("not bytes")),
        }
    }
}
