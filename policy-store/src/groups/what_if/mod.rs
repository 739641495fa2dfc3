//! Computes what a change of one group opens and closes, with all other groups as they are.
//!
//! The sets are those of [`model::connections`], so they are what cells enforce: rules that cannot
//! be enforced allow nothing. What cells add beside the groups, such as denied networks and limits,
//! is not considered.
//!
//! A space is affected when the group applies to it before or after the change. Spaces with the
//! same other groups have the same difference, which is computed once; groups that allow nothing of
//! what the group allows before or after do not count.

mod others;
mod remarks;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use model::{
    connections::Connections,
    effective::{Permit, ReadGroup},
    group::{GroupId, Lifecycle, Scope, SecurityGroup, StoredGroup},
    ids::SpaceGuid,
};

use self::others::{Neighbours, Others};
pub use self::remarks::{Finding, Remark, Width};
use super::snapshot::Snapshot;

/// Lifecycles in the order of the result.
const LIFECYCLES: [Lifecycle; 2] = [Lifecycle::Running, Lifecycle::Staging];

/// A change of one group: a new group has no state before, a deleted one none after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Stored group.
    pub before: Option<StoredGroup>,
    /// The group after the change.
    pub after: Option<Arc<SecurityGroup>>,
}

/// The same difference for several spaces: it opens or closes at least one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Containers of this lifecycle.
    pub lifecycle: Lifecycle,
    /// Affected spaces to which groups are bound, before or after the change; ascending.
    pub spaces: Vec<SpaceGuid>,
    /// Whether all other spaces are affected, too.
    pub all_other_spaces: bool,
    opens: Rest,
    closes: Rest,
}

impl Difference {
    /// Connections that are allowed only after the change.
    #[must_use]
    pub fn opens(&self) -> Connections {
        self.opens.all()
    }

    /// Connections that are allowed only before the change.
    #[must_use]
    pub fn closes(&self) -> Connections {
        self.closes.all()
    }
}

/// A set that many spaces share, without what the groups of a space allow of it. The difference of
/// the two is only computed for those spaces that an answer lists.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rest {
    whole: Arc<Connections>,
    /// A part of `whole`.
    allowed: Connections,
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.allowed == *self.whole
    }

    fn all(&self) -> Connections {
        self.whole.minus(&self.allowed)
    }
}

/// Result of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhatIf {
    /// Running first, then those of the most spaces.
    pub differences: Vec<Difference>,
    /// Remarks on the rules of the group after the change, ascending by rule.
    pub remarks: Vec<Remark>,
    /// All spaces to which groups are bound, before or after the change.
    pub named_spaces: BTreeSet<SpaceGuid>,
}

/// A group before or after the change.
struct Side {
    read: Option<ReadGroup>,
    allows: Connections,
}

impl Side {
    fn of(group: Option<StoredGroup>) -> Self {
        let read = group.map(ReadGroup::new);
        let permits = read.iter().flat_map(ReadGroup::permits);
        let allows = Connections::of(permits.map(|(_, permit): (_, &Permit)| permit));
        Self { read, allows }
    }

    fn scope(&self, lifecycle: Lifecycle) -> Option<&Scope> {
        self.read.as_ref().map(|read| read.stored.group.scope(lifecycle))
    }

    fn is_global(&self, lifecycle: Lifecycle) -> bool {
        self.scope(lifecycle).is_some_and(|scope| scope.everywhere)
    }

    fn spaces(&self, lifecycle: Lifecycle) -> impl Iterator<Item = &SpaceGuid> {
        self.scope(lifecycle).into_iter().flat_map(|scope| &scope.spaces)
    }

    /// Whether the group applies to a space; none: a space to which no group is bound.
    fn applies(&self, lifecycle: Lifecycle, space: Option<&SpaceGuid>) -> bool {
        self.scope(lifecycle).is_some_and(|scope| {
            scope.everywhere || space.is_some_and(|space| scope.spaces.contains(space))
        })
    }
}

/// What the difference of a space depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Case {
    before: bool,
    after: bool,
    /// Other groups that are bound to the space.
    bound: Vec<usize>,
}

/// Spaces with the same case.
#[derive(Debug, Default)]
struct Affected {
    spaces: Vec<SpaceGuid>,
    all_other_spaces: bool,
}

/// The affected spaces of one lifecycle.
struct Places<'a> {
    lifecycle: Lifecycle,
    /// What the other global groups allow.
    global: Connections,
    neighbours: &'a Neighbours,
    cases: HashMap<Case, Affected>,
}

/// Computes a change; see the module.
#[must_use]
pub fn what_if(snapshot: &Snapshot, change: Change, width: Width) -> WhatIf {
    let Change { before, after } = change;
    let id = before.as_ref().map(|stored| stored.id);
    let (before, after) = (Side::of(before), Side::of(after.map(|group| stored(id, group))));
    let sides = [&before, &after];
    let named_spaces = named_spaces(snapshot, sides);
    let either = before.allows.union(&after.allows);
    let others = Others::of(snapshot, id, sides, &either);
    let places = LIFECYCLES.map(|lifecycle| {
        let neighbours = others.neighbours(lifecycle);
        let global = others.allowed(&neighbours.everywhere);
        let cases = cases(lifecycle, sides, neighbours, &named_spaces);
        Places { lifecycle, global, neighbours, cases }
    });
    let differences =
        places.iter().flat_map(|places| differences(places, sides, &others)).collect();
    let remarks = match &after.read {
        Some(read) => remarks::remarks(snapshot, read, &others, &places, width),
        None => Vec::new(),
    };
    WhatIf { differences, remarks, named_spaces }
}

/// A new group comes after all others.
fn stored(id: Option<GroupId>, group: Arc<SecurityGroup>) -> StoredGroup {
    StoredGroup { id: id.unwrap_or(GroupId(u64::MAX)), group }
}

fn named_spaces(snapshot: &Snapshot, sides: [&Side; 2]) -> BTreeSet<SpaceGuid> {
    let bound = sides
        .into_iter()
        .flat_map(|side| LIFECYCLES.into_iter().flat_map(|lifecycle| side.spaces(lifecycle)));
    snapshot.spaces().chain(bound).cloned().collect()
}

/// The affected spaces of a lifecycle, by case.
fn cases(
    lifecycle: Lifecycle,
    sides: [&Side; 2],
    neighbours: &Neighbours,
    named_spaces: &BTreeSet<SpaceGuid>,
) -> HashMap<Case, Affected> {
    let case = |space: Option<&SpaceGuid>| {
        let [before, after] = sides.map(|side| side.applies(lifecycle, space));
        let bound = space.and_then(|space| neighbours.bound.get(space)).cloned();
        Case { before, after, bound: bound.unwrap_or_default() }
    };
    let mut cases: HashMap<Case, Affected> = HashMap::new();
    if sides.iter().any(|side| side.is_global(lifecycle)) {
        for space in named_spaces {
            cases.entry(case(Some(space))).or_default().spaces.push(space.clone());
        }
        cases.entry(case(None)).or_default().all_other_spaces = true;
        return cases;
    }
    let spaces: BTreeSet<&SpaceGuid> =
        sides.into_iter().flat_map(|side| side.spaces(lifecycle)).collect();
    for space in spaces {
        cases.entry(case(Some(space))).or_default().spaces.push(space.clone());
    }
    cases
}

fn differences(places: &Places<'_>, sides: [&Side; 2], others: &Others) -> Vec<Difference> {
    let Places { lifecycle, global, neighbours: _, cases } = places;
    let [before, after] = sides.map(|side| side.allows.minus(global));
    let nothing = Arc::new(Connections::default());
    let (opened, closed) = (Arc::new(after.minus(&before)), Arc::new(before.minus(&after)));
    let (before, after) = (Arc::new(before), Arc::new(after));
    // What a space has in common with the whole sets decides, so that those are not copied.
    type Key = ([bool; 2], [Connections; 2]);
    let mut found: HashMap<Key, (Rest, Rest, Affected)> = HashMap::new();
    for (case, affected) in cases {
        let applies = [case.before, case.after];
        let (opens, closes) = match applies {
            [true, true] => (&opened, &closed),
            [false, true] => (&after, &nothing),
            [true, false] => (&nothing, &before),
            [false, false] => continue,
        };
        let rest = |whole: &Arc<Connections>| Rest {
            whole: Arc::clone(whole),
            allowed: others.common(whole, &case.bound),
        };
        let (opens, closes) = (rest(opens), rest(closes));
        if opens.is_empty() && closes.is_empty() {
            continue;
        }
        let key = (applies, [opens.allowed.clone(), closes.allowed.clone()]);
        let (.., all) = found.entry(key).or_insert_with(|| (opens, closes, Affected::default()));
        all.spaces.extend(affected.spaces.iter().cloned());
        all.all_other_spaces |= affected.all_other_spaces;
    }
    let mut differences: Vec<Difference> = found
        .into_values()
        .map(|(opens, closes, affected)| {
            let Affected { mut spaces, all_other_spaces } = affected;
            spaces.sort_unstable();
            Difference { lifecycle: *lifecycle, spaces, all_other_spaces, opens, closes }
        })
        .collect();
    differences.sort_by(|one, two| {
        let order = |of: &Difference| (Reverse(of.all_other_spaces), Reverse(of.spaces.len()));
        order(one).cmp(&order(two)).then_with(|| one.spaces.cmp(&two.spaces))
    });
    differences
}
