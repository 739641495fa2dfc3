//! The content of a group as the store keeps it: in the form in which it goes over
//! the wire, which is a third of what its rules take as values.
//!
//! Made of a [`SecurityGroup`] alone, so it is always whole and canonical: equal
//! groups have equal bytes. Everybody who needs those bytes shares them, from the
//! Replace that brought them to each watcher that is told of them.

use std::collections::HashSet;

use bytes::Bytes;
use model::{
    group::{Lifecycle, Scope, SecurityGroup},
    ids::{GroupGuid, SpaceGuid},
    rule::RuleSpec,
};
use prost::Message;
use proto::policy_v1;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Who it is.
    pub guid: GroupGuid,
    /// For people.
    pub name: String,
    /// Where it applies to apps and tasks.
    pub running: Scope,
    /// Where it applies to staging containers.
    pub staging: Scope,
    encoded: Bytes,
}

/// The rules of a message `SecurityGroup`; the rest of it is passed over.
#[derive(Clone, PartialEq, Message)]
struct RulesOnly {
    #[prost(message, repeated, tag = "3")]
    rules: Vec<policy_v1::Rule>,
}

fn encode(group: &SecurityGroup) -> Bytes {
    policy_v1::SecurityGroup::from(group).encode_to_vec().into()
}

impl From<SecurityGroup> for Content {
    fn from(group: SecurityGroup) -> Self {
        let encoded = encode(&group);
        let SecurityGroup { guid, name, rules: _, running, staging } = group;
        Self { guid, name, running, staging, encoded }
    }
}

impl From<&SecurityGroup> for Content {
    fn from(group: &SecurityGroup) -> Self {
        let encoded = encode(group);
        let SecurityGroup { guid, name, rules: _, running, staging } = group;
        let (running, staging) = (running.clone(), staging.clone());
        Self { guid: guid.clone(), name: name.clone(), running, staging, encoded }
    }
}

impl Content {
    /// The message `SecurityGroup`.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Its rules as values.
    ///
    /// # Panics
    /// Never: what was encoded can be decoded.
    #[must_use]
    pub fn rules(&self) -> Vec<RuleSpec> {
        let decoded = RulesOnly::decode(self.encoded.clone()).expect("we encoded it");
        decoded.rules.into_iter().map(Into::into).collect()
    }

    /// The whole group as a value.
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

    /// Every space that the group is bound to, in either lifecycle.
    pub fn bound_spaces(&self) -> impl Iterator<Item = &SpaceGuid> {
        self.running.spaces.union(&self.staging.spaces)
    }

    /// Whether it is enabled everywhere in either lifecycle.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.running.everywhere || self.staging.everywhere
    }
}

/// One space is bound to many groups: its text is kept once.
#[derive(Debug, Default)]
pub struct SharedSpaces(HashSet<SpaceGuid>);

impl SharedSpaces {
    /// The text that is kept already, or this one from now on.
    pub fn share(&mut self, space: SpaceGuid) -> SpaceGuid {
        match self.0.get(&space) {
            Some(shared) => shared.clone(),
            None => {
                self.0.insert(space.clone());
                space
            }
        }
    }

    /// The same for all that a group is bound to.
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
        let content = Content::from(&group());
        assert_eq!(content.group(), group());
        assert_eq!(content.rules(), group().rules);
        let message = policy_v1::SecurityGroup::decode(content.encoded().clone()).unwrap();
        assert_eq!(message, policy_v1::SecurityGroup::from(&group()));
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
