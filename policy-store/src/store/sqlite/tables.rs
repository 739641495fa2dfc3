//! Tables after the last migration.

use storage::{Column, Table};

/// Marks the set as incomplete after rows were lost.
const NOT_WHOLE: &[(&str, &str)] = &[("store_state", "UPDATE store_state SET synced_at_ms = NULL")];

/// Marks the contents of all generations as lost.
const NO_CONTENTS: &[(&str, &str)] =
    &[("archive_entries", "UPDATE archive_entries SET is_recorded = 0")];

/// Forgets for which time the uses of rules are known.
const NO_COVERAGE: &[(&str, &str)] = &[("rule_use_cells", "DELETE FROM rule_use_cells")];

/// Inserts the missing row of the state, with the highest generation that another table
/// has.
pub(super) const STATE_SEED: &str =
    "INSERT OR IGNORE INTO store_state (only_row, generation, stamp_ns, last_id)
    SELECT 1, MAX(COALESCE((SELECT MAX(generation) FROM generations), 0),
        COALESCE((SELECT MAX(generation) FROM archive_entries), 0),
        COALESCE((SELECT MAX(enforced_generation) FROM cell_reports), 0)),
    MAX(COALESCE((SELECT MAX(stamp_ns) FROM generations), 0),
        COALESCE((SELECT MAX(stamp_ns) FROM archive_entries), 0)),
    COALESCE((SELECT MAX(id) FROM security_groups), 0)";

/// Begins a new history at the stored generation.
const ARCHIVE_SEED: &str = "INSERT INTO archive_entries
    (number, generation, action, at_ns, stamp_ns, added, changed, removed, is_recorded, bytes)
    SELECT 1, generation, '', stamp_ns, stamp_ns, 0, 0, 0, 0, 0
    FROM store_state WHERE generation > 0";

// Seeds run in this order: the row of the state derives from the tables before it, and that of
// a new history from the state.
pub(super) const TABLES: &[Table] = &[
    Table {
        options: "STRICT",
        marks: NOT_WHOLE,
        ..Table::new(
            "security_groups",
            &[
                Column::key("id", "INTEGER PRIMARY KEY"),
                Column::key("guid", "TEXT NOT NULL UNIQUE"),
                Column::key("name", "TEXT NOT NULL"),
                Column::key("running_default", "INTEGER NOT NULL"),
                Column::key("staging_default", "INTEGER NOT NULL"),
                Column::key("rules", "TEXT NOT NULL"),
                Column::key("content_hash", "BLOB NOT NULL"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (group_id, lifecycle, space_guid)",
        options: "STRICT, WITHOUT ROWID",
        marks: NOT_WHOLE,
        ..Table::new(
            "security_group_spaces",
            &[
                Column::key("group_id", "INTEGER NOT NULL"),
                Column::key("lifecycle", "TEXT NOT NULL"),
                Column::key("space_guid", "TEXT NOT NULL"),
            ],
        )
    },
    Table {
        options: "STRICT",
        marks: &[("group_changes", "DELETE FROM group_changes")],
        ..Table::new(
            "generations",
            &[
                Column::key("generation", "INTEGER PRIMARY KEY"),
                Column::key("stamp_ns", "INTEGER NOT NULL"),
                Column::key("weight", "INTEGER NOT NULL"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (generation, group_id)",
        options: "STRICT, WITHOUT ROWID",
        marks: &[("generations", "DELETE FROM generations")],
        ..Table::new(
            "group_changes",
            &[
                Column::key("generation", "INTEGER NOT NULL REFERENCES generations (generation)"),
                Column::key("group_id", "INTEGER NOT NULL"),
                Column::key("guid", "TEXT NOT NULL"),
                Column::key("reach_before", "TEXT"),
            ],
        )
    },
    Table {
        options: "STRICT",
        ..Table::new(
            "cell_reports",
            &[
                Column::key("cell_id", "TEXT PRIMARY KEY"),
                Column::key("enforced_generation", "INTEGER NOT NULL"),
                Column::key("containers", "INTEGER NOT NULL"),
                Column::key("isolated_rules", "INTEGER NOT NULL"),
                Column::key("reported_at_ms", "INTEGER NOT NULL"),
            ],
        )
    },
    Table {
        options: "STRICT",
        seeds: &[STATE_SEED],
        ..Table::new(
            "store_state",
            &[
                Column::key("only_row", "INTEGER PRIMARY KEY CHECK (only_row = 1)"),
                Column::key("generation", "INTEGER NOT NULL"),
                Column::key("stamp_ns", "INTEGER NOT NULL DEFAULT 0"),
                Column::key("watermark_seconds", "INTEGER"),
                Column::key("watermark_nanoseconds", "INTEGER"),
                Column::key("fencing_token", "INTEGER"),
                Column::key("writer", "TEXT"),
                Column::key("synced_at_ms", "INTEGER"),
                Column::key("last_id", "INTEGER NOT NULL"),
                Column::key("held", "TEXT"),
            ],
        )
    },
    Table {
        constraints: "UNIQUE (generation, number)",
        options: "STRICT",
        seeds: &[ARCHIVE_SEED],
        ..Table::new(
            "archive_entries",
            &[
                Column::key("number", "INTEGER PRIMARY KEY"),
                Column::key("generation", "INTEGER NOT NULL"),
                Column::key("action", "TEXT NOT NULL"),
                Column::key("at_ns", "INTEGER NOT NULL"),
                Column::key("stamp_ns", "INTEGER NOT NULL"),
                Column::addable("owner", "BLOB"),
                Column::addable("watermark_seconds", "INTEGER"),
                Column::addable("watermark_nanoseconds", "INTEGER"),
                Column::addable("noticed_ns", "INTEGER"),
                Column::addable("read_ns", "INTEGER"),
                Column::addable("traceparent", "TEXT"),
                Column::addable("decided_by", "BLOB"),
                Column::addable("reason", "BLOB"),
                Column::key("added", "INTEGER NOT NULL"),
                Column::key("changed", "INTEGER NOT NULL"),
                Column::key("removed", "INTEGER NOT NULL"),
                Column::key("is_recorded", "INTEGER NOT NULL"),
                Column::key("bytes", "INTEGER NOT NULL"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (generation, group_id), UNIQUE (group_id, generation)",
        options: "STRICT",
        marks: NO_CONTENTS,
        ..Table::new(
            "archive_groups",
            &[
                Column::key("generation", "INTEGER NOT NULL"),
                Column::key("group_id", "INTEGER NOT NULL"),
                Column::key("guid", "TEXT NOT NULL"),
                Column::key("name", "BLOB NOT NULL"),
                Column::key("kind", "TEXT NOT NULL"),
                Column::key("content", "BLOB"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (generation, instance)",
        options: "STRICT, WITHOUT ROWID",
        ..Table::new(
            "archive_progress",
            &[
                Column::key("generation", "INTEGER NOT NULL"),
                Column::key("instance", "TEXT NOT NULL"),
                Column::key("cells", "INTEGER NOT NULL"),
                Column::key("within_100_ms", "INTEGER NOT NULL"),
                Column::key("within_1_s", "INTEGER NOT NULL"),
                Column::key("within_10_s", "INTEGER NOT NULL"),
                Column::key("within_60_s", "INTEGER NOT NULL"),
                Column::key("within_10_min", "INTEGER NOT NULL"),
                Column::addable("slowest_us", "INTEGER"),
            ],
        )
    },
    Table {
        constraints: "PRIMARY KEY (group_guid, permit)",
        options: "STRICT, WITHOUT ROWID",
        marks: NO_COVERAGE,
        ..Table::new(
            "rule_uses",
            &[
                Column::key("group_guid", "TEXT NOT NULL"),
                Column::key("permit", "BLOB NOT NULL"),
                Column::key("first_day", "INTEGER NOT NULL"),
                Column::key("last_day", "INTEGER NOT NULL"),
            ],
        )
    },
    Table {
        options: "STRICT",
        ..Table::new(
            "rule_use_cells",
            &[
                Column::key("cell_id", "TEXT PRIMARY KEY"),
                Column::key("first_seen", "INTEGER NOT NULL"),
                Column::key("last_seen", "INTEGER NOT NULL"),
                Column::key("known_since", "INTEGER"),
                Column::key("known_until", "INTEGER NOT NULL"),
                Column::key("missed", "INTEGER NOT NULL"),
                Column::key("missed_until", "INTEGER NOT NULL"),
            ],
        )
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::MIGRATIONS, *};

    #[test]
    fn the_list_is_what_the_migrations_make() {
        let file = rusqlite::Connection::open_in_memory().unwrap();
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
        let columns = TABLES.iter().flat_map(|table| {
            table.columns.iter().map(|column| (table.name.to_owned(), column.name.to_owned()))
        });
        assert_eq!(made, columns.collect());
    }
}
