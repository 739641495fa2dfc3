//! PostgreSQL, MySQL and MariaDB: a server that several processes share.
//!
//! What holds:
//! - Every wait is bounded: for a connection, for an answer, for a lock, for a
//!   peer that is gone without a word. A call ends within
//!   [`Options::operation_timeout`].
//! - A write that answered `Ok` is committed, and on the disk as far as the server
//!   is set up so. A write that answered with an error is not stored; the one
//!   exception says so: [`Error::OutcomeUnknown`].
//! - What failed for a reason that passes (a deadlock, a lost connection, a
//!   failover), and is known not to be stored, is tried again with growing pauses
//!   until the time is over.
//! - A caller that gives up leaves nothing behind: no open transaction, no lock, no
//!   connection that was lost for it. What it had sent as a single statement may still
//!   take effect.
//! - Idle connections end in time, and all of them when the server is closed.
//! - Transactions read what is committed (READ COMMITTED), on either server.
//! - Passwords are in no error and in no `Debug`.
//!
//! Statements are texts with `?` for parameters, and are prepared once for each
//! connection. They are portable only as far as their authors care.

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

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

pub use self::{
    copy::{Field, NewRows},
    fault::Fault,
    listen::{Listener, Notice},
    stats::Stats,
    transaction::Transaction,
    value::{FromValue, Row, Value},
};
use self::{
    fault::chain,
    pool::{Connector, Pool},
    transaction::Unstored,
};
use crate::{Error, Kind, Lost, Mending, Migration, Table};

/// Which language a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    MySql,
}

impl Dialect {
    /// What makes a copy of a database of such a server.
    #[must_use]
    pub fn backup_tool(self) -> &'static str {
        match self {
            Self::Postgres => "pg_dump",
            Self::MySql => "mariadb-dump --single-transaction",
        }
    }
}

/// Whom to trust: a server with a certificate of this authority. A connection
/// without TLS is then refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// File of PEM; read again for each connection.
    pub ca: PathBuf,
    /// Whether the certificate must be for the host of the connection string.
    pub verify_identity: bool,
}

/// How a server is reached and used.
#[derive(Clone)]
pub struct Options {
    /// Its language.
    pub dialect: Dialect,
    /// PostgreSQL: a URL or keywords, completed from `PGHOST` and its like; MySQL:
    /// as Go's driver takes it, `user:password@tcp(host:port)/database`.
    pub connection_string: String,
    /// Without: PostgreSQL's `sslmode` or MySQL's `tls` of the string counts.
    pub tls: Option<Tls>,
    /// Connections at most; 0 is the default of 200.
    pub max_open: usize,
    /// A connection that is older is not used again.
    pub max_lifetime: Option<Duration>,
    /// How long it may take to connect.
    pub connect_timeout: Duration,
    /// How long a call may take in all.
    pub operation_timeout: Duration,
    /// How long a start waits for a server that is not there; zero: not at all.
    pub start_timeout: Duration,
    /// Who we are, for the operators of the database (PostgreSQL).
    pub application_name: String,
}

impl Options {
    /// With the defaults of the original: 10 seconds for an operation, no limit to
    /// the life of a connection.
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
        }
    }

    /// Whether the connection string can be understood: for the check of a
    /// configuration, before anything is connected.
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

/// The tables of a program.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// The table that remembers what was done; programs that share a database
    /// have different ones.
    pub record: &'static str,
    /// In the server's dialect. MySQL commits each statement by itself: there each
    /// should bear to be run twice (`IF NOT EXISTS`).
    pub migrations: &'static [Migration],
    /// What the last migration leaves; a table or a column that is missing is made again.
    pub tables: &'static [Table],
}

/// Says which statements, with their values, put rows back into tables that are made again.
pub type Restore<'a> = dyn Fn(&Mending<'_>) -> Vec<(String, Vec<Value>)> + Sync + 'a;

/// What a statement brought.
#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Row>,
    affected: u64,
}

/// A handle to a database on a server; clones share its connections.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dialect: Dialect,
    connector: Connector,
    pool: Arc<Pool>,
    schema: Schema,
    connect_timeout: Duration,
    operation_timeout: Duration,
    /// Closes idle connections.
    _sweeper: JoinSet<()>,
}

/// The first pause between two attempts to connect at the start, and the longest.
const START_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The first pause before another try, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// How far a call got, and until when it may go on.
struct Attempts {
    deadline: Instant,
    patience: Duration,
    pause: Duration,
}

impl Attempts {
    fn new(patience: Duration) -> Self {
        Self { deadline: Instant::now() + patience, patience, pause: PAUSES.0 }
    }

    /// Waits before another try; fails with `error` when that makes no sense.
    async fn again(&mut self, error: Error) -> Result<(), Error> {
        if !passes(&error) || Instant::now() + self.pause >= self.deadline {
            return Err(error);
        }
        tracing::debug!(error = %error, pause = ?self.pause, "database-retry");
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
        Ok(())
    }

    fn timed_out(&self) -> Error {
        Error::Timeout { after: self.patience, source: None }
    }
}

/// Whether it makes sense to try again at once what failed so.
fn passes(error: &Error) -> bool {
    match error.kind() {
        Kind::Busy | Kind::Standby | Kind::Unavailable => true,
        Kind::Full
        | Kind::Io
        | Kind::Corrupt
        | Kind::ReadOnly
        | Kind::Timeout
        | Kind::Refused
        | Kind::Constraint
        | Kind::Data
        | Kind::Schema
        | Kind::Closed
        | Kind::Other => false,
    }
}

impl Server {
    /// Connects, and brings the schema to the last of its migrations; tables and columns
    /// that are lost are made again. A server that is not there is waited for until
    /// [`Options::start_timeout`].
    ///
    /// # Errors
    /// The server cannot be reached in time, or used; the schema is a newer release's.
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
        let mut pause = START_PAUSES.0;
        loop {
            let Err(error) = migrate::migrate(&server, schema, None).await else {
                return Ok(server);
            };
            if !error.is_retryable() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::info!(error = chain(&error), pause = ?pause, "waiting-for-database");
            sleep(pause).await;
            pause = (pause * 2).min(START_PAUSES.1);
        }
    }

    /// Makes tables and columns again that were lost while the program runs, and returns
    /// what that was. `restore` says which statements put rows back; they take effect
    /// together with the new tables. A schema of a newer release is left
    /// alone.
    ///
    /// # Errors
    /// The database does not answer, or refuses a statement.
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

    /// Its language.
    pub fn dialect(&self) -> Dialect {
        self.shared.dialect
    }

    /// Runs one statement that changes nothing: when its connection is lost, it is
    /// run again.
    pub async fn query(&self, sql: &str, parameters: &[Value]) -> Result<Vec<Row>, Error> {
        let mut attempts = Attempts::new(self.shared.operation_timeout);
        loop {
            let work = async {
                let lease = self.shared.pool.lease().await?;
                let rows = lease.single(attempts.deadline, sql, parameters).await;
                rows.map_err(|fault| Error::Server { source: Arc::new(fault) })
            };
            match timeout_at(attempts.deadline, work).await {
                Ok(Ok(rows)) => return Ok(rows.rows),
                Ok(Err(error)) => attempts.again(error).await?,
                Err(_) => return Err(attempts.timed_out()),
            }
        }
    }

    /// Runs one statement that is a transaction of its own, and returns how many
    /// rows it changed.
    pub async fn execute(&self, sql: &str, parameters: &[Value]) -> Result<u64, Error> {
        Ok(self.write(sql, parameters).await?.affected)
    }

    /// Runs one statement that is a transaction of its own, and returns its rows.
    pub async fn execute_returning(
        &self,
        sql: &str,
        parameters: &[Value],
    ) -> Result<Vec<Row>, Error> {
        Ok(self.write(sql, parameters).await?.rows)
    }

    async fn write(&self, sql: &str, parameters: &[Value]) -> Result<Rows, Error> {
        let mut attempts = Attempts::new(self.shared.operation_timeout);
        loop {
            let lease = timeout_at(attempts.deadline, self.shared.pool.lease()).await;
            let lease = match lease {
                Ok(Ok(lease)) => lease,
                Ok(Err(error)) => {
                    attempts.again(error).await?;
                    continue;
                }
                Err(_) => return Err(attempts.timed_out()),
            };
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

    /// Runs statements without parameters as one text, once: for definitions, which
    /// servers do not prepare. Where the text opens a transaction, it has to end it.
    pub async fn define(&self, sql: &str) -> Result<(), Error> {
        let attempts = Attempts::new(self.shared.operation_timeout);
        let work = async {
            let mut lease = self.shared.pool.lease().await?;
            // A text that fails may leave settings and locks of the session behind.
            lease.locked();
            let defined = lease.batch(sql).await;
            defined.map_err(|fault| Error::Server { source: Arc::new(fault) })
        };
        timeout_at(attempts.deadline, work).await.unwrap_or_else(|_| Err(attempts.timed_out()))
    }

    /// Runs a transaction of several statements in one round trip, on MySQL: locks of rows
    /// are not held while the answers travel. Returns the rows of each statement.
    pub async fn at_once(&self, statements: &[(&str, &[Value])]) -> Result<Vec<Vec<Row>>, Error> {
        let texts = statements.iter().map(|(sql, values)| mysql::literal(sql, values));
        let sql = format!("BEGIN; {}; COMMIT", texts.collect::<Vec<_>>().join("; "));
        let mut attempts = Attempts::new(self.shared.operation_timeout);
        loop {
            let lease = match timeout_at(attempts.deadline, self.shared.pool.lease()).await {
                Ok(Ok(lease)) => lease,
                Ok(Err(error)) => {
                    attempts.again(error).await?;
                    continue;
                }
                Err(_) => return Err(attempts.timed_out()),
            };
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

    /// Runs `work` in a transaction, and commits it. An error of `work` undoes all.
    /// When a statement fails for a reason that passes, `work` is called again with
    /// another transaction: whatever it does besides, it does so again.
    pub async fn transaction<T, E, F, W>(&self, mut work: F) -> Result<T, E>
    where
        F: FnMut(Transaction) -> W,
        W: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let mut attempts = Attempts::new(self.shared.operation_timeout);
        loop {
            let deadline = attempts.deadline;
            let lease = match timeout_at(deadline, self.shared.pool.lease()).await {
                Ok(Ok(lease)) => lease,
                Ok(Err(error)) => {
                    attempts.again(error).await?;
                    continue;
                }
                Err(_) => return Err(attempts.timed_out().into()),
            };
            let transaction = Transaction::new(lease, deadline);
            let Ok(done) = timeout_at(deadline, work(transaction.clone())).await else {
                return Err(attempts.timed_out().into());
            };
            if let Some(error) = transaction.failed().await {
                let _undone_anyhow = timeout_at(deadline, transaction.rollback()).await;
                // Its own error says more, unless there is another try.
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

    /// What others tell with `pg_notify`. None on MySQL, which has nothing of the
    /// kind: look every now and then.
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

    /// What was counted. The maxima begin anew.
    pub fn stats(&self) -> Stats {
        self.shared.pool.stats()
    }

    /// Refuses further work with [`Error::Closed`], and closes the connections with the
    /// protocol's goodbye; statements under way have a few seconds to end.
    pub async fn close(&self) {
        self.shared.pool.close().await;
    }
}
