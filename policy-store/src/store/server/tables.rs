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
        Migration { version: 4, name: "history", sql: include_str!("postgres_4.sql") },
        Migration { version: 5, name: "freeze", sql: include_str!("postgres_5.sql") },
        Migration { version: 6, name: "uses of rules", sql: include_str!("postgres_6.sql") },
    ],
    tables: POSTGRES_TABLES,
};
const MYSQL: Schema = Schema {
    record: RECORD,
    migrations: &[
        Migration { version: 1, name: NAME, sql: include_str!("mysql_1.sql") },
        Migration { version: 2, name: "history", sql: include_str!("mysql_2.sql") },
        Migration { version: 3, name: "freeze", sql: include_str!("mysql_3.sql") },
        Migration { version: 4, name: "uses of rules", sql: include_str!("mysql_4.sql") },
    ],
    tables: MYSQL_TABLES,
};

/// Marks the set as incomplete after rows were lost.
const NOT_WHOLE: &[(&str, &str)] =
    &[("portcullis_store_state", "UPDATE portcullis_store_state SET synced_at_ms = NULL")];

/// Marks the contents of all generations as lost.
const NO_CONTENTS: &[(&str, &str)] =
    &[("portcullis_archive_entries", "UPDATE portcullis_archive_entries SET is_recorded = FALSE")];

/// Forgets for which time the uses of rules are known.
const NO_COVERAGE: &[(&str, &str)] =
    &[("portcullis_rule_use_cells", "DELETE FROM portcullis_rule_use_cells")];

/// Inserts the missing row of the state, with the highest generation that another table
/// has.
pub(super) fn seed(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => POSTGRES_SEED,
        Dialect::MySql => MYSQL_SEED,
    }
}

/// Highest values of the other tables, for the row of the state.
macro_rules! highest {
    () => {
        "INTO portcullis_store_state (only_row, generation, stamp_ns, last_id)
    SELECT 1, GREATEST(COALESCE((SELECT MAX(generation) FROM portcullis_generations), 0),
        COALESCE((SELECT MAX(generation) FROM portcullis_archive_entries), 0),
        COALESCE((SELECT MAX(enforced_generation) FROM portcullis_cell_reports), 0)),
    GREATEST(COALESCE((SELECT MAX(stamp_ns) FROM portcullis_generations), 0),
        COALESCE((SELECT MAX(stamp_ns) FROM portcullis_archive_entries), 0)),
    COALESCE((SELECT MAX(id) FROM portcullis_security_groups), 0)"
    };
}

const POSTGRES_SEED: &str = concat!("INSERT ", highest!(), " ON CONFLICT (only_row) DO NOTHING");
const MYSQL_SEED: &str = concat!("INSERT IGNORE ", highest!());

/// Begins a new history at the stored generation.
const ARCHIVE_SEED: &str = "INSERT INTO portcullis_archive_entries
    (number, generation, action, at_ns, stamp_ns, added, changed, removed, is_recorded, bytes)
    SELECT 1, generation, '', stamp_ns, stamp_ns, 0, 0, 0, FALSE, 0
    FROM portcullis_store_state WHERE generation > 0";

/// The tables in a dialect. Seeds run in this order: the row of the state derives from the
/// tables before it, and that of a new history from the state.
macro_rules! tables {
    (
        options: $options:literal,
        identifier: $identifier:literal,
        lifecycle: $lifecycle:literal,
        bytes: $bytes:literal,
        hash: $hash:literal,
        permit: $permit:literal,
        writer: $writer:literal,
        text: $text:literal,
        only_row: $only_row:literal,
        group_seeds: $group_seeds:expr,
        state_seed: $state_seed:expr $(,)?
    ) => {
        &[
            Table {
                options: $options,
                marks: NOT_WHOLE,
                seeds: $group_seeds,
                ..Table::new(
                    "portcullis_security_groups",
                    &[
                        Column::key("id", "BIGINT PRIMARY KEY"),
                        Column::key("guid", concat!($identifier, " NOT NULL UNIQUE")),
                        Column::key("name", concat!($bytes, " NOT NULL")),
                        Column::key("running_default", "BOOLEAN NOT NULL"),
                        Column::key("staging_default", "BOOLEAN NOT NULL"),
                        Column::key("rules", concat!($text, " NOT NULL")),
                        Column::key("content_hash", concat!($hash, " NOT NULL")),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (group_id, lifecycle, space_guid)",
                options: $options,
                marks: NOT_WHOLE,
                ..Table::new(
                    "portcullis_security_group_spaces",
                    &[
                        Column::key("group_id", "BIGINT NOT NULL"),
                        Column::key("lifecycle", concat!($lifecycle, " NOT NULL")),
                        Column::key("space_guid", concat!($identifier, " NOT NULL")),
                    ],
                )
            },
            Table {
                options: $options,
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
                options: $options,
                marks: &[("portcullis_generations", "DELETE FROM portcullis_generations")],
                ..Table::new(
                    "portcullis_group_changes",
                    &[
                        Column::key("generation", "BIGINT NOT NULL"),
                        Column::key("group_id", "BIGINT NOT NULL"),
                        Column::key("guid", concat!($identifier, " NOT NULL")),
                        Column::key("reach_before", $text),
                    ],
                )
            },
            Table {
                options: $options,
                ..Table::new(
                    "portcullis_cell_reports",
                    &[
                        Column::key("cell_id", concat!($identifier, " PRIMARY KEY")),
                        Column::key("enforced_generation", "BIGINT NOT NULL"),
                        Column::key("containers", "BIGINT NOT NULL"),
                        Column::key("isolated_rules", "BIGINT NOT NULL"),
                        Column::key("reported_at_ms", "BIGINT NOT NULL"),
                    ],
                )
            },
            Table {
                options: $options,
                seeds: &[$state_seed],
                ..Table::new(
                    "portcullis_store_state",
                    &[
                        Column::key("only_row", $only_row),
                        Column::key("generation", "BIGINT NOT NULL"),
                        Column::key("stamp_ns", "BIGINT NOT NULL"),
                        Column::key("watermark_seconds", "BIGINT"),
                        Column::key("watermark_nanoseconds", "BIGINT"),
                        Column::key("fencing_token", "BIGINT"),
                        Column::key("writer", $writer),
                        Column::key("synced_at_ms", "BIGINT"),
                        Column::key("last_id", "BIGINT NOT NULL"),
                        Column::key("held", $writer),
                    ],
                )
            },
            Table {
                constraints: "UNIQUE (generation, number)",
                options: $options,
                seeds: &[ARCHIVE_SEED],
                ..Table::new(
                    "portcullis_archive_entries",
                    &[
                        Column::key("number", "BIGINT PRIMARY KEY"),
                        Column::key("generation", "BIGINT NOT NULL"),
                        Column::key("action", concat!($identifier, " NOT NULL")),
                        Column::key("at_ns", "BIGINT NOT NULL"),
                        Column::key("stamp_ns", "BIGINT NOT NULL"),
                        Column::addable("owner", $bytes),
                        Column::addable("watermark_seconds", "BIGINT"),
                        Column::addable("watermark_nanoseconds", "BIGINT"),
                        Column::addable("noticed_ns", "BIGINT"),
                        Column::addable("read_ns", "BIGINT"),
                        Column::addable("traceparent", $identifier),
                        Column::addable("decided_by", $bytes),
                        Column::addable("reason", $bytes),
                        Column::key("added", "BIGINT NOT NULL"),
                        Column::key("changed", "BIGINT NOT NULL"),
                        Column::key("removed", "BIGINT NOT NULL"),
                        Column::key("is_recorded", "BOOLEAN NOT NULL"),
                        Column::key("bytes", "BIGINT NOT NULL"),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (generation, group_id), UNIQUE (group_id, generation)",
                options: $options,
                marks: NO_CONTENTS,
                ..Table::new(
                    "portcullis_archive_groups",
                    &[
                        Column::key("generation", "BIGINT NOT NULL"),
                        Column::key("group_id", "BIGINT NOT NULL"),
                        Column::key("guid", concat!($identifier, " NOT NULL")),
                        Column::key("name", concat!($bytes, " NOT NULL")),
                        Column::key("kind", concat!($identifier, " NOT NULL")),
                        Column::key("content", $bytes),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (generation, instance)",
                options: $options,
                ..Table::new(
                    "portcullis_archive_progress",
                    &[
                        Column::key("generation", "BIGINT NOT NULL"),
                        Column::key("instance", concat!($identifier, " NOT NULL")),
                        Column::key("cells", "BIGINT NOT NULL"),
                        Column::key("within_100_ms", "BIGINT NOT NULL"),
                        Column::key("within_1_s", "BIGINT NOT NULL"),
                        Column::key("within_10_s", "BIGINT NOT NULL"),
                        Column::key("within_60_s", "BIGINT NOT NULL"),
                        Column::key("within_10_min", "BIGINT NOT NULL"),
                        Column::addable("slowest_us", "BIGINT"),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (group_guid, permit)",
                options: $options,
                marks: NO_COVERAGE,
                ..Table::new(
                    "portcullis_rule_uses",
                    &[
                        Column::key("group_guid", concat!($identifier, " NOT NULL")),
                        Column::key("permit", concat!($permit, " NOT NULL")),
                        Column::key("first_day", "BIGINT NOT NULL"),
                        Column::key("last_day", "BIGINT NOT NULL"),
                    ],
                )
            },
            Table {
                options: $options,
                ..Table::new(
                    "portcullis_rule_use_cells",
                    &[
                        Column::key("cell_id", concat!($identifier, " PRIMARY KEY")),
                        Column::key("first_seen", "BIGINT NOT NULL"),
                        Column::key("last_seen", "BIGINT NOT NULL"),
                        Column::key("known_since", "BIGINT"),
                        Column::key("known_until", "BIGINT NOT NULL"),
                        Column::key("missed", "BIGINT NOT NULL"),
                        Column::key("missed_until", "BIGINT NOT NULL"),
                    ],
                )
            },
        ]
    };
}

const POSTGRES_TABLES: &[Table] = tables! {
    options: "",
    identifier: "TEXT COLLATE \"C\"",
    lifecycle: "TEXT COLLATE \"C\"",
    bytes: "BYTEA",
    hash: "BYTEA",
    permit: "BYTEA",
    writer: "BYTEA",
    text: "TEXT",
    only_row: "INTEGER PRIMARY KEY CHECK (only_row = 1)",
    group_seeds: &[include_str!("postgres_2.sql")],
    state_seed: POSTGRES_SEED,
};

const MYSQL_TABLES: &[Table] = tables! {
    options: "ENGINE = InnoDB",
    identifier: "VARBINARY(1020)",
    lifecycle: "VARBINARY(7)",
    bytes: "LONGBLOB",
    hash: "VARBINARY(32)",
    permit: "VARBINARY(16)",
    writer: "BLOB",
    text: "LONGTEXT CHARACTER SET utf8mb4",
    only_row: "INTEGER PRIMARY KEY",
    group_seeds: &[],
    state_seed: MYSQL_SEED,
};
