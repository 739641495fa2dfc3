//! SQLite: for one instance, in one file.
//!
//! The writer's transaction reads the state and the hashes, lets
//! [`decide`] decide, and writes the difference. `synchronous=FULL`: what was
//! confirmed to a writer is on the disk, so a watermark never claims more than
//! what a power failure leaves.

use std::{collections::HashMap, path::Path, pin::Pin, sync::Arc};

use jiff::Timestamp;
use model::{
    generation::{Generation, Watermark},
    group::{ContentHash, GroupId, Lifecycle, Scope, SecurityGroup, StoredGroup},
    ids::{CellId, GroupGuid, SpaceGuid},
    lock::{FencingToken, Owner},
};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use storage::{
    Migration,
    sqlite::{Database, Options, Synchronous},
};

use super::{Answer, Contents, Error, Hashed, Store, rules};
use crate::{
    feed::cells::{Report, Unsaved},
    groups::decide::{Decision, Known, Refused, Replacement, State, Upsert, decide},
};

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "security groups, their spaces, the state, cells' reports",
    sql: include_str!("schema.sql"),
}];

/// An open database.
#[derive(Debug)]
pub struct Sqlite {
    database: Database,
}

impl Sqlite {
    /// Opens or creates the file. Blocks: for the start of a process.
    ///
    /// # Errors
    /// The file cannot be used; the error names it and says why.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let options = Options { synchronous: Synchronous::Full, ..Options::default() };
        Ok(Self { database: Database::open(path, &options, MIGRATIONS)? })
    }
}

impl Store for Sqlite {
    fn load(&self) -> Answer<'_, Contents> {
        Box::pin(self.database.read(load))
    }

    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision> {
        let work = move |transaction: &Transaction<'_>| replace(transaction, &write);
        Box::pin(async { Ok(self.database.write(work).await??) })
    }

    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, ()> {
        Box::pin(self.database.write(move |transaction| save_reports(transaction, &unsaved)))
    }

    fn closed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.database.closed())
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

fn senseless<E: ToString>(field: &'static str) -> impl Fn(E) -> Error {
    move |problem| Error::Senseless { field, problem: problem.to_string() }
}

/// SQLite's integers are signed; ours never come near their end.
fn to_sql(field: &'static str, number: u64) -> Result<i64, Error> {
    i64::try_from(number).map_err(senseless(field))
}

fn from_sql(field: &'static str, number: i64) -> Result<u64, Error> {
    u64::try_from(number).map_err(senseless(field))
}

fn hash(bytes: &[u8]) -> Result<ContentHash, Error> {
    let bytes = bytes.try_into().map_err(senseless("security_groups.content_hash"))?;
    Ok(ContentHash(bytes))
}

fn group_guid(text: &str) -> Result<GroupGuid, Error> {
    GroupGuid::parse(text).map_err(senseless("security_groups.guid"))
}

fn moment(field: &'static str, milliseconds: i64) -> Result<Timestamp, Error> {
    Timestamp::from_millisecond(milliseconds).map_err(senseless(field))
}

fn load(connection: &Connection) -> Result<Contents, Error> {
    Ok(Contents {
        state: load_state(connection)?,
        groups: load_groups(connection)?,
        reports: load_reports(connection)?,
    })
}

fn load_state(connection: &Connection) -> Result<State, Error> {
    let row = connection
        .prepare_cached(
            "SELECT generation, watermark_seconds, watermark_nanoseconds, fencing_token, writer,
                    synced_at_ms, last_id
             FROM store_state",
        )?
        .query_row([], |row| Ok(state(row)))
        .optional()?;
    row.unwrap_or_else(|| Ok(State::default()))
}

fn state(row: &Row<'_>) -> Result<State, Error> {
    let watermark: (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
    let watermark = match watermark {
        (Some(seconds), Some(nanoseconds)) => Some(
            Watermark::try_new(seconds, nanoseconds)
                .map_err(senseless("store_state.watermark_nanoseconds"))?,
        ),
        _ => None,
    };
    let token: Option<i64> = row.get(3)?;
    let token = token.map(|token| from_sql("store_state.fencing_token", token)).transpose()?;
    let writer: Option<String> = row.get(4)?;
    let writer = writer.map(|writer| Owner::parse(&writer)).transpose();
    let synced_at: Option<i64> = row.get(5)?;
    Ok(State {
        generation: Generation(from_sql("store_state.generation", row.get(0)?)?),
        watermark,
        token: token.map(FencingToken),
        writer: writer.map_err(senseless("store_state.writer"))?,
        synced_at: synced_at.map(|at| moment("store_state.synced_at_ms", at)).transpose()?,
        last_id: from_sql("store_state.last_id", row.get(6)?)?,
    })
}

fn load_groups(connection: &Connection) -> Result<Vec<Hashed>, Error> {
    let mut scopes = load_scopes(connection)?;
    let mut statement = connection.prepare_cached(
        "SELECT id, guid, name, running_default, staging_default, rules, content_hash
         FROM security_groups ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        let (mut running, mut staging) = scopes.remove(&id).unwrap_or_default();
        running.everywhere = row.get(3)?;
        staging.everywhere = row.get(4)?;
        let rules = rules::parse(row.get_ref(5)?.as_str().map_err(rusqlite::Error::from)?)
            .map_err(senseless("security_groups.rules"))?;
        let guid = group_guid(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)?;
        let group = SecurityGroup { guid, name: row.get(2)?, rules, running, staging };
        let id = GroupId(from_sql("security_groups.id", id)?);
        groups.push(Hashed {
            stored: StoredGroup { id, group: Arc::new(group) },
            hash: hash(row.get_ref(6)?.as_blob().map_err(rusqlite::Error::from)?)?,
        });
    }
    Ok(groups)
}

/// The spaces of each group: running, staging.
fn load_scopes(connection: &Connection) -> Result<HashMap<i64, (Scope, Scope)>, Error> {
    let mut statement = connection
        .prepare_cached("SELECT group_id, lifecycle, space_guid FROM security_group_spaces")?;
    let mut rows = statement.query([])?;
    let mut scopes: HashMap<i64, (Scope, Scope)> = HashMap::new();
    // One space is bound to many groups: its text is kept once.
    let mut spaces: HashMap<String, SpaceGuid> = HashMap::new();
    while let Some(row) = rows.next()? {
        let text = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        let space = match spaces.get(text) {
            Some(space) => space.clone(),
            None => {
                let field = "security_group_spaces.space_guid";
                let space = SpaceGuid::parse(text).map_err(senseless(field))?;
                spaces.insert(text.to_owned(), space.clone());
                space
            }
        };
        let (running, staging) = scopes.entry(row.get(0)?).or_default();
        match row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)? {
            RUNNING => running.spaces.insert(space),
            STAGING => staging.spaces.insert(space),
            other => return Err(senseless("security_group_spaces.lifecycle")(other)),
        };
    }
    Ok(scopes)
}

const RUNNING: &str = "running";
const STAGING: &str = "staging";

fn load_reports(connection: &Connection) -> Result<Vec<(CellId, Report)>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT cell_id, enforced_generation, containers, isolated_rules, reported_at_ms
         FROM cell_reports ORDER BY cell_id",
    )?;
    let mut rows = statement.query([])?;
    let mut reports = Vec::new();
    while let Some(row) = rows.next()? {
        let cell: String = row.get(0)?;
        let cell = CellId::parse(&cell).map_err(senseless("cell_reports.cell_id"))?;
        let enforced = from_sql("cell_reports.enforced_generation", row.get(1)?)?;
        let report = Report {
            enforced: Generation(enforced),
            containers: row.get(2)?,
            isolated_rules: row.get(3)?,
            at: moment("cell_reports.reported_at_ms", row.get(4)?)?,
        };
        reports.push((cell, report));
    }
    Ok(reports)
}

/// A refusal is no error of the transaction: what was seen is committed.
fn replace(
    transaction: &Transaction<'_>,
    write: &Replacement,
) -> Result<Result<Decision, Refused>, Error> {
    let state = load_state(transaction)?;
    let decision = match decide(&state, &known(transaction)?, write) {
        Ok(decision) => decision,
        Err(refused) => {
            if let Some(seen) = &refused.seen {
                store_state(transaction, seen)?;
            }
            return Ok(Err(refused));
        }
    };
    for (id, _) in &decision.removed {
        remove(transaction, *id)?;
    }
    for upsert in &decision.upserts {
        store(transaction, upsert)?;
    }
    store_state(transaction, &decision.state)?;
    Ok(Ok(decision))
}

fn known(connection: &Connection) -> Result<HashMap<GroupGuid, Known>, Error> {
    let mut statement =
        connection.prepare_cached("SELECT guid, id, content_hash FROM security_groups")?;
    let mut rows = statement.query([])?;
    let mut known = HashMap::new();
    while let Some(row) = rows.next()? {
        let guid = group_guid(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?;
        let id = GroupId(from_sql("security_groups.id", row.get(1)?)?);
        let hash = hash(row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?)?;
        known.insert(guid, Known { id, hash });
    }
    Ok(known)
}

fn remove(transaction: &Transaction<'_>, id: GroupId) -> Result<(), Error> {
    let id = to_sql("security_groups.id", id.0)?;
    remove_spaces(transaction, id)?;
    transaction.prepare_cached("DELETE FROM security_groups WHERE id = ?1")?.execute([id])?;
    Ok(())
}

fn remove_spaces(transaction: &Transaction<'_>, id: i64) -> Result<(), Error> {
    let mut statement =
        transaction.prepare_cached("DELETE FROM security_group_spaces WHERE group_id = ?1")?;
    statement.execute([id])?;
    Ok(())
}

fn store(transaction: &Transaction<'_>, upsert: &Upsert) -> Result<(), Error> {
    let Upsert { id, group, hash, added } = upsert;
    let SecurityGroup { guid, name, rules, running, staging } = &**group;
    let id = to_sql("security_groups.id", id.0)?;
    if !added {
        remove_spaces(transaction, id)?;
    }
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
            id,
            guid.as_str(),
            name,
            running.everywhere,
            staging.everywhere,
            rules::to_text(rules),
            hash.0
        ])?;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO security_group_spaces (group_id, lifecycle, space_guid) VALUES (?1, ?2, ?3)",
    )?;
    for lifecycle in [Lifecycle::Running, Lifecycle::Staging] {
        let name = match lifecycle {
            Lifecycle::Running => RUNNING,
            Lifecycle::Staging => STAGING,
        };
        for space in &group.scope(lifecycle).spaces {
            statement.execute(params![id, name, space.as_str()])?;
        }
    }
    Ok(())
}

fn store_state(transaction: &Transaction<'_>, state: &State) -> Result<(), Error> {
    let State { generation, watermark, token, writer, synced_at, last_id } = state;
    let token = token.map(|token| to_sql("store_state.fencing_token", token.0)).transpose()?;
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO store_state
                 (only_row, generation, watermark_seconds, watermark_nanoseconds, fencing_token,
                  writer, synced_at_ms, last_id)
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            to_sql("store_state.generation", generation.0)?,
            watermark.map(Watermark::seconds),
            watermark.map(Watermark::nanoseconds),
            token,
            writer.as_ref().map(Owner::as_str),
            synced_at.map(Timestamp::as_millisecond),
            to_sql("store_state.last_id", *last_id)?,
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
        let Report { enforced, containers, isolated_rules, at } = report;
        insert.execute(params![
            cell.as_str(),
            to_sql("cell_reports.enforced_generation", enforced.0)?,
            containers,
            isolated_rules,
            at.as_millisecond(),
        ])?;
    }
    let mut delete = transaction.prepare_cached("DELETE FROM cell_reports WHERE cell_id = ?1")?;
    for cell in &unsaved.forgotten {
        delete.execute([cell.as_str()])?;
    }
    Ok(())
}
