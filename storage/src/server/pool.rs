//! Connections that are shared, and who has one on loan.
//!
//! A connection goes back only when it is known to be idle and outside of a
//! transaction; whatever else is returned (its user gave up, it failed) is closed,
//! which makes the server undo what was open.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use tokio::time::{Instant, timeout};

use super::{
    Dialect, Options, Rows,
    fault::Fault,
    mysql, postgres,
    stats::{Counters, Stats},
    value::Value,
};
use crate::{Error, Kind};

/// Connections when nothing else is said: what BOSH gives the original.
const MAX_OPEN: usize = 200;

/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(300);

/// How often the idle ones are looked at.
const SWEEP: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(super) enum Connector {
    Postgres(Box<postgres::Connector>),
    MySql(Box<mysql::Connector>),
}

impl Connector {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        Ok(match options.dialect {
            Dialect::Postgres => Self::Postgres(Box::new(postgres::Connector::new(options)?)),
            Dialect::MySql => Self::MySql(Box::new(mysql::Connector::new(options)?)),
        })
    }

    async fn connect(&self) -> Result<Connection, Fault> {
        Ok(match self {
            Self::Postgres(connector) => Connection::Postgres(Box::new(connector.connect().await?)),
            Self::MySql(connector) => Connection::MySql(Box::new(connector.connect().await?)),
        })
    }
}

pub(super) enum Connection {
    Postgres(Box<postgres::Connection>),
    MySql(Box<mysql::Connection>),
}

impl Connection {
    async fn check(&mut self) -> Result<(), Fault> {
        match self {
            Self::Postgres(connection) if connection.is_closed() => {
                Err(Fault::new(Kind::Unavailable, "the server closed the connection"))
            }
            Self::Postgres(_) => Ok(()),
            Self::MySql(connection) => connection.check().await,
        }
    }

    async fn ask(&mut self, ask: Ask<'_>) -> Result<Rows, Fault> {
        match (self, ask) {
            (Self::Postgres(connection), Ask::Run { begin, sql, values }) => {
                connection.run(begin, sql, values).await
            }
            (Self::MySql(connection), Ask::Run { begin, sql, values }) => {
                connection.run(begin, sql, values).await
            }
            (Self::Postgres(connection), Ask::Copy { into, pieces }) => {
                connection.copy(into, pieces).await
            }
            (Self::MySql(_), Ask::Copy { .. }) => {
                Err(Fault::new(Kind::Other, "MySQL knows no COPY"))
            }
            (Self::Postgres(connection), Ask::Batch(sql)) => connection.batch(sql).await,
            (Self::MySql(connection), Ask::Batch(sql)) => connection.batch(sql).await,
        }
    }
}

/// What a connection is asked.
enum Ask<'a> {
    /// One statement; with `begin` the first of a transaction.
    Run { begin: bool, sql: &'a str, values: &'a [Value] },
    /// Rows for a table and its columns.
    Copy { into: &'a str, pieces: &'a mut (dyn Iterator<Item = Bytes> + Send) },
    /// Statements without parameters and without an answer.
    Batch(&'a str),
}

struct Manager {
    connector: Connector,
    connect_timeout: Duration,
    max_lifetime: Option<Duration>,
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = Fault;

    async fn create(&self) -> Result<Connection, Fault> {
        let connecting = self.connector.connect();
        timeout(self.connect_timeout, connecting).await.unwrap_or_else(|_| {
            Err(Fault::new(
                Kind::Unavailable,
                format!("no connection within {:?}", self.connect_timeout),
            ))
        })
    }

    async fn recycle(
        &self,
        connection: &mut Connection,
        metrics: &Metrics,
    ) -> RecycleResult<Fault> {
        if self.max_lifetime.is_some_and(|lifetime| metrics.age() > lifetime) {
            return Err(RecycleError::message("it is old"));
        }
        Ok(connection.check().await?)
    }
}

pub(super) struct Pool {
    pool: managed::Pool<Manager>,
    max_open: usize,
    /// On loan, or asked for.
    lent: AtomicUsize,
    counters: Counters,
    swept: Mutex<Instant>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").field("status", &self.pool.status()).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(connector: Connector, options: &Options) -> Self {
        let manager = Manager {
            connector,
            connect_timeout: options.connect_timeout,
            max_lifetime: options.max_lifetime,
        };
        let max_open = if options.max_open == 0 { MAX_OPEN } else { options.max_open };
        let pool = managed::Pool::builder(manager)
            .max_size(max_open)
            // The ones used last: so the others become idle and are closed.
            .queue_mode(managed::QueueMode::Lifo)
            .build()
            .expect("without timeouts a pool needs no runtime");
        Self {
            pool,
            max_open,
            lent: AtomicUsize::new(0),
            counters: Counters::default(),
            swept: Mutex::new(Instant::now()),
        }
    }

    /// A connection, as soon as there is one.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease, Error> {
        self.sweep();
        let before = self.lent.fetch_add(1, Ordering::Relaxed);
        let lent = Lent(Arc::clone(self));
        let begun = Instant::now();
        let object = self.pool.get().await;
        if before >= self.max_open {
            self.counters.waited(begun.elapsed());
        }
        match object {
            Ok(object) => Ok(Lease { object: Some(object), idle: true, lent }),
            Err(PoolError::Backend(fault)) => Err(Error::Connect { source: Arc::new(fault) }),
            Err(PoolError::Closed) => Err(Error::Closed),
            Err(
                error @ (PoolError::Timeout(_)
                | PoolError::NoRuntimeSpecified
                | PoolError::PostCreateHook(_)),
            ) => Err(Error::Connect {
                source: Arc::new(Fault::new(Kind::Unavailable, error.to_string())),
            }),
        }
    }

    /// Closes what nobody needs, now and then.
    fn sweep(&self) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.elapsed() < SWEEP {
            return;
        }
        *swept = Instant::now();
        drop(swept);
        let lifetime = self.pool.manager().max_lifetime.unwrap_or(Duration::MAX);
        drop(self.pool.retain(|_, metrics| metrics.last_used() < IDLE && metrics.age() < lifetime));
    }

    pub(super) fn close(&self) {
        self.pool.close();
    }

    pub(super) fn stats(&self) -> Stats {
        self.counters.look(self.pool.status().size)
    }
}

/// A connection on loan.
pub(super) struct Lease {
    object: Option<Object<Manager>>,
    /// It may go back.
    idle: bool,
    lent: Lent,
}

/// Counts a connection as on loan.
struct Lent(Arc<Pool>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// `ends_idle`: when it is answered, no transaction is open.
    async fn ask(&mut self, ends_idle: bool, ask: Ask<'_>) -> Result<Rows, Fault> {
        let query = self.lent.0.counters.begin();
        self.idle = false;
        let object = self.object.as_mut().expect("it is taken away only at the end");
        let outcome = object.ask(ask).await;
        query.end(outcome.is_ok());
        self.idle = match &outcome {
            Ok(_) => ends_idle,
            Err(fault) => ends_idle && !fault.is_lost(),
        };
        outcome
    }

    /// One statement that is a transaction of its own.
    pub(super) async fn single(&mut self, sql: &str, values: &[Value]) -> Result<Rows, Fault> {
        self.ask(true, Ask::Run { begin: false, sql, values }).await
    }

    /// One statement of a transaction; with `begin` the first.
    pub(super) async fn part(
        &mut self,
        begin: bool,
        sql: &str,
        values: &[Value],
    ) -> Result<Rows, Fault> {
        self.ask(false, Ask::Run { begin, sql, values }).await
    }

    /// Rows, within a transaction.
    pub(super) async fn copy(
        &mut self,
        into: &str,
        pieces: &mut (dyn Iterator<Item = Bytes> + Send),
    ) -> Result<Rows, Fault> {
        self.ask(false, Ask::Copy { into, pieces }).await
    }

    /// Ends the transaction.
    pub(super) async fn commit(&mut self) -> Result<(), Fault> {
        self.ask(true, Ask::Batch("COMMIT")).await.map(drop)
    }

    /// Undoes the transaction.
    pub(super) async fn rollback(&mut self) -> Result<(), Fault> {
        self.ask(true, Ask::Batch("ROLLBACK")).await.map(drop)
    }

    /// Statements without parameters, within something larger.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<(), Fault> {
        self.ask(false, Ask::Batch(sql)).await.map(drop)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take()
            && !self.idle
        {
            drop(Object::take(object));
        }
    }
}
