//! Pagination of groups.

use std::{collections::HashSet, sync::Arc};

use model::{generation::Generation, group::GroupId, ids::SpaceGuid};

use super::snapshot::{Entry, Snapshot};

/// Default page size.
pub const DEFAULT_SIZE: usize = 500;
/// Maximum page size.
pub const MAX_SIZE: usize = 5000;
/// A page ends early at this number of encoded bytes, so that it stays within the 4 MiB
/// that gRPC clients accept. A larger group is a page of its own.
pub const MAX_BYTES: usize = 3 << 20;

/// Selection of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// All.
    All,
    /// Groups that apply to any of these spaces.
    Spaces(HashSet<SpaceGuid>),
}

/// Some groups, ascending by id.
#[derive(Debug)]
pub struct Page {
    /// The groups.
    pub entries: Vec<Arc<Entry>>,
    /// First id of the next page; `None` on the last page.
    pub next: Option<GroupId>,
    /// Generation of the set.
    pub generation: Generation,
}

/// At most `size` groups, from the id `from` on.
#[must_use]
pub fn page(snapshot: &Snapshot, filter: &Filter, from: GroupId, size: usize) -> Page {
    let entries = match filter {
        Filter::All => {
            let first = snapshot.entries().partition_point(|entry| entry.id < from);
            snapshot.entries()[first..].iter().collect()
        }
        Filter::Spaces(spaces) => snapshot.concerning(spaces, from),
    };
    let mut bytes = 0;
    let fits = |(place, entry): &(usize, &Arc<Entry>)| {
        bytes += entry.encoded.len() + 8;
        *place == 0 || (*place < size && bytes <= MAX_BYTES)
    };
    let taken: Vec<_> =
        entries.iter().copied().enumerate().take_while(fits).map(|(_, e)| Arc::clone(e)).collect();
    let next = entries.get(taken.len()).map(|entry| entry.id);
    Page { entries: taken, next, generation: snapshot.state.generation }
}
