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

mod migrations;
mod original;
mod set;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{
    generation::{Generation, Point},
    ids::{CellId, GroupGuid},
};
use storage::server::{self, Dialect, Listener, Options, Stats, Transaction};
use tokio_util::sync::CancellationToken;

use self::original::{Attempt, Original};
use super::{
    Answer, Archive, Contents, Error, Mended, News, Store, UseLog, archive::queries as archive,
    plan::Loss, read, rows::corrupt, session::only, uses, write,
};
use crate::{
    groups::{
        archive::{Bounds, Numbered, OperatorDecision, Query, Reached, Undo},
        decide::{Decision, Known, Refused, Replacement, State, Upsert},
        held::Order,
        history::Past,
        snapshot::Snapshot,
    },
    reports::{Report, Unsaved},
    uses::{Batch, Recorded},
};

/// Poll interval on MySQL: bounds how late an instance observes changes.
pub const POLL: Duration = Duration::from_millis(100);
/// Poll interval on PostgreSQL, in addition to notifications.
pub const CHECK: Duration = Duration::from_secs(5);

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
        let server = server::Server::connect(options, migrations::schema(options.dialect)).await?;
        let listener = tokio::sync::Mutex::new(server.listen(write::CHANNEL));
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
        self.server.transaction(async |on: Transaction| write::reset_fencing(&on).await).await
    }

    /// Writes the original's tables with the set, if possible.
    async fn replace(&self, write: &Replacement) -> Result<Decision, Error> {
        let Some(attempt) = self.original.as_ref().and_then(Original::attempt) else {
            return Ok(self.replace_once(None, write).await??);
        };
        let outcome = match self.replace_once(Some(&attempt), write).await {
            // The tables may be the reason: ours are written without them.
            Err(error) if attempt.has_begun() && !is_unknown(&error) => {
                attempt.fail(&error);
                self.replace_once(None, write).await
            }
            outcome => outcome,
        };
        if attempt.has_begun() && outcome.is_ok() {
            attempt.settle();
        }
        Ok(outcome??)
    }

    async fn replace_once(
        &self,
        attempt: Option<&Attempt<'_>>,
        write: &Replacement,
    ) -> Result<Result<Decision, Refused>, Error> {
        self.server
            .transaction(async |on: Transaction| {
                let attempt = attempt.filter(|attempt| attempt.is_first());
                let (decision, mut known) = match write::replace(&on, self.most, write).await? {
                    Ok(replaced) => replaced,
                    Err(refused) => return Ok(Err(refused)),
                };
                if let Some(attempt) = attempt {
                    apply(&decision, &mut known);
                    attempt.write(&on, &known, &decision.upserts).await?;
                }
                Ok::<_, Error>(Ok(decision))
            })
            .await
    }

    async fn load(&self, since: Option<Point>) -> Result<Contents, Error> {
        // The common case, no change, takes no lock.
        if let Some(since) = since {
            let state = read::state(&self.server, "").await?;
            if state.point() == since {
                let past = Past { from: since, steps: Vec::new() };
                return Ok(Contents { state, since: Some(since), past, ..Contents::default() });
            }
        }
        let lock = match self.server.dialect() {
            Dialect::Postgres => "FOR SHARE",
            Dialect::MySql => "LOCK IN SHARE MODE",
        };
        let load = async |on: Transaction| read::load(&on, since, lock).await;
        let mut contents = self.server.transaction(load).await?;
        if contents.since.is_none() {
            contents.reports = read::reports(&self.server, i64::MIN).await?;
        }
        Ok(contents)
    }

    async fn mend(&self, served: &Snapshot) -> Result<Mended, Error> {
        self.server.mend(&|_| Vec::new()).await?;
        // The common case, no loss, takes no lock.
        if let Ok(Loss::None) = write::loss(&self.server, served).await {
            return Ok(Mended::Nothing);
        }
        let mend = async |on: Transaction| write::mend(&on, self.most, served).await;
        self.server.transaction(mend).await
    }

    async fn wait_for_news(&self) {
        match &mut *self.listener.lock().await {
            None => tokio::time::sleep(POLL).await,
            // Any result, including a timeout: there may be a change.
            Some(listener) => _ = tokio::time::timeout(CHECK, listener.next()).await,
        }
    }
}

fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Database(storage::Error::OutcomeUnknown { .. }))
}

/// The groups after a decision.
fn apply(decision: &Decision, known: &mut HashMap<GroupGuid, Known>) {
    for (_, guid) in &decision.removed {
        known.remove(guid);
    }
    for Upsert { id, group, hash, added: _ } in &decision.upserts {
        known.insert(group.guid.clone(), Known { id: *id, hash: *hash });
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

impl Store for Server {
    fn load(&self, since: Option<Point>) -> Answer<'_, Contents> {
        Box::pin(self.load(since))
    }

    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision> {
        Box::pin(async move { self.replace(&write).await })
    }

    fn hold(&self, change: Arc<Order>) -> Answer<'_, State> {
        Box::pin(async move {
            let hold = async |on: Transaction| write::change_hold(&on, &change).await;
            self.server.transaction(hold).await
        })
    }

    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, Vec<(CellId, Report)>> {
        Box::pin(async move {
            if !unsaved.is_empty() {
                let save = async |on: Transaction| write::save_reports(&on, &unsaved).await;
                self.server.transaction(save).await?;
            }
            let since = *self.heard_ms.lock().unwrap_or_else(PoisonError::into_inner);
            let reports = read::reports(&self.server, since - OVERLAP_MS).await?;
            let newest = reports.iter().map(|(_, report)| report.at.as_millisecond()).max();
            let mut heard = self.heard_ms.lock().unwrap_or_else(PoisonError::into_inner);
            *heard = since.max(newest.unwrap_or(0));
            Ok(reports)
        })
    }

    fn mend(&self, served: Arc<Snapshot>) -> Answer<'_, Mended> {
        Box::pin(async move { self.mend(&served).await })
    }

    fn history(&self) -> &dyn Archive {
        self
    }

    fn uses(&self) -> &dyn UseLog {
        self
    }

    fn newest(&self) -> Option<Answer<'_, Point>> {
        Some(Box::pin(async { Ok(read::state(&self.server, "").await?.point()) }))
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

impl Archive for Server {
    fn entries(&self, query: Query) -> Answer<'_, Vec<Numbered>> {
        Box::pin(async move { archive::entries(&self.server, &query).await })
    }

    fn undo(&self, from: Generation, to: Generation) -> Answer<'_, Option<Undo>> {
        Box::pin(archive::undo(&self.server, from, to))
    }

    fn record(&self, decision: Arc<OperatorDecision>) -> Answer<'_, ()> {
        Box::pin(async move {
            let record = async |on: Transaction| {
                // Two entries must not get the same number.
                read::state_for_update(&on).await?;
                archive::record(&on, &decision).await
            };
            self.server.transaction(record).await
        })
    }

    fn save_progress(
        &self,
        instance: Arc<str>,
        progress: Arc<[(Generation, Reached)]>,
    ) -> Answer<'_, ()> {
        Box::pin(async move {
            let save =
                async |on: Transaction| archive::save_progress(&on, &instance, &progress).await;
            self.server.transaction(save).await
        })
    }

    fn prune(&self, bounds: Bounds) -> Answer<'_, bool> {
        Box::pin(async move {
            match archive::excess(&self.server, &bounds).await? {
                Some(excess) => archive::prune(&self.server, excess).await,
                None => Ok(false),
            }
        })
    }
}

impl UseLog for Server {
    fn save(&self, batch: Arc<Batch>) -> Answer<'_, ()> {
        Box::pin(async move {
            self.server.transaction(async |on: Transaction| uses::save(&on, &batch).await).await
        })
    }

    fn recorded(&self) -> Answer<'_, Recorded> {
        Box::pin(uses::recorded(&self.server))
    }

    fn prune(&self, today: i64) -> Answer<'_, u64> {
        Box::pin(uses::prune(&self.server, today))
    }
}
