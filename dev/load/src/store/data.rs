//! Synthetic security groups. Pure: the same shape gives the same groups.

use model::group::{ContentHash, Scope, SecurityGroup};
use model::ids::{GroupGuid, SpaceGuid};
use model::rule::RuleSpec;

/// How many of what.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Shape {
    /// Number of security groups
    #[arg(long, default_value_t = 13_500, value_parser = clap::value_parser!(u32).range(1..))]
    pub groups: u32,
    /// Number of global groups among them
    #[arg(long, default_value_t = 0)]
    pub global: u32,
    /// Number of rules per group
    #[arg(long, default_value_t = 20)]
    pub rules: u32,
    /// Number of spaces that a group is bound to for running containers
    #[arg(long, default_value_t = 3)]
    pub bindings: u32,
    /// Number of spaces that a group is bound to for staging containers
    #[arg(long, default_value_t = 0)]
    pub staging_bindings: u32,
    /// Bind groups to spaces at random instead of neighbouring spaces: a cell with many
    /// spaces then has far more groups
    #[arg(long)]
    pub scattered: bool,
    /// Number of spaces
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub spaces: u32,
}

/// A changing set of groups, with the hash of each.
#[derive(Debug)]
pub struct Data {
    groups: Vec<SecurityGroup>,
    hashes: Vec<ContentHash>,
}

impl Data {
    /// Groups of this shape.
    pub fn new(shape: &Shape) -> Self {
        Self::of((0..shape.groups).map(|index| group(shape, index)).collect())
    }

    /// From these groups.
    pub fn of(groups: Vec<SecurityGroup>) -> Self {
        let hashes = groups.iter().map(SecurityGroup::content_hash).collect();
        Self { groups, hashes }
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// Changes a rule of the first group, which is a global one if there are any.
    pub fn change(&mut self, revision: u32) {
        self.change_first(|rules| {
            rules.truncate(rules.len().saturating_sub(1));
            rules.push(rule(0, 1_000_000 + revision));
        });
    }

    /// Replaces the rules of the first group.
    pub(crate) fn put(&mut self, new: Vec<RuleSpec>) {
        self.change_first(|rules| *rules = new);
    }

    fn change_first(&mut self, change: impl FnOnce(&mut Vec<RuleSpec>)) {
        let (Some(group), Some(hash)) = (self.groups.first_mut(), self.hashes.first_mut()) else {
            return;
        };
        change(&mut group.rules);
        *hash = group.content_hash();
    }

    /// The groups, in order.
    pub fn groups(&self) -> &[SecurityGroup] {
        &self.groups
    }

    /// GUID and hash of each group, in order.
    pub fn manifest(&self) -> impl Iterator<Item = (&GroupGuid, &ContentHash)> {
        self.groups.iter().map(|group| &group.guid).zip(&self.hashes)
    }

    /// The groups with these GUIDs.
    pub fn find<'a>(
        &'a self,
        guids: &'a std::collections::HashSet<String>,
    ) -> impl Iterator<Item = &'a SecurityGroup> {
        self.groups.iter().filter(|group| guids.contains(group.guid.as_str()))
    }
}

/// The spaces of a simulated cell: cells have distinct spaces while enough exist.
pub fn spaces_of(cell: usize, count: u32, shape: &Shape) -> Vec<SpaceGuid> {
    let first = cell as u64 * u64::from(count);
    (0..u64::from(count)).map(|offset| space((first + offset) % u64::from(shape.spaces))).collect()
}

fn space(number: u64) -> SpaceGuid {
    SpaceGuid::parse(&guid(1, number)).expect("it has the form of a guid")
}

/// A GUID that differs by kind and number.
pub fn guid(kind: u32, number: u64) -> String {
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
}

fn group(shape: &Shape, index: u32) -> SecurityGroup {
    let of_each = u64::from(shape.bindings) + u64::from(shape.staging_bindings);
    let first = u64::from(index) * of_each;
    let spaces = |from: u32, count: u32| {
        let places = (0..u64::from(count)).map(|offset| first + u64::from(from) + offset);
        let places = places.map(|place| if shape.scattered { scrambled(place) } else { place });
        places.map(|place| space(place % u64::from(shape.spaces))).collect()
    };
    let staging = spaces(shape.bindings, shape.staging_bindings);
    SecurityGroup {
        guid: GroupGuid::parse(&guid(2, index.into())).expect("it has the form of a guid"),
        name: format!("asg-{index:05}"),
        rules: (0..shape.rules).map(|number| rule(index, number)).collect(),
        running: Scope { everywhere: index < shape.global, spaces: spaces(0, shape.bindings) },
        staging: Scope { everywhere: false, spaces: staging },
    }
}

/// Like in the contract's data set: an address and a port, both random, which compress
/// badly.
fn rule(group: u32, number: u32) -> RuleSpec {
    let [a, b, c, high, low, ..] =
        scrambled((u64::from(group) << 32) | u64::from(number)).to_be_bytes();
    RuleSpec {
        protocol: "tcp".to_owned(),
        destination: format!("10.{a}.{b}.{c}"),
        ports: u16::from_be_bytes([high, low]).max(1).to_string(),
        description: format!("rule {number}"),
        ..RuleSpec::default()
    }
}

/// A deterministic hash that spreads neighbouring numbers (the last step of
/// splitmix64).
fn scrambled(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        groups: 10,
        global: 2,
        rules: 3,
        bindings: 2,
        staging_bindings: 0,
        scattered: false,
        spaces: 15,
    };

    #[test]
    fn the_same_shape_is_the_same_data() {
        let (one, other) = (Data::new(&SHAPE), Data::new(&SHAPE));
        assert!(one.manifest().eq(other.manifest()));
        let bound = one.groups.iter().map(|group| group.running.spaces.len()).sum::<usize>();
        let global = one.groups.iter().filter(|group| group.is_global()).count();
        assert_eq!((one.len(), bound, global), (10, 20, 2));
        assert!(one.groups.iter().all(|group| group.rules.len() == 3));
    }

    #[test]
    fn scattered_groups_concern_a_cell_more_often() {
        let shape = Shape { groups: 100, staging_bindings: 2, spaces: 100, ..SHAPE };
        let own = spaces_of(0, 10, &shape);
        let concerning = |scattered| {
            let data = Data::new(&Shape { scattered, ..shape });
            let is_bound =
                |group: &&SecurityGroup| group.bound_spaces().any(|space| own.contains(space));
            data.groups.iter().filter(is_bound).count()
        };
        // Each space has four bindings, of one or two groups or of up to four.
        assert!(concerning(false) <= 20, "{}", concerning(false));
        assert!(concerning(true) > 25, "{}", concerning(true));
    }

    #[test]
    fn a_change_is_one_group_with_another_hash() {
        let mut data = Data::new(&SHAPE);
        let mut before = data.hashes.clone();
        for revision in 1..4 {
            data.change(revision);
            let changed = (0..10).filter(|&index| data.hashes[index] != before[index]);
            assert_eq!(changed.collect::<Vec<_>>(), [0]);
            assert_eq!(data.groups[0].rules.len(), 3);
            before.clone_from(&data.hashes);
        }
    }

    #[test]
    fn cells_take_turns_in_the_spaces() {
        let shape = Shape { spaces: 5, ..SHAPE };
        assert_eq!(spaces_of(1, 3, &shape), [space(3), space(4), space(0)]);
    }
}
