//! The original's tables in a test database, and its reads
//! (docs/compatibility/policy-server-internal.md#tables).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};
use storage::{
    server::{Dialect, Row, Schema, Server, Transaction, Value},
    testing::TestServer,
};

/// Versions with different tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.53: lists of spaces as JSON.
    Lists,
    /// As later versions: also tables of spaces, hashes and a stamp.
    Tables,
}

const SCHEMA: Schema = Schema { record: "test_migrations", migrations: &[], tables: &[] };

/// The original's tables.
pub(crate) struct Original {
    pub(crate) server: &'static TestServer,
    pub(crate) database: String,
    pub(crate) version: Version,
    connection: Server,
}

impl Original {
    /// A connection to a database that need not have the tables.
    pub(crate) async fn at(server: &'static TestServer, database: &str, version: Version) -> Self {
        let options = server.options(database);
        let connection = Box::pin(Server::connect(&options, &SCHEMA)).await.unwrap();
        Self { server, database: database.to_owned(), version, connection }
    }

    pub(crate) fn sql(&self, sql: &str) {
        self.server.sql_in(&self.database, sql);
    }

    /// Creates the tables, as after the migrations of the version.
    pub(crate) fn create(&self) {
        let (id, text, json) = match self.server.dialect() {
            Dialect::Postgres => ("BIGSERIAL PRIMARY KEY", "text", "jsonb"),
            Dialect::MySql => ("BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY", "mediumtext", "json"),
        };
        self.sql(&format!(
            "CREATE TABLE security_groups (
                 id {id}, guid varchar(36) NOT NULL UNIQUE, name varchar(255) NOT NULL, rules {text},
                 staging_default bool DEFAULT false, running_default bool DEFAULT false,
                 staging_spaces {json}, running_spaces {json}) {}",
            self.charset()
        ));
        if self.version == Version::Tables {
            self.migrate();
        }
    }

    /// The default of MySQL 8.
    fn charset(&self) -> &'static str {
        match self.server.dialect() {
            Dialect::Postgres => "",
            Dialect::MySql => "DEFAULT CHARSET = utf8mb4",
        }
    }

    /// The later version's migrations, without the filling of the new tables.
    pub(crate) fn migrate(&self) {
        let (id, time) = match self.server.dialect() {
            Dialect::Postgres => {
                ("SERIAL PRIMARY KEY", "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP")
            }
            Dialect::MySql => (
                "int NOT NULL AUTO_INCREMENT PRIMARY KEY",
                "TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)",
            ),
        };
        self.sql(&format!("CREATE TABLE security_groups_info (id {id}, last_updated {time})"));
        self.sql("INSERT INTO security_groups_info (last_updated) VALUES (CURRENT_TIMESTAMP(6))");
        for table in TABLES {
            self.sql(&format!(
                "CREATE TABLE {table} (
                     space_guid varchar(36) NOT NULL, security_group_guid varchar(36) NOT NULL,
                     PRIMARY KEY (space_guid, security_group_guid),
                     CONSTRAINT {table}_fk FOREIGN KEY (security_group_guid)
                         REFERENCES security_groups (guid) ON DELETE CASCADE) {}",
                self.charset()
            ));
        }
        self.sql("ALTER TABLE security_groups ADD COLUMN hash VARCHAR(255) DEFAULT ''");
    }

    pub(crate) async fn query(&self, sql: &str, parameters: &[Value]) -> Vec<Row> {
        self.connection.query(sql, parameters).await.unwrap()
    }

    /// The list that policy-server-internal sends for these spaces.
    pub(crate) async fn list(&self, spaces: &[&str]) -> Vec<Json> {
        let text = if self.server.dialect() == Dialect::Postgres { "::text" } else { "" };
        let marks = vec!["?"; spaces.len()].join(",");
        let guids: Vec<Value> = spaces.iter().map(|&space| space.into()).collect();
        let bound = match (self.version, self.server.dialect()) {
            _ if spaces.is_empty() => String::new(),
            (Version::Tables, _) => {
                let of = |table| {
                    format!(
                        " OR guid IN (SELECT security_group_guid FROM {table} WHERE space_guid IN ({marks}))"
                    )
                };
                TABLES.map(of).concat()
            }
            (Version::Lists, Dialect::Postgres) => {
                let of = |column| format!(" OR jsonb_exists_any({column}, ARRAY[{marks}])");
                ["staging_spaces", "running_spaces"].map(of).concat()
            }
            (Version::Lists, Dialect::MySql) => {
                let one = |column| format!(" OR json_contains({column}, json_quote(?))");
                let of = |column| one(column).repeat(spaces.len());
                ["staging_spaces", "running_spaces"].map(of).concat()
            }
        };
        let sql = format!(
            "SELECT guid, name, rules, staging_default, running_default, staging_spaces{text},
                 running_spaces{text} FROM security_groups
             WHERE staging_default OR running_default{bound} ORDER BY id"
        );
        let parameters =
            if spaces.is_empty() { Vec::new() } else { [guids.clone(), guids].concat() };
        let list = |row: &Row, column| -> Json {
            serde_json::from_str(row.get::<&str>(column).unwrap()).unwrap()
        };
        let group = |row: &Row| {
            json!({
                "guid": row.get::<&str>(0).unwrap(), "name": row.get::<&str>(1).unwrap(),
                "rules": row.get::<&str>(2).unwrap(),
                "staging_default": row.get::<bool>(3).unwrap(),
                "running_default": row.get::<bool>(4).unwrap(),
                "staging_space_guids": list(row, 5), "running_space_guids": list(row, 6),
            })
        };
        self.query(&sql, &parameters).await.iter().map(group).collect()
    }

    /// Row ids by guid.
    pub(crate) async fn ids(&self) -> BTreeMap<String, i64> {
        let rows = self.query("SELECT guid, id FROM security_groups", &[]).await;
        rows.iter().map(|row| (row.get(0).unwrap(), row.get(1).unwrap())).collect()
    }

    /// Rows of the tables of spaces, staging first.
    pub(crate) async fn bindings(&self) -> [BTreeSet<(String, String)>; 2] {
        let mut bindings = [const { BTreeSet::new() }; 2];
        for (bindings, table) in bindings.iter_mut().zip(TABLES) {
            let sql = format!("SELECT security_group_guid, space_guid FROM {table}");
            let rows = self.query(&sql, &[]).await;
            bindings.extend(rows.iter().map(|row| (row.get(0).unwrap(), row.get(1).unwrap())));
        }
        bindings
    }

    /// The stamp in microseconds since the epoch.
    pub(crate) async fn stamp(&self) -> i64 {
        let microseconds = match self.server.dialect() {
            Dialect::Postgres => "(EXTRACT(EPOCH FROM last_updated) * 1000000)::bigint",
            Dialect::MySql => "CAST(UNIX_TIMESTAMP(last_updated) * 1000000 AS SIGNED)",
        };
        let sql = format!("SELECT {microseconds} FROM security_groups_info");
        self.query(&sql, &[]).await[0].get(0).unwrap()
    }

    /// Holds a lock on the rows of the groups while `during` runs.
    pub(crate) async fn while_locked(&self, during: impl Future<Output = ()>) {
        let during = std::pin::pin!(during);
        let during = tokio::sync::Mutex::new(Some(during));
        self.connection
            .transaction(async |transaction: Transaction| {
                let sql = "UPDATE security_groups SET name = 'of another'";
                transaction.execute(sql, &[]).await?;
                if let Some(during) = during.lock().await.take() {
                    during.await;
                }
                Ok::<_, storage::Error>(())
            })
            .await
            .unwrap();
    }
}

pub(crate) const TABLES: [&str; 2] =
    ["staging_security_groups_spaces", "running_security_groups_spaces"];
