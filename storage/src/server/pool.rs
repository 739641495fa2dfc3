//! Connection pool and leases.
//!
//! - A connection returns to the pool only when it is idle and outside of a transaction. An open
//!   transaction is rolled back first. A connection in any other state is closed, which makes the
//!   server roll back.
//! - A cancelled caller (after a client's deadline, for example) costs no connection: connecting,
//!   and a statement already sent, continue in the background until their own deadline. There are
//!   at most as many of these as connections.
//! - Idle connections are closed after their lifetime, even without calls, by a background task.
//!   Connections are closed with the protocol's termination message (Terminate, COM_QUIT),
//!   including those open when the pool closes.

mod background;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use self::background::{Background, Finish};
use super::{
    Dialect, Options, Rows,
    fault::Fault,
    mysql, postgres,
    stats::{Counters, Stats},
    value::Value,
};
use crate::{Error, Kind};

/// Default maximum number of connections: the value that BOSH configures for the original.
const MAX_OPEN: usize = 200;

/// Maximum idle time of a connection.
const IDLE: Duration = Duration::from_secs(300);

/// Interval of the search for idle connections: a quarter of the lifetime, within these bounds.
const SWEEP: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Timeout of the graceful close of one connection.
const GOODBYE: Duration = Duration::from_secs(1);

/// Timeout for closing all connections when the pool closes.
const CLOSE: Duration = Duration::from_secs(3);

#[derive(Clone)]
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

    async fn script(&mut self, sql: &str) -> Result<Vec<Rows>, Fault> {
        match self {
            Self::Postgres(_) => Err(Fault::new(Kind::Other, "scripts are MySQL's")),
            Self::MySql(connection) => connection.script(sql).await,
        }
    }

    /// Closes the connection with the protocol's termination message.
    async fn close(self) {
        let closing = async {
            match self {
                Self::Postgres(connection) => connection.close().await,
                Self::MySql(connection) => connection.close().await,
            }
        };
        // After the timeout the socket is closed anyway.
        let _in_time = timeout(GOODBYE, closing).await;
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

/// A request to a connection.
enum Ask<'a> {
    /// One statement; with `begin` the first of a transaction.
    Run { begin: bool, sql: &'a str, values: &'a [Value] },
    /// Rows for a table with its columns.
    Copy { into: &'a str, pieces: &'a mut (dyn Iterator<Item = Bytes> + Send) },
    /// Statements without parameters and without a result.
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
    /// One permit per leased connection.
    permits: Arc<Semaphore>,
    counters: Counters,
    background: Background,
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
            // LIFO: the most recently used connection is reused, so the others become idle and are
            // closed.
            .queue_mode(managed::QueueMode::Lifo)
            .build()
            .expect("without timeouts a pool needs no runtime");
        Self {
            pool,
            permits: Arc::new(Semaphore::new(max_open)),
            counters: Counters::default(),
            background: Background::default(),
        }
    }

    /// Leases a connection as soon as one is free.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease, Error> {
        let permit = self.permit().await.ok_or(Error::Closed)?;
        let pool = Arc::clone(self);
        let getting = async move {
            match pool.pool.get().await {
                Ok(object) => {
                    let (object, permit) = (Some(object), Some(permit));
                    Ok(Lease { object, state: State::Idle, holds_lock: false, pool, permit })
                }
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
        };
        // The connector has a timeout of its own.
        Finish::new(self, None, getting).await
    }

    /// Acquires a permit for a connection; `None` when the pool is closed. Cancel safe.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(TryAcquireError::Closed) => None,
            Err(TryAcquireError::NoPermits) => {
                let begun = Instant::now();
                let permit = Arc::clone(&self.permits).acquire_owned().await;
                self.counters.waited(begun.elapsed());
                permit.ok()
            }
        }
    }

    /// Closes the idle connections for which `is_over` holds.
    fn close_idle(&self, is_over: impl Fn(&Metrics) -> bool) {
        for connection in self.pool.retain(|_, metrics| !is_over(&metrics)).removed {
            self.background.spawn(connection.close());
        }
    }

    fn sweep(&self) {
        let lifetime = self.pool.manager().max_lifetime.unwrap_or(Duration::MAX);
        self.close_idle(|metrics| metrics.last_used() >= IDLE || metrics.age() >= lifetime);
    }

    /// Starts the task that closes idle connections; it ends with the set.
    pub(super) fn sweeper(self: &Arc<Self>) -> JoinSet<()> {
        let lifetime = self.pool.manager().max_lifetime;
        let period = lifetime.map_or(SWEEP.1, |lifetime| (lifetime / 4).clamp(SWEEP.0, SWEEP.1));
        let mut tasks = JoinSet::new();
        tasks.spawn(sweep(Arc::downgrade(self), period));
        tasks
    }

    /// Rejects further leases, and waits until all connections are closed.
    pub(super) async fn close(&self) {
        self.permits.close();
        let closing = async {
            self.close_idle(|_| true);
            // Running statements finish in the background and close their connections.
            self.background.finished().await;
        };
        let _in_time = timeout(CLOSE, closing).await;
        self.pool.close();
    }

    pub(super) fn stats(&self) -> Stats {
        self.counters.look(self.pool.status().size)
    }
}

async fn sweep(pool: Weak<Pool>, period: Duration) {
    loop {
        sleep(period).await;
        match pool.upgrade() {
            Some(pool) => pool.sweep(),
            None => return,
        }
    }
}

/// State of a leased connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No statement or transaction: the connection may be returned.
    Idle,
    /// A transaction is open.
    Open,
    /// A statement is running, or the connection failed in one.
    Unusable,
}

/// A leased connection.
pub(super) struct Lease {
    object: Option<Object<Manager>>,
    state: State,
    /// The session holds a server lock that is released with the connection.
    holds_lock: bool,
    pool: Arc<Pool>,
    /// Dropped after the connection is returned.
    permit: Option<OwnedSemaphorePermit>,
}

impl Lease {
    /// `after`: the state of the connection after a successful response.
    async fn ask(&mut self, after: State, ask: Ask<'_>) -> Result<Rows, Fault> {
        let query = self.pool.counters.begin();
        self.state = State::Unusable;
        let object = self.object.as_mut().expect("it is taken away only at the end");
        let outcome = object.ask(ask).await;
        query.end(outcome.is_ok());
        self.state = match &outcome {
            Err(fault) if fault.is_lost() => State::Unusable,
            Ok(_) | Err(_) => after,
        };
        outcome
    }

    /// Runs one statement in its own transaction. If the caller is cancelled, it continues until
    /// `deadline`.
    pub(super) async fn single(
        self,
        deadline: Instant,
        sql: &str,
        values: &[Value],
    ) -> Result<Rows, Fault> {
        self.detached(State::Idle, false, deadline, sql, values).await.1
    }

    /// Runs a whole transaction in one round trip, on MySQL. If the caller is cancelled, it
    /// continues until `deadline`.
    pub(super) async fn script(
        mut self,
        deadline: Instant,
        sql: String,
    ) -> (Self, Result<Vec<Rows>, Fault>) {
        let pool = Arc::clone(&self.pool);
        let asking = async move {
            let query = self.pool.counters.begin();
            self.state = State::Unusable;
            let object = self.object.as_mut().expect("it is taken away only at the end");
            let outcome = object.script(&sql).await;
            query.end(outcome.is_ok());
            self.state = match &outcome {
                Ok(_) => State::Idle,
                Err(fault) if fault.is_lost() => State::Unusable,
                // The statement that failed is the last that ran.
                Err(_) => State::Open,
            };
            (self, outcome)
        };
        Finish::new(&pool, Some(deadline), asking).await
    }

    /// Runs one statement of a transaction; with `begin` the first. If the caller is cancelled, the
    /// statement continues until `deadline`, and then the transaction is rolled back.
    pub(super) async fn part_of(
        self,
        begin: bool,
        deadline: Instant,
        sql: &str,
        values: &[Value],
    ) -> (Self, Result<Rows, Fault>) {
        self.detached(State::Open, begin, deadline, sql, values).await
    }

    async fn detached(
        mut self,
        after: State,
        begin: bool,
        deadline: Instant,
        sql: &str,
        values: &[Value],
    ) -> (Self, Result<Rows, Fault>) {
        let pool = Arc::clone(&self.pool);
        let (sql, values) = (sql.to_owned(), values.to_vec());
        let asking = async move {
            let outcome = self.ask(after, Ask::Run { begin, sql: &sql, values: &values }).await;
            (self, outcome)
        };
        Finish::new(&pool, Some(deadline), asking).await
    }

    /// Runs one statement of a transaction; with `begin` the first.
    pub(super) async fn part(
        &mut self,
        begin: bool,
        sql: &str,
        values: &[Value],
    ) -> Result<Rows, Fault> {
        self.ask(State::Open, Ask::Run { begin, sql, values }).await
    }

    /// Copies rows, within a transaction.
    pub(super) async fn copy(
        &mut self,
        into: &str,
        pieces: &mut (dyn Iterator<Item = Bytes> + Send),
    ) -> Result<Rows, Fault> {
        self.ask(State::Open, Ask::Copy { into, pieces }).await
    }

    /// Commits the transaction.
    pub(super) async fn commit(&mut self) -> Result<(), Fault> {
        self.ask(State::Idle, Ask::Batch("COMMIT")).await.map(drop)
    }

    /// Rolls the transaction back.
    pub(super) async fn rollback(&mut self) -> Result<(), Fault> {
        self.ask(State::Idle, Ask::Batch("ROLLBACK")).await.map(drop)
    }

    /// Rolls back an open transaction, if the connection still works.
    pub(super) async fn undone(mut self) {
        if self.state == State::Open {
            let _closed_otherwise = self.rollback().await;
        }
    }

    /// Runs statements without parameters, as part of a larger operation.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<(), Fault> {
        self.ask(State::Open, Ask::Batch(sql)).await.map(drop)
    }

    /// Marks the session as holding a server lock: without [`Self::released`] the connection is
    /// closed instead of returned.
    pub(super) fn locked(&mut self) {
        self.holds_lock = true;
    }

    /// Marks the session as free of locks and transactions.
    pub(super) fn released(&mut self) {
        (self.holds_lock, self.state) = (false, State::Idle);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        match self.state {
            // The server detects the closed connection and rolls back.
            _ if self.holds_lock => drop(Object::take(object)),
            State::Unusable => drop(Object::take(object)),
            State::Idle if self.pool.permits.is_closed() => {
                self.pool.background.spawn(Object::take(object).close());
            }
            State::Idle => drop(object),
            State::Open => {
                let (pool, permit) = (Arc::clone(&self.pool), self.permit.take());
                let state = State::Unusable;
                let lease = Self { object: Some(object), state, holds_lock: false, pool, permit };
                self.pool.background.spawn(undo(lease));
            }
        }
    }
}

/// Rolls the transaction back, so that the connection can be returned.
async fn undo(mut lease: Lease) {
    let patience = lease.pool.pool.manager().connect_timeout;
    let _closed_otherwise = timeout(patience, lease.rollback()).await;
}
