//! The set on a database server, in bulk.

use model::generation::Point;
use storage::server::{Dialect, NewRows, Row, Transaction, Value};

use super::super::{
    Error, Stored,
    batch::Batch,
    plan,
    read::bind_all,
    rows::{GroupRow, Scopes, to_sql},
    rules,
    session::{IDS_AT_ONCE, Set, text},
};
use crate::groups::decide::{Decision, Upsert};

/// Number of groups per query: the result of a large set is never in memory twice.
const PAGE: i64 = 1000;
/// Number of rows per COPY: it uses a few megabytes of the server's buffers, and with
/// more rows than they hold it repeatedly waits for the disk.
const GROUPS_AT_ONCE: usize = 1_000;
const BINDINGS_AT_ONCE: usize = 20_000;

const TABLE: &str = "portcullis_security_groups";
const COLUMNS: &str = "(id, guid, name, running_default, staging_default, rules, content_hash)";

const GROUPS: &str = "SELECT id, guid, name, running_default, staging_default, rules, content_hash
     FROM portcullis_security_groups";

const CHANGED: &str = "(SELECT group_id FROM portcullis_group_changes WHERE generation > ?)";

impl Set for Transaction {
    async fn groups(&self, since: Option<Point>) -> Result<Vec<Stored>, Error> {
        groups(self, since).await
    }

    async fn store(&self, upserts: &[Upsert], most: usize) -> Result<(), Error> {
        store(self, most, upserts).await
    }

    async fn bind(&self, decision: &Decision, before: &Scopes) -> Result<(), Error> {
        bind(self, decision, before).await
    }
}

async fn groups(transaction: &Transaction, since: Option<Point>) -> Result<Vec<Stored>, Error> {
    let mut parameters = Vec::new();
    let mut wanted = "id > ?".to_owned();
    if let Some(since) = since {
        wanted = format!("{wanted} AND id IN {CHANGED}");
        parameters.push(Value::Int(to_sql("generations.generation", since.generation.0)?));
    }
    let sql = format!("{GROUPS} WHERE {wanted} ORDER BY id LIMIT {PAGE}");
    let mut groups = Vec::new();
    let mut scopes = Scopes::default();
    let mut last = 0;
    loop {
        let mut with_place = vec![Value::Int(last)];
        with_place.extend(parameters.iter().cloned());
        let rows = transaction.query(&sql, &with_place).await?;
        let Some(end) = rows.last() else { return Ok(groups) };
        let end: i64 = end.get(0)?;
        bindings(transaction, (last, end), &parameters, &mut scopes).await?;
        for row in &rows {
            groups.push(group(row, &mut scopes)?);
        }
        last = end;
    }
}

/// These groups, in any order.
pub(super) async fn these(transaction: &Transaction, ids: &[i64]) -> Result<Vec<Stored>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let marks = vec!["?"; ids.len()].join(",");
    let ids: Vec<Value> = ids.iter().map(|id| Value::Int(*id)).collect();
    let sql = format!(
        "SELECT group_id, lifecycle, space_guid FROM portcullis_security_group_spaces
         WHERE group_id IN ({marks})"
    );
    let mut scopes = Scopes::default();
    bind_all(&transaction.query(&sql, &ids).await?, &mut scopes)?;
    let sql = format!("{GROUPS} WHERE id IN ({marks})");
    let rows = transaction.query(&sql, &ids).await?;
    rows.iter().map(|row| group(row, &mut scopes)).collect()
}

async fn bindings(
    transaction: &Transaction,
    (after, to): (i64, i64),
    since: &[Value],
    scopes: &mut Scopes,
) -> Result<(), Error> {
    let changed =
        if since.is_empty() { String::new() } else { format!("AND group_id IN {CHANGED}") };
    let sql = format!(
        "SELECT group_id, lifecycle, space_guid FROM portcullis_security_group_spaces
         WHERE group_id > ? AND group_id <= ? {changed}"
    );
    let mut parameters = vec![Value::Int(after), Value::Int(to)];
    parameters.extend(since.iter().cloned());
    bind_all(&transaction.query(&sql, &parameters).await?, scopes)
}

fn group(row: &Row, scopes: &mut Scopes) -> Result<Stored, Error> {
    scopes.group(&GroupRow {
        id: row.get(0)?,
        guid: text(row, 1, "security_groups.guid")?,
        name: text(row, 2, "security_groups.name")?,
        running_default: row.get(3)?,
        staging_default: row.get(4)?,
        rules: text(row, 5, "security_groups.rules")?,
        content_hash: row.get(6)?,
    })
}

async fn store(transaction: &Transaction, most: usize, upserts: &[Upsert]) -> Result<(), Error> {
    match transaction.dialect() {
        Dialect::Postgres => {
            let (added, changed): (Vec<&Upsert>, Vec<&Upsert>) =
                upserts.iter().partition(|upsert| upsert.added);
            for added in added.chunks(GROUPS_AT_ONCE) {
                copy_groups(transaction, added).await?;
            }
            let after = "ON CONFLICT (id) DO UPDATE SET
                 name = excluded.name, running_default = excluded.running_default,
                 staging_default = excluded.staging_default, rules = excluded.rules,
                 content_hash = excluded.content_hash";
            upsert_groups(transaction, after, most, &changed).await
        }
        Dialect::MySql => {
            let after = "ON DUPLICATE KEY UPDATE
                 name = VALUES(name), running_default = VALUES(running_default),
                 staging_default = VALUES(staging_default), rules = VALUES(rules),
                 content_hash = VALUES(content_hash)";
            upsert_groups(transaction, after, most, &upserts.iter().collect::<Vec<_>>()).await
        }
    }
}

/// Encodes the rules while the server processes the previous rows.
async fn copy_groups(transaction: &Transaction, added: &[&Upsert]) -> Result<(), Error> {
    let ids: Vec<i64> =
        added.iter().map(|upsert| plan::sql_id(upsert.id)).collect::<Result<_, _>>()?;
    let mut left = ids.into_iter().zip(added);
    let write = |rows: &mut NewRows| {
        let Some((id, upsert)) = left.next() else { return false };
        let Upsert { id: _, group, hash, added: _ } = upsert;
        rows.push([
            id.into(),
            group.guid.as_str().into(),
            group.name.as_bytes().into(),
            group.running.everywhere.into(),
            group.staging.everywhere.into(),
            rules::to_text(&group.rules()).as_str().into(),
            hash.0.as_slice().into(),
        ]);
        true
    };
    transaction.copy(&format!("{TABLE} {COLUMNS}"), write).await?;
    Ok(())
}

async fn upsert_groups(
    transaction: &Transaction,
    after: &'static str,
    most: usize,
    upserts: &[&Upsert],
) -> Result<(), Error> {
    let before = format!("INSERT INTO {TABLE} {COLUMNS} VALUES");
    let batch = Batch { before: &before, marks: "(?,?,?,?,?,?,?)", after };
    // Rows are created per chunk: a large set must not be in memory twice.
    for upserts in upserts.chunks(IDS_AT_ONCE) {
        let rows = upserts.iter().map(|upsert| group_row(upsert, most));
        batch.run(transaction, rows.collect::<Result<_, Error>>()?).await?;
    }
    Ok(())
}

fn group_row(upsert: &Upsert, most: usize) -> Result<Vec<Value>, Error> {
    let Upsert { id, group, hash, added: _ } = upsert;
    let rules = rules::to_text(&group.rules());
    let bytes = rules.len() + group.name.len();
    if bytes > most {
        return Err(Error::TooLarge { guid: group.guid.clone(), bytes, most });
    }
    Ok(vec![
        plan::sql_id(*id)?.into(),
        group.guid.as_str().into(),
        group.name.as_bytes().into(),
        group.running.everywhere.into(),
        group.staging.everywhere.into(),
        rules.into(),
        hash.0.to_vec().into(),
    ])
}

async fn bind(
    transaction: &Transaction,
    decision: &Decision,
    before: &Scopes,
) -> Result<(), Error> {
    let (gone, new) = plan::bindings(decision, before)?;
    let mut new = new.peekable();
    let row = |binding: &plan::Binding<'_>| {
        vec![binding.group_id.into(), binding.lifecycle.into(), binding.space.as_str().into()]
    };
    let delete = Batch {
        before: "DELETE FROM portcullis_security_group_spaces
                 WHERE (group_id, lifecycle, space_guid) IN (",
        marks: "(?,?,?)",
        after: ")",
    };
    delete.run(transaction, gone.iter().map(row).collect()).await?;
    match transaction.dialect() {
        Dialect::Postgres => {
            while new.peek().is_some() {
                copy_bindings(transaction, new.by_ref().take(BINDINGS_AT_ONCE)).await?;
            }
            Ok(())
        }
        Dialect::MySql => {
            let insert = Batch {
                before: "INSERT INTO portcullis_security_group_spaces
                         (group_id, lifecycle, space_guid) VALUES",
                marks: "(?,?,?)",
                after: "",
            };
            while new.peek().is_some() {
                let rows = new.by_ref().take(BINDINGS_AT_ONCE).map(|binding| row(&binding));
                insert.run(transaction, rows.collect()).await?;
            }
            Ok(())
        }
    }
}

async fn copy_bindings(
    transaction: &Transaction,
    mut left: impl Iterator<Item = plan::Binding<'_>> + Send,
) -> Result<(), Error> {
    let write = |rows: &mut NewRows| {
        let Some(plan::Binding { group_id, lifecycle, space }) = left.next() else { return false };
        rows.push([group_id.into(), lifecycle.into(), space.as_str().into()]);
        true
    };
    let into = "portcullis_security_group_spaces (group_id, lifecycle, space_guid)";
    transaction.copy(into, write).await?;
    Ok(())
}
