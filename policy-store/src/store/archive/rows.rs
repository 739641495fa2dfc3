//! Rows and statements of the history, the same for every SQL database. Free text is stored as
//! bytes: PostgreSQL's texts cannot hold every character.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use model::{
    generation::{Generation, Point, Stamp, Watermark},
    lock::Owner,
    trace::TraceContext,
};
use storage::server::Value;

use super::super::{
    Error,
    rows::{corrupt, from_sql, to_sql},
    session::Columns,
};
use crate::groups::{
    archive::{Change, ChangedGroup, Entry, MARKS, Numbered, OperatorDecision, Reached, Weighed},
    decide::{Decision, Origin, Replacement},
};

/// Room of a row besides its texts, for the size limit.
const ROW_BYTES: usize = 256;

/// A row of `archive_entries`.
#[derive(Debug, Clone, Default)]
pub(in crate::store) struct EntryRow {
    pub(in crate::store) number: i64,
    pub(in crate::store) generation: i64,
    /// Empty for a change.
    action: String,
    at_ns: i64,
    stamp_ns: i64,
    owner: Option<String>,
    watermark_seconds: Option<i64>,
    watermark_nanoseconds: Option<i64>,
    noticed_ns: Option<i64>,
    read_ns: Option<i64>,
    traceparent: Option<String>,
    decided_by: Option<String>,
    reason: Option<String>,
    added: i64,
    changed: i64,
    removed: i64,
    /// Whether the previous contents of all changed groups are stored.
    pub(in crate::store) is_recorded: bool,
    pub(in crate::store) bytes: i64,
}

impl EntryRow {
    /// The entry of a Replace. `is_first`: no set was stored before, so there are no previous
    /// contents. `None`: no new generation.
    pub(in crate::store) fn of_change(
        decision: &Decision,
        write: &Replacement,
        is_first: bool,
    ) -> Result<Option<Self>, Error> {
        if !decision.is_change() {
            return Ok(None);
        }
        let Origin { noticed_at, read_at, trace } = write.origin;
        let count = |count: usize| to_sql("archive_entries.added", count as u64);
        Ok(Some(Self {
            generation: to_sql("archive_entries.generation", decision.state.generation.0)?,
            at_ns: nanoseconds(write.at),
            stamp_ns: decision.state.stamp.0,
            owner: Some(write.owner.as_str().to_owned()),
            watermark_seconds: Some(write.watermark.seconds()),
            watermark_nanoseconds: Some(write.watermark.nanoseconds().into()),
            noticed_ns: noticed_at.map(nanoseconds),
            read_ns: read_at.map(nanoseconds),
            traceparent: trace.map(|trace| trace.to_string()),
            added: count(decision.added())?,
            changed: count(decision.changed())?,
            removed: count(decision.removed.len())?,
            is_recorded: !is_first,
            ..Self::default()
        }))
    }

    pub(in crate::store) fn of_decision(decision: &OperatorDecision) -> Result<Self, Error> {
        let OperatorDecision { at, action, by, reason, generation } = decision;
        Ok(Self {
            generation: to_sql("archive_entries.generation", generation.0)?,
            action: action.to_string(),
            at_ns: nanoseconds(*at),
            decided_by: Some(by.to_string()),
            reason: Some(reason.to_string()),
            ..Self::default()
        })
    }

    /// In the order of the table's columns. `bytes`: those of the entry's groups.
    pub(in crate::store) fn values(self) -> Vec<Value> {
        let text = |text: Option<String>| Value::from(text.map(String::into_bytes));
        let texts = [&self.owner, &self.decided_by, &self.reason];
        let own: usize = texts.into_iter().flatten().map(String::len).sum();
        let own = i64::try_from(own + ROW_BYTES).unwrap_or(i64::MAX);
        vec![
            self.number.into(),
            self.generation.into(),
            self.action.into(),
            self.at_ns.into(),
            self.stamp_ns.into(),
            text(self.owner),
            self.watermark_seconds.into(),
            self.watermark_nanoseconds.into(),
            self.noticed_ns.into(),
            self.read_ns.into(),
            self.traceparent.into(),
            text(self.decided_by),
            text(self.reason),
            self.added.into(),
            self.changed.into(),
            self.removed.into(),
            self.is_recorded.into(),
            self.bytes.saturating_add(own).into(),
        ]
    }

    /// Reads all columns of the table.
    pub(in crate::store) fn read(row: &[Value]) -> Result<Self, Error> {
        let mut columns = Columns(row.iter());
        Ok(Self {
            number: columns.int("archive_entries.number")?,
            generation: columns.int("archive_entries.generation")?,
            action: columns.text("archive_entries.action")?.unwrap_or_default(),
            at_ns: columns.int("archive_entries.at_ns")?,
            stamp_ns: columns.int("archive_entries.stamp_ns")?,
            owner: columns.text("archive_entries.owner")?,
            watermark_seconds: columns.optional("archive_entries.watermark_seconds")?,
            watermark_nanoseconds: columns.optional("archive_entries.watermark_nanoseconds")?,
            noticed_ns: columns.optional("archive_entries.noticed_ns")?,
            read_ns: columns.optional("archive_entries.read_ns")?,
            traceparent: columns.text("archive_entries.traceparent")?,
            decided_by: columns.text("archive_entries.decided_by")?,
            reason: columns.text("archive_entries.reason")?,
            added: columns.int("archive_entries.added")?,
            changed: columns.int("archive_entries.changed")?,
            removed: columns.int("archive_entries.removed")?,
            is_recorded: columns.int("archive_entries.is_recorded")? != 0,
            bytes: columns.int("archive_entries.bytes")?,
        })
    }

    /// Whether rows of `archive_groups` belong to the entry.
    pub(in crate::store) fn has_groups(&self) -> bool {
        self.action.is_empty() && self.is_recorded
    }

    pub(in crate::store) fn entry(
        self,
        groups: Vec<ChangedGroup>,
        reached: Option<Reached>,
    ) -> Result<Numbered, Error> {
        let generation = Generation(from_sql("archive_entries.generation", self.generation)?);
        let at = moment("archive_entries.at_ns", self.at_ns)?;
        let number = from_sql("archive_entries.number", self.number)?;
        let text = |text: Option<String>| text.unwrap_or_default().into();
        if !self.action.is_empty() {
            let (by, reason) = (text(self.decided_by), text(self.reason));
            let action = self.action.into();
            let decision = OperatorDecision { at, action, by, reason, generation };
            return Ok(Numbered { number, entry: Entry::Decision(Box::new(decision)) });
        }
        let owner = self.owner.map(|owner| Owner::parse(&owner)).transpose();
        let watermark = self.watermark_seconds.zip(self.watermark_nanoseconds);
        let watermark = watermark.map(|(seconds, fraction)| Watermark::try_new(seconds, fraction));
        let time = |field, at: Option<i64>| at.map(|at| moment(field, at)).transpose();
        let count = |count| from_sql("archive_entries.added", count);
        let change = Change {
            point: Point { generation, stamp: Stamp(self.stamp_ns) },
            at,
            owner: owner.map_err(corrupt("archive_entries.owner"))?,
            watermark: watermark
                .transpose()
                .map_err(corrupt("archive_entries.watermark_nanoseconds"))?,
            origin: Origin {
                noticed_at: time("archive_entries.noticed_ns", self.noticed_ns)?,
                read_at: time("archive_entries.read_ns", self.read_ns)?,
                trace: self.traceparent.and_then(|trace| TraceContext::parse(&trace)),
            },
            added: count(self.added)?,
            changed: count(self.changed)?,
            removed: count(self.removed)?,
            groups,
            reached,
        };
        Ok(Numbered { number, entry: Entry::Change(Box::new(change)) })
    }
}

/// Clamped: a time after the year 2262 has no such number.
fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

fn moment(field: &'static str, nanoseconds: i64) -> Result<Timestamp, Error> {
    Timestamp::from_nanosecond(nanoseconds.into()).map_err(corrupt(field))
}

/// A row of `archive_progress`.
#[derive(Debug)]
pub(in crate::store) struct ProgressRow;

impl ProgressRow {
    pub(in crate::store) fn values(
        instance: &str,
        generation: Generation,
        reached: &Reached,
    ) -> Result<Vec<Value>, Error> {
        let Reached { cells, until, slowest } = reached;
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let mut values: Vec<Value> = vec![
            to_sql("archive_progress.generation", generation.0)?.into(),
            instance.into(),
            (*cells).into(),
        ];
        values.extend(until.map(Value::from));
        values.push(slowest.map(micros).into());
        Ok(values)
    }

    /// Reads the columns that `Sql::progress` selects.
    pub(in crate::store) fn read(row: &[Value]) -> Result<(i64, Reached), Error> {
        let mut columns = Columns(row.iter());
        let generation = columns.int("archive_progress.generation")?;
        let mut count = |field| u32::try_from(columns.int(field)?).map_err(corrupt(field));
        let cells = count("archive_progress.cells")?;
        let mut until = [0; MARKS.len()];
        for cells in &mut until {
            *cells = count("archive_progress.until")?;
        }
        let slowest = columns.optional("archive_progress.slowest_us")?;
        let slowest = slowest.map(|micros| from_sql("archive_progress.slowest_us", micros));
        let slowest = slowest.transpose()?.map(Duration::from_micros);
        Ok((generation, Reached { cells, until, slowest }))
    }
}

/// Adds rows of `archive_progress` by generation.
pub(in crate::store) fn reached<'a>(
    rows: impl Iterator<Item = &'a [Value]>,
) -> Result<HashMap<i64, Reached>, Error> {
    let mut all: HashMap<i64, Reached> = HashMap::new();
    for row in rows {
        let (generation, reached) = ProgressRow::read(row)?;
        let sum = all.get(&generation).map_or(reached, |before| before.and(&reached));
        all.insert(generation, sum);
    }
    Ok(all)
}

/// Reads the columns of [`super::sql::Sql::weighed`].
pub(in crate::store) fn weighed(row: &[Value]) -> Result<Weighed, Error> {
    let mut columns = Columns(row.iter());
    let mut number = |field| from_sql(field, columns.int(field)?);
    Ok(Weighed {
        number: number("archive_entries.number")?,
        generation: Generation(number("archive_entries.generation")?),
        bytes: number("archive_entries.bytes")?,
        at: moment("archive_entries.at_ns", columns.int("archive_entries.at_ns")?)?,
    })
}
