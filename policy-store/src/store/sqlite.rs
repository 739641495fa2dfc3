//! SQLite: for one instance, in one file.
//!
//! The write transaction reads the state and the hashes, calls
//! [`decide`](crate::groups::decide::decide), and writes the difference. `synchronous=FULL`: every change confirmed to a writer is on the
//! disk, so after a power failure the watermark never exceeds the stored content.

mod set;

use std::{
    future::{Future, ready},
    path::Path,
    pin::Pin,
    sync::Arc,
};

use futures_util::FutureExt as _;
use model::{
    generation::{Generation, Point},
    ids::CellId,
};
use rusqlite::{Connection, Transaction, params_from_iter, types};
use storage::{
    Migration,
    server::{Row, Value},
    sqlite::{Database, Options},
};

use super::{
    Answer, Archive, Contents, Error, Mended, News, Store, UseLog,
    archive::queries as archive,
    plan::Loss,
    read,
    session::{Kind, Session},
    tables, uses, write,
};
use crate::{
    groups::{
        archive::{Bounds, Numbered, OperatorDecision, Query, Reached, Undo},
        decide::{Decision, Replacement, State},
        held::Order,
        snapshot::Snapshot,
    },
    reports::{Report, Unsaved},
    uses::{Batch, Recorded},
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
/// Servers have such a limit for the rules of a group.
const NO_LIMIT: usize = usize::MAX;

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
        let options = Options { page_size: PAGE_BYTES, cache_kib: CACHE_KIB, ..Options::default() };
        Ok(Self { database: Database::open_whole(path, &options, MIGRATIONS, tables::SQLITE)? })
    }

    /// Resets the newest fencing token; returns the previous state.
    ///
    /// # Errors
    /// The database failed.
    pub async fn reset_fencing(&self) -> Result<State, Error> {
        self.write(async |on: &Connection| write::reset_fencing(on).await).await
    }

    /// Runs `work` in the next transaction.
    async fn write<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        self.database.write(move |on: &Transaction<'_>| at_once(work(on))).await
    }

    /// Runs `work` on a read-only connection, in one snapshot.
    async fn read<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        self.database.read(move |on: &Connection| at_once(work(on))).await
    }
}

/// The result of a future on a connection: SQLite answers in the call.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("a statement does not wait")
}

impl Session for Connection {
    fn kind(&self) -> Kind {
        Kind::Sqlite
    }

    fn query(
        &self,
        sql: &str,
        values: &[Value],
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send {
        ready(query(self, sql, values))
    }

    fn execute(
        &self,
        sql: &str,
        values: &[Value],
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(execute(self, sql, values))
    }
}

fn query(connection: &Connection, sql: &str, values: &[Value]) -> Result<Vec<Row>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let count = statement.column_count();
    let mut rows = statement.query(params_from_iter(values.iter().map(to_sqlite)))?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let columns = (0..count).map(|column| Ok(from_sqlite(row.get(column)?)));
        all.push(Row::new(columns.collect::<Result<_, Error>>()?));
    }
    Ok(all)
}

fn execute(connection: &Connection, sql: &str, values: &[Value]) -> Result<(), Error> {
    let mut statement = connection.prepare_cached(sql)?;
    statement.execute(params_from_iter(values.iter().map(to_sqlite)))?;
    Ok(())
}

fn to_sqlite(value: &Value) -> types::ToSqlOutput<'_> {
    types::ToSqlOutput::Borrowed(match value {
        Value::Null => types::ValueRef::Null,
        Value::Int(number) => types::ValueRef::Integer(*number),
        Value::Text(text) => types::ValueRef::Text(text.as_bytes()),
        Value::Bytes(bytes) => types::ValueRef::Blob(bytes),
    })
}

/// No column of these tables has a fraction.
fn from_sqlite(value: types::Value) -> Value {
    match value {
        types::Value::Null | types::Value::Real(_) => Value::Null,
        types::Value::Integer(number) => Value::Int(number),
        types::Value::Text(text) => Value::Text(text),
        types::Value::Blob(bytes) => Value::Bytes(bytes),
    }
}

impl Store for Sqlite {
    fn load(&self, since: Option<Point>) -> Answer<'_, Contents> {
        Box::pin(self.read(async move |on: &Connection| {
            let mut contents = read::load(on, since, "").await?;
            if contents.since.is_none() {
                contents.reports = read::reports(on, i64::MIN).await?;
            }
            Ok(contents)
        }))
    }

    fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision> {
        let replace = async move |on: &Connection| write::replace(on, NO_LIMIT, &write).await;
        Box::pin(async { Ok(self.write(replace).await??.0) })
    }

    fn hold(&self, change: Arc<Order>) -> Answer<'_, State> {
        Box::pin(self.write(async move |on: &Connection| write::change_hold(on, &change).await))
    }

    /// There are no other instances.
    fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, Vec<(CellId, Report)>> {
        if unsaved.is_empty() {
            return Box::pin(async { Ok(Vec::new()) });
        }
        let save = async move |on: &Connection| write::save_reports(on, &unsaved).await;
        Box::pin(async { self.write(save).await.map(|()| Vec::new()) })
    }

    fn mend(&self, served: Arc<Snapshot>) -> Answer<'_, Mended> {
        Box::pin(async move {
            self.database.mend(|_, _| Ok(())).await?;
            let look = {
                let served = Arc::clone(&served);
                async move |on: &Connection| write::loss(on, &served).await
            };
            match self.read(look).await? {
                Loss::None => Ok(Mended::Nothing),
                Loss::Restore | Loss::Forget => {
                    let mend =
                        async move |on: &Connection| write::mend(on, NO_LIMIT, &served).await;
                    self.write(mend).await
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

impl Archive for Sqlite {
    fn entries(&self, query: Query) -> Answer<'_, Vec<Numbered>> {
        Box::pin(self.read(async move |on: &Connection| archive::entries(on, &query).await))
    }

    fn undo(&self, from: Generation, to: Generation) -> Answer<'_, Option<Undo>> {
        Box::pin(self.read(async move |on: &Connection| archive::undo(on, from, to).await))
    }

    fn record(&self, decision: Arc<OperatorDecision>) -> Answer<'_, ()> {
        Box::pin(self.write(async move |on: &Connection| archive::record(on, &decision).await))
    }

    fn save_progress(
        &self,
        instance: Arc<str>,
        progress: Arc<[(Generation, Reached)]>,
    ) -> Answer<'_, ()> {
        Box::pin(self.write(async move |on: &Connection| {
            archive::save_progress(on, &instance, &progress).await
        }))
    }

    fn prune(&self, bounds: Bounds) -> Answer<'_, bool> {
        Box::pin(async move {
            // The search takes longer than the work, and a Replace does not wait for it.
            let look = async move |on: &Connection| archive::excess(on, &bounds).await;
            let Some(excess) = self.read(look).await? else { return Ok(false) };
            self.write(async move |on: &Connection| archive::prune(on, excess).await).await
        })
    }
}

impl UseLog for Sqlite {
    fn save(&self, batch: Arc<Batch>) -> Answer<'_, ()> {
        Box::pin(self.write(async move |on: &Connection| uses::save(on, &batch).await))
    }

    fn recorded(&self) -> Answer<'_, Recorded> {
        Box::pin(self.read(async |on: &Connection| uses::recorded(on).await))
    }

    fn prune(&self, today: i64) -> Answer<'_, u64> {
        Box::pin(self.write(async move |on: &Connection| uses::prune(on, today).await))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_list_is_what_the_migrations_make() {
        let file = Connection::open_in_memory().unwrap();
        for migration in MIGRATIONS {
            file.execute_batch(migration.sql).unwrap();
        }
        let mut made = file
            .prepare(
                "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
                 WHERE m.type = 'table'",
            )
            .unwrap();
        let made = made.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let made: BTreeSet<(String, String)> = made.map(Result::unwrap).collect();
        let columns = tables::SQLITE.iter().flat_map(|table| {
            table.columns.iter().map(|column| (table.name.to_owned(), column.name.to_owned()))
        });
        assert_eq!(made, columns.collect());
    }
}
