//! PostgreSQL, MySQL and MariaDB: for several instances that share a database.
//!
//! Invariants, in addition to the contract of [`Store`]:
//! - A Replace first locks the only row of the state. Of two concurrent Replaces, the
//!   second decides on the result of the first: an old fencing token never passes.
//! - A read locks that row, too: a difference reflects a single moment.
//! - An instance observes the commits of another by `NOTIFY` on PostgreSQL, and by polling
//!   every [`POLL`] on MySQL. PostgreSQL is polled as well, every [`CHECK`], in case a
//!   notification is lost.
//! - Tables have their own names (`portcullis_...`), so that the database can be that of
//!   the original. On request the original's own tables are written as well.

mod archive;
mod batch;
mod load;
mod mend;
mod original;
mod tables;
mod uses;
mod write;

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{generation::Point, ids::CellId};
use storage::server::{self, Dialect, Listener, Options, Row, Stats};
use tokio_util::sync::CancellationToken;

use self::original::Original;
use super::{Answer, Archive, Contents, Error, Mended, News, Store, UseLog, rows::corrupt};
use crate::{
    groups::{
        decide::{Decision, Replacement, State},
        held::Order,
        snapshot::Snapshot,
    },
    reports::{Report, Unsaved},
};

/// Poll interval on MySQL: bounds how late an instance observes changes.
pub const POLL: Duration = Duration::from_millis(100);
/// Poll interval on PostgreSQL, in addition to notifications.
pub const CHECK: Duration = Duration::from_secs(5);

const CHANNEL: &str = "portcullis_policy_store";
/// Size of a statement without the rules of a group.
const STATEMENT_ROOM: usize = 64 << 10;
/// Reports are read again from this long before the newest one read: clocks of instances
/// may differ, and transactions commit out of order.
const OVERLAP_MS: i64 = 60_000;

/// A database on a server.
#[derive(Debug)]
pub struct Server {
    server: server::Server,
    /// Timeout of an operation.
    timeout: Duration,
    /// Size limit of the rules of a group, in bytes.
    most: usize,
    original: Option<Original>,
    listener: tokio::sync::Mutex<Option<Listener>>,
    /// Time of the newest report of other instances that was read.
    heard_ms: Mutex<i64>,
    closed: CancellationToken,
}

impl Server {
    /// Connects, and creates missing tables.
    ///
    /// # Errors
    /// The server cannot be reached or used.
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let server = server::Server::connect(options, tables::schema(options.dialect)).await?;
        let listener = tokio::sync::Mutex::new(server.listen(CHANNEL));
        let most = most(&server).await?;
        let closed = CancellationToken::new();
        let timeout = options.operation_timeout;
        let heard_ms = Mutex::new(0);
        Ok(Self { server, timeout, most, original: None, listener, heard_ms, closed })
    }

    /// Makes the original's tables in this database equal to the set, with each Replace. After a
    /// slow failure Replaces leave the tables out for at most `longest_pause`.
    #[must_use]
    pub fn write_original_tables(mut self, longest_pause: Duration) -> Self {
        self.original = Some(Original::new(&self.server, self.timeout, self.most, longest_pause));
        self
    }

    /// Resets the newest fencing token, also for running instances; returns the previous
    /// state.
    ///
    /// # Errors
    /// The database failed.
    pub async fn reset_fencing(&self) -> Result<State, Error> {
        write::reset_fencing(&self.server).await
    }

    async fn wait_for_news(&self) {
        match &mut *self.listener.lock().await {
            None => tokio::time::sleep(POLL).await,
            // Any result, including a timeout: there may be a change.
            Some(listener) => _ = tokio::time::timeout(CHECK, listener.next()).await,
        }
    }
}

/// Size limit of the rules of a group in one statement.
async fn most(server: &server::Server) -> Result<usize, Error> {
    match server.dialect() {
        Dialect::Postgres => Ok(usize::MAX),
        Dialect::MySql => {
            let rows = server.query("SELECT @@max_allowed_packet", &[]).await?;
            let bytes: i64 = only(&rows)?.get(0)?;
            let bytes = usize::try_from(bytes).map_err(corrupt("max_allowed_packet"))?;
            Ok(bytes.saturating_sub(STATEMENT_ROOM))
        }
    }
}

fn only(rows: &[Row]) -> Result<&Row, Error> {
    match rows {
        [row] => Ok(row),
        rows => Err(corrupt("store_state")(format!("{} rows instead of one", rows.len()))),
    }
}

/// Reads a text, also from a binary column.
fn text<'a>(row: &'a Row, column: usize, field: &'static str) -> Result<&'a str, Error> {
    match row.get::<&str>(column) {
        Ok(text) => Ok(text),
        Err(_) => str::from_utf8(row.get::<&[u8]>(column)?).map_err(corrupt(field)),
    }
}

impl Store for Server {
    fn load(&self, since: Option<Point>) -> Answer<'_, Contents> {
        Box::pin(load::load(&self.server, since))
    }

    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision> {
        Box::pin(async move {
            write::replace(&self.server, self.most, self.original.as_ref(), &write).await
        })
    }

    fn hold(&self, change: Arc<Order>) -> Answer<'_, State> {
        Box::pin(async move { write::change_hold(&self.server, &change).await })
    }

    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, Vec<(CellId, Report)>> {
        Box::pin(async move {
            write::save_reports(&self.server, &unsaved).await?;
            let since = *self.heard_ms.lock().unwrap_or_else(PoisonError::into_inner);
            let reports = load::reports(&self.server, since - OVERLAP_MS).await?;
            let newest = reports.iter().map(|(_, report)| report.at.as_millisecond()).max();
            let mut heard = self.heard_ms.lock().unwrap_or_else(PoisonError::into_inner);
            *heard = since.max(newest.unwrap_or(0));
            Ok(reports)
        })
    }

    fn mend(&self, served: Arc<Snapshot>) -> Answer<'_, Mended> {
        Box::pin(mend::mend(&self.server, self.most, served))
    }

    fn history(&self) -> &dyn Archive {
        self
    }

    fn uses(&self) -> &dyn UseLog {
        self
    }

    fn newest(&self) -> Option<Answer<'_, Point>> {
        Some(Box::pin(async { Ok(load::state(&self.server).await?.point()) }))
    }

    fn stats(&self) -> Option<Stats> {
        Some(self.server.stats())
    }

    fn news(&self) -> Pin<Box<dyn Future<Output = News> + Send + '_>> {
        Box::pin(async {
            match self.closed.run_until_cancelled(self.wait_for_news()).await {
                Some(()) => News::Written,
                None => News::Closed,
            }
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            self.closed.cancel();
            if let Some(listener) = &mut *self.listener.lock().await {
                listener.close().await;
            }
            self.server.close().await;
            Ok(())
        })
    }
}
