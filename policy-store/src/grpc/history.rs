//! History and Difference: the generations that the store remembers.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use model::{generation::Generation, group::GroupId};
use prost::Message as _;
use proto::policy_v1::{
    self, Decision, DifferenceRequest, DifferenceResponse, HistoryEntry, HistoryRequest,
    HistoryResponse, difference_response::Group, history_entry::Progress,
};
use runtime::error::chain;

use super::{
    cells::text,
    changes,
    messages::timestamp,
    status::{Error, invalid},
};
use crate::{
    groups::{
        archive::{Change, Entry, MARKS, Numbered, OperatorDecision, Query, Reached, Undo},
        decide::Origin,
        page::MAX_BYTES,
        snapshot::Snapshot,
    },
    store::{self, Store},
};

/// Default page size.
const SIZE: usize = 100;
/// Maximum page size.
const MAX_SIZE: usize = 1_000;

fn size(size: u32) -> Result<usize, Error> {
    match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => Ok(SIZE),
        size if size <= MAX_SIZE => Ok(size),
        size => Err(invalid("page_size", format_args!("{size} is more than {MAX_SIZE}"))),
    }
}

/// Answers a History.
pub(super) async fn history(
    store: &dyn Store,
    request: HistoryRequest,
    now: Timestamp,
) -> Result<HistoryResponse, Error> {
    let HistoryRequest { generation, group, page_size, page_token } = request;
    let size = size(page_size)?;
    let query = Query {
        before: (page_token != 0).then_some(page_token),
        generation: (generation != 0).then_some(Generation(generation)),
        group: text("group", group)?,
        size,
    };
    let found = store.history().entries(query).await.map_err(unread)?;
    let (mut entries, mut bytes, mut next) = (Vec::with_capacity(found.len()), 0, 0);
    let is_full = found.len() == size;
    for Numbered { number, entry } in found {
        let entry = HistoryEntry::from(entry);
        bytes += entry.encoded_len() + 8;
        if bytes > MAX_BYTES && !entries.is_empty() {
            return Ok(HistoryResponse {
                entries,
                next_page_token: next,
                now: Some(timestamp(now)),
            });
        }
        entries.push(entry);
        next = number;
    }
    // The oldest entry has the number 1.
    let next_page_token = if is_full && next > 1 { next } else { 0 };
    Ok(HistoryResponse { entries, next_page_token, now: Some(timestamp(now)) })
}

impl From<Entry> for HistoryEntry {
    fn from(entry: Entry) -> Self {
        use policy_v1::history_entry::Entry as Message;
        match entry {
            Entry::Change(change) => Self {
                progress: change.reached.as_ref().map(progress).unwrap_or_default(),
                entry: Some(Message::Change((*change).into())),
            },
            Entry::Decision(decision) => {
                let OperatorDecision { at, action, by, reason, generation } = *decision;
                let decision = Decision {
                    at: Some(timestamp(at)),
                    action: action.into(),
                    by: by.into(),
                    reason: reason.into(),
                    generation: generation.0,
                };
                Self { progress: Vec::new(), entry: Some(Message::Decision(decision)) }
            }
        }
    }
}

/// The marks at which the number of cells changed.
fn progress(reached: &Reached) -> Vec<Progress> {
    let before = [0].into_iter().chain(reached.until);
    let marks = MARKS.into_iter().zip(reached.until).zip(before);
    let changed = marks.filter(|((_, cells), before)| cells != before);
    let progress = |((mark, cells), _): ((std::time::Duration, u32), u32)| Progress {
        after_commit: mark.try_into().ok(),
        cells,
    };
    changed.map(progress).collect()
}

impl From<Change> for policy_v1::Change {
    fn from(change: Change) -> Self {
        let Change {
            point,
            at,
            owner,
            watermark,
            origin,
            added,
            changed,
            removed,
            groups,
            reached,
        } = change;
        let Origin { noticed_at, read_at, trace } = origin;
        let reached = reached.unwrap_or_default();
        Self {
            generation: point.generation.0,
            traceparent: trace.map(|trace| trace.to_string()).unwrap_or_default(),
            owner: owner.map(|owner| owner.as_str().to_owned()).unwrap_or_default(),
            // A Cloud Controller without any change has the stamp 1970.
            watermark: watermark.filter(|stamp| stamp.seconds() > 0).map(proto::timestamp),
            noticed_at: noticed_at.map(timestamp),
            read_at: read_at.map(timestamp),
            committed_at: Some(timestamp(at)),
            added,
            changed,
            removed,
            groups: groups.iter().map(changes::group).collect(),
            cells: reached.cells,
            cells_enforced: reached.until.last().copied().unwrap_or_default(),
            slowest: reached.slowest.and_then(|time| time.try_into().ok()),
            ..Self::default()
        }
    }
}

/// Answers a Difference.
pub(super) async fn difference(
    store: &dyn Store,
    newest: &Snapshot,
    request: DifferenceRequest,
) -> Result<DifferenceResponse, Error> {
    let DifferenceRequest { from_generation, to_generation, page_size, page_token } = request;
    let size = size(page_size)?;
    let from = undo(store, newest, "from_generation", from_generation).await?;
    let to = undo(store, newest, "to_generation", to_generation).await?;
    Ok(page(newest, [&from, &to], GroupId(page_token), size))
}

async fn undo(
    store: &dyn Store,
    newest: &Snapshot,
    field: &str,
    generation: u64,
) -> Result<Undo, Error> {
    let from = newest.state.generation;
    if generation == 0 {
        return Err(invalid(field, "missing"));
    }
    let undo = match generation <= from.0 {
        true => store.history().undo(from, Generation(generation)).await.map_err(unread)?,
        false => None,
    };
    undo.ok_or_else(|| {
        Error::NotFound(format!(
            "{field}: the store does not remember all changes from generation {generation} to \
             the newest, {from}"
        ))
    })
}

/// Adds a decision to the history. The decision stands even if this fails.
pub(super) async fn record(store: &dyn Store, decision: OperatorDecision) {
    if let Err(error) = store.history().record(Arc::new(decision)).await {
        tracing::error!(error = chain(&error), "failed-to-record-decision");
    }
}

/// The client does not see the cause.
fn unread(error: store::Error) -> Error {
    tracing::error!(error = chain(&error), "failed-to-read-history");
    Error::Unread(error)
}

fn page(newest: &Snapshot, undos: [&Undo; 2], first: GroupId, size: usize) -> DifferenceResponse {
    let ids: BTreeSet<GroupId> =
        undos.iter().flat_map(|undo| undo.groups.range(first..)).map(|(id, _)| *id).collect();
    let (mut groups, mut bytes) = (Vec::new(), 0);
    for id in ids {
        let [before, after] = undos.map(|undo| at(newest, undo, id));
        if before == after {
            continue;
        }
        let group = Group { id: id.0, before, after };
        bytes += group.encoded_len() + 8;
        if groups.len() == size || (bytes > MAX_BYTES && !groups.is_empty()) {
            return DifferenceResponse { groups, next_page_token: id.0 };
        }
        groups.push(group);
    }
    DifferenceResponse { groups, next_page_token: 0 }
}

/// The encoded group at the generation to which `undo` leads; empty when there was none.
fn at(newest: &Snapshot, undo: &Undo, id: GroupId) -> Vec<u8> {
    let encoded = match undo.groups.get(&id) {
        Some(before) => before.as_ref().map(|stored| stored.group.encoded()),
        None => newest.get(id).map(|entry| &entry.encoded),
    };
    encoded.map(|encoded| encoded.to_vec()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn progress_has_the_marks_at_which_the_number_changed() {
        let times = [50, 60, 20_000].map(|millis| Some(Duration::from_millis(millis)));
        let reached = Reached::of(times.into_iter().chain([None]));
        let found: Vec<(i64, i32, u32)> = progress(&reached)
            .iter()
            .map(|progress| {
                let after = progress.after_commit.unwrap();
                (after.seconds, after.nanos, progress.cells)
            })
            .collect();
        assert_eq!(found, [(0, 100_000_000, 2), (60, 0, 3)]);
        assert_eq!(progress(&Reached::default()), []);
    }

    #[test]
    fn a_page_size_is_bounded() {
        assert_eq!((size(0).unwrap(), size(1_000).unwrap()), (SIZE, MAX_SIZE));
        let error = size(1_001).unwrap_err().to_string();
        assert_eq!(error, "page_size: 1001 is more than 1000");
    }
}
