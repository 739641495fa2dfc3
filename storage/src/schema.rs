//! Expected tables, and the repair of missing ones.
//!
//! Migrations describe how a schema came about; a [`Table`] describes the result. A missing table
//! or column (dropped by hand, left out of a restored dump) is recreated, at the start and while
//! the program runs. The program restores the rows; this module only reports the loss.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

/// A table after the last migration.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Table name.
    pub name: &'static str,
    /// Columns, in order.
    pub columns: &'static [Column],
    /// Constraints over several columns; may be empty.
    pub constraints: &'static str,
    /// SQL after the closing parenthesis; may be empty.
    pub options: &'static str,
    /// Statements that run after the table is recreated.
    pub seeds: &'static [&'static str],
    /// Statements that run before the table is recreated. Each pair names an intact table and
    /// updates it to record the loss of this one.
    pub marks: &'static [(&'static str, &'static str)],
    /// Whether another program may create the table, so that its presence does not show that the
    /// schema is ours.
    pub is_shared: bool,
}

impl Table {
    /// A table of this program with columns only.
    #[must_use]
    pub const fn new(name: &'static str, columns: &'static [Column]) -> Self {
        Self {
            name,
            columns,
            constraints: "",
            options: "",
            seeds: &[],
            marks: &[],
            is_shared: false,
        }
    }
}

/// A column of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Column name.
    pub name: &'static str,
    /// Its type and constraints. `{now}` becomes milliseconds since 1970.
    pub definition: &'static str,
    /// Whether a table without this column is still useful: then the column is added. Otherwise the
    /// table is renamed and a new one is created.
    pub is_addable: bool,
}

impl Column {
    /// A column without which rows have no meaning.
    #[must_use]
    pub const fn key(name: &'static str, definition: &'static str) -> Self {
        Self { name, definition, is_addable: false }
    }

    /// A column that can be added to existing rows.
    #[must_use]
    pub const fn addable(name: &'static str, definition: &'static str) -> Self {
        Self { name, definition, is_addable: true }
    }
}

/// A missing table or column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The table.
    pub table: &'static str,
    /// The column; `None` when the whole table is missing.
    pub column: Option<&'static str>,
}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            None => write!(formatter, "table {}", self.table),
            Some(column) => write!(formatter, "column {}.{column}", self.table),
        }
    }
}

impl Lost {
    pub(crate) fn log(&self) {
        tracing::error!(table = self.table, column = self.column, "{} was lost: made again", self);
    }
}

/// Existing tables with their columns.
pub(crate) type Found = HashMap<String, HashSet<String>>;

/// Missing tables and columns, and the statements that recreate them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Repair {
    pub(crate) lost: Vec<Lost>,
    pub(crate) statements: Vec<String>,
    /// Tables that are recreated, named with `suffix`.
    pub(crate) made: Vec<&'static str>,
    /// Statements that run once the tables have their final names.
    pub(crate) seeds: Vec<&'static str>,
}

/// A repair in progress, for the program that restores rows.
#[derive(Debug)]
pub struct Mending<'a> {
    /// What was lost.
    pub lost: &'a [Lost],
    pub(crate) made: &'a [&'static str],
    pub(crate) suffix: &'static str,
}

impl Mending<'_> {
    /// The current name of a table: a recreated table gets its final name together with its rows.
    #[must_use]
    pub fn name(&self, table: &str) -> String {
        let suffix = if self.made.contains(&table) { self.suffix } else { "" };
        format!("{table}{suffix}")
    }
}

/// Whether the database has a table that only this program creates.
pub(crate) fn is_ours(tables: &[Table], found: &Found) -> bool {
    tables.iter().any(|table| !table.is_shared && found.contains_key(table.name))
}

/// Compares expected and existing tables at `now` (milliseconds since 1970). New tables get
/// `suffix` after their name.
pub(crate) fn repair(tables: &[Table], found: &Found, now: i64, suffix: &str) -> Repair {
    let mut lost = Vec::new();
    for table in tables {
        match found.get(table.name) {
            None => lost.push(Lost { table: table.name, column: None }),
            Some(columns) => lost.extend(
                (table.columns.iter())
                    .filter(|column| !columns.contains(column.name))
                    .map(|column| Lost { table: table.name, column: Some(column.name) }),
            ),
        }
    }
    let is_whole = |name: &str| lost.iter().all(|lost| lost.table != name);
    let damaged = || tables.iter().filter(|table| !is_whole(table.name));
    // Updates other tables first, so that the loss is recorded even if the repair is interrupted.
    let marks = damaged().flat_map(|table| table.marks);
    let marks = marks.filter(|(name, _)| is_whole(name)).map(|(_, sql)| (*sql).to_owned());
    let mut statements: Vec<String> = marks.collect();
    let (mut made, mut seeds) = (Vec::new(), Vec::new());
    for table in damaged() {
        if make_again(table, &lost, (now, suffix), &mut statements) {
            made.push(table.name);
            seeds.extend(table.seeds);
        }
    }
    Repair { statements, made, seeds, lost }
}

/// Whether the table is created rather than altered.
fn make_again(
    table: &Table,
    lost: &[Lost],
    (now, suffix): (i64, &str),
    statements: &mut Vec<String>,
) -> bool {
    let Table { name, columns, constraints, options, .. } = *table;
    let definition = |column: &Column| {
        let definition = column.definition.replace("{now}", &now.to_string());
        format!("{} {definition}", column.name)
    };
    let is_lost = |column: Option<&'static str>| lost.contains(&Lost { table: name, column });
    if !is_lost(None) {
        let missing: Vec<_> = columns.iter().filter(|column| is_lost(Some(column.name))).collect();
        if missing.iter().all(|column| column.is_addable) {
            let add =
                |column: &&Column| format!("ALTER TABLE {name} ADD COLUMN {}", definition(column));
            statements.extend(missing.iter().map(add));
            return false;
        }
        statements.push(format!("ALTER TABLE {name} RENAME TO {name}_lost_{}", now / 1000));
    }
    let mut parts: Vec<String> = columns.iter().map(definition).collect();
    if !constraints.is_empty() {
        parts.push(constraints.to_owned());
    }
    if !suffix.is_empty() {
        // Left over from an interrupted repair.
        statements.push(format!("DROP TABLE IF EXISTS {name}{suffix}"));
    }
    statements.push(format!("CREATE TABLE {name}{suffix} ({}) {options}", parts.join(", ")));
    true
}

/// Milliseconds since 1970, for values that must be higher than all earlier ones.
#[expect(clippy::disallowed_methods, reason = "a repair is marked with the wall clock")]
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: Table = Table {
        seeds: &["INSERT INTO state VALUES (1, 0)"],
        ..Table::new("state", &[Column::key("id", "INT PRIMARY KEY"), Column::key("whole", "INT")])
    };
    const ITEMS: Table = Table {
        constraints: "UNIQUE (id)",
        options: "STRICT",
        marks: &[("state", "UPDATE state SET whole = 0")],
        ..Table::new(
            "items",
            &[Column::key("id", "INT DEFAULT {now}"), Column::addable("note", "TEXT")],
        )
    };
    const TABLES: [Table; 2] = [STATE, ITEMS];

    fn found(tables: &[(&str, &[&str])]) -> Found {
        let columns = |columns: &[&str]| columns.iter().map(|&column| column.to_owned()).collect();
        tables.iter().map(|(name, of)| ((*name).to_owned(), columns(of))).collect()
    }

    fn repaired(tables: &[(&str, &[&str])]) -> (Vec<String>, Vec<String>) {
        let Repair { lost, statements, .. } = repair(&TABLES, &found(tables), 7_001, "");
        (lost.iter().map(Lost::to_string).collect(), statements)
    }

    #[test]
    fn an_intact_schema_is_not_changed() {
        let whole: &[(&str, &[&str])] =
            &[("state", &["id", "whole"]), ("items", &["more", "note", "id"]), ("other", &[])];
        assert_eq!(repaired(whole), (vec![], vec![]));
    }

    #[test]
    fn a_lost_table_marks_others_first() {
        let (lost, statements) = repaired(&[("state", &["id", "whole"])]);
        assert_eq!(lost, ["table items"]);
        assert_eq!(
            statements,
            [
                "UPDATE state SET whole = 0",
                "CREATE TABLE items (id INT DEFAULT 7001, note TEXT, UNIQUE (id)) STRICT"
            ]
        );
    }

    #[test]
    fn a_table_gets_its_name_with_its_rows() {
        let all = found(&[("state", &["id", "whole"])]);
        let Repair { lost, statements, made, seeds } = repair(&TABLES, &all, 7_001, "_made");
        assert_eq!(statements[1], "DROP TABLE IF EXISTS items_made");
        assert!(statements[2].starts_with("CREATE TABLE items_made ("), "{statements:?}");
        assert_eq!((made.as_slice(), seeds.len()), (["items"].as_slice(), 0));
        let mending = Mending { lost: &lost, made: &made, suffix: "_made" };
        assert_eq!([mending.name("items"), mending.name("state")], ["items_made", "state"]);
        assert_eq!(repair(&TABLES, &found(&[]), 0, "").seeds, ["INSERT INTO state VALUES (1, 0)"]);
    }

    #[test]
    fn a_lost_column_is_added_where_rows_keep_their_meaning() {
        let (lost, statements) = repaired(&[("state", &["id", "whole"]), ("items", &["id"])]);
        assert_eq!(lost, ["column items.note"]);
        assert_eq!(statements[1..], ["ALTER TABLE items ADD COLUMN note TEXT"]);
        let (lost, statements) = repaired(&[("state", &["id"]), ("items", &["note"])]);
        assert_eq!(lost, ["column state.whole", "column items.id"]);
        assert_eq!(
            statements,
            [
                "ALTER TABLE state RENAME TO state_lost_7",
                "CREATE TABLE state (id INT PRIMARY KEY, whole INT) ",
                "ALTER TABLE items RENAME TO items_lost_7",
                "CREATE TABLE items (id INT DEFAULT 7001, note TEXT, UNIQUE (id)) STRICT",
            ]
        );
    }
}
