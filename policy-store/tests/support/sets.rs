//! Builders of sets of security groups, also random ones.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use model::{
    generation::Watermark,
    group::{Scope, SecurityGroup},
    ids::{GroupGuid, SpaceGuid},
    lock::{FencingToken, Owner},
    rule::RuleSpec,
};
use policy_store::groups::{
    decide::{Origin, Replacement},
    manifest::{Manifest, Supplied},
};
use proptest::prelude::*;

/// Number of spaces in random bindings.
pub(crate) const SPACES: u8 = 5;

/// A whole set, by guid.
pub(crate) type Set = BTreeMap<GroupGuid, Arc<SecurityGroup>>;

pub(crate) fn guid(text: &str) -> GroupGuid {
    GroupGuid::parse(text).unwrap()
}

pub(crate) fn space(text: &str) -> SpaceGuid {
    SpaceGuid::parse(text).unwrap()
}

pub(crate) fn owner(text: &str) -> Owner {
    Owner::parse(text).unwrap()
}

/// A group with one rule.
pub(crate) fn group(guid_text: &str, name: &str) -> SecurityGroup {
    SecurityGroup {
        guid: guid(guid_text),
        name: name.to_owned(),
        rules: vec![RuleSpec {
            protocol: "tcp".to_owned(),
            destination: "10.0.0.1".to_owned(),
            ports: "443".to_owned(),
            description: name.to_owned(),
            ..RuleSpec::default()
        }],
        running: Scope::default(),
        staging: Scope::default(),
    }
}

/// The same as a global group.
pub(crate) fn global(guid_text: &str, name: &str) -> SecurityGroup {
    let everywhere = Scope { everywhere: true, ..Scope::default() };
    SecurityGroup { running: everywhere, ..group(guid_text, name) }
}

/// The same, for running apps of these spaces.
pub(crate) fn bound(guid_text: &str, name: &str, spaces: &[&str]) -> SecurityGroup {
    let spaces = spaces.iter().map(|text| space(text)).collect();
    let running = Scope { everywhere: false, spaces };
    SecurityGroup { running, ..group(guid_text, name) }
}

pub(crate) fn set(groups: impl IntoIterator<Item = SecurityGroup>) -> Set {
    groups.into_iter().map(|group| (group.guid.clone(), Arc::new(group))).collect()
}

/// `count` groups with the same name.
pub(crate) fn named(count: usize, name: &str) -> Set {
    set((0..count).map(|index| group(&format!("g{index:05}"), name)))
}

/// A Replace that supplies all content, even if the store has it.
pub(crate) fn replacement(set: &Set) -> Replacement {
    let mut manifest = Manifest::default();
    for (guid, group) in set {
        manifest.push(guid.clone(), group.content_hash()).unwrap();
    }
    Replacement {
        owner: owner("syncer-a"),
        token: None,
        watermark: Watermark::try_new(1, 0).unwrap(),
        allow_mass_removal: false,
        accepted_removal: None,
        rollout: None,
        supplied: Supplied {
            manifest,
            groups: set
                .iter()
                .map(|(guid, group)| (guid.clone(), Arc::new((**group).clone().into())))
                .collect(),
        },
        at: Timestamp::from_millisecond(1_700_000_000_123).unwrap(),
        origin: Origin::default(),
    }
}

/// The same by a writer with a token.
pub(crate) fn fenced(set: &Set, writer: &str, token: u64) -> Replacement {
    let token = (token != 0).then_some(FencingToken(token));
    Replacement { owner: owner(writer), token, ..replacement(set) }
}

fn scopes() -> impl Strategy<Value = Scope> {
    let spaces = prop::collection::btree_set(0..SPACES, 0..3);
    (prop::bool::weighted(0.15), spaces).prop_map(|(everywhere, spaces)| Scope {
        everywhere,
        spaces: spaces.into_iter().map(|index| space(&format!("s{index}"))).collect(),
    })
}

fn groups() -> impl Strategy<Value = SecurityGroup> {
    (0..8u8, 0..3u8, scopes(), scopes()).prop_map(|(index, name, running, staging)| {
        let base = group(&format!("g{index}"), &format!("name-{name}"));
        SecurityGroup { running, staging, ..base }
    })
}

/// Small random sets with groups in common.
pub(crate) fn sets() -> impl Strategy<Value = Set> {
    prop::collection::vec(groups(), 0..8).prop_map(set)
}
