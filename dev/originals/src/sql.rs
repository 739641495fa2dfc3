//! Connections to PostgreSQL, MySQL and MariaDB with the server's default isolation, as
//! the originals use them. Statements are texts with `?` for parameters.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use mysql_async::prelude::Queryable;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;

use crate::config::Config;

/// Most open connections of a program whose file names no number.
const MOST_CONNECTIONS: usize = 10;

/// The kind of database server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    MySql,
}

impl Dialect {
    /// The name in `database_driver` and `database.type`.
    fn parse(name: &str) -> anyhow::Result<Self> {
        match name {
            "postgres" => Ok(Self::Postgres),
            "mysql" => Ok(Self::MySql),
            other => bail!("database type '{other}' is not supported"),
        }
    }
}

/// A parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A BIGINT.
    Int(i64),
    /// A boolean.
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// Why a statement failed.
#[derive(Debug)]
pub enum Error {
    /// PostgreSQL.
    Postgres(tokio_postgres::Error),
    /// MySQL.
    MySql(mysql_async::Error),
    /// A column has another type.
    Column(usize),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Postgres(error) => match error.as_db_error() {
                Some(told) => write!(f, "{told}"),
                None => write!(f, "{error}"),
            },
            Self::MySql(error) => write!(f, "{error}"),
            Self::Column(number) => write!(f, "column {number} has another type"),
        }
    }
}

impl std::error::Error for Error {}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<mysql_async::Error> for Error {
    fn from(error: mysql_async::Error) -> Self {
        Self::MySql(error)
    }
}

impl Error {
    /// The server's code of the error: SQLSTATE, or MySQL's number.
    pub fn code(&self) -> Option<String> {
        match self {
            Self::Postgres(error) => Some(error.code()?.code().to_owned()),
            Self::MySql(mysql_async::Error::Server(told)) => Some(told.code.to_string()),
            Self::MySql(_) | Self::Column(_) => None,
        }
    }

    /// Whether the connection is of no more use.
    pub fn is_broken(&self) -> bool {
        match self {
            Self::Postgres(error) => error.is_closed() || error.code().is_none(),
            Self::MySql(mysql_async::Error::Server(_)) | Self::Column(_) => false,
            Self::MySql(_) => true,
        }
    }
}

/// A row of a result.
#[derive(Debug)]
pub enum Row {
    /// PostgreSQL.
    Postgres(tokio_postgres::Row),
    /// MySQL.
    MySql(mysql_async::Row),
}

impl Row {
    /// A text column; `None` for NULL.
    pub fn text(&self, column: usize) -> Result<Option<String>, Error> {
        match self {
            Self::Postgres(row) => Ok(row.try_get(column)?),
            Self::MySql(row) => self.mysql(row, column),
        }
    }

    /// A BIGINT column; `None` for NULL.
    pub fn int(&self, column: usize) -> Result<Option<i64>, Error> {
        match self {
            Self::Postgres(row) => Ok(row.try_get(column)?),
            Self::MySql(row) => self.mysql(row, column),
        }
    }

    /// A boolean column; NULL is false.
    pub fn flag(&self, column: usize) -> Result<bool, Error> {
        match self {
            Self::Postgres(row) => Ok(row.try_get::<_, Option<bool>>(column)?.unwrap_or(false)),
            Self::MySql(row) => Ok(self.mysql::<bool>(row, column)?.unwrap_or(false)),
        }
    }

    fn mysql<T: mysql_async::prelude::FromValue>(
        &self,
        row: &mysql_async::Row,
        column: usize,
    ) -> Result<Option<T>, Error> {
        let value = row.get_opt::<Option<T>, _>(column).ok_or(Error::Column(column))?;
        value.map_err(|_error| Error::Column(column))
    }
}

/// One connection.
#[derive(Debug)]
pub enum Connection {
    /// PostgreSQL, with the task that drives it.
    Postgres(tokio_postgres::Client, JoinSet<()>),
    /// MySQL.
    MySql(Box<mysql_async::Conn>),
}

impl Connection {
    /// Runs a statement with parameters and returns its rows.
    pub async fn run(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, Error> {
        match self {
            Self::Postgres(client, _driver) => {
                let statement = client.prepare(&numbered(sql)).await?;
                let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(as_postgres).collect();
                let rows = client.query(&statement, &values).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
            Self::MySql(connection) => {
                let values: Vec<_> = values.iter().map(as_mysql).collect();
                let values = match values.is_empty() {
                    true => mysql_async::Params::Empty,
                    false => mysql_async::Params::Positional(values),
                };
                let rows: Vec<mysql_async::Row> = connection.exec(sql, values).await?;
                Ok(rows.into_iter().map(Row::MySql).collect())
            }
        }
    }

    /// Runs a statement without parameters that cannot be prepared: BEGIN and its like.
    pub async fn command(&mut self, sql: &str) -> Result<(), Error> {
        match self {
            Self::Postgres(client, _driver) => Ok(client.batch_execute(sql).await?),
            Self::MySql(connection) => Ok(connection.query_drop(sql).await?),
        }
    }
}

fn as_postgres(value: &Value) -> &(dyn ToSql + Sync) {
    match value {
        Value::Text(text) => text,
        Value::Int(number) => number,
        Value::Flag(flag) => flag,
    }
}

fn as_mysql(value: &Value) -> mysql_async::Value {
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::Int(number) => (*number).into(),
        Value::Flag(flag) => (*flag).into(),
    }
}

/// The statement with `$1`, `$2` ... for `?`.
fn numbered(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len() + 8);
    let mut parts = sql.split('?');
    text.push_str(parts.next().unwrap_or_default());
    for (number, part) in (1..).zip(parts) {
        let _written = write!(text, "${number}{part}");
    }
    text
}

/// A database and its idle connections.
#[derive(Debug)]
pub struct Database {
    dialect: Dialect,
    options: Options,
    idle: Mutex<Vec<Connection>>,
    open: Semaphore,
}

#[derive(Debug)]
enum Options {
    Postgres(Box<tokio_postgres::Config>),
    MySql(mysql_async::Opts),
}

/// A connection that is taken out of the pool until [`Database::give_back`].
#[derive(Debug)]
pub struct Lease<'a> {
    /// The connection.
    pub connection: Connection,
    _place: SemaphorePermit<'a>,
}

impl Database {
    /// With a connection string: PostgreSQL's URL, or Go's form for MySQL.
    pub fn new(dialect: Dialect, connection_string: &str) -> anyhow::Result<Self> {
        let options = match dialect {
            Dialect::Postgres => Options::Postgres(Box::new(connection_string.parse()?)),
            Dialect::MySql => Options::MySql(go_dsn(connection_string)?),
        };
        Ok(Self::with(dialect, options))
    }

    /// Of Locket's file.
    pub(crate) fn of_locket(config: &Config) -> anyhow::Result<Self> {
        let dialect = Dialect::parse(&config.text("database_driver")?)?;
        let database = Self::new(dialect, &config.text("database_connection_string")?)?;
        let most = config.number("max_open_database_connections")?;
        Ok(Self { open: Semaphore::new(usize::try_from(most)?), ..database })
    }

    /// Of the files of policy-server's jobs.
    pub(crate) fn of_job(config: &Config) -> anyhow::Result<Self> {
        let at = config.below("database");
        let (user, password) = (at.text("user")?, at.text_or("password", ""));
        let (host, port) = (at.text("host")?, at.port("port")?);
        let name = at.text_or("database_name", "");
        let dialect = Dialect::parse(&at.text("type")?)?;
        let options = match dialect {
            Dialect::Postgres => {
                let mut options = tokio_postgres::Config::new();
                options.user(user).password(password).host(host).port(port).dbname(name);
                Options::Postgres(Box::new(options))
            }
            Dialect::MySql => Options::MySql(mysql(user, password, host, port, name)),
        };
        Ok(Self::with(dialect, options))
    }

    fn with(dialect: Dialect, options: Options) -> Self {
        let open = Semaphore::new(MOST_CONNECTIONS);
        Self { dialect, options, idle: Mutex::default(), open }
    }

    /// The kind of server.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// An idle or a new connection. One that is not given back is closed.
    pub async fn take(&self) -> Result<Lease<'_>, Error> {
        let place = self.open.acquire().await.expect("the semaphore is never closed");
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok(Lease { connection, _place: place })
    }

    /// Keeps a connection without an open transaction for the next use.
    pub fn give_back(&self, lease: Lease<'_>) {
        let Lease { connection, _place } = lease;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Runs one statement outside a transaction.
    pub async fn run(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>, Error> {
        let mut lease = self.take().await?;
        let rows = lease.connection.run(sql, values).await?;
        self.give_back(lease);
        Ok(rows)
    }

    async fn connect(&self) -> Result<Connection, Error> {
        match &self.options {
            Options::Postgres(options) => {
                let (client, connection) = options.connect(tokio_postgres::NoTls).await?;
                let mut driver = JoinSet::new();
                // The calls see how the connection ends.
                driver.spawn(async move { drop(connection.await) });
                Ok(Connection::Postgres(client, driver))
            }
            Options::MySql(options) => {
                let connection = mysql_async::Conn::new(options.clone()).await?;
                Ok(Connection::MySql(Box::new(connection)))
            }
        }
    }
}

/// `user:password@tcp(host:port)/database`.
fn go_dsn(text: &str) -> anyhow::Result<mysql_async::Opts> {
    let parts = || {
        let (login, rest) = text.rsplit_once("@tcp(")?;
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (address, name) = rest.split_once(")/")?;
        let (host, port) = address.rsplit_once(':')?;
        let name = name.split('?').next()?;
        Some((user, password, host, port.parse().ok()?, name))
    };
    let (user, password, host, port, name) =
        parts().context("the connection string is not user:password@tcp(host:port)/database")?;
    let [user, password, host, name] = [user, password, host, name].map(str::to_owned);
    Ok(mysql(user, password, host, port, name))
}

fn mysql(
    user: String,
    password: String,
    host: String,
    port: u16,
    name: String,
) -> mysql_async::Opts {
    mysql_async::OptsBuilder::default()
        .user(Some(user))
        .pass(Some(password))
        .ip_or_hostname(host)
        .tcp_port(port)
        .db_name(Some(name))
        .prefer_socket(false)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_for_postgresql() {
        assert_eq!(numbered("SELECT a FROM t"), "SELECT a FROM t");
        assert_eq!(numbered("a = ? AND b = ?"), "a = $1 AND b = $2");
    }

    #[test]
    fn a_connection_string_of_go_is_read() {
        let options = go_dsn("u:p@ss@tcp(127.0.0.1:3307)/locket?x=y").unwrap();
        assert_eq!(options.user(), Some("u"));
        assert_eq!(options.pass(), Some("p@ss"));
        assert_eq!(options.tcp_port(), 3307);
        assert_eq!(options.db_name(), Some("locket"));
        assert!(go_dsn("postgres://u@h/d").is_err());
    }
}
