//! Groups page by page.

use std::{collections::HashSet, sync::Arc};

use model::{generation::Generation, group::GroupId, ids::SpaceGuid};

use super::snapshot::{Entry, Snapshot};

/// How many groups a page has when nobody says.
pub const DEFAULT_SIZE: usize = 500;
/// How many groups a page may have.
pub const MAX_SIZE: usize = 5000;
/// A page ends early when its groups have so many encoded bytes, so that it
/// stays within the 4 MiB that gRPC clients accept. A larger group goes alone.
const MAX_BYTES: usize = 3 << 20;

/// Which groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// All.
    All,
    /// Those that concern any of these spaces.
    Spaces(HashSet<SpaceGuid>),
}

/// Some groups, ascending by id.
#[derive(Debug)]
pub struct Page {
    /// The groups.
    pub entries: Vec<Arc<Entry>>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<GroupId>,
    /// Which set it is a page of.
    pub generation: Generation,
}

/// At most `size` groups from the place `from` on.
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
