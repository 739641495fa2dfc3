//! Content of a group as the store keeps it: in wire format, which takes a third of the
//! memory of decoded rules.
//!
//! Built only from a [`SecurityGroup`], so it is always complete and canonical: equal
//! groups have equal bytes. All users of these bytes share them, from the Replace that
//! received them to each watcher.

use std::collections::HashSet;

use bytes::Bytes;
use model::{
    group::{Lifecycle, Scope, SecurityGroup},
    ids::{GroupGuid, SpaceGuid},
    rule::RuleSpec,
};

/// Encoded content of a group; see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Guid of the group.
    pub guid: GroupGuid,
    /// Display name.
    pub name: String,
    /// Where the group applies to apps and tasks.
    pub running: Scope,
    /// Where the group applies to staging containers.
    pub staging: Scope,
    encoded: Bytes,
}

impl From<SecurityGroup> for Content {
    fn from(group: SecurityGroup) -> Self {
        let (guid, name) = (group.guid.clone(), group.name.clone());
        let (running, staging) = (group.running.clone(), group.staging.clone());
        Self { guid, name, running, staging, encoded: proto::encode_group(group) }
    }
}

impl Content {
    /// The message `SecurityGroup`.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The decoded rules.
    ///
    /// # Panics
    /// Never: encoded rules can be decoded.
    #[must_use]
    pub fn rules(&self) -> Vec<RuleSpec> {
        let decoded = proto::decode_group(self.encoded.clone()).expect("we encoded it");
        decoded.rules.into_iter().map(Into::into).collect()
    }

    /// The decoded group.
    #[must_use]
    pub fn group(&self) -> SecurityGroup {
        let Self { guid, name, running, staging, encoded: _ } = self.clone();
        SecurityGroup { guid, name, rules: self.rules(), running, staging }
    }

    /// Where the group applies in `lifecycle`.
    #[must_use]
    pub fn scope(&self, lifecycle: Lifecycle) -> &Scope {
        match lifecycle {
            Lifecycle::Running => &self.running,
            Lifecycle::Staging => &self.staging,
        }
    }

    /// All spaces that the group is bound to, in either lifecycle.
    pub fn bound_spaces(&self) -> impl Iterator<Item = &SpaceGuid> {
        self.running.spaces.union(&self.staging.spaces)
    }

    /// Whether the group is global in either lifecycle.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.running.everywhere || self.staging.everywhere
    }
}

/// Interns space guids: one space is bound to many groups.
#[derive(Debug, Default)]
pub struct SharedSpaces(HashSet<SpaceGuid>);

impl SharedSpaces {
    /// Returns the interned guid, and interns a new one.
    pub fn share(&mut self, space: SpaceGuid) -> SpaceGuid {
        match self.0.get(&space) {
            Some(shared) => shared.clone(),
            None => {
                self.0.insert(space.clone());
                space
            }
        }
    }

    /// Interns all spaces that a group is bound to.
    pub fn share_all(&mut self, group: &mut SecurityGroup) {
        for scope in [&mut group.running, &mut group.staging] {
            let spaces = std::mem::take(&mut scope.spaces);
            scope.spaces = spaces.into_iter().map(|space| self.share(space)).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(text: &str) -> SpaceGuid {
        SpaceGuid::parse(text).unwrap()
    }

    fn group() -> SecurityGroup {
        let rule = RuleSpec {
            protocol: "icmp".to_owned(),
            destination: "10.0.0.0/8".to_owned(),
            icmp_type: -1,
            log: true,
            ..RuleSpec::default()
        };
        SecurityGroup {
            guid: GroupGuid::parse("g").unwrap(),
            name: "one".to_owned(),
            rules: vec![rule, RuleSpec::default()],
            running: Scope { everywhere: true, spaces: [space("s2"), space("s1")].into() },
            staging: Scope { everywhere: false, spaces: [space("s1")].into() },
        }
    }

    #[test]
    fn the_group_comes_back() {
        let content = Content::from(group());
        assert_eq!(content.group(), group());
        assert_eq!(content.rules(), group().rules);
        let message = proto::decode_group(content.encoded().clone()).unwrap();
        assert_eq!(message, group().into());
        assert!(content.is_global());
        assert_eq!(content.bound_spaces().count(), 2);
    }

    #[test]
    fn a_space_is_kept_once() {
        let mut spaces = SharedSpaces::default();
        let (mut one, mut two) = (group(), group());
        spaces.share_all(&mut one);
        spaces.share_all(&mut two);
        assert_eq!(two, group());
        let first = |group: &SecurityGroup| group.staging.spaces.first().unwrap().as_str().as_ptr();
        assert_eq!(first(&one), first(&two));
        assert_ne!(first(&one), first(&group()));
    }
}
