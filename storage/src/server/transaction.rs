//! Transactions of several statements.

use std::sync::Arc;

use tokio::{sync::Mutex, time::Instant};

use super::{
    Dialect, Rows,
    copy::{NewRows, Pieces},
    fault::Fault,
    pool::Lease,
    value::{Row, Value},
};
use crate::Error;

/// An open transaction; clones refer to the same one. It begins with its first statement. After a
/// failed statement it accepts no further statements and is rolled back.
#[derive(Clone)]
pub struct Transaction {
    active: Arc<Mutex<Active>>,
    dialect: Dialect,
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Transaction").finish_non_exhaustive()
    }
}

struct Active {
    /// `None` when the transaction has ended.
    lease: Option<Lease>,
    begun: bool,
    failed: Option<Error>,
    /// Deadline of a statement that continues after its caller is cancelled.
    deadline: Instant,
}

impl Active {
    /// The lease for the next statement, and whether that statement is the first.
    fn next(&mut self) -> Result<(&mut Lease, bool), Error> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let begin = !self.begun;
        self.begun = true;
        Ok((self.lease.as_mut().ok_or(Error::Closed)?, begin))
    }

    fn noted(&mut self, outcome: Result<Rows, Fault>) -> Result<Rows, Error> {
        outcome.map_err(|fault| {
            let error = Error::from(fault);
            self.failed = Some(error.clone());
            error
        })
    }
}

impl Transaction {
    pub(super) fn new(lease: Lease, dialect: Dialect, deadline: Instant) -> Self {
        let active = Active { lease: Some(lease), begun: false, failed: None, deadline };
        Self { active: Arc::new(Mutex::new(active)), dialect }
    }

    /// The kind of server.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Runs a statement, and returns its rows.
    pub async fn query(&self, sql: &str, parameters: &[Value]) -> Result<Vec<Row>, Error> {
        Ok(self.run(sql, parameters).await?.rows)
    }

    /// Runs a statement, and returns the number of changed rows.
    pub async fn execute(&self, sql: &str, parameters: &[Value]) -> Result<u64, Error> {
        Ok(self.run(sql, parameters).await?.affected)
    }

    /// Bulk inserts rows into a table, `table (column, ...)`, and returns their number: several
    /// times faster than statements. PostgreSQL only; fails on MySQL. `write` appends one row per
    /// call, and returns false when there are no more rows.
    pub async fn copy(
        &self,
        into: &str,
        write: impl FnMut(&mut NewRows) -> bool + Send,
    ) -> Result<u64, Error> {
        let mut active = self.active.lock().await;
        let (lease, begin) = active.next()?;
        let mut pieces = Pieces::new(write);
        let outcome = async {
            if begin {
                lease.batch("BEGIN").await?;
            }
            lease.copy(into, &mut pieces).await
        };
        let outcome = outcome.await;
        Ok(active.noted(outcome)?.affected)
    }

    async fn run(&self, sql: &str, parameters: &[Value]) -> Result<Rows, Error> {
        let mut active = self.active.lock().await;
        let begin = active.next()?.1;
        let (deadline, lease) = (active.deadline, active.lease.take().ok_or(Error::Closed)?);
        let (lease, outcome) = lease.part_of(begin, deadline, sql, parameters).await;
        active.lease = Some(lease);
        active.noted(outcome)
    }

    /// The error of the failed statement.
    pub(super) async fn failed(&self) -> Option<Error> {
        self.active.lock().await.failed.clone()
    }

    /// Commits. Remaining clones return an error.
    pub(super) async fn commit(self) -> Result<(), Unstored> {
        let mut active = self.active.lock().await;
        let Some(mut lease) = active.lease.take() else { return Ok(()) };
        if !active.begun {
            return Ok(());
        }
        drop(active);
        lease.commit().await.map_err(Unstored::of)
    }

    /// Rolls back. If that fails, the connection is closed, and the server rolls back.
    pub(super) async fn rollback(self) {
        let mut active = self.active.lock().await;
        let Some(mut lease) = active.lease.take() else { return };
        if active.begun {
            let _closed_then = lease.rollback().await;
        }
    }
}

/// Why a write is not confirmed.
pub(super) enum Unstored {
    /// The server rejected the write: it is not stored.
    Refused(Error),
    /// The write may be stored.
    Unknown(Error),
}

impl Unstored {
    /// Classifies the fault of a write or commit that was sent.
    pub(super) fn of(fault: Fault) -> Self {
        let unknown = fault.is_unclear();
        let source = Arc::new(fault);
        if unknown {
            Self::Unknown(Error::OutcomeUnknown { source })
        } else {
            Self::Refused(Error::Server { source })
        }
    }
}
