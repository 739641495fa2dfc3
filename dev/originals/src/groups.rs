//! The tables of the security groups, docs/compatibility/policy-server-internal.md: created
//! by policy-server's `migrate-db`, written by the syncer, read by policy-server-internal.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::sql::{Connection, Database, Dialect, Row, Value};

/// A rule with all its keys, in the order of the stored text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rule {
    pub(crate) protocol: String,
    pub(crate) destination: String,
    pub(crate) ports: String,
    pub(crate) r#type: i64,
    pub(crate) code: i64,
    pub(crate) description: String,
    pub(crate) log: bool,
}

impl Default for Rule {
    fn default() -> Self {
        let text = String::new;
        let (protocol, destination, ports, description) = (text(), text(), text(), text());
        Self { protocol, destination, ports, r#type: 0, code: 0, description, log: false }
    }
}

/// A security group, as policy-server-internal sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) guid: String,
    pub(crate) name: String,
    /// A JSON array as text.
    pub(crate) rules: String,
    pub(crate) staging_default: bool,
    pub(crate) running_default: bool,
    pub(crate) staging_space_guids: Vec<String>,
    pub(crate) running_space_guids: Vec<String>,
}

/// The text of rules, escaped as Go's `encoding/json` does.
pub(crate) fn rules_text(rules: &[Rule]) -> anyhow::Result<String> {
    let text = serde_json::to_string(rules)?;
    let escaped = [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026")];
    let escaped = escaped.into_iter().chain([('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")]);
    Ok(escaped.fold(text, |text, (from, to)| text.replace(from, to)))
}

const JOINS: [&str; 2] = ["staging_security_groups_spaces", "running_security_groups_spaces"];

/// Creates the tables, with one row in `security_groups_info`.
pub(crate) async fn migrate(database: &Database) -> anyhow::Result<()> {
    let (id, json, flag, stamp) = match database.dialect() {
        Dialect::Postgres => ("BIGSERIAL", "JSONB", "BOOLEAN", "TIMESTAMP(6)"),
        Dialect::MySql => ("BIGINT NOT NULL AUTO_INCREMENT", "JSON", "TINYINT(1)", "DATETIME(6)"),
    };
    let rules = if database.dialect() == Dialect::Postgres { "TEXT" } else { "MEDIUMTEXT" };
    let mut statements = vec![
        format!(
            "CREATE TABLE IF NOT EXISTS security_groups (id {id} PRIMARY KEY, \
             guid VARCHAR(36) NOT NULL UNIQUE, name VARCHAR(255) NOT NULL, rules {rules}, \
             staging_default {flag} DEFAULT FALSE, running_default {flag} DEFAULT FALSE, \
             staging_spaces {json}, running_spaces {json}, hash VARCHAR(255) DEFAULT '')"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS security_groups_info \
             (id INT PRIMARY KEY, last_updated {stamp})"
        ),
    ];
    statements.extend(JOINS.map(|join| {
        format!(
            "CREATE TABLE IF NOT EXISTS {join} (space_guid VARCHAR(36) NOT NULL, \
             security_group_guid VARCHAR(36) NOT NULL, \
             PRIMARY KEY (space_guid, security_group_guid), \
             FOREIGN KEY (security_group_guid) REFERENCES security_groups (guid) \
             ON DELETE CASCADE)"
        )
    }));
    for statement in statements {
        database.run(&statement, &[]).await?;
    }
    if database.run("SELECT id FROM security_groups_info", &[]).await?.is_empty() {
        let sql = "INSERT INTO security_groups_info VALUES (1, CURRENT_TIMESTAMP(6))";
        database.run(sql, &[]).await?;
    }
    Ok(())
}

/// Replaces all groups in one transaction; the stamp moves even if nothing changed.
pub(crate) async fn replace(database: &Database, groups: &[Group]) -> anyhow::Result<()> {
    let mut lease = database.take().await?;
    lease.connection.command("BEGIN").await?;
    // After a failure the connection is closed, which ends the transaction.
    write(database.dialect(), &mut lease.connection, groups).await?;
    lease.connection.command("COMMIT").await?;
    database.give_back(lease);
    Ok(())
}

async fn write(
    dialect: Dialect,
    connection: &mut Connection,
    groups: &[Group],
) -> anyhow::Result<()> {
    let rows = connection.run("SELECT guid, hash FROM security_groups", &[]).await?;
    let mut stored = BTreeMap::new();
    for row in &rows {
        stored.insert(row.text(0)?.unwrap_or_default(), row.text(1)?.unwrap_or_default());
    }
    for group in groups {
        let hash = hash(group)?;
        if stored.remove(&group.guid).is_some_and(|stored| stored == hash) {
            continue;
        }
        upsert(dialect, connection, group, &hash).await?;
    }
    for guid in stored.into_keys() {
        let sql = "DELETE FROM security_groups WHERE guid = ?";
        connection.run(sql, &[Value::Text(guid)]).await?;
    }
    // The original's special case: an empty list does not move the stamp.
    if !groups.is_empty() {
        let sql = "UPDATE security_groups_info SET last_updated = CURRENT_TIMESTAMP(6)";
        connection.run(sql, &[]).await?;
    }
    Ok(())
}

/// SHA-256 of the group with sorted spaces.
fn hash(group: &Group) -> anyhow::Result<String> {
    let mut sorted = group.clone();
    sorted.staging_space_guids.sort();
    sorted.running_space_guids.sort();
    let digest = Sha256::digest(serde_json::to_vec(&sorted)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn upsert(
    dialect: Dialect,
    connection: &mut Connection,
    group: &Group,
    hash: &str,
) -> anyhow::Result<()> {
    let columns = ["name", "rules", "staging_default", "running_default"];
    let columns = columns.into_iter().chain(["staging_spaces", "running_spaces", "hash"]);
    let (json, conflict, new) = match dialect {
        Dialect::Postgres => {
            ("CAST(CAST(? AS TEXT) AS JSONB)", "ON CONFLICT (guid) DO UPDATE SET", "EXCLUDED.")
        }
        Dialect::MySql => ("?", "ON DUPLICATE KEY UPDATE", "VALUES("),
    };
    let close = if dialect == Dialect::MySql { ")" } else { "" };
    let set: Vec<String> =
        columns.clone().map(|column| format!("{column} = {new}{column}{close}")).collect();
    let names = columns.collect::<Vec<_>>().join(", ");
    let sql = format!(
        "INSERT INTO security_groups (guid, {names}) VALUES (?, ?, ?, ?, ?, {json}, {json}, ?) \
         {conflict} {}",
        set.join(", ")
    );
    let spaces = [&group.staging_space_guids, &group.running_space_guids];
    let [staging, running] = spaces.map(serde_json::to_string);
    let values = [
        Value::Text(group.guid.clone()),
        Value::Text(group.name.clone()),
        Value::Text(group.rules.clone()),
        Value::Flag(group.staging_default),
        Value::Flag(group.running_default),
        Value::Text(staging?),
        Value::Text(running?),
        Value::Text(hash.to_owned()),
    ];
    connection.run(&sql, &values).await?;
    for (join, spaces) in JOINS.into_iter().zip(spaces) {
        let guid = || Value::Text(group.guid.clone());
        let sql = format!("DELETE FROM {join} WHERE security_group_guid = ?");
        connection.run(&sql, &[guid()]).await?;
        let sql = format!("INSERT INTO {join} (space_guid, security_group_guid) VALUES (?, ?)");
        for space in spaces.iter().collect::<BTreeSet<_>>() {
            connection.run(&sql, &[Value::Text(space.clone()), guid()]).await?;
        }
    }
    Ok(())
}

/// The stamp of the groups in nanoseconds since 1970.
pub(crate) async fn last_updated(database: &Database) -> anyhow::Result<i64> {
    let micros = match database.dialect() {
        Dialect::Postgres => "CAST(EXTRACT(EPOCH FROM last_updated) * 1000000 AS BIGINT)",
        Dialect::MySql => "CAST(UNIX_TIMESTAMP(last_updated) * 1000000 AS SIGNED)",
    };
    let sql = format!("SELECT {micros} FROM security_groups_info");
    let rows = database.run(&sql, &[]).await?;
    let micros = rows.first().context("security_groups_info is empty")?.int(0)?;
    Ok(micros.context("security_groups_info has no stamp")? * 1000)
}

/// The groups of the spaces and the global ones, by id.
pub(crate) async fn of_spaces(
    database: &Database,
    spaces: &[String],
) -> anyhow::Result<Vec<Group>> {
    let text = |column: &str| match database.dialect() {
        Dialect::Postgres => format!("CAST({column} AS TEXT)"),
        Dialect::MySql => column.to_owned(),
    };
    let mut found = "SELECT guid FROM security_groups WHERE staging_default UNION \
         SELECT guid FROM security_groups WHERE running_default"
        .to_owned();
    let mut values = Vec::new();
    if !spaces.is_empty() {
        let marks = vec!["?"; spaces.len()].join(", ");
        for join in JOINS {
            found += &format!(
                " UNION SELECT security_group_guid FROM {join} WHERE space_guid IN ({marks})"
            );
            values.extend(spaces.iter().cloned().map(Value::Text));
        }
    }
    let (staging, running) = (text("staging_spaces"), text("running_spaces"));
    let sql = format!(
        "SELECT guid, name, rules, staging_default, running_default, {staging}, {running} \
         FROM security_groups WHERE guid IN ({found}) ORDER BY id"
    );
    let rows = database.run(&sql, &values).await?;
    rows.iter().map(group_of).collect()
}

fn group_of(row: &Row) -> anyhow::Result<Group> {
    let spaces = |column: usize| -> anyhow::Result<Vec<String>> {
        let text = row.text(column)?.context("NULL in a list of spaces")?;
        Ok(runtime::json::from_str(&text)?)
    };
    Ok(Group {
        guid: row.text(0)?.unwrap_or_default(),
        name: row.text(1)?.unwrap_or_default(),
        rules: row.text(2)?.unwrap_or_default(),
        staging_default: row.flag(3)?,
        running_default: row.flag(4)?,
        staging_space_guids: spaces(5)?,
        running_space_guids: spaces(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_all_keys_and_gos_escapes() {
        let rule: Rule = runtime::json::from_str(
            r#"{"protocol":"udp","destination":"10.14.31.33/28","ports":"1-2","description":"<&>"}"#,
        )
        .unwrap();
        assert_eq!(
            rules_text(&[rule]).unwrap(),
            r#"[{"protocol":"udp","destination":"10.14.31.33/28","ports":"1-2","type":0,"code":0,"description":"\u003c\u0026\u003e","log":false}]"#
        );
    }
}
