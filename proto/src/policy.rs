//! Conversions of security groups between the wire and the model.

use std::{collections::BTreeSet, sync::Arc};

use prost::{Message as _, bytes::Bytes};

use model::{
    generation::Watermark,
    group::{ContentHash, GroupId, Lifecycle, Scope, SecurityGroup, StoredGroup},
    ids::{GroupGuid, SpaceGuid},
    rule::RuleSpec,
};

use crate::{Error, policy_v1};

impl From<Lifecycle> for policy_v1::Lifecycle {
    fn from(lifecycle: Lifecycle) -> Self {
        match lifecycle {
            Lifecycle::Running => Self::Running,
            Lifecycle::Staging => Self::Staging,
        }
    }
}

impl From<RuleSpec> for policy_v1::Rule {
    fn from(rule: RuleSpec) -> Self {
        let RuleSpec { protocol, destination, ports, icmp_type, icmp_code, description, log } =
            rule;
        Self { protocol, destination, ports, r#type: icmp_type, code: icmp_code, description, log }
    }
}

/// Infallible: a rule's texts and numbers are not validated here.
impl From<policy_v1::Rule> for RuleSpec {
    fn from(rule: policy_v1::Rule) -> Self {
        let policy_v1::Rule { protocol, destination, ports, r#type, code, description, log } = rule;
        Self { protocol, destination, ports, icmp_type: r#type, icmp_code: code, description, log }
    }
}

impl From<SecurityGroup> for policy_v1::SecurityGroup {
    fn from(group: SecurityGroup) -> Self {
        let SecurityGroup { guid, name, rules, running, staging } = group;
        let spaces =
            |scope: &Scope| scope.spaces.iter().map(|space| space.as_str().to_owned()).collect();
        Self {
            guid: guid.as_str().to_owned(),
            name,
            rules: rules.into_iter().map(Into::into).collect(),
            running_default: running.everywhere,
            staging_default: staging.everywhere,
            running_space_guids: spaces(&running),
            staging_space_guids: spaces(&staging),
        }
    }
}

/// Encodes a group as the message `SecurityGroup`; equal groups have equal bytes.
#[must_use]
pub fn encode_group(group: SecurityGroup) -> Bytes {
    policy_v1::SecurityGroup::from(group).encode_to_vec().into()
}

/// Decodes the message `SecurityGroup`.
///
/// # Errors
/// The bytes are not such a message.
pub fn decode_group(encoded: Bytes) -> Result<policy_v1::SecurityGroup, Error> {
    policy_v1::SecurityGroup::decode(encoded).map_err(|error| Error::invalid("group", error))
}

/// A group without most of its fields, which are skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "2")]
    name: String,
}

/// The name of an encoded group, read without its rules; empty if the bytes are not a group.
#[must_use]
pub fn group_name(encoded: Bytes) -> String {
    Named::decode(encoded).map(|named| named.name).unwrap_or_default()
}

fn scope(
    guid: &GroupGuid,
    field: &'static str,
    everywhere: bool,
    spaces: &[String],
) -> Result<Scope, Error> {
    let spaces: BTreeSet<SpaceGuid> = spaces
        .iter()
        .enumerate()
        .map(|(index, space)| {
            SpaceGuid::parse(space)
                .map_err(|error| Error::invalid(format!("group {guid}: {field}[{index}]"), error))
        })
        .collect::<Result<_, _>>()?;
    Ok(Scope { everywhere, spaces })
}

impl TryFrom<policy_v1::SecurityGroup> for SecurityGroup {
    type Error = Error;

    fn try_from(group: policy_v1::SecurityGroup) -> Result<Self, Error> {
        let policy_v1::SecurityGroup {
            guid,
            name,
            rules,
            running_default,
            staging_default,
            running_space_guids,
            staging_space_guids,
        } = group;
        let guid = GroupGuid::parse(&guid).map_err(|error| Error::invalid("guid", error))?;
        let running = scope(&guid, "running_space_guids", running_default, &running_space_guids)?;
        let staging = scope(&guid, "staging_space_guids", staging_default, &staging_space_guids)?;
        let rules = rules.into_iter().map(Into::into).collect();
        Ok(Self { guid, name, rules, running, staging })
    }
}

impl From<&StoredGroup> for policy_v1::StoredGroup {
    fn from(stored: &StoredGroup) -> Self {
        Self { id: stored.id.0, group: encode_group(SecurityGroup::clone(&stored.group)) }
    }
}

impl TryFrom<policy_v1::StoredGroup> for StoredGroup {
    type Error = Error;

    fn try_from(stored: policy_v1::StoredGroup) -> Result<Self, Error> {
        let policy_v1::StoredGroup { id, group } = stored;
        if group.is_empty() {
            return Err(Error::Missing("group"));
        }
        let group = decode_group(group)?.try_into()?;
        Ok(Self { id: GroupId(id), group: Arc::new(group) })
    }
}

/// One manifest entry: a group and its content hash.
impl From<(&GroupGuid, &ContentHash)> for policy_v1::replace_request::ManifestEntry {
    fn from((guid, hash): (&GroupGuid, &ContentHash)) -> Self {
        Self { guid: guid.as_str().to_owned(), content_hash: hash.0.to_vec() }
    }
}

impl TryFrom<policy_v1::replace_request::ManifestEntry> for (GroupGuid, ContentHash) {
    type Error = Error;

    fn try_from(entry: policy_v1::replace_request::ManifestEntry) -> Result<Self, Error> {
        let guid = GroupGuid::parse(&entry.guid)
            .map_err(|error| Error::invalid("manifest entry: guid", error))?;
        let hash = <[u8; 32]>::try_from(entry.content_hash.as_slice()).map_err(|_| {
            Error::invalid(
                format!("manifest entry {guid}: content_hash"),
                format!("has {} bytes, not 32", entry.content_hash.len()),
            )
        })?;
        Ok((guid, ContentHash(hash)))
    }
}

/// Converts a timestamp on the wire to a watermark.
pub(crate) fn watermark(at: prost_types::Timestamp) -> Result<Watermark, Error> {
    Watermark::try_new(at.seconds, i64::from(at.nanos))
        .map_err(|error| Error::invalid("watermark", error))
}

impl policy_v1::replace_request::Begin {
    /// The watermark as a value.
    ///
    /// # Errors
    /// When the watermark is absent or not a valid time.
    pub fn watermark_value(&self) -> Result<Watermark, Error> {
        self.watermark.ok_or(Error::Missing("watermark")).and_then(watermark)
    }
}

/// Converts a watermark to a timestamp on the wire.
#[must_use]
pub fn timestamp(watermark: Watermark) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: watermark.seconds(),
        nanos: i32::try_from(watermark.nanoseconds()).expect("less than a second"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn rules()(
            protocol in "[a-z]{0,6}", destination in "\\PC{0,12}", ports in "[0-9,-]{0,8}",
            icmp_type: i32, icmp_code: i32, description in "\\PC{0,8}", log: bool,
        ) -> RuleSpec {
            RuleSpec { protocol, destination, ports, icmp_type, icmp_code, description, log }
        }
    }

    prop_compose! {
        fn scopes()(
            everywhere: bool,
            spaces in proptest::collection::btree_set("[a-z0-9-]{1,12}", 0..4),
        ) -> Scope {
            let spaces = spaces.iter().map(|text| SpaceGuid::parse(text).unwrap()).collect();
            Scope { everywhere, spaces }
        }
    }

    prop_compose! {
        fn groups()(
            guid in "[a-z0-9-]{1,36}", name in "\\PC{0,20}",
            rules in proptest::collection::vec(rules(), 0..4),
            running in scopes(), staging in scopes(),
        ) -> SecurityGroup {
            SecurityGroup { guid: GroupGuid::parse(&guid).unwrap(), name, rules, running, staging }
        }
    }

    proptest! {
        #[test]
        fn a_group_survives_the_wire(group in groups(), id: u64) {
            let stored = StoredGroup { id: GroupId(id), group: Arc::new(group) };
            let back = StoredGroup::try_from(policy_v1::StoredGroup::from(&stored)).unwrap();
            prop_assert_eq!(back.group.content_hash(), stored.group.content_hash());
            prop_assert_eq!(back, stored);
        }
    }

    /// The contract's form of `StoredGroup`, with an embedded message.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Embedded {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(message, optional, tag = "2")]
        group: Option<policy_v1::SecurityGroup>,
    }

    #[test]
    fn an_encoded_group_is_an_embedded_message_on_the_wire() {
        let name = "one".to_owned();
        let group = policy_v1::SecurityGroup { name, running_default: true, ..Default::default() };
        let stored = policy_v1::StoredGroup { id: 7, group: group.encode_to_vec().into() };
        let embedded = Embedded { id: 7, group: Some(group) };
        assert_eq!(stored.encode_to_vec(), embedded.encode_to_vec());
        let none = Embedded { id: 7, group: None }.encode_to_vec();
        let none = policy_v1::StoredGroup::decode(&*none).unwrap();
        assert_eq!(StoredGroup::try_from(none), Err(Error::Missing("group")));
    }

    #[test]
    fn an_error_names_group_field_and_value() {
        let wire = policy_v1::SecurityGroup {
            guid: "g1".to_owned(),
            running_space_guids: vec!["s1".to_owned(), "s\n2".to_owned()],
            ..Default::default()
        };
        assert_eq!(
            SecurityGroup::try_from(wire).unwrap_err().to_string(),
            "group g1: running_space_guids[1]: space guid \"s\\n2\" holds a control character"
        );
        let entry = policy_v1::replace_request::ManifestEntry {
            guid: "g1".to_owned(),
            content_hash: vec![1, 2],
        };
        assert_eq!(
            <(GroupGuid, ContentHash)>::try_from(entry).unwrap_err().to_string(),
            "manifest entry g1: content_hash: has 2 bytes, not 32"
        );
    }
}
