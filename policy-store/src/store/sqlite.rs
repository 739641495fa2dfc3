//! SQLite: for one instance, in one file.
//!
//! The write transaction reads the state and the hashes, calls [`decide`], and writes
//! the difference. `synchronous=FULL`: every change confirmed to a writer is on the
//! disk, so after a power failure the watermark never exceeds the stored content.

mod archive;
mod load;
mod tables;
mod uses;

use std::{
    collections::HashMap,
    path::Path,
    pin::Pin,
    sync::{Arc, mpsc},
    thread,
};

use model::{
    generation::{Generation, Point},
    ids::{CellId, GroupGuid},
};
use rusqlite::{Connection, Transaction, params, params_from_iter};
use storage::{
    Migration,
    sqlite::{Database, Options, Synchronous},
};

use self::tables::TABLES;
use super::{
    Answer, Archive, Contents, Error, Mended, News, Store, UseLog,
    plan::{self, Binding, Loss, PastPlan},
    rows::{self, ReportRow, Scopes, StateRow, to_sql},
    rules,
};
use crate::{
    groups::{
        decide::{Decision, Known, Refused, Replacement, State, Upsert, decide},
        held::{Order, hold},
        snapshot::Snapshot,
    },
    reports::{Report, Unsaved},
};

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "security groups, their spaces, the state, cells' reports",
        sql: include_str!("schema_1.sql"),
    },
    Migration {
        version: 2,
        name: "stamps and the last changes",
        sql: include_str!("schema_2.sql"),
    },
    Migration { version: 3, name: "spaces without references", sql: include_str!("schema_3.sql") },
    Migration { version: 4, name: "history", sql: include_str!("schema_4.sql") },
    Migration { version: 5, name: "freeze", sql: include_str!("schema_5.sql") },
    Migration { version: 6, name: "uses of rules", sql: include_str!("schema_6.sql") },
];

/// A typical group fits into one page: with several pages per group each has to be looked
/// up, and a large set takes four times as many steps.
const PAGE_BYTES: u32 = 16 << 10;
/// Page cache for the pages that all groups of a set modify.
const CACHE_KIB: u32 = 8 << 10;
/// Number of ids per statement.
const IDS_AT_ONCE: usize = 500;
/// Number of bindings per statement: takes half the time of one statement per binding.
const BINDINGS_AT_ONCE: usize = 64;
/// From this number of groups on, another thread encodes their rules.
const MANY: usize = 64;
/// How many texts that thread may be ahead.
const TEXTS_AHEAD: usize = 32;

/// An open database.
#[derive(Debug)]
pub struct Sqlite {
    database: Database,
}

impl Sqlite {
    /// Opens or creates the file. Blocks: only for the start of a process.
    ///
    /// # Errors
    /// The file cannot be used; the error names the file and the reason.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let options = Options {
            synchronous: Synchronous::Full,
            page_size: PAGE_BYTES,
            cache_kib: CACHE_KIB,
            ..Options::default()
        };
        Ok(Self { database: Database::open_whole(path, &options, MIGRATIONS, TABLES)? })
    }

    /// Resets the newest fencing token; returns the previous state.
    ///
    /// # Errors
    /// The database failed.
    pub async fn reset_fencing(&self) -> Result<State, Error> {
        let reset = |transaction: &Transaction<'_>| {
            let before = load::state(transaction)?;
            if before.token.is_some() {
                store_state(transaction, &State { token: None, ..before.clone() })?;
            }
            Ok::<_, Error>(before)
        };
        self.database.write(reset).await
    }
}

impl Store for Sqlite {
    fn load(&self, since: Option<Point>) -> Answer<'_, Contents> {
        Box::pin(self.database.read(move |connection| load::load(connection, since)))
    }

    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision> {
        let work = move |transaction: &Transaction<'_>| replace(transaction, &write);
        Box::pin(async { Ok(self.database.write(work).await??) })
    }

    fn hold(&self, change: Arc<Order>) -> Answer<'_, State> {
        let work = move |transaction: &Transaction<'_>| {
            let before = load::state(transaction)?;
            let Some((state, decision)) = hold(&before, &change) else { return Ok(before) };
            store_state(transaction, &state)?;
            archive::record(transaction, &decision)?;
            Ok(state)
        };
        Box::pin(self.database.write(work))
    }

    /// There are no other instances.
    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, Vec<(CellId, Report)>> {
        if unsaved.is_empty() {
            return Box::pin(async { Ok(Vec::new()) });
        }
        let work = move |transaction: &Transaction<'_>| save_reports(transaction, &unsaved);
        Box::pin(async { self.database.write(work).await.map(|()| Vec::new()) })
    }

    fn mend(&self, served: Arc<Snapshot>) -> Answer<'_, Mended> {
        Box::pin(async move {
            self.database.mend(|_, _| Ok(())).await?;
            let look = {
                let served = Arc::clone(&served);
                move |connection: &Connection| loss(connection, &served)
            };
            match self.database.read(look).await? {
                Loss::None => Ok(Mended::Nothing),
                Loss::Restore | Loss::Forget => {
                    let work = move |transaction: &Transaction<'_>| mend(transaction, &served);
                    self.database.write(work).await
                }
            }
        })
    }

    fn history(&self) -> &dyn Archive {
        self
    }

    fn uses(&self) -> &dyn UseLog {
        self
    }

    /// There are no other writers.
    fn news(&self) -> Pin<Box<dyn Future<Output = News> + Send + '_>> {
        Box::pin(async {
            self.database.closed().await;
            News::Closed
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(self.database.close().await?) })
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

fn loss(connection: &Connection, served: &Snapshot) -> Result<Loss, Error> {
    let mut any = connection.prepare_cached("SELECT 1 FROM security_groups LIMIT 1")?;
    Ok(plan::loss(&load::state(connection)?, any.exists([])?, served))
}

fn mend(transaction: &Transaction<'_>, served: &Snapshot) -> Result<Mended, Error> {
    transaction.execute(tables::STATE_SEED, [])?;
    let state = load::state(transaction)?;
    match loss(transaction, served)? {
        Loss::None => Ok(Mended::Nothing),
        Loss::Restore => {
            forget(transaction)?;
            carry_out(transaction, &plan::restoration(&state, served), None)?;
            Ok(Mended::Restored)
        }
        Loss::Forget => {
            forget(transaction)?;
            store_state(transaction, &plan::forgotten(&state))?;
            Ok(Mended::Forgotten)
        }
    }
}

/// Deletes the remaining rows of the set and of its history.
fn forget(transaction: &Transaction<'_>) -> Result<(), Error> {
    for table in ["security_group_spaces", "security_groups", "group_changes", "generations"] {
        transaction.execute(&format!("DELETE FROM {table}"), [])?;
    }
    Ok(())
}

/// A refusal does not abort the transaction: the seen token is committed.
fn replace(
    transaction: &Transaction<'_>,
    write: &Replacement,
) -> Result<Result<Decision, Refused>, Error> {
    let state = load::state(transaction)?;
    if !state.is_whole() {
        forget(transaction)?;
    }
    let decision = match decide(&state, &known(transaction)?, write) {
        Ok(decision) => decision,
        Err(refused) => {
            if let Some(seen) = &refused.seen {
                store_state(transaction, seen)?;
            }
            return Ok(Err(refused));
        }
    };
    carry_out(transaction, &decision, Some((write, !state.is_whole())))?;
    Ok(Ok(decision))
}

/// `made`: the Replace behind a decision, and whether no set was stored before. A restored set
/// is in the history already.
fn carry_out(
    transaction: &Transaction<'_>,
    decision: &Decision,
    made: Option<(&Replacement, bool)>,
) -> Result<(), Error> {
    let before = scopes(transaction, &plan::touched(decision)?)?;
    if let Some((write, is_first)) = made {
        archive::add(transaction, write, decision, is_first, &before)?;
    }
    if let Some(past) = plan::past(decision, &before, &generations(transaction)?)? {
        remember(transaction, &past)?;
    }
    for (id, _) in &decision.removed {
        remove(transaction, plan::sql_id(*id)?)?;
    }
    store_all(transaction, &decision.upserts)?;
    bind(transaction, decision, &before)?;
    store_state(transaction, &decision.state)
}

fn known(connection: &Connection) -> Result<HashMap<GroupGuid, Known>, Error> {
    let mut statement =
        connection.prepare_cached("SELECT guid, id, content_hash FROM security_groups")?;
    let mut rows = statement.query([])?;
    let mut known = HashMap::new();
    while let Some(row) = rows.next()? {
        let guid = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        let hash = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
        let (guid, one) = rows::known(row.get(1)?, guid, hash)?;
        known.insert(guid, one);
    }
    Ok(known)
}

/// Scopes of these groups.
fn scopes(connection: &Connection, ids: &[i64]) -> Result<Scopes, Error> {
    let mut scopes = Scopes::default();
    for ids in ids.chunks(IDS_AT_ONCE) {
        let marks = vec!["?"; ids.len()].join(",");
        let mut statement = connection.prepare(&format!(
            "SELECT id, running_default, staging_default FROM security_groups WHERE id IN ({marks})"
        ))?;
        let mut rows = statement.query(params_from_iter(ids))?;
        while let Some(row) = rows.next()? {
            scopes.everywhere(row.get(0)?, row.get(1)?, row.get(2)?);
        }
        let mut statement = connection.prepare(&format!(
            "SELECT group_id, lifecycle, space_guid FROM security_group_spaces
             WHERE group_id IN ({marks})"
        ))?;
        load::bind_all(&mut statement.query(params_from_iter(ids))?, &mut scopes)?;
    }
    Ok(scopes)
}

/// Remembered generations and their weights, newest first.
fn generations(connection: &Connection) -> Result<Vec<(Generation, usize)>, Error> {
    let mut statement = connection
        .prepare_cached("SELECT generation, weight FROM generations ORDER BY generation DESC")?;
    let mut rows = statement.query([])?;
    let mut generations = Vec::new();
    while let Some(row) = rows.next()? {
        generations.push(rows::weighed(row.get(0)?, row.get(1)?)?);
    }
    Ok(generations)
}

fn remember(transaction: &Transaction<'_>, past: &PastPlan) -> Result<(), Error> {
    let PastPlan { point, weight, changes, from } = past;
    let generation = to_sql("generations.generation", point.generation.0)?;
    let from = to_sql("generations.generation", from.0)?;
    transaction
        .prepare_cached(
            "INSERT INTO generations (generation, stamp_ns, weight) VALUES (?1, ?2, ?3)",
        )?
        .execute(params![generation, point.stamp.0, weight])?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO group_changes (generation, group_id, guid, reach_before)
         VALUES (?1, ?2, ?3, ?4)",
    )?;
    for change in changes {
        insert.execute(params![
            generation,
            change.id,
            change.guid.as_str(),
            change.reach_before
        ])?;
    }
    transaction
        .prepare_cached("DELETE FROM group_changes WHERE generation <= ?1")?
        .execute([from])?;
    transaction.prepare_cached("DELETE FROM generations WHERE generation < ?1")?.execute([from])?;
    Ok(())
}

fn remove(transaction: &Transaction<'_>, id: i64) -> Result<(), Error> {
    transaction
        .prepare_cached("DELETE FROM security_group_spaces WHERE group_id = ?1")?
        .execute([id])?;
    transaction.prepare_cached("DELETE FROM security_groups WHERE id = ?1")?.execute([id])?;
    Ok(())
}

fn store_all(transaction: &Transaction<'_>, upserts: &[Upsert]) -> Result<(), Error> {
    let text = |upsert: &Upsert| rules::to_text(&upsert.group.rules());
    if upserts.len() < MANY {
        return upserts.iter().try_for_each(|upsert| store(transaction, upsert, &text(upsert)));
    }
    thread::scope(|scope| {
        let (sender, texts) = mpsc::sync_channel(TEXTS_AHEAD);
        // Ends early when the database failed and the receiver was dropped.
        scope.spawn(move || upserts.iter().map(text).try_for_each(|text| sender.send(text)));
        let mut stored = upserts.iter().zip(texts);
        stored.try_for_each(|(upsert, text)| store(transaction, upsert, &text))
    })
}

fn store(transaction: &Transaction<'_>, upsert: &Upsert, rules: &str) -> Result<(), Error> {
    let Upsert { id, group, hash, added: _ } = upsert;
    transaction
        .prepare_cached(
            "INSERT INTO security_groups
                 (id, guid, name, running_default, staging_default, rules, content_hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET
                 name = excluded.name, running_default = excluded.running_default,
                 staging_default = excluded.staging_default, rules = excluded.rules,
                 content_hash = excluded.content_hash",
        )?
        .execute(params![
            plan::sql_id(*id)?,
            group.guid.as_str(),
            group.name,
            group.running.everywhere,
            group.staging.everywhere,
            rules,
            hash.0
        ])?;
    Ok(())
}

fn bind(transaction: &Transaction<'_>, decision: &Decision, before: &Scopes) -> Result<(), Error> {
    let (gone, mut new) = plan::bindings(decision, before)?;
    let mut delete = transaction.prepare_cached(
        "DELETE FROM security_group_spaces
         WHERE group_id = ?1 AND lifecycle = ?2 AND space_guid = ?3",
    )?;
    for binding in gone {
        delete.execute(params![binding.group_id, binding.lifecycle, binding.space.as_str()])?;
    }
    let mut together = Vec::with_capacity(BINDINGS_AT_ONCE);
    loop {
        together.extend(new.by_ref().take(BINDINGS_AT_ONCE));
        if together.len() < BINDINGS_AT_ONCE {
            return together.chunks(1).try_for_each(|bindings| insert(transaction, bindings));
        }
        insert(transaction, &together)?;
        together.clear();
    }
}

fn insert(transaction: &Transaction<'_>, bindings: &[Binding<'_>]) -> Result<(), Error> {
    let marks = vec!["(?,?,?)"; bindings.len()].join(",");
    let mut insert = transaction.prepare_cached(&format!(
        "INSERT INTO security_group_spaces (group_id, lifecycle, space_guid) VALUES {marks}"
    ))?;
    for (at, Binding { group_id, lifecycle, space }) in bindings.iter().enumerate() {
        insert.raw_bind_parameter(3 * at + 1, group_id)?;
        insert.raw_bind_parameter(3 * at + 2, lifecycle)?;
        insert.raw_bind_parameter(3 * at + 3, space.as_str())?;
    }
    insert.raw_execute()?;
    Ok(())
}

fn store_state(transaction: &Transaction<'_>, state: &State) -> Result<(), Error> {
    let row = StateRow::try_from(state)?;
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO store_state
                 (only_row, generation, stamp_ns, watermark_seconds, watermark_nanoseconds,
                  fencing_token, writer, synced_at_ms, last_id, held)
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            row.generation,
            row.stamp_ns,
            row.watermark_seconds,
            row.watermark_nanoseconds,
            row.fencing_token,
            row.writer,
            row.synced_at_ms,
            row.last_id,
            row.held,
        ])?;
    Ok(())
}

fn save_reports(transaction: &Transaction<'_>, unsaved: &Unsaved) -> Result<(), Error> {
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO cell_reports
             (cell_id, enforced_generation, containers, isolated_rules, reported_at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (cell, report) in &unsaved.reports {
        let ReportRow { cell_id, enforced_generation, containers, isolated_rules, reported_at_ms } =
            rows::report_row(cell, report)?;
        insert.execute(params![
            cell_id,
            enforced_generation,
            containers,
            isolated_rules,
            reported_at_ms
        ])?;
    }
    let mut delete = transaction
        .prepare_cached("DELETE FROM cell_reports WHERE cell_id = ?1 AND reported_at_ms = ?2")?;
    for (cell, at) in &unsaved.forgotten {
        delete.execute(params![cell.as_str(), at.as_millisecond()])?;
    }
    Ok(())
}
