//! Other groups that allow a part of what the changed group allows.

use std::{collections::HashMap, sync::Arc};

use model::{
    connections::Connections,
    effective::{Permit, ReadGroup},
    group::{GroupId, Lifecycle, StoredGroup},
    ids::SpaceGuid,
};

use super::{LIFECYCLES, Side};
use crate::groups::snapshot::{Entry, Snapshot};

/// A group without its texts.
pub(super) struct Other {
    pub(super) id: GroupId,
    /// Permits that matter, with the index of their rule.
    pub(super) permits: Vec<(usize, Permit)>,
    /// What they allow.
    allows: Connections,
}

/// The groups of one lifecycle, as positions in [`Others`].
#[derive(Default)]
pub(super) struct Neighbours {
    /// Global groups.
    pub(super) everywhere: Vec<usize>,
    /// Groups by space, without global ones.
    pub(super) bound: HashMap<SpaceGuid, Vec<usize>>,
}

/// All other groups that matter.
pub(super) struct Others {
    groups: Vec<Other>,
    running: Neighbours,
    staging: Neighbours,
}

impl Others {
    /// The groups except `changed` that apply to a space of the change and allow a part of
    /// `either`.
    pub(super) fn of(
        snapshot: &Snapshot,
        changed: Option<GroupId>,
        sides: [&Side; 2],
        either: &Connections,
    ) -> Self {
        let mut others = Self {
            groups: Vec::new(),
            running: Neighbours::default(),
            staging: Neighbours::default(),
        };
        for entry in concerned(snapshot, sides) {
            if Some(entry.id) != changed {
                others.add(entry, either);
            }
        }
        others
    }

    fn add(&mut self, entry: &Entry, either: &Connections) {
        let group = Arc::new(entry.group());
        let read = ReadGroup::new(StoredGroup { id: entry.id, group });
        let permits = read.permits().filter(|(_, permit)| either.intersects(permit));
        let permits: Vec<(usize, Permit)> =
            permits.map(|(index, permit)| (index, *permit)).collect();
        if permits.is_empty() {
            return;
        }
        let place = self.groups.len();
        let allows = Connections::of(permits.iter().map(|(_, permit)| permit));
        self.groups.push(Other { id: entry.id, permits, allows });
        for lifecycle in LIFECYCLES {
            let scope = read.stored.group.scope(lifecycle);
            let neighbours = match lifecycle {
                Lifecycle::Running => &mut self.running,
                Lifecycle::Staging => &mut self.staging,
            };
            if scope.everywhere {
                neighbours.everywhere.push(place);
                continue;
            }
            for space in &scope.spaces {
                match neighbours.bound.get_mut(space) {
                    Some(places) => places.push(place),
                    None => _ = neighbours.bound.insert(space.clone(), vec![place]),
                }
            }
        }
    }

    pub(super) fn neighbours(&self, lifecycle: Lifecycle) -> &Neighbours {
        match lifecycle {
            Lifecycle::Running => &self.running,
            Lifecycle::Staging => &self.staging,
        }
    }

    pub(super) fn get(&self, place: usize) -> &Other {
        &self.groups[place]
    }

    /// What any of the groups allows.
    pub(super) fn allowed(&self, places: &[usize]) -> Connections {
        let permits = places.iter().flat_map(|place| &self.groups[*place].permits);
        Connections::of(permits.map(|(_, permit)| permit))
    }

    /// The part of a set that any of the groups allows.
    pub(super) fn common(&self, set: &Connections, places: &[usize]) -> Connections {
        let common = places.iter().map(|place| set.intersection(&self.groups[*place].allows));
        common.fold(Connections::default(), |all, common| all.union(&common))
    }

    /// The part of a set that none of the groups allows.
    pub(super) fn minus(&self, mut set: Connections, places: &[usize]) -> Connections {
        for place in places {
            if set.is_empty() {
                break;
            }
            set = set.minus(&self.groups[*place].allows);
        }
        set
    }
}

/// The groups that apply to a space of the change, ascending by id.
fn concerned<'a>(snapshot: &'a Snapshot, sides: [&Side; 2]) -> Vec<&'a Arc<Entry>> {
    let each =
        || sides.into_iter().flat_map(|side| LIFECYCLES.into_iter().map(move |of| (side, of)));
    if each().any(|(side, lifecycle)| side.is_global(lifecycle)) {
        return snapshot.entries().iter().collect();
    }
    let spaces = each().flat_map(|(side, lifecycle)| side.spaces(lifecycle));
    snapshot.concerning(spaces, GroupId(0))
}
