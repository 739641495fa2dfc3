//! A security group: a named list of allow rules, and where it applies.

use std::{collections::BTreeSet, fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

use crate::{
    ids::{GroupGuid, SpaceGuid},
    rule::RuleSpec,
};

/// The part of a container's life to which a group applies
/// (docs/compatibility/vxlan-policy-agent.md#groups-of-a-container).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lifecycle {
    /// Apps and tasks.
    Running,
    /// Containers that build an app.
    Staging,
}

impl Lifecycle {
    /// Parses `container_workload` from a container's metadata. `None`: no group applies to such a
    /// container.
    #[must_use]
    pub fn of_workload(workload: &str) -> Option<Self> {
        match workload {
            "app" | "task" => Some(Self::Running),
            "staging" => Some(Self::Staging),
            _ => None,
        }
    }
}

/// A security group as defined in the Cloud Controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    /// Unique id.
    pub guid: GroupGuid,
    /// Name for people; unique in the Cloud Controller, but not relied on here.
    pub name: String,
    /// Rules in the operator's order.
    pub rules: Vec<RuleSpec>,
    /// Scope for apps and tasks.
    pub running: Scope,
    /// Scope for staging containers.
    pub staging: Scope,
}

/// The spaces to which a group applies in one lifecycle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Whether the group applies in every space.
    pub everywhere: bool,
    /// The spaces the group is bound to; kept even with `everywhere`, since the bindings remain
    /// when `everywhere` is unset.
    pub spaces: BTreeSet<SpaceGuid>,
}

/// Why a group applies to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// The group is global.
    Global,
    /// The group is bound to the container's space.
    Space,
}

impl SecurityGroup {
    /// The scope in `lifecycle`.
    #[must_use]
    pub fn scope(&self, lifecycle: Lifecycle) -> &Scope {
        match lifecycle {
            Lifecycle::Running => &self.running,
            Lifecycle::Staging => &self.staging,
        }
    }

    /// Why the group applies to a container of `space`, if it does. A global group that is also
    /// bound to the space counts once, as global.
    #[must_use]
    pub fn reach(&self, lifecycle: Lifecycle, space: &SpaceGuid) -> Option<Reach> {
        let scope = self.scope(lifecycle);
        if scope.everywhere {
            Some(Reach::Global)
        } else if scope.spaces.contains(space) {
            Some(Reach::Space)
        } else {
            None
        }
    }

    /// Every space that the group is bound to, in either lifecycle.
    pub fn bound_spaces(&self) -> impl Iterator<Item = &SpaceGuid> {
        self.running.spaces.union(&self.staging.spaces)
    }

    /// Whether the group is global in either lifecycle.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.running.everywhere || self.staging.everywhere
    }

    /// SHA-256 of a canonical form of the whole group: equal groups have equal hashes on every
    /// machine and in every release.
    #[must_use]
    pub fn content_hash(&self) -> ContentHash {
        let mut canon = Canon::new();
        canon.text(self.guid.as_str());
        canon.text(&self.name);
        canon.count(self.rules.len());
        for rule in &self.rules {
            let RuleSpec { protocol, destination, ports, icmp_type, icmp_code, description, log } =
                rule;
            canon.text(protocol);
            canon.text(destination);
            canon.text(ports);
            canon.number(*icmp_type);
            canon.number(*icmp_code);
            canon.text(description);
            canon.flag(*log);
        }
        for Scope { everywhere, spaces } in [&self.running, &self.staging] {
            canon.flag(*everywhere);
            canon.count(spaces.len());
            for space in spaces {
                canon.text(space.as_str());
            }
        }
        canon.finish()
    }
}

/// Writes length-prefixed bytes, so that different groups never have the same canonical form.
struct Canon(Sha256);

impl Canon {
    fn new() -> Self {
        Self(Sha256::new_with_prefix(b"portcullis security group 1\n"))
    }

    fn count(&mut self, n: usize) {
        self.0.update((n as u64).to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    fn number(&mut self, n: i32) {
        self.0.update(n.to_be_bytes());
    }

    fn flag(&mut self, on: bool) {
        self.0.update([u8::from(on)]);
    }

    fn finish(self) -> ContentHash {
        ContentHash(self.0.finalize().into())
    }
}

/// SHA-256 of a group's content; see [`SecurityGroup::content_hash`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Position of a group in the store's order, ascending from 1; stable for the lifetime of the
/// group. Groups apply in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// A group with its position in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredGroup {
    /// The position.
    pub id: GroupId,
    /// The group; shared, since many watchers and containers use it.
    pub group: Arc<SecurityGroup>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(text: &str) -> SpaceGuid {
        SpaceGuid::parse(text).unwrap()
    }

    fn group() -> SecurityGroup {
        SecurityGroup {
            guid: GroupGuid::parse("g1").unwrap(),
            name: "one".to_owned(),
            rules: vec![RuleSpec {
                protocol: "tcp".to_owned(),
                destination: "10.0.0.1".to_owned(),
                ports: "80".to_owned(),
                ..RuleSpec::default()
            }],
            running: Scope { everywhere: true, spaces: BTreeSet::from([space("s1")]) },
            staging: Scope { everywhere: false, spaces: BTreeSet::from([space("s2")]) },
        }
    }

    #[test]
    fn global_and_bound_are_decided_per_lifecycle() {
        let group = group();
        assert_eq!(group.reach(Lifecycle::Running, &space("s1")), Some(Reach::Global));
        assert_eq!(group.reach(Lifecycle::Running, &space("s9")), Some(Reach::Global));
        assert_eq!(group.reach(Lifecycle::Staging, &space("s1")), None);
        assert_eq!(group.reach(Lifecycle::Staging, &space("s2")), Some(Reach::Space));
    }

    #[test]
    fn an_unknown_workload_has_no_lifecycle() {
        assert_eq!(Lifecycle::of_workload("app"), Some(Lifecycle::Running));
        assert_eq!(Lifecycle::of_workload("task"), Some(Lifecycle::Running));
        assert_eq!(Lifecycle::of_workload("staging"), Some(Lifecycle::Staging));
        assert_eq!(Lifecycle::of_workload("App"), None);
        assert_eq!(Lifecycle::of_workload(""), None);
    }

    /// Every field counts, and so do the boundaries between texts.
    #[test]
    fn the_hash_covers_every_field() {
        let base = group();
        let changes: Vec<fn(&mut SecurityGroup)> = vec![
            |g| g.guid = GroupGuid::parse("g2").unwrap(),
            |g| g.name.push('x'),
            |g| g.rules.clear(),
            |g| g.rules[0].protocol = "udp".to_owned(),
            |g| g.rules[0].destination.push('0'),
            |g| g.rules[0].ports.push('0'),
            |g| g.rules[0].icmp_type = 1,
            |g| g.rules[0].icmp_code = 1,
            |g| g.rules[0].description.push('x'),
            |g| g.rules[0].log = true,
            |g| g.running.everywhere = false,
            |g| g.staging.everywhere = true,
            |g| _ = g.running.spaces.pop_first(),
            |g| _ = g.staging.spaces.insert(SpaceGuid::parse("s3").unwrap()),
            |g| std::mem::swap(&mut g.running, &mut g.staging),
            |g| {
                g.rules[0].destination = "10.0.0.".to_owned();
                g.rules[0].ports = "180".to_owned();
            },
        ];
        let mut hashes = BTreeSet::from([base.content_hash()]);
        for (index, change) in changes.iter().enumerate() {
            let mut changed = base.clone();
            change(&mut changed);
            assert!(hashes.insert(changed.content_hash()), "change {index} is not in the hash");
        }
    }

    /// Stores keep hashes across releases: this value must never change.
    #[test]
    fn the_hash_never_changes() {
        assert_eq!(
            format!("{:?}", group().content_hash()),
            "f2c3fdadc47716bfc9eeb1715bde66c500a347d59be6df160393b4dd26316788"
        );
    }
}
