//! The command `groups`: security groups in the policy store.

use anyhow::{Context as _, bail};
use proto::{
    cell_v1::RuleSource,
    policy_v1::{ListRequest, SecurityGroup, StoredGroup, policy_store_client::PolicyStoreClient},
};

use crate::{
    cell::{RULES, Written},
    connect::Connection,
    field::{Field, rows},
    report::{Report, warn},
};

/// Size limit of a page, which may hold groups as large as the Cloud Controller allows.
const LARGEST_PAGE: usize = 64 << 20;

/// A stored group.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    id: u64,
    pub(crate) group: SecurityGroup,
}

impl TryFrom<StoredGroup> for Group {
    type Error = proto::Error;

    fn try_from(stored: StoredGroup) -> Result<Self, proto::Error> {
        Ok(Self { id: stored.id, group: proto::decode_group(stored.group)? })
    }
}

pub(crate) const GROUPS: &[Field<Group>] = &[
    Field::text("name", |of| of.group.name.clone()),
    Field::text("guid", |of| of.group.guid.clone()),
    Field::integer("rules", |of| Some(of.group.rules.len() as u64)),
    Field::boolean("running_everywhere", |of| of.group.running_default),
    Field::texts("running", |of| of.group.running_space_guids.clone()),
    Field::boolean("staging_everywhere", |of| of.group.staging_default),
    Field::texts("staging", |of| of.group.staging_space_guids.clone()),
    Field::integer("id", |of| Some(of.id)),
];

pub(crate) const DESCRIBED: &[Field<Group>] = &[
    Field::text("name", |of| of.group.name.clone()),
    Field::text("guid", |of| of.group.guid.clone()),
    Field::integer("id", |of| Some(of.id)),
    Field::boolean("running_everywhere", |of| of.group.running_default),
    Field::texts("running", |of| of.group.running_space_guids.clone()),
    Field::boolean("staging_everywhere", |of| of.group.staging_default),
    Field::texts("staging", |of| of.group.staging_space_guids.clone()),
    Field::rows("rules", |of| rows(RULES, rules(of))),
];

/// One group with its rules.
pub(crate) async fn describe(connection: &Connection, name: &str) -> anyhow::Result<Report> {
    let mut found = matching(fetch(connection, &[]).await?, name)?;
    if found.len() > 1 {
        // Names are unique in the Cloud Controller.
        let guids: Vec<&str> = found.iter().map(|of| of.group.guid.as_str()).collect();
        bail!("several security groups have the name {name:?}: {}", guids.join(", "));
    }
    Ok(Report::record(DESCRIBED, found.remove(0)))
}

/// The report, and whether each requested space has a group.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) reports: Vec<Report>,
    pub(crate) spaces_known: bool,
}

/// All groups, or those of some spaces; with a name, the rules of one.
pub(crate) async fn groups(
    connection: &Connection,
    name: Option<String>,
    spaces: Vec<String>,
) -> anyhow::Result<Found> {
    let groups = fetch(connection, &spaces).await?;
    let mut spaces_known = true;
    for space in spaces.iter().filter(|space| !groups.iter().any(|group| is_bound(group, space))) {
        spaces_known = false;
        warn(&unbound(space));
    }
    let reports = match name {
        None => vec![Report::list(GROUPS, groups)],
        Some(name) => one(groups, &name)?,
    };
    Ok(Found { reports, spaces_known })
}

/// All groups, or those that apply to any of some spaces.
pub(crate) async fn fetch(
    connection: &Connection,
    spaces: &[String],
) -> anyhow::Result<Vec<Group>> {
    let (all, space_guids) = (spaces.is_empty(), spaces.to_vec());
    let mut request = ListRequest { all, space_guids, page_size: 0, page_token: 0 };
    let mut groups = Vec::new();
    loop {
        let call = async |channel| {
            let client = PolicyStoreClient::new(channel);
            client.max_decoding_message_size(LARGEST_PAGE).list(request.clone()).await
        };
        let page = connection.ask_a_store("list groups", call).await?.into_inner();
        for stored in page.groups {
            groups.push(stored.try_into().context("list groups")?);
        }
        match page.next_page_token {
            0 => return Ok(groups),
            next => request.page_token = next,
        }
    }
}

/// Whether the group is bound to the space.
pub(crate) fn is_bound(group: &Group, space: &str) -> bool {
    let SecurityGroup { running_space_guids, staging_space_guids, .. } = &group.group;
    running_space_guids.iter().chain(staging_space_guids).any(|guid| guid == space)
}

/// Warning for a space without groups.
pub(crate) fn unbound(space: &str) -> String {
    format!(
        "no security group is bound to the space {space:?}: either only global groups apply to \
         the space, or the space does not exist"
    )
}

/// The group, and its rules.
fn one(groups: Vec<Group>, name: &str) -> anyhow::Result<Vec<Report>> {
    let reports = matching(groups, name)?.into_iter().flat_map(|group| {
        let rules: Vec<Written> = rules(&group).collect();
        [Report::heading(GROUPS, group), Report::list(RULES, rules)]
    });
    Ok(reports.collect())
}

/// The groups with this name or GUID, or the only one with this GUID prefix.
fn matching(groups: Vec<Group>, name: &str) -> anyhow::Result<Vec<Group>> {
    let exact = |group: &Group| group.group.name == name || group.group.guid == name;
    let prefix = |group: &Group| !name.is_empty() && group.group.guid.starts_with(name);
    let (mut found, rest): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(exact);
    if found.is_empty() {
        found = rest.into_iter().filter(prefix).collect();
        if found.len() > 1 {
            let guids: Vec<&str> = found.iter().map(|of| of.group.guid.as_str()).take(5).collect();
            bail!("{name:?} is a prefix of the guids of several groups: {}", guids.join(", "));
        }
    }
    if found.is_empty() {
        bail!("no security group has the name or guid {name:?}");
    }
    Ok(found)
}

/// The rules as written; only cells know whether they are enforced.
fn rules(group: &Group) -> impl Iterator<Item = Written> {
    let (guid, name) = (&group.group.guid, &group.group.name);
    (0..).zip(&group.group.rules).map(|(rule_index, rule)| {
        let source = RuleSource { group_guid: guid.clone(), group_name: name.clone(), rule_index };
        Written { rule: rule.clone(), source, problem: String::new() }
    })
}

#[cfg(test)]
mod tests {
    use proto::policy_v1::Rule;

    use super::*;

    fn groups() -> Vec<Group> {
        let group = |id, guid: &str, name: &str| Group {
            id,
            group: SecurityGroup {
                guid: guid.to_owned(),
                name: name.to_owned(),
                rules: vec![Rule { protocol: "all".to_owned(), ..Rule::default() }],
                running_space_guids: vec!["s1".to_owned()],
                ..SecurityGroup::default()
            },
        };
        vec![group(1, "abc-1", "dns"), group(2, "abc-2", "abc-1x"), group(3, "d", "a\u{1b}[31m")]
    }

    fn found(name: &str) -> Result<String, String> {
        match one(groups(), name) {
            Ok(reports) => Ok(reports.iter().map(Report::to_json).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_group_is_found_by_name_guid_or_prefix_and_shows_its_rules() {
        for name in ["dns", "abc-1"] {
            let rules = found(name).unwrap();
            assert!(
                rules.starts_with("{\"group\":\"dns\",\"rule_index\":0,\"protocol\":\"all\""),
                "{rules}"
            );
            assert_eq!(rules.lines().count(), 1, "{rules}");
        }
        assert!(found("d").unwrap().contains("\\u001b[31m"));
        assert!(found("abc-2").unwrap().contains("\"group_guid\":\"abc-2\""));
        assert!(found("abc").unwrap_err().contains("abc-1, abc-2"));
        assert!(found("nobody").unwrap_err().contains("\"nobody\""));
        assert!(found("").is_err());
        assert!(is_bound(&groups()[0], "s1"));
        assert!(!is_bound(&groups()[0], "typo"));
    }
}
