//! Statements of the history, with `?` for parameters.

use storage::server::{Dialect, Value};

use super::super::{Error, rows::to_sql, session::Kind};
use crate::groups::archive::{DROPPED_AT_ONCE, NAMED_GROUPS, Query};

/// Columns of `archive_entries`.
const ENTRY: &str = "number, generation, action, at_ns, stamp_ns, owner, watermark_seconds,
    watermark_nanoseconds, noticed_ns, read_ns, traceparent, decided_by, reason, added, changed,
    removed, is_recorded, bytes";
const ENTRY_MARKS: &str = "?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?";
const GROUP: &str = "generation, group_id, guid, name, kind, content";
const PROGRESS: &str = "generation, instance, cells, within_100_ms, within_1_s, within_10_s,
    within_60_s, within_10_min, slowest_us";

/// Limit of contents that one call of prune deletes.
const CONTENTS_AT_ONCE: usize = 500;

/// Statements for the tables of a database.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Sql {
    /// Before the name of each table.
    prefix: &'static str,
    /// Type of an integer in a cast.
    integer: &'static str,
}

impl Sql {
    pub(in crate::store) fn of(kind: Kind) -> Self {
        let integer = match kind {
            Kind::Sqlite => "INTEGER",
            Kind::Server(Dialect::Postgres) => "BIGINT",
            Kind::Server(Dialect::MySql) => "SIGNED",
        };
        Self { prefix: kind.prefix(), integer }
    }

    /// Highest number and generation; 0 when there are no entries.
    pub(in crate::store) fn newest(self) -> String {
        let Self { prefix, .. } = self;
        // Each from its index: SQLite reads the whole table for two of them in one query.
        format!(
            "SELECT COALESCE((SELECT MAX(number) FROM {prefix}archive_entries), 0),
                 COALESCE((SELECT MAX(generation) FROM {prefix}archive_entries), 0)"
        )
    }

    /// Deletes what another life of the database left of a generation and of later ones.
    pub(in crate::store) fn forget_from(self) -> [String; 3] {
        ["archive_entries", "archive_groups", "archive_progress"]
            .map(|table| format!("DELETE FROM {}{table} WHERE generation >= ?", self.prefix))
    }

    pub(in crate::store) fn insert_entry(self) -> String {
        format!("INSERT INTO {}archive_entries ({ENTRY}) VALUES ({ENTRY_MARKS})", self.prefix)
    }

    /// Before the placeholders of the rows.
    pub(in crate::store) fn insert_groups(self) -> String {
        format!("INSERT INTO {}archive_groups ({GROUP}) VALUES", self.prefix)
    }

    /// Before the placeholders of the rows; `insert`: INSERT, or the form that ignores a row
    /// that is there.
    pub(in crate::store) fn insert_progress(self, insert: &str) -> String {
        format!("{insert} INTO {}archive_progress ({PROGRESS}) VALUES", self.prefix)
    }

    pub(in crate::store) fn entries(self, query: &Query) -> Result<(String, Vec<Value>), Error> {
        let Self { prefix, .. } = self;
        let Query { before, generation, group, size } = query;
        let (mut conditions, mut values) = (vec!["1 = 1".to_owned()], Vec::new());
        if let Some(before) = before {
            conditions.push("number < ?".to_owned());
            values.push(to_sql("archive_entries.number", *before)?.into());
        }
        if let Some(generation) = generation {
            conditions.push("generation = ? AND action = ''".to_owned());
            values.push(to_sql("archive_entries.generation", generation.0)?.into());
        }
        if let Some(group) = group {
            conditions.push(format!(
                "action = '' AND EXISTS (SELECT 1 FROM {prefix}archive_groups g
                     WHERE g.generation = e.generation AND (g.guid = ? OR g.name = ?))"
            ));
            values.push(group.as_str().into());
            values.push(group.as_bytes().into());
        }
        let sql = format!(
            "SELECT {ENTRY} FROM {prefix}archive_entries e WHERE {}
             ORDER BY number DESC LIMIT {size}",
            conditions.join(" AND ")
        );
        Ok((sql, values))
    }

    /// The first groups of a generation.
    pub(in crate::store) fn named_groups(self) -> String {
        format!(
            "SELECT guid, name, kind FROM {}archive_groups WHERE generation = ?
             ORDER BY group_id LIMIT {NAMED_GROUPS}",
            self.prefix
        )
    }

    /// Progress of a range of generations.
    pub(in crate::store) fn progress(self) -> String {
        format!(
            "SELECT generation, cells, within_100_ms, within_1_s, within_10_s, within_60_s,
                 within_10_min, slowest_us
             FROM {}archive_progress WHERE generation >= ? AND generation <= ?",
            self.prefix
        )
    }

    /// For the older and the newer generation: each group that changed in between, before its
    /// first change.
    pub(in crate::store) fn undo(self) -> String {
        let Self { prefix, .. } = self;
        format!(
            "SELECT g.group_id, g.guid, g.content FROM {prefix}archive_groups g
             JOIN (SELECT group_id, MIN(generation) AS oldest FROM {prefix}archive_groups
                   WHERE generation > ? AND generation <= ? GROUP BY group_id) f
             ON f.group_id = g.group_id AND f.oldest = g.generation"
        )
    }

    /// For the same: number of recorded generations in between.
    pub(in crate::store) fn recorded(self) -> String {
        format!(
            "SELECT COUNT(*) FROM {}archive_entries
             WHERE generation > ? AND generation <= ? AND action = '' AND is_recorded",
            self.prefix
        )
    }

    /// Stamp of a generation.
    pub(in crate::store) fn stamp(self) -> String {
        format!(
            "SELECT stamp_ns FROM {}archive_entries WHERE generation = ? AND action = ''",
            self.prefix
        )
    }

    /// The oldest entries.
    pub(in crate::store) fn weighed(self) -> String {
        format!(
            "SELECT number, generation, bytes, at_ns FROM {}archive_entries
             ORDER BY number LIMIT {DROPPED_AT_ONCE}",
            self.prefix
        )
    }

    /// Size of all entries.
    pub(in crate::store) fn bytes(self) -> String {
        let Self { prefix, integer } = self;
        format!("SELECT CAST(COALESCE(SUM(bytes), 0) AS {integer}) FROM {prefix}archive_entries")
    }

    /// A content without an entry, if any.
    pub(in crate::store) fn orphans(self) -> String {
        let Self { prefix, .. } = self;
        format!(
            "SELECT 1 FROM {prefix}archive_groups
             WHERE generation < (SELECT MIN(generation) FROM {prefix}archive_entries) LIMIT 1"
        )
    }

    pub(in crate::store) fn drop_entries(self) -> String {
        format!("DELETE FROM {}archive_entries WHERE number <= ?", self.prefix)
    }

    /// The oldest generation; NULL when there are no entries.
    pub(in crate::store) fn oldest(self) -> String {
        format!("SELECT MIN(generation) FROM {}archive_entries", self.prefix)
    }

    /// The first content before a generation that a call of prune leaves.
    pub(in crate::store) fn last_content(self) -> String {
        format!(
            "SELECT generation, group_id FROM {}archive_groups WHERE generation < ?
             ORDER BY generation, group_id LIMIT 1 OFFSET {CONTENTS_AT_ONCE}",
            self.prefix
        )
    }

    /// Contents before a generation.
    pub(in crate::store) fn drop_contents(self) -> String {
        format!("DELETE FROM {}archive_groups WHERE generation < ?", self.prefix)
    }

    /// Contents of a generation, up to a group.
    pub(in crate::store) fn drop_some_contents(self) -> String {
        format!("DELETE FROM {}archive_groups WHERE generation = ? AND group_id < ?", self.prefix)
    }

    /// Progress before a generation.
    pub(in crate::store) fn drop_progress(self) -> String {
        format!("DELETE FROM {}archive_progress WHERE generation < ?", self.prefix)
    }
}
