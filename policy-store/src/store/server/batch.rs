//! Many rows in few statements.
//!
//! A statement has a bounded number of rows and of bytes: servers take 65,535
//! parameters at most, and MySQL what `max_allowed_packet` says. Rows come in
//! one of a few counts, so that a connection prepares few statements.

use storage::server::{Transaction, Value};

use super::super::Error;

/// How many rows a statement has; the first count that fits.
const COUNTS: [usize; 4] = [512, 64, 8, 1];
/// How many bytes a statement has: 4 MiB, but for one row that is larger.
const MAX_BYTES: usize = 4 << 20;

/// A statement around a list of rows of marks.
pub(super) struct Batch<'a> {
    pub(super) before: &'a str,
    /// One row.
    pub(super) marks: &'a str,
    pub(super) after: &'a str,
}

impl Batch<'_> {
    fn text(&self, rows: usize) -> String {
        format!("{} {} {}", self.before, vec![self.marks; rows].join(","), self.after)
    }

    /// Carries it out for all rows, in their order.
    pub(super) async fn run(
        &self,
        transaction: &Transaction,
        rows: Vec<Vec<Value>>,
    ) -> Result<(), Error> {
        let mut sizes = rows.iter().map(|row| row.iter().map(size).sum()).collect::<Vec<usize>>();
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            let count = count(&sizes);
            let parameters: Vec<Value> = rows.by_ref().take(count).flatten().collect();
            sizes.drain(..count);
            transaction.execute(&self.text(count), &parameters).await?;
        }
        Ok(())
    }
}

/// How many of the rows with these sizes go together.
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
