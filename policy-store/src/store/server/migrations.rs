//! Migrations of database servers.

use storage::{
    Migration,
    server::{Dialect, Schema},
};

use super::super::tables;

const RECORD: &str = "portcullis_policy_store_migrations";
const NAME: &str = "security groups, their spaces, the state, the last changes, cells' reports";

/// The tables and their migrations.
pub(super) fn schema(dialect: Dialect) -> &'static Schema {
    match dialect {
        Dialect::Postgres => &POSTGRES,
        Dialect::MySql => &MYSQL,
    }
}

const POSTGRES: Schema = Schema {
    record: RECORD,
    migrations: &[
        Migration { version: 1, name: NAME, sql: include_str!("postgres_1.sql") },
        Migration {
            version: 2,
            name: "rules compressed by lz4",
            sql: include_str!("postgres_2.sql"),
        },
        Migration {
            version: 3,
            name: "lifecycles without a check",
            sql: include_str!("postgres_3.sql"),
        },
        Migration { version: 4, name: "history", sql: include_str!("postgres_4.sql") },
        Migration { version: 5, name: "freeze", sql: include_str!("postgres_5.sql") },
        Migration { version: 6, name: "uses of rules", sql: include_str!("postgres_6.sql") },
    ],
    tables: tables::POSTGRES,
};
const MYSQL: Schema = Schema {
    record: RECORD,
    migrations: &[
        Migration { version: 1, name: NAME, sql: include_str!("mysql_1.sql") },
        Migration { version: 2, name: "history", sql: include_str!("mysql_2.sql") },
        Migration { version: 3, name: "freeze", sql: include_str!("mysql_3.sql") },
        Migration { version: 4, name: "uses of rules", sql: include_str!("mysql_4.sql") },
    ],
    tables: tables::MYSQL,
};
