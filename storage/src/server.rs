//! PostgreSQL, MySQL and MariaDB: a database server shared by several processes.
//!
//! Invariants:
//! - Every wait is bounded: for a connection, a response, a lock, or a peer that disappeared
//!   silently. A call ends within [`Options::operation_timeout`].
//! - A write that returned `Ok` is committed, and as durable as the server is configured. A write
//!   that returned an error is not stored, with one exception: [`Error::OutcomeUnknown`].
//! - An operation that failed for a transient reason (a deadlock, a lost connection, a failover),
//!   and is known not to be stored, is retried with growing pauses until its timeout.
//! - A cancelled caller leaves no open transaction, no lock, and costs no connection. A single
//!   statement already sent may still take effect.
//! - Idle connections are closed after a timeout, and all connections when the server handle is
//!   closed.
//! - Transactions run with READ COMMITTED on either server.
//! - No error and no `Debug` output contains a password.
//!
//! Statements are texts with `?` for parameters, and are prepared once per connection. Portability
//! between the dialects is the caller's responsibility.

mod address;
mod copy;
mod fault;
mod listen;
mod migrate;
mod mysql;
mod pool;
mod postgres;
mod stats;
mod text;
mod tls;
mod transaction;
mod value;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use net::backoff::Backoff;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use trust::chain;

pub use self::{
    copy::{Field, NewRows},
    fault::Fault,
    listen::{Listener, Notice},
    stats::Stats,
    transaction::Transaction,
    value::{FromValue, Row, Value},
};
use self::{
    pool::{Connector, Lease, Pool},
    transaction::Unstored,
};
use crate::{Error, Kind, Lost, Mending, Migration, Table};

/// SQL dialect of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    MySql,
}

impl Dialect {
    /// The backup tool for a database of such a server.
    #[must_use]
    pub fn backup_tool(self) -> &'static str {
        match self {
            Self::Postgres => "pg_dump",
            Self::MySql => "mariadb-dump --single-transaction",
        }
    }
}

/// TLS verification: the server's certificate must chain to this CA. A connection without TLS is
/// rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file; read again for each connection.
    pub ca: PathBuf,
    /// Whether the certificate must match the host of the connection string.
    pub verify_identity: bool,
}

/// Connection options of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Options {
    /// SQL dialect.
    pub dialect: Dialect,
    /// PostgreSQL: a URL or keywords, completed from `PGHOST` and similar variables. MySQL: the
    /// format of Go's driver, `user:password@tcp(host:port)/database`.
    pub connection_string: String,
    /// `None`: PostgreSQL's `sslmode` or MySQL's `tls` of the connection string applies.
    pub tls: Option<Tls>,
    /// Maximum number of connections; 0 is the default of 200.
    pub max_open: usize,
    /// Maximum age of a connection; an older one is not reused.
    pub max_lifetime: Option<Duration>,
    /// Connect timeout.
    pub connect_timeout: Duration,
    /// Timeout of a whole call, including retries.
    pub operation_timeout: Duration,
    /// How long the start waits for an unavailable server; zero: no wait.
    pub start_timeout: Duration,
    /// Application name shown to database operators (PostgreSQL).
    pub application_name: String,
    /// Statements for each new connection, before any other (PostgreSQL). If they fail, the
    /// connection is not used.
    pub on_connect: &'static str,
}

impl Options {
    /// Creates options with the defaults of the original: 10 seconds per operation, no maximum
    /// connection age.
    pub fn new(dialect: Dialect, connection_string: impl Into<String>) -> Self {
        Self {
            dialect,
            connection_string: connection_string.into(),
            tls: None,
            max_open: 0,
            max_lifetime: None,
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(10),
            start_timeout: Duration::ZERO,
            application_name: "portcullis".to_owned(),
            on_connect: "",
        }
    }

    /// Validates the connection string without connecting, for the configuration check.
    pub fn check(&self) -> Result<(), Error> {
        Connector::new(self).map(drop)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            dialect,
            connection_string: _,
            tls,
            max_open,
            max_lifetime,
            connect_timeout,
            operation_timeout,
            start_timeout,
            application_name,
            on_connect: _,
        } = self;
        formatter
            .debug_struct("Options")
            .field("dialect", dialect)
            .field("tls", tls)
            .field("max_open", max_open)
            .field("max_lifetime", max_lifetime)
            .field("connect_timeout", connect_timeout)
            .field("operation_timeout", operation_timeout)
            .field("start_timeout", start_timeout)
            .field("application_name", application_name)
            .finish_non_exhaustive()
    }
}

/// Schema of a program.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// Table that records the applied migrations; programs that share a database use different
    /// ones.
    pub record: &'static str,
    /// Migrations in the server's dialect. MySQL commits each statement separately, so there each
    /// statement should be repeatable (`IF NOT EXISTS`).
    pub migrations: &'static [Migration],
    /// Tables after the last migration; missing tables and columns are recreated.
    pub tables: &'static [Table],
}

/// Returns the statements, with their values, that restore rows in recreated tables.
pub type Restore<'a> = dyn Fn(&Mending<'_>) -> Vec<(String, Vec<Value>)> + Sync + 'a;

/// Result of a statement.
#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Row>,
    affected: u64,
}

/// Handle to a database on a server; clones share its connections.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("dialect", &self.dialect()).finish_non_exhaustive()
    }
}

struct Shared {
    dialect: Dialect,
    connector: Connector,
    pool: Arc<Pool>,
    schema: Schema,
    connect_timeout: Duration,
    operation_timeout: Duration,
    /// Task that closes idle connections.
    _sweeper: JoinSet<()>,
}

/// Bounds of the first and of the longest pause between connection attempts at the start.
const START_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Bounds of the first and of the longest pause between retries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Retry state of a call, with its deadline.
struct Attempts {
    deadline: Instant,
    timeout: Duration,
    /// Created with the first retry, as most calls need none.
    backoff: Option<Backoff>,
}

impl Attempts {
    fn new(timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, timeout, backoff: None }
    }

    /// Pauses before a retry; returns `error` when a retry is pointless or the deadline is too
    /// close.
    async fn again(&mut self, error: Error) -> Result<(), Error> {
        if !passes(&error) {
            return Err(error);
        }
        let pause = self.backoff.get_or_insert_with(|| Backoff::new(PAUSES.0, PAUSES.1)).pause();
        if Instant::now() + pause >= self.deadline {
            return Err(error);
        }
        tracing::debug!(error = %error, ?pause, "database-retry");
        sleep(pause).await;
        Ok(())
    }

    fn timed_out(&self) -> Error {
        Error::Timeout { after: self.timeout, source: None }
    }
}

/// Whether the error is transient, so that an immediate retry can succeed.
fn passes(error: &Error) -> bool {
    error.is_retryable() && !matches!(error.kind(), Kind::Full | Kind::Io | Kind::Timeout)
}

impl Server {
    /// Connects, applies pending migrations, and recreates missing tables and columns. Waits for an
    /// unavailable server until [`Options::start_timeout`].
    ///
    /// # Errors
    /// The server is unreachable until the timeout, or unusable; the schema is from a newer
    /// release.
    pub async fn connect(options: &Options, schema: &Schema) -> Result<Self, Error> {
        let connector = Connector::new(options)?;
        let pool = Arc::new(Pool::new(connector.clone(), options));
        let sweeper = pool.sweeper();
        let shared = Shared {
            dialect: options.dialect,
            connector,
            pool,
            schema: *schema,
            connect_timeout: options.connect_timeout,
            operation_timeout: options.operation_timeout,
            _sweeper: sweeper,
        };
        let server = Self { shared: Arc::new(shared) };
        let deadline = Instant::now() + options.start_timeout;
        let mut backoff = Backoff::new(START_PAUSES.0, START_PAUSES.1);
        loop {
            let Err(error) = migrate::migrate(&server, schema, None).await else {
                return Ok(server);
            };
            let pause = backoff.pause();
            if !error.is_retryable() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::info!(error = chain(&error), ?pause, "waiting-for-database");
            sleep(pause).await;
        }
    }

    /// Recreates tables and columns that were lost while the program runs, and returns them.
    /// `restore` returns the statements that restore rows; they take effect together with the new
    /// tables. A schema of a newer release is not changed.
    ///
    /// # Errors
    /// The database does not respond, or rejects a statement.
    pub async fn mend(&self, restore: &Restore<'_>) -> Result<Vec<Lost>, Error> {
        let schema = &self.shared.schema;
        if !migrate::is_damaged(self, schema).await? {
            return Ok(Vec::new());
        }
        match migrate::migrate(self, schema, Some(restore)).await {
            Err(Error::NewerSchema { .. } | Error::ChangedMigration { .. }) => Ok(Vec::new()),
            mended => mended,
        }
    }

    /// SQL dialect of the server.
    pub fn dialect(&self) -> Dialect {
        self.shared.dialect
    }

    /// Runs one read-only statement, and retries it after a lost connection.
    pub async fn query(&self, sql: &str, parameters: &[Value]) -> Result<Vec<Row>, Error> {
        let mut attempts = Attempts::new(self.shared.operation_timeout);
        loop {
            let work = async {
                let lease = self.shared.pool.lease().await?;
                Ok::<_, Error>(lease.single(attempts.deadline, sql, parameters).await?)
            };
            match timeout_at(attempts.deadline, work).await {
                Ok(Ok(rows)) => return Ok(rows.rows),
                Ok(Err(error)) => attempts.again(error).await?,
                Err(_) => return Err(attempts.timed_out()),
            }
        }
    }

    /// Runs one statement in its own transaction, and returns the number of changed rows.
    pub async fn execute(&self, sql: &str, parameters: &[Value]) -> Result<u64, Error> {
        Ok(self.write(sql, parameters).await?.affected)
    }

    /// Runs one statement in its own transaction, and returns its rows.
    pub async fn execute_returning(
        &self,
        sql: &str,
        parameters: &[Value],
    ) -> Result<Vec<Row>, Error> {
        Ok(self.write(sql, parameters).await?.rows)
    }

    /// Takes a connection, and retries while none can be opened.
    async fn lease(&self, attempts: &mut Attempts) -> Result<Lease, Error> {
        loop {
            match timeout_at(attempts.deadline, self.shared.pool.lease()).await {
                Ok(Ok(lease)) => return Ok(lease),
                Ok(Err(error)) => attempts.again(error).await?,
                Err(_) => return Err(attempts.timed_out()),
            }
        }
    }

    async fn write(&self, sql: &str, parameters: &[Value]) -> Result<Rows, Error> {
        let mut attempts = Attempts::new(self.shared.operation_timeout);
        loop {
            let lease = self.lease(&mut attempts).await?;
            let sending = lease.single(attempts.deadline, sql, parameters);
            let sent = timeout_at(attempts.deadline, sending).await;
            match sent.map(|answered| answered.map_err(Unstored::of)) {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(Unstored::Refused(error))) => attempts.again(error).await?,
                Ok(Err(Unstored::Unknown(error))) => return Err(error),
                Err(_) => return Err(self.unanswered()),
            }
        }
    }

    /// Runs statements without parameters as one text, once. For DDL, which servers do not prepare.
    /// A text that opens a transaction must also end it.
    pub async fn define(&self, sql: &str) -> Result<(), Error> {
        let attempts = Attempts::new(self.shared.operation_timeout);
        let work = async {
            let mut lease = self.shared.pool.lease().await?;
            // A failed text may leave settings and locks in the session.
            lease.locked();
            Ok::<_, Error>(lease.batch(sql).await?)
        };
        timeout_at(attempts.deadline, work).await.unwrap_or_else(|_| Err(attempts.timed_out()))
    }

    /// Runs a transaction of several statements in one round trip, on MySQL, so that row locks are
    /// not held during further round trips. Returns the rows of each statement.
    pub async fn at_once(&self, statements: &[(&str, &[Value])]) -> Result<Vec<Vec<Row>>, Error> {
        let texts = statements.iter().map(|(sql, values)| mysql::literal(sql, values));
        let sql = format!("BEGIN; {}; COMMIT", texts.collect::<Vec<_>>().join("; "));
        let mut attempts = Attempts::new(self.shared.operation_timeout);
        loop {
            let lease = self.lease(&mut attempts).await?;
            let sending = lease.script(attempts.deadline, sql.clone());
            let Ok((lease, outcome)) = timeout_at(attempts.deadline, sending).await else {
                return Err(self.unanswered());
            };
            if outcome.is_err() {
                let _undone_anyhow = timeout_at(attempts.deadline, lease.undone()).await;
            }
            match outcome.map_err(Unstored::of) {
                Ok(answers) => {
                    let own = answers.into_iter().skip(1).take(statements.len());
                    return Ok(own.map(|rows| rows.rows).collect());
                }
                Err(Unstored::Refused(error)) => attempts.again(error).await?,
                Err(Unstored::Unknown(error)) => return Err(error),
            }
        }
    }

    fn unanswered(&self) -> Error {
        let after = self.shared.operation_timeout;
        let fault = Fault::new(Kind::Timeout, format!("no answer within {after:?}"));
        Error::OutcomeUnknown { source: Arc::new(fault) }
    }

    /// Runs `work` in a transaction, and commits. An error of `work` rolls back. When a statement
    /// fails for a transient reason, `work` is called again with a new transaction, so its other
    /// side effects repeat.
    pub async fn transaction<T, E, F, W>(&self, mut work: F) -> Result<T, E>
    where
        F: FnMut(Transaction) -> W,
        W: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let mut attempts = Attempts::new(self.shared.operation_timeout);
        loop {
            let deadline = attempts.deadline;
            let lease = self.lease(&mut attempts).await?;
            let transaction = Transaction::new(lease, self.dialect(), deadline);
            let Ok(done) = timeout_at(deadline, work(transaction.clone())).await else {
                return Err(attempts.timed_out().into());
            };
            if let Some(error) = transaction.failed().await {
                let _undone_anyhow = timeout_at(deadline, transaction.rollback()).await;
                // The error of `work` is more specific, unless there is a retry.
                match (attempts.again(error).await, done) {
                    (Ok(()), _) => continue,
                    (Err(_), Err(own)) => return Err(own),
                    (Err(error), Ok(_)) => return Err(error.into()),
                }
            }
            let value = match done {
                Ok(value) => value,
                Err(own) => {
                    let _undone_anyhow = timeout_at(deadline, transaction.rollback()).await;
                    return Err(own);
                }
            };
            match timeout_at(deadline, transaction.commit()).await {
                Ok(Ok(())) => return Ok(value),
                Ok(Err(Unstored::Refused(error))) => attempts.again(error).await?,
                Ok(Err(Unstored::Unknown(error))) => return Err(error.into()),
                Err(_) => return Err(self.unanswered().into()),
            }
        }
    }

    /// Notifications sent with `pg_notify`. `None` on MySQL, which has no equivalent: poll instead.
    pub fn listen(&self, channel: &'static str) -> Option<Listener> {
        match &self.shared.connector {
            Connector::Postgres(connector) => Some(Listener::new(
                postgres::Connector::clone(connector),
                channel,
                self.shared.connect_timeout,
                self.shared.operation_timeout,
            )),
            Connector::MySql(_) => None,
        }
    }

    /// Statistics; resets the maxima.
    pub fn stats(&self) -> Stats {
        self.shared.pool.stats()
    }

    /// Rejects further work with [`Error::Closed`], and closes the connections with the protocol's
    /// termination message. Running statements have a few seconds to finish.
    pub async fn close(&self) {
        self.shared.pool.close().await;
    }
}
