//! Tables after the last migration, the same in every database but for names and types.

use storage::{Column, Table, server::Dialect};

use super::session::Kind;

/// The statement that inserts the missing row of the state, with the highest generation that
/// another table has.
pub(super) fn state_seed(kind: Kind) -> &'static str {
    match kind {
        Kind::Sqlite => SQLITE_SEED,
        Kind::Server(Dialect::Postgres) => POSTGRES_SEED,
        Kind::Server(Dialect::MySql) => MYSQL_SEED,
    }
}

/// `greatest`: the function for the highest of several values.
macro_rules! state_seed {
    ($insert:literal, $prefix:literal, $greatest:literal, $after:literal) => {
        concat!(
            $insert,
            " INTO ",
            $prefix,
            "store_state (only_row, generation, stamp_ns, last_id)
    SELECT 1, ",
            $greatest,
            "(COALESCE((SELECT MAX(generation) FROM ",
            $prefix,
            "generations), 0),
        COALESCE((SELECT MAX(generation) FROM ",
            $prefix,
            "archive_entries), 0),
        COALESCE((SELECT MAX(enforced_generation) FROM ",
            $prefix,
            "cell_reports), 0)),
    ",
            $greatest,
            "(COALESCE((SELECT MAX(stamp_ns) FROM ",
            $prefix,
            "generations), 0),
        COALESCE((SELECT MAX(stamp_ns) FROM ",
            $prefix,
            "archive_entries), 0)),
    COALESCE((SELECT MAX(id) FROM ",
            $prefix,
            "security_groups), 0)",
            $after
        )
    };
}

const SQLITE_SEED: &str = state_seed!("INSERT OR IGNORE", "", "MAX", "");
const POSTGRES_SEED: &str =
    state_seed!("INSERT", "portcullis_", "GREATEST", " ON CONFLICT (only_row) DO NOTHING");
const MYSQL_SEED: &str = state_seed!("INSERT IGNORE", "portcullis_", "GREATEST", "");

/// The tables in a dialect. Seeds run in this order: the row of the state derives from the
/// tables before it, and that of a new history from the state.
macro_rules! tables {
    (
        prefix: $prefix:literal,
        options: $options:literal,
        keyed_options: $keyed_options:literal,
        integer: $integer:literal,
        boolean: $boolean:literal,
        no: $no:literal,
        identifier: $identifier:literal,
        lifecycle: $lifecycle:literal,
        name: $name:literal,
        bytes: $bytes:literal,
        hash: $hash:literal,
        permit: $permit:literal,
        writer: $writer:literal,
        text: $text:literal,
        references: $references:literal,
        no_stamp: $no_stamp:literal,
        only_row: $only_row:literal,
        group_seeds: $group_seeds:expr,
        state_seed: $state_seed:expr $(,)?
    ) => {{
        /// Marks the set as incomplete after rows were lost.
        const NOT_WHOLE: &[(&str, &str)] = &[(
            concat!($prefix, "store_state"),
            concat!("UPDATE ", $prefix, "store_state SET synced_at_ms = NULL"),
        )];
        /// Marks the contents of all generations as lost.
        const NO_CONTENTS: &[(&str, &str)] = &[(
            concat!($prefix, "archive_entries"),
            concat!("UPDATE ", $prefix, "archive_entries SET is_recorded = ", $no),
        )];
        /// Forgets for which time the uses of rules are known.
        const NO_COVERAGE: &[(&str, &str)] = &[(
            concat!($prefix, "rule_use_cells"),
            concat!("DELETE FROM ", $prefix, "rule_use_cells"),
        )];
        /// Begins a new history at the stored generation.
        const ARCHIVE_SEED: &str = concat!(
            "INSERT INTO ",
            $prefix,
            "archive_entries
    (number, generation, action, at_ns, stamp_ns, added, changed, removed, is_recorded, bytes)
    SELECT 1, generation, '', stamp_ns, stamp_ns, 0, 0, 0, ",
            $no,
            ", 0 FROM ",
            $prefix,
            "store_state WHERE generation > 0"
        );
        &[
            Table {
                options: $options,
                marks: NOT_WHOLE,
                seeds: $group_seeds,
                ..Table::new(
                    concat!($prefix, "security_groups"),
                    &[
                        Column::key("id", concat!($integer, " PRIMARY KEY")),
                        Column::key("guid", concat!($identifier, " NOT NULL UNIQUE")),
                        Column::key("name", concat!($name, " NOT NULL")),
                        Column::key("running_default", concat!($boolean, " NOT NULL")),
                        Column::key("staging_default", concat!($boolean, " NOT NULL")),
                        Column::key("rules", concat!($text, " NOT NULL")),
                        Column::key("content_hash", concat!($hash, " NOT NULL")),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (group_id, lifecycle, space_guid)",
                options: $keyed_options,
                marks: NOT_WHOLE,
                ..Table::new(
                    concat!($prefix, "security_group_spaces"),
                    &[
                        Column::key("group_id", concat!($integer, " NOT NULL")),
                        Column::key("lifecycle", concat!($lifecycle, " NOT NULL")),
                        Column::key("space_guid", concat!($identifier, " NOT NULL")),
                    ],
                )
            },
            Table {
                options: $options,
                marks: &[(
                    concat!($prefix, "group_changes"),
                    concat!("DELETE FROM ", $prefix, "group_changes"),
                )],
                ..Table::new(
                    concat!($prefix, "generations"),
                    &[
                        Column::key("generation", concat!($integer, " PRIMARY KEY")),
                        Column::key("stamp_ns", concat!($integer, " NOT NULL")),
                        Column::key("weight", concat!($integer, " NOT NULL")),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (generation, group_id)",
                options: $keyed_options,
                marks: &[(
                    concat!($prefix, "generations"),
                    concat!("DELETE FROM ", $prefix, "generations"),
                )],
                ..Table::new(
                    concat!($prefix, "group_changes"),
                    &[
                        Column::key("generation", concat!($integer, " NOT NULL", $references)),
                        Column::key("group_id", concat!($integer, " NOT NULL")),
                        Column::key("guid", concat!($identifier, " NOT NULL")),
                        Column::key("reach_before", $text),
                    ],
                )
            },
            Table {
                options: $options,
                ..Table::new(
                    concat!($prefix, "cell_reports"),
                    &[
                        Column::key("cell_id", concat!($identifier, " PRIMARY KEY")),
                        Column::key("enforced_generation", concat!($integer, " NOT NULL")),
                        Column::key("containers", concat!($integer, " NOT NULL")),
                        Column::key("isolated_rules", concat!($integer, " NOT NULL")),
                        Column::key("reported_at_ms", concat!($integer, " NOT NULL")),
                    ],
                )
            },
            Table {
                options: $options,
                seeds: &[$state_seed],
                ..Table::new(
                    concat!($prefix, "store_state"),
                    &[
                        Column::key("only_row", $only_row),
                        Column::key("generation", concat!($integer, " NOT NULL")),
                        Column::key("stamp_ns", concat!($integer, " NOT NULL", $no_stamp)),
                        Column::key("watermark_seconds", $integer),
                        Column::key("watermark_nanoseconds", $integer),
                        Column::key("fencing_token", $integer),
                        Column::key("writer", $writer),
                        Column::key("synced_at_ms", $integer),
                        Column::key("last_id", concat!($integer, " NOT NULL")),
                        Column::key("held", $writer),
                    ],
                )
            },
            Table {
                constraints: "UNIQUE (generation, number)",
                options: $options,
                seeds: &[ARCHIVE_SEED],
                ..Table::new(
                    concat!($prefix, "archive_entries"),
                    &[
                        Column::key("number", concat!($integer, " PRIMARY KEY")),
                        Column::key("generation", concat!($integer, " NOT NULL")),
                        Column::key("action", concat!($identifier, " NOT NULL")),
                        Column::key("at_ns", concat!($integer, " NOT NULL")),
                        Column::key("stamp_ns", concat!($integer, " NOT NULL")),
                        Column::addable("owner", $bytes),
                        Column::addable("watermark_seconds", $integer),
                        Column::addable("watermark_nanoseconds", $integer),
                        Column::addable("noticed_ns", $integer),
                        Column::addable("read_ns", $integer),
                        Column::addable("traceparent", $identifier),
                        Column::addable("decided_by", $bytes),
                        Column::addable("reason", $bytes),
                        Column::key("added", concat!($integer, " NOT NULL")),
                        Column::key("changed", concat!($integer, " NOT NULL")),
                        Column::key("removed", concat!($integer, " NOT NULL")),
                        Column::key("is_recorded", concat!($boolean, " NOT NULL")),
                        Column::key("bytes", concat!($integer, " NOT NULL")),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (generation, group_id), UNIQUE (group_id, generation)",
                options: $options,
                marks: NO_CONTENTS,
                ..Table::new(
                    concat!($prefix, "archive_groups"),
                    &[
                        Column::key("generation", concat!($integer, " NOT NULL")),
                        Column::key("group_id", concat!($integer, " NOT NULL")),
                        Column::key("guid", concat!($identifier, " NOT NULL")),
                        Column::key("name", concat!($bytes, " NOT NULL")),
                        Column::key("kind", concat!($identifier, " NOT NULL")),
                        Column::key("content", $bytes),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (generation, instance)",
                options: $keyed_options,
                ..Table::new(
                    concat!($prefix, "archive_progress"),
                    &[
                        Column::key("generation", concat!($integer, " NOT NULL")),
                        Column::key("instance", concat!($identifier, " NOT NULL")),
                        Column::key("cells", concat!($integer, " NOT NULL")),
                        Column::key("within_100_ms", concat!($integer, " NOT NULL")),
                        Column::key("within_1_s", concat!($integer, " NOT NULL")),
                        Column::key("within_10_s", concat!($integer, " NOT NULL")),
                        Column::key("within_60_s", concat!($integer, " NOT NULL")),
                        Column::key("within_10_min", concat!($integer, " NOT NULL")),
                        Column::addable("slowest_us", $integer),
                    ],
                )
            },
            Table {
                constraints: "PRIMARY KEY (group_guid, permit)",
                options: $keyed_options,
                marks: NO_COVERAGE,
                ..Table::new(
                    concat!($prefix, "rule_uses"),
                    &[
                        Column::key("group_guid", concat!($identifier, " NOT NULL")),
                        Column::key("permit", concat!($permit, " NOT NULL")),
                        Column::key("first_day", concat!($integer, " NOT NULL")),
                        Column::key("last_day", concat!($integer, " NOT NULL")),
                    ],
                )
            },
            Table {
                options: $options,
                ..Table::new(
                    concat!($prefix, "rule_use_cells"),
                    &[
                        Column::key("cell_id", concat!($identifier, " PRIMARY KEY")),
                        Column::key("first_seen", concat!($integer, " NOT NULL")),
                        Column::key("last_seen", concat!($integer, " NOT NULL")),
                        Column::key("known_since", $integer),
                        Column::key("known_until", concat!($integer, " NOT NULL")),
                        Column::key("missed", concat!($integer, " NOT NULL")),
                        Column::key("missed_until", concat!($integer, " NOT NULL")),
                    ],
                )
            },
        ]
    }};
}

pub(super) const SQLITE: &[Table] = tables! {
    prefix: "",
    options: "STRICT",
    keyed_options: "STRICT, WITHOUT ROWID",
    integer: "INTEGER",
    boolean: "INTEGER",
    no: "0",
    identifier: "TEXT",
    lifecycle: "TEXT",
    name: "TEXT",
    bytes: "BLOB",
    hash: "BLOB",
    permit: "BLOB",
    writer: "TEXT",
    text: "TEXT",
    references: " REFERENCES generations (generation)",
    no_stamp: " DEFAULT 0",
    only_row: "INTEGER PRIMARY KEY CHECK (only_row = 1)",
    group_seeds: &[],
    state_seed: SQLITE_SEED,
};

pub(super) const POSTGRES: &[Table] = tables! {
    prefix: "portcullis_",
    options: "",
    keyed_options: "",
    integer: "BIGINT",
    boolean: "BOOLEAN",
    no: "FALSE",
    identifier: "TEXT COLLATE \"C\"",
    lifecycle: "TEXT COLLATE \"C\"",
    name: "BYTEA",
    bytes: "BYTEA",
    hash: "BYTEA",
    permit: "BYTEA",
    writer: "BYTEA",
    text: "TEXT",
    references: "",
    no_stamp: "",
    only_row: "INTEGER PRIMARY KEY CHECK (only_row = 1)",
    group_seeds: &[include_str!("server/postgres_2.sql")],
    state_seed: POSTGRES_SEED,
};

pub(super) const MYSQL: &[Table] = tables! {
    prefix: "portcullis_",
    options: "ENGINE = InnoDB",
    keyed_options: "ENGINE = InnoDB",
    integer: "BIGINT",
    boolean: "BOOLEAN",
    no: "FALSE",
    identifier: "VARBINARY(1020)",
    lifecycle: "VARBINARY(7)",
    name: "LONGBLOB",
    bytes: "LONGBLOB",
    hash: "VARBINARY(32)",
    permit: "VARBINARY(16)",
    writer: "BLOB",
    text: "LONGTEXT CHARACTER SET utf8mb4",
    references: "",
    no_stamp: "",
    only_row: "INTEGER PRIMARY KEY",
    group_seeds: &[],
    state_seed: MYSQL_SEED,
};
