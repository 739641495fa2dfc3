//! The original's tables, kept equal to ours for a policy-server-internal that uses the
//! same database (docs/adr/0031-original-tables.md).
//!
//! - They are written in the transaction of a Replace: both sets change at the same moment,
//!   and the lock of the state serializes the writers of all instances.
//! - They never make a Replace fail: a transaction that fails with them is run again
//!   without them.
//! - Each attempt compares every row with ours, whoever wrote it, and writes only
//!   differences.
//! - Only a Replace writes: its writer holds the lock of the syncers. At any other time an
//!   original syncer may lead, and have written newer groups than ours.

mod row;
mod tables;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    group::{ContentHash, GroupId},
    ids::GroupGuid,
};
use runtime::{error::chain, lager};
use storage::server::{Server, Transaction};
use tokio::time::Instant;

use self::{
    row::{Expected, Layout, Row},
    tables::Tables,
};
use super::{
    super::{Error, plan},
    set,
};
use crate::{
    groups::{
        content::Content,
        decide::{Known, NAMED_MOST, Upsert},
    },
    metrics::{ORIGINAL_CURRENT, ORIGINAL_SECONDS, ORIGINAL_WRITES},
};

/// Number of groups that are compared and written together.
const GROUPS_AT_ONCE: usize = 500;
/// Part of the time of an operation that an attempt may take.
const SHARE: u32 = 4;
/// Duration of an attempt that Replaces do not repeat at once if it failed.
const SLOW: Duration = Duration::from_secs(1);
/// After such an attempt, Replaces leave the tables out for this many times its duration.
const PAUSE: u32 = 20;
/// Interval of error lines while attempts fail.
const TELL: Duration = Duration::from_secs(60);

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The transaction is still usable.
    #[error("the database has no {0} of the original")]
    Missing(String),
    #[error(transparent)]
    Store(#[from] Error),
}

/// Result of an attempt.
#[derive(Debug, Default)]
struct Written {
    changed: usize,
    removed: usize,
    /// The time was up before all rows were compared.
    is_partial: bool,
    /// Groups that the tables cannot hold.
    unfit: Vec<GroupGuid>,
}

/// The original's tables in this database.
#[derive(Debug)]
pub(super) struct Original {
    tables: Tables,
    /// Size limit of a row, in bytes.
    most: usize,
    rows: tokio::sync::Mutex<Rows>,
    schedule: Mutex<Schedule>,
    /// Longest time for which Replaces leave the tables out, after a slow failure.
    longest_pause: Duration,
}

/// The rows of our groups, as they are expected in the tables.
#[derive(Debug, Default)]
struct Rows {
    layout: Layout,
    expected: HashMap<GroupGuid, Expected>,
}

#[derive(Debug)]
struct Schedule {
    /// Replaces before this time leave the tables out.
    paused_until: Instant,
    is_failing: bool,
    /// Time of the last error line.
    told: Option<Instant>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Original {
    /// `timeout`: of an operation of this server.
    pub(super) fn new(
        server: &Server,
        timeout: Duration,
        most: usize,
        longest_pause: Duration,
    ) -> Self {
        for outcome in ["changed", "unchanged", "partial", "failed"] {
            ORIGINAL_WRITES.counter_by([("outcome", outcome)]).increment(0);
        }
        let now = Instant::now();
        let schedule = Schedule { paused_until: now, is_failing: false, told: None };
        Self {
            tables: Tables::new(server.dialect(), timeout),
            most,
            longest_pause,
            rows: tokio::sync::Mutex::default(),
            schedule: Mutex::new(schedule),
        }
    }

    /// The attempt of a Replace, unless the last one failed slowly and recently.
    pub(super) fn attempt(&self) -> Option<Attempt<'_>> {
        let is_paused = Instant::now() < locked(&self.schedule).paused_until;
        let began = Instant::now();
        (!is_paused).then(|| Attempt { original: self, began, progress: Mutex::default() })
    }

    /// Compares and writes; see the module. `known`: our groups; `upserts`: those whose
    /// content need not be read.
    async fn write(
        &self,
        transaction: &Transaction,
        known: &HashMap<GroupGuid, Known>,
        upserts: &[Upsert],
    ) -> Result<Written, Failure> {
        let time = self.tables.timeout / SHARE;
        let deadline = Instant::now() + time;
        let layout = self.tables.layout(transaction).await?;
        self.tables.limit_waits(transaction, time).await?;
        let found = self.tables.read(transaction, layout).await?;
        let mut rows = self.rows.lock().await;
        rows.adapt(layout, known);
        let mut written = Written::default();
        let is_ours =
            |guid: &str| GroupGuid::parse(guid).is_ok_and(|guid| known.contains_key(&guid));
        let stale: Vec<&str> =
            found.keys().map(String::as_str).filter(|guid| !is_ours(guid)).collect();
        written.removed = stale.len();
        self.tables.remove(transaction, &stale).await?;

        let mut differing: Vec<(&GroupGuid, &Known)> = known.iter().collect();
        differing.retain(|(guid, known)| {
            let expected = rows.expected.get(*guid).filter(|row| row.content == known.hash);
            expected.is_none_or(|row| Some(&row.found) != found.get(guid.as_str()))
        });
        differing.sort_unstable_by_key(|(_, known)| known.id);
        let upserts: HashMap<_, _> = upserts.iter().map(|upsert| (upsert.id, upsert)).collect();
        for differing in differing.chunks(GROUPS_AT_ONCE) {
            if Instant::now() >= deadline {
                written.is_partial = true;
                break;
            }
            let mut new = Vec::new();
            for (content, hash) in contents(transaction, differing, &upserts).await? {
                if let Some(why) = row::unfit(&content, self.most) {
                    tracing::debug!(guid = %content.guid, why, "group-unfit-for-original-tables");
                    written.unfit.push(content.guid.clone());
                    continue;
                }
                let row = Row::new(&content, layout);
                let expected = Expected { content: hash, found: row.found(layout) };
                if Some(&expected.found) != found.get(content.guid.as_str()) {
                    new.push(row);
                }
                rows.expected.insert(content.guid.clone(), expected);
            }
            written.changed += new.len();
            self.tables.upsert(transaction, layout, &found, new).await?;
        }
        if layout.stamp && written.changed + written.removed > 0 {
            self.tables.move_stamp(transaction).await?;
        }
        self.tables.reset_waits(transaction).await?;
        Ok(written)
    }
}

impl Rows {
    /// Forgets rows of another layout, and of groups that are gone.
    fn adapt(&mut self, layout: Layout, known: &HashMap<GroupGuid, Known>) {
        if self.layout != layout {
            *self = Self { layout, expected: HashMap::new() };
        }
        self.expected.retain(|guid, _| known.contains_key(guid));
    }
}

/// The content of these groups: that of the Replace, or else read from our tables.
async fn contents(
    transaction: &Transaction,
    groups: &[(&GroupGuid, &Known)],
    upserts: &HashMap<GroupId, &Upsert>,
) -> Result<Vec<(Arc<Content>, ContentHash)>, Error> {
    let mut contents = Vec::with_capacity(groups.len());
    let mut unread = Vec::new();
    for (_, known) in groups {
        match upserts.get(&known.id) {
            Some(upsert) => contents.push((known.id, Arc::clone(&upsert.group), upsert.hash)),
            None => unread.push(plan::sql_id(known.id)?),
        }
    }
    let read = set::these(transaction, &unread).await?;
    contents.extend(read.into_iter().map(|stored| (stored.id, stored.group, stored.hash)));
    contents.sort_unstable_by_key(|(id, ..)| *id);
    Ok(contents.into_iter().map(|(_, group, hash)| (group, hash)).collect())
}

/// How far an attempt is.
#[derive(Debug, Default)]
enum Progress {
    #[default]
    NotBegun,
    Begun,
    Done(Written),
    Failed(String),
}

/// One attempt to write the tables, with the first run of a transaction.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    original: &'a Original,
    began: Instant,
    progress: Mutex<Progress>,
}

impl Attempt<'_> {
    /// Whether this run of the transaction may write the tables. Its repetitions may not: the
    /// tables may be what made it fail.
    pub(super) fn is_first(&self) -> bool {
        match &mut *locked(&self.progress) {
            Progress::NotBegun => true,
            Progress::Failed(_) => false,
            progress => {
                *progress = Progress::Failed("the transaction with them was repeated".to_owned());
                false
            }
        }
    }

    /// Whether the transaction got as far as the tables.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(*locked(&self.progress), Progress::NotBegun)
    }

    /// Writes the tables as the last part of a transaction.
    ///
    /// # Errors
    /// The transaction cannot be committed any more.
    pub(super) async fn write(
        &self,
        transaction: &Transaction,
        known: &HashMap<GroupGuid, Known>,
        upserts: &[Upsert],
    ) -> Result<(), Error> {
        *locked(&self.progress) = Progress::Begun;
        let outcome = self.original.write(transaction, known, upserts).await;
        let mut progress = locked(&self.progress);
        match outcome {
            Ok(written) => *progress = Progress::Done(written),
            Err(failure) => {
                *progress = Progress::Failed(chain(&failure));
                if let Failure::Store(error) = failure {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Records that the transaction failed with the tables.
    pub(super) fn fail(&self, error: &Error) {
        let mut progress = locked(&self.progress);
        if !matches!(*progress, Progress::Failed(_)) {
            *progress = Progress::Failed(chain(error));
        }
    }

    /// Logs and counts the outcome after the transaction was committed, and plans the next
    /// attempt.
    pub(super) fn settle(self) {
        let Self { original, began, progress } = self;
        let (now, took) = (Instant::now(), began.elapsed());
        let mut schedule = locked(&original.schedule);
        match progress.into_inner().unwrap_or_else(PoisonError::into_inner) {
            // The Replace was refused.
            Progress::NotBegun => {}
            Progress::Done(written) => {
                ORIGINAL_SECONDS.histogram().record(took.as_secs_f64());
                schedule.done(&written, now, took, original.longest_pause);
            }
            Progress::Failed(error) => {
                schedule.failed(&error, now, took, original.longest_pause);
            }
            Progress::Begun => unreachable!("`write` ends with another progress, or its error"),
        }
    }
}

impl Schedule {
    fn done(&mut self, written: &Written, now: Instant, took: Duration, longest: Duration) {
        let Written { changed, removed, is_partial, ref unfit } = *written;
        let outcome = match changed + removed {
            _ if is_partial => "partial",
            0 => "unchanged",
            _ => "changed",
        };
        ORIGINAL_WRITES.counter_by([("outcome", outcome)]).increment(1);
        let is_current = !is_partial && unfit.is_empty();
        ORIGINAL_CURRENT.gauge().set(if is_current { 1.0 } else { 0.0 });
        if changed + removed > 0 || self.is_failing {
            let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(
                changed,
                removed,
                partial = is_partial,
                milliseconds,
                "wrote-original-tables"
            );
        }
        self.is_failing = false;
        if is_partial {
            self.pause(now, took, longest);
        }
        if !unfit.is_empty() && self.may_tell(now) {
            let guids: Vec<_> = unfit.iter().map(GroupGuid::as_str).take(NAMED_MOST).collect();
            let guids = lager::json(&guids);
            tracing::error!(groups = unfit.len(), guids, "groups-unfit-for-original-tables");
        }
    }

    fn failed(&mut self, error: &str, now: Instant, took: Duration, longest: Duration) {
        ORIGINAL_WRITES.counter_by([("outcome", "failed")]).increment(1);
        ORIGINAL_CURRENT.gauge().set(0.0);
        self.is_failing = true;
        self.pause(now, took, longest);
        if self.may_tell(now) {
            tracing::error!(error, "failed-writing-original-tables");
        }
    }

    fn pause(&mut self, now: Instant, took: Duration, longest: Duration) {
        if took >= SLOW {
            self.paused_until = now + (took * PAUSE).min(longest);
        }
    }

    /// Whether the last error line is a minute old.
    fn may_tell(&mut self, now: Instant) -> bool {
        let may = self.told.is_none_or(|told| now.duration_since(told) >= TELL);
        if may {
            self.told = Some(now);
        }
        may
    }
}
