//! Writes many rows with few statements.
//!
//! Rows and bytes of a statement are bounded: servers accept 65,535 parameters at most,
//! SQLite 32,766, and MySQL limits bytes by `max_allowed_packet`. The number of rows is one of a few
//! counts, so that a connection prepares few statements.

use storage::server::Value;

use super::{Error, session::Session};

/// Number of rows per statement; the first count that fits is used.
const COUNTS: [usize; 4] = [512, 64, 8, 1];
/// Size limit of a statement, 4 MiB, except for a single larger row.
const MAX_BYTES: usize = 4 << 20;

/// A statement with a list of rows of placeholders.
pub(super) struct Batch<'a> {
    pub(super) before: &'a str,
    /// Placeholders of one row.
    pub(super) marks: &'a str,
    pub(super) after: &'a str,
}

impl Batch<'_> {
    fn text(&self, rows: usize) -> String {
        format!("{} {} {}", self.before, vec![self.marks; rows].join(","), self.after)
    }

    /// Executes the statement for all rows, in their order.
    pub(super) async fn run(
        &self,
        session: &impl Session,
        rows: Vec<Vec<Value>>,
    ) -> Result<(), Error> {
        let mut sizes = rows.iter().map(|row| row.iter().map(size).sum()).collect::<Vec<usize>>();
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            let count = count(&sizes);
            let parameters: Vec<Value> = rows.by_ref().take(count).flatten().collect();
            sizes.drain(..count);
            session.execute(&self.text(count), &parameters).await?;
        }
        Ok(())
    }
}

/// How many rows with these sizes fit into one statement.
fn count(sizes: &[usize]) -> usize {
    let fits = |count: &&usize| {
        **count == 1
            || (**count <= sizes.len() && sizes[..**count].iter().sum::<usize>() <= MAX_BYTES)
    };
    COUNTS.iter().find(fits).copied().unwrap_or(1)
}

fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Int(_) => 8,
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_together_as_long_as_they_fit() {
        assert_eq!(count(&[10; 1000]), 512);
        assert_eq!(count(&[10; 511]), 64);
        assert_eq!(count(&[10; 7]), 1);
        assert_eq!(count(&[MAX_BYTES / 64; 1000]), 64);
        assert_eq!(count(&[MAX_BYTES; 8]), 1);
        assert_eq!(count(&[MAX_BYTES * 9]), 1, "a row that is larger goes alone");
    }

    #[test]
    fn a_statement_has_marks_for_each_row() {
        let batch = Batch { before: "INSERT INTO t VALUES", marks: "(?, ?)", after: "" };
        assert_eq!(batch.text(2), "INSERT INTO t VALUES (?, ?),(?, ?) ");
    }
}
