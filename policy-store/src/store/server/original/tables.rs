//! Statements on the original's tables (docs/compatibility/policy-server-internal.md#tables).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use storage::server::{Dialect, Transaction, Value};

use super::{
    super::super::{Error, batch::Batch, session::text},
    Failure,
    row::{Found, Layout, Row, list},
};

/// Longest wait for a lock that another writer of the tables holds.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const COLUMNS: [&str; 8] = [
    "id",
    "guid",
    "name",
    "rules",
    "staging_default",
    "running_default",
    "staging_spaces",
    "running_spaces",
];
const STAGING: &str = "staging_security_groups_spaces";
const RUNNING: &str = "running_security_groups_spaces";

#[derive(Debug)]
pub(super) struct Tables {
    dialect: Dialect,
    /// Timeout of an operation.
    pub(super) timeout: Duration,
}

impl Tables {
    pub(super) fn new(dialect: Dialect, timeout: Duration) -> Self {
        Self { dialect, timeout }
    }

    /// Bounds the waits for locks, so that another writer of the tables delays ours little; on
    /// PostgreSQL also the time of each statement.
    pub(super) async fn limit_waits(
        &self,
        transaction: &Transaction,
        time: Duration,
    ) -> Result<(), Error> {
        let wait = LOCK_WAIT.min(time);
        match self.dialect {
            Dialect::Postgres => {
                let sql = "SELECT set_config('lock_timeout', ?, true),
                     set_config('statement_timeout', ?, true)";
                let limits = [wait, time].map(|limit| limit.as_millis().max(1).to_string().into());
                transaction.query(sql, &limits).await?;
                Ok(())
            }
            Dialect::MySql => set_lock_wait(transaction, wait).await,
        }
    }

    /// Restores the session's own limit; on PostgreSQL the end of the transaction does it. On
    /// MySQL a connection keeps the shorter one after a failure: its transactions then retry
    /// earlier.
    pub(super) async fn reset_waits(&self, transaction: &Transaction) -> Result<(), Error> {
        match self.dialect {
            Dialect::Postgres => Ok(()),
            Dialect::MySql => set_lock_wait(transaction, self.timeout).await,
        }
    }

    pub(super) async fn layout(&self, transaction: &Transaction) -> Result<Layout, Failure> {
        let (kind, schemas) = match self.dialect {
            Dialect::Postgres => ("TEXT", "ANY (current_schemas(false))"),
            Dialect::MySql => ("CHAR", "DATABASE()"),
        };
        let sql = format!(
            "SELECT CAST(table_name AS {kind}), CAST(column_name AS {kind})
             FROM information_schema.columns
             WHERE table_schema = {schemas} AND table_name IN
                 ('security_groups', 'security_groups_info', '{STAGING}', '{RUNNING}')"
        );
        let field = "information_schema.columns";
        let rows = transaction.query(&sql, &[]).await.map_err(Error::from)?;
        let mut columns = HashSet::new();
        for row in &rows {
            columns.insert(format!("{}.{}", text(row, 0, field)?, text(row, 1, field)?));
        }
        if !columns.iter().any(|column| column.starts_with("security_groups.")) {
            return Err(Failure::Missing("table security_groups".to_owned()));
        }
        for column in COLUMNS {
            if !columns.contains(&format!("security_groups.{column}")) {
                return Err(Failure::Missing(format!("column security_groups.{column}")));
            }
        }
        let has = |table: &str, column: &str| columns.contains(&format!("{table}.{column}"));
        Ok(Layout {
            stamp: has("security_groups_info", "last_updated"),
            hash: has("security_groups", "hash"),
            spaces: [STAGING, RUNNING].iter().all(|table| has(table, "security_group_guid")),
        })
    }

    /// Identifies the content of each row, by guid.
    pub(super) async fn read(
        &self,
        transaction: &Transaction,
        layout: Layout,
    ) -> Result<HashMap<String, Found>, Error> {
        let sql = format!("SELECT guid, {} FROM security_groups", self.digest(layout));
        let mut found = HashMap::new();
        for row in transaction.query(&sql, &[]).await? {
            let digest = match row.get::<Option<&str>>(1) {
                Ok(None) => None,
                _ => Some(text(&row, 1, "the digest of a row")?.to_owned()),
            };
            let guid = text(&row, 0, "the original's security_groups.guid")?.to_owned();
            found.insert(guid, Found { digest, ..Found::default() });
        }
        if layout.spaces {
            for table in [STAGING, RUNNING] {
                let sql = format!("SELECT security_group_guid, COUNT(*) FROM {table} GROUP BY 1");
                for row in transaction.query(&sql, &[]).await? {
                    let guid = text(&row, 0, "the original's security_group_guid")?;
                    let Some(found) = found.get_mut(guid) else { continue };
                    let count = if table == STAGING {
                        &mut found.staging_spaces
                    } else {
                        &mut found.running_spaces
                    };
                    *count = row.get(1)?;
                }
            }
        }
        Ok(found)
    }

    /// SQL expression of [`Row::found`]. The name comes last: everything before it shows its own
    /// end.
    fn digest(&self, layout: Layout) -> String {
        let texts = ["staging_spaces", "running_spaces", "rules"];
        match self.dialect {
            Dialect::Postgres => {
                let texts = texts.map(|column| format!("{column}::text")).join(" || ");
                let hash = if layout.hash { "hash || ' ' || " } else { "" };
                format!(
                    "encode(sha256(convert_to(staging_default::int::text
                         || running_default::int::text || {texts} || {hash} name, 'UTF8')), 'hex')"
                )
            }
            Dialect::MySql => {
                let bytes =
                    |column: &str| format!("CAST(CONVERT({column} USING utf8mb4) AS BINARY)");
                let texts = texts.map(bytes).join(", ");
                let hash =
                    if layout.hash { format!("{}, ' ',", bytes("hash")) } else { String::new() };
                format!(
                    "SHA2(CONCAT(staging_default, running_default, {texts}, {hash} {}), 256)",
                    bytes("name")
                )
            }
        }
    }

    /// The spaces of removed groups go with them, by the foreign key.
    pub(super) async fn remove(
        &self,
        transaction: &Transaction,
        guids: &[&str],
    ) -> Result<(), Error> {
        let rows = guids.iter().map(|&guid| vec![guid.into()]).collect();
        let before = "DELETE FROM security_groups WHERE guid IN (";
        Batch { before, marks: "?", after: ")" }.run(transaction, rows).await
    }

    /// Adds and changes rows, and their spaces. A row keeps its id.
    pub(super) async fn upsert(
        &self,
        transaction: &Transaction,
        layout: Layout,
        found: &HashMap<String, Found>,
        rows: Vec<Row>,
    ) -> Result<(), Error> {
        let (columns, marks) = match (layout.hash, self.dialect) {
            (false, _) => ("", ""),
            (true, _) => (", hash", ",?"),
        };
        let json = match self.dialect {
            Dialect::Postgres => "?::text::jsonb",
            Dialect::MySql => "?",
        };
        let before = format!(
            "INSERT INTO security_groups (guid, name, rules, staging_default, running_default,
                 staging_spaces, running_spaces{columns}) VALUES"
        );
        let marks = format!("(?,?,?,?,?,{json},{json}{marks})");
        let after = self.conflict(layout);
        let values = rows.iter().map(|row| {
            let mut values: Vec<Value> = vec![
                row.guid.as_str().into(),
                row.name.as_str().into(),
                row.rules.as_str().into(),
                row.staging_default.into(),
                row.running_default.into(),
                list(&row.staging_spaces).into(),
                list(&row.running_spaces).into(),
            ];
            values.extend(layout.hash.then(|| row.hash.as_str().into()));
            values
        });
        let batch = Batch { before: &before, marks: &marks, after: &after };
        batch.run(transaction, values.collect()).await?;
        if layout.spaces {
            bind(transaction, STAGING, found, &rows, |row| &row.staging_spaces).await?;
            bind(transaction, RUNNING, found, &rows, |row| &row.running_spaces).await?;
        }
        Ok(())
    }

    fn conflict(&self, layout: Layout) -> String {
        let columns = COLUMNS[2..].iter().copied().chain(layout.hash.then_some("hash"));
        match self.dialect {
            Dialect::Postgres => {
                let set = columns.map(|column| format!("{column} = excluded.{column}"));
                format!("ON CONFLICT (guid) DO UPDATE SET {}", set.collect::<Vec<_>>().join(", "))
            }
            Dialect::MySql => {
                let set = columns.map(|column| format!("{column} = VALUES({column})"));
                format!("ON DUPLICATE KEY UPDATE {}", set.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Moves the stamp forward, whatever the clock says: agents compare it with `>`.
    pub(super) async fn move_stamp(&self, transaction: &Transaction) -> Result<(), Error> {
        let (next, now) = match self.dialect {
            // The time of the statement: the transaction may have begun before another's commit.
            Dialect::Postgres => ("INTERVAL '1 microsecond'", "clock_timestamp()::timestamp"),
            Dialect::MySql => ("INTERVAL 1 MICROSECOND", "CURRENT_TIMESTAMP(6)"),
        };
        let sql = format!(
            "UPDATE security_groups_info SET last_updated = GREATEST(last_updated + {next}, {now})"
        );
        transaction.execute(&sql, &[]).await?;
        Ok(())
    }
}

async fn set_lock_wait(transaction: &Transaction, wait: Duration) -> Result<(), Error> {
    let seconds = wait.as_secs().max(1);
    let sql = format!("SET SESSION innodb_lock_wait_timeout = {seconds}");
    transaction.execute(&sql, &[]).await?;
    Ok(())
}

/// Writes the differences of a table of spaces for these rows.
async fn bind(
    transaction: &Transaction,
    table: &'static str,
    found: &HashMap<String, Found>,
    rows: &[Row],
    spaces: impl Fn(&Row) -> &[String],
) -> Result<(), Error> {
    let mut before: HashMap<String, BTreeSet<String>> = HashMap::new();
    let existing: Vec<&Row> = rows.iter().filter(|row| found.contains_key(&row.guid)).collect();
    if !existing.is_empty() {
        let marks = vec!["?"; existing.len()].join(",");
        let guids: Vec<Value> = existing.iter().map(|row| row.guid.as_str().into()).collect();
        let sql = format!(
            "SELECT security_group_guid, space_guid FROM {table} WHERE security_group_guid IN ({marks})"
        );
        for row in transaction.query(&sql, &guids).await? {
            let field = "the original's table of spaces";
            let (guid, space) = (text(&row, 0, field)?, text(&row, 1, field)?);
            before.entry(guid.to_owned()).or_default().insert(space.to_owned());
        }
    }
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    for row in rows {
        let mut left = before.remove(&row.guid).unwrap_or_default();
        let pair = |space: &str| -> Vec<Value> { vec![space.into(), row.guid.as_str().into()] };
        for space in spaces(row) {
            if !left.remove(space) {
                new.push(pair(space));
            }
        }
        gone.extend(left.iter().map(|space| pair(space)));
    }
    let delete = format!("DELETE FROM {table} WHERE (space_guid, security_group_guid) IN (");
    Batch { before: &delete, marks: "(?,?)", after: ")" }.run(transaction, gone).await?;
    let insert = format!("INSERT INTO {table} (space_guid, security_group_guid) VALUES");
    Batch { before: &insert, marks: "(?,?)", after: "" }.run(transaction, new).await
}
