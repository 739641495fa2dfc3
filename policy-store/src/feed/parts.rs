//! Splits an update into messages of bounded size.

use std::{collections::VecDeque, sync::Arc};

use model::{generation::Point, ids::GroupGuid};

use super::cursor::Update;
use crate::groups::snapshot::Entry;

/// Size limit of a message. Small, since each watcher that does not read costs one
/// message of memory; a larger group is sent in a message of its own.
pub const PART_BYTES: usize = 64 << 10;

/// One message of an update.
#[derive(Debug)]
pub struct Part {
    /// Generation after the update.
    pub point: Point,
    /// Newest included Subscribe.
    pub sequence: u64,
    /// Discard all groups first; only in the first part.
    pub reset: bool,
    /// New and changed groups.
    pub upserted: Vec<Arc<Entry>>,
    /// Removed groups.
    pub removed: Vec<GroupGuid>,
    /// This is the last part.
    pub complete: bool,
}

/// Rest of an update that is not sent yet. References the groups to send and nothing
/// else of their generation.
#[derive(Debug)]
pub struct Parts {
    point: Point,
    sequence: u64,
    reset: bool,
    upserted: VecDeque<Arc<Entry>>,
    removed: VecDeque<GroupGuid>,
    done: bool,
}

impl From<Update> for Parts {
    fn from(update: Update) -> Self {
        let Update { point, sequence, reset, upserted, removed } = update;
        let (upserted, removed) = (upserted.into(), removed.into());
        Self { point, sequence, reset, upserted, removed, done: false }
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.done {
            return None;
        }
        let mut room = PART_BYTES;
        let removed = take(&mut self.removed, &mut room, |guid| guid.as_str().len());
        let upserted = take(&mut self.upserted, &mut room, |entry| entry.encoded.len());
        self.done = self.upserted.is_empty() && self.removed.is_empty();
        Some(Part {
            point: self.point,
            sequence: self.sequence,
            reset: std::mem::take(&mut self.reset),
            upserted,
            removed,
            complete: self.done,
        })
    }
}

/// Takes as many items as fit; at least one while the part is empty.
fn take<T>(from: &mut VecDeque<T>, room: &mut usize, size: impl Fn(&T) -> usize) -> Vec<T> {
    let mut taken = Vec::new();
    while let Some(item) = from.front() {
        let size = size(item) + 8;
        if size > *room && *room < PART_BYTES {
            break;
        }
        *room = room.saturating_sub(size);
        taken.extend(from.pop_front());
    }
    taken
}
