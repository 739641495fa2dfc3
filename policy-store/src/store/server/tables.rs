//! Migrations and the resulting tables.

use storage::{
    Column, Migration, Table,
    server::{Dialect, Schema},
};

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
    ],
    tables: POSTGRES_TABLES,
};
const MYSQL: Schema = Schema {
    record: RECORD,
    migrations: &[Migration { version: 1, name: NAME, sql: include_str!("mysql_1.sql") }],
    tables: MYSQL_TABLES,
};

/// Marks the set as incomplete after rows were lost.
const NOT_WHOLE: &[(&str, &str)] =
    &[("portcullis_store_state", "UPDATE portcullis_store_state SET synced_at_ms = NULL")];

/// Inserts the missing row of the state, with the highest generation that another table
/// has.
pub(super) fn seed(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => POSTGRES_SEED,
        Dialect::MySql => MYSQL_SEED,
    }
}

const POSTGRES_SEED: &str = "INSERT INTO portcullis_store_state (only_row, generation, stamp_ns, last_id)
    SELECT 1, GREATEST(COALESCE((SELECT MAX(generation) FROM portcullis_generations), 0),
        COALESCE((SELECT MAX(enforced_generation) FROM portcullis_cell_reports), 0)),
    COALESCE((SELECT MAX(stamp_ns) FROM portcullis_generations), 0),
    COALESCE((SELECT MAX(id) FROM portcullis_security_groups), 0) ON CONFLICT (only_row) DO NOTHING";

const MYSQL_SEED: &str =
    "INSERT IGNORE INTO portcullis_store_state (only_row, generation, stamp_ns, last_id)
    SELECT 1, GREATEST(COALESCE((SELECT MAX(generation) FROM portcullis_generations), 0),
        COALESCE((SELECT MAX(enforced_generation) FROM portcullis_cell_reports), 0)),
    COALESCE((SELECT MAX(stamp_ns) FROM portcullis_generations), 0),
    COALESCE((SELECT MAX(id) FROM portcullis_security_groups), 0)";

// The state comes last: its row derives from the other tables.
const POSTGRES_TABLES: &[Table] = &[
    Table {
        marks: NOT_WHOLE,
        seeds: &[include_str!("postgres_2.sql")],
        ..Table::new(
            "portcullis_security_groups",
            &[
                Column::key("id", "BIGINT PRIMARY KEY"),
                Column::key("guid", "TEXT COLLATE \"C\" NOT NULL UNIQUE"),
                Column::key("name", "BYTEA NOT NULL"),
                Column::key("running_default", "BOOLEAN NOT NULL"),
                Column::key("staging_default", "BOOLEAN NOT NULL"),
                Column::key("rules", "TEXT NOT NULL"),
                Column::key("content_hash", "BYTEA NOT NULL"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (group_id, lifecycle, space_guid)",
        marks: NOT_WHOLE,
        ..Table::new(
            "portcullis_security_group_spaces",
            &[
                Column::key("group_id", "BIGINT NOT NULL"),
                Column::key("lifecycle", "TEXT COLLATE \"C\" NOT NULL"),
                Column::key("space_guid", "TEXT COLLATE \"C\" NOT NULL"),
            ],
        )
    },
    Table {
        marks: &[("portcullis_group_changes", "DELETE FROM portcullis_group_changes")],
        ..Table::new(
            "portcullis_generations",
            &[
                Column::key("generation", "BIGINT PRIMARY KEY"),
                Column::key("stamp_ns", "BIGINT NOT NULL"),
                Column::key("weight", "BIGINT NOT NULL"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (generation, group_id)",
        marks: &[("portcullis_generations", "DELETE FROM portcullis_generations")],
        ..Table::new(
            "portcullis_group_changes",
            &[
                Column::key("generation", "BIGINT NOT NULL"),
                Column::key("group_id", "BIGINT NOT NULL"),
                Column::key("guid", "TEXT COLLATE \"C\" NOT NULL"),
                Column::key("reach_before", "TEXT"),
            ],
        )
    },
    Table {
        ..Table::new(
            "portcullis_cell_reports",
            &[
                Column::key("cell_id", "TEXT COLLATE \"C\" PRIMARY KEY"),
                Column::key("enforced_generation", "BIGINT NOT NULL"),
                Column::key("containers", "BIGINT NOT NULL"),
                Column::key("isolated_rules", "BIGINT NOT NULL"),
                Column::key("reported_at_ms", "BIGINT NOT NULL"),
            ],
        )
    },
    Table {
        seeds: &[POSTGRES_SEED],
        ..Table::new(
            "portcullis_store_state",
            &[
                Column::key("only_row", "INTEGER PRIMARY KEY CHECK (only_row = 1)"),
                Column::key("generation", "BIGINT NOT NULL"),
                Column::key("stamp_ns", "BIGINT NOT NULL"),
                Column::key("watermark_seconds", "BIGINT"),
                Column::key("watermark_nanoseconds", "BIGINT"),
                Column::key("fencing_token", "BIGINT"),
                Column::key("writer", "BYTEA"),
                Column::key("synced_at_ms", "BIGINT"),
                Column::key("last_id", "BIGINT NOT NULL"),
            ],
        )
    },
];

const MYSQL_TABLES: &[Table] = &[
    Table {
        options: "ENGINE = InnoDB",
        marks: NOT_WHOLE,
        ..Table::new(
            "portcullis_security_groups",
            &[
                Column::key("id", "BIGINT PRIMARY KEY"),
                Column::key("guid", "VARBINARY(1020) NOT NULL UNIQUE"),
                Column::key("name", "LONGBLOB NOT NULL"),
                Column::key("running_default", "BOOLEAN NOT NULL"),
                Column::key("staging_default", "BOOLEAN NOT NULL"),
                Column::key("rules", "LONGTEXT CHARACTER SET utf8mb4 NOT NULL"),
                Column::key("content_hash", "VARBINARY(32) NOT NULL"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (group_id, lifecycle, space_guid)",
        options: "ENGINE = InnoDB",
        marks: NOT_WHOLE,
        ..Table::new(
            "portcullis_security_group_spaces",
            &[
                Column::key("group_id", "BIGINT NOT NULL"),
                Column::key("lifecycle", "VARBINARY(7) NOT NULL"),
                Column::key("space_guid", "VARBINARY(1020) NOT NULL"),
            ],
        )
    },
    Table {
        options: "ENGINE = InnoDB",
        marks: &[("portcullis_group_changes", "DELETE FROM portcullis_group_changes")],
        ..Table::new(
            "portcullis_generations",
            &[
                Column::key("generation", "BIGINT PRIMARY KEY"),
                Column::key("stamp_ns", "BIGINT NOT NULL"),
                Column::key("weight", "BIGINT NOT NULL"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (generation, group_id)",
        options: "ENGINE = InnoDB",
        marks: &[("portcullis_generations", "DELETE FROM portcullis_generations")],
        ..Table::new(
            "portcullis_group_changes",
            &[
                Column::key("generation", "BIGINT NOT NULL"),
                Column::key("group_id", "BIGINT NOT NULL"),
                Column::key("guid", "VARBINARY(1020) NOT NULL"),
                Column::key("reach_before", "LONGTEXT CHARACTER SET utf8mb4"),
            ],
        )
    },
    Table {
        options: "ENGINE = InnoDB",
        ..Table::new(
            "portcullis_cell_reports",
            &[
                Column::key("cell_id", "VARBINARY(1020) PRIMARY KEY"),
                Column::key("enforced_generation", "BIGINT NOT NULL"),
                Column::key("containers", "BIGINT NOT NULL"),
                Column::key("isolated_rules", "BIGINT NOT NULL"),
                Column::key("reported_at_ms", "BIGINT NOT NULL"),
            ],
        )
    },
    Table {
        options: "ENGINE = InnoDB",
        seeds: &[MYSQL_SEED],
        ..Table::new(
            "portcullis_store_state",
            &[
                Column::key("only_row", "INTEGER PRIMARY KEY"),
                Column::key("generation", "BIGINT NOT NULL"),
                Column::key("stamp_ns", "BIGINT NOT NULL"),
                Column::key("watermark_seconds", "BIGINT"),
                Column::key("watermark_nanoseconds", "BIGINT"),
                Column::key("fencing_token", "BIGINT"),
                Column::key("writer", "BLOB"),
                Column::key("synced_at_ms", "BIGINT"),
                Column::key("last_id", "BIGINT NOT NULL"),
            ],
        )
    },
];
