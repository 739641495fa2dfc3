//! `diff`: the Cloud Controller against the policy store, and the policy store against the cells.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, bail};
use proto::policy_v1::{Rule, SecurityGroup};
use runtime::{
    https::{Servers, TlsClient, builder},
    tls::ClientTls,
};
use serde::Deserialize;

use crate::{
    cells::{self, Seen},
    connect::Connection,
    context::CloudController,
    field::{Field, Tone},
    groups,
    report::{Report, warn},
};

/// Groups of a page.
const PAGE: u32 = 1_000;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    between: &'static str,
    what: &'static str,
    name: String,
    guid: String,
    detail: String,
}

pub(crate) const DIFFERENCES: &[Field<Difference>] = &[
    Field::text("between", |of| of.between.to_owned()),
    Field::toned(Field::text("difference", |of| of.what.to_owned()), |_| Tone::Warning),
    Field::text("name", |of| of.name.clone()),
    Field::text("detail", |of| of.detail.clone()),
    Field::wide(Field::text("guid", |of| of.guid.clone())),
];

/// All differences. Without a URL of the Cloud Controller only those of the cells.
pub(crate) async fn diff(
    connection: &Connection,
    cloud_controller: CloudController,
) -> anyhow::Result<(Report, bool)> {
    let CloudController { url, ca } = cloud_controller;
    let configured = &connection.cloud_controller;
    let mut found = Vec::new();
    let given = url.is_some();
    if let Some(url) = url.or_else(|| configured.url.clone()) {
        let theirs = list(connection, &url, ca.or_else(|| configured.ca.clone())).await;
        match theirs.with_context(|| format!("Cloud Controller {url}")) {
            Ok(theirs) => {
                let ours = groups::fetch(connection, &[]).await?;
                let ours = ours.into_iter().map(|group| group.group).collect();
                found.extend(of_groups(theirs, ours));
            }
            Err(error) if given => return Err(error),
            // The URL of the context is not a request to ask there.
            Err(error) => warn(&format!("not compared: {error:#}")),
        }
    }
    found.extend(cells::fetch(connection, "").await?.iter().flat_map(of_cell));
    let any = !found.is_empty();
    Ok((Report::list(DIFFERENCES, found), any))
}

#[derive(Debug, Deserialize)]
struct Page {
    pagination: Pagination,
    resources: Vec<Resource>,
}

#[derive(Debug, Deserialize)]
struct Pagination {
    total_pages: u32,
}

#[derive(Debug, Deserialize)]
struct Resource {
    guid: String,
    name: String,
    #[serde(default)]
    rules: Vec<RawRule>,
    globally_enabled: Globally,
    relationships: Relationships,
}

#[derive(Debug, Deserialize)]
struct RawRule {
    protocol: String,
    destination: String,
    ports: Option<String>,
    r#type: Option<i32>,
    code: Option<i32>,
    description: Option<String>,
    log: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Globally {
    running: bool,
    staging: bool,
}

#[derive(Debug, Deserialize)]
struct Relationships {
    running_spaces: Spaces,
    staging_spaces: Spaces,
}

#[derive(Debug, Deserialize)]
struct Spaces {
    data: Vec<Space>,
}

#[derive(Debug, Deserialize)]
struct Space {
    guid: String,
}

impl From<Resource> for SecurityGroup {
    fn from(resource: Resource) -> Self {
        let Resource { guid, name, rules, globally_enabled, relationships } = resource;
        let rule = |rule: RawRule| Rule {
            protocol: rule.protocol,
            destination: rule.destination,
            ports: rule.ports.unwrap_or_default(),
            r#type: rule.r#type.unwrap_or_default(),
            code: rule.code.unwrap_or_default(),
            description: rule.description.unwrap_or_default(),
            log: rule.log.unwrap_or_default(),
        };
        let guids = |spaces: Spaces| spaces.data.into_iter().map(|space| space.guid).collect();
        Self {
            guid,
            name,
            rules: rules.into_iter().map(rule).collect(),
            running_default: globally_enabled.running,
            staging_default: globally_enabled.staging,
            running_space_guids: guids(relationships.running_spaces),
            staging_space_guids: guids(relationships.staging_spaces),
        }
    }
}

/// All groups of the Cloud Controller.
async fn list(
    connection: &Connection,
    url: &str,
    ca: Option<PathBuf>,
) -> anyhow::Result<Vec<SecurityGroup>> {
    let servers = Servers::new(&[url]);
    let client = match ca {
        Some(ca) => {
            let tls = ClientTls::trusting(&[ca])?;
            TlsClient::new(tls, "portcullisctl".to_owned(), servers, |builder| builder).client()?
        }
        None => builder("portcullisctl", &servers).build()?,
    };
    let token = token()?;
    let mut groups = Vec::new();
    for page in 1.. {
        let base = url.trim_end_matches('/');
        let target =
            format!("{base}/v3/security_groups?per_page={PAGE}&page={page}&order_by=created_at");
        let request = client.get(target).timeout(connection.timeout());
        let response = request.header("Authorization", &token).send().await.context("no answer")?;
        let status = response.status();
        let text = response.text().await.context("reading the answer")?;
        if !status.is_success() {
            let start: String = text.chars().take(200).collect();
            bail!("GET /v3/security_groups: HTTP {status}: {start}");
        }
        let answer: Page = serde_json::from_str(&text).context("GET /v3/security_groups")?;
        groups.extend(answer.resources.into_iter().map(SecurityGroup::from));
        if page >= answer.pagination.total_pages {
            break;
        }
    }
    Ok(groups)
}

/// The token of the variable CF_TOKEN, or of `cf oauth-token`.
fn token() -> anyhow::Result<String> {
    let given = std::env::var("CF_TOKEN").ok().filter(|token| !token.is_empty());
    let token = match given {
        Some(token) => token,
        None => {
            let output = Command::new("cf").arg("oauth-token").output();
            let output = output.context("set CF_TOKEN, or install the cf CLI: cf oauth-token")?;
            if !output.status.success() {
                bail!("cf oauth-token ended with {}: log in with cf login", output.status);
            }
            String::from_utf8(output.stdout).context("cf oauth-token")?.trim().to_owned()
        }
    };
    let has_scheme = token.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer "));
    Ok(if has_scheme { token } else { format!("bearer {token}") })
}

const OF_GROUPS: &str = "Cloud Controller and store";

fn of_groups(theirs: Vec<SecurityGroup>, ours: Vec<SecurityGroup>) -> Vec<Difference> {
    let difference = |what, group: &SecurityGroup, detail| Difference {
        between: OF_GROUPS,
        what,
        name: group.name.clone(),
        guid: group.guid.clone(),
        detail,
    };
    let mut ours: BTreeMap<String, SecurityGroup> =
        ours.into_iter().map(|group| (group.guid.clone(), group)).collect();
    let mut found = Vec::new();
    for group in theirs {
        match ours.remove(&group.guid) {
            None => found.push(difference("only in the Cloud Controller", &group, String::new())),
            Some(own) => {
                let parts = parts(&group, &own);
                if !parts.is_empty() {
                    found.push(difference("differs", &group, parts.join("; ")));
                }
            }
        }
    }
    found.extend(ours.values().map(|group| difference("only in the store", group, String::new())));
    found
}

/// What differs between two versions of a group.
fn parts(theirs: &SecurityGroup, ours: &SecurityGroup) -> Vec<String> {
    let mut parts = Vec::new();
    if theirs.name != ours.name {
        parts.push(format!("the store has the name {}", ours.name));
    }
    if theirs.rules != ours.rules {
        let (one, other) = (theirs.rules.len(), ours.rules.len());
        let counts = if one == other { String::new() } else { format!(" ({one} and {other})") };
        parts.push(format!("rules{counts}"));
    }
    for (what, theirs, ours) in [
        ("running everywhere", theirs.running_default, ours.running_default),
        ("staging everywhere", theirs.staging_default, ours.staging_default),
    ] {
        if theirs != ours {
            parts.push(format!("{what}: {theirs} and {ours}"));
        }
    }
    for (what, theirs, ours) in [
        ("running spaces", &theirs.running_space_guids, &ours.running_space_guids),
        ("staging spaces", &theirs.staging_space_guids, &ours.staging_space_guids),
    ] {
        let [theirs, ours] = [theirs, ours].map(|guids| guids.iter().collect::<BTreeSet<_>>());
        let (missing, extra) = (theirs.difference(&ours).count(), ours.difference(&theirs).count());
        if missing + extra > 0 {
            parts.push(format!("{what}: the store lacks {missing} and has {extra} more"));
        }
    }
    parts
}

fn of_cell(seen: &Seen) -> Vec<Difference> {
    let difference = |what, detail| Difference {
        between: "store and cell",
        what,
        name: seen.id().to_owned(),
        guid: String::new(),
        detail,
    };
    let status = seen.status();
    let mut found = Vec::new();
    if seen.behind() > 0 {
        let (has, newest) = (status.enforced_generation, seen.generation);
        let detail = format!("generation {has} is in force, {newest} is the newest");
        found.push(difference("behind", detail));
    }
    if !status.connected {
        found.push(difference("not connected", "the state is that of its last report".to_owned()));
    }
    if status.isolated_rules > 0 {
        let detail = format!("{} rules (describe cell)", status.isolated_rules);
        found.push(difference("isolated rules", detail));
    }
    if !seen.cell.last_error.is_empty() {
        found.push(difference("error", seen.cell.last_error.clone()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(guid: &str, spaces: &[&str]) -> SecurityGroup {
        SecurityGroup {
            guid: guid.to_owned(),
            name: format!("name of {guid}"),
            running_space_guids: spaces.iter().map(|&space| space.to_owned()).collect(),
            ..SecurityGroup::default()
        }
    }

    #[test]
    fn groups_are_compared_by_guid() {
        let theirs = vec![group("a", &["s", "t"]), group("b", &["s"]), group("c", &[])];
        let ours = vec![group("a", &["t", "s"]), group("b", &["u"]), group("d", &[])];
        let found = of_groups(theirs, ours);
        let found: Vec<_> =
            found.iter().map(|of| (of.guid.as_str(), of.what, of.detail.as_str())).collect();
        assert_eq!(
            found,
            [
                ("b", "differs", "running spaces: the store lacks 1 and has 1 more"),
                ("c", "only in the Cloud Controller", ""),
                ("d", "only in the store", ""),
            ]
        );
        let mut other = group("a", &[]);
        other.rules.push(Rule::default());
        other.staging_default = true;
        other.name = "new".to_owned();
        assert_eq!(
            parts(&group("a", &[]), &other),
            ["the store has the name new", "rules (0 and 1)", "staging everywhere: false and true"]
        );
    }

    #[test]
    fn a_page_of_the_cloud_controller_is_read() {
        let text = r#"{"pagination": {"total_results": 1, "total_pages": 1, "next": null},
            "resources": [{"guid": "g", "name": "n", "created_at": "2020-01-01T00:00:00Z",
            "rules": [{"protocol": "icmp", "destination": "1.2.3.4", "type": 8, "code": 0}],
            "globally_enabled": {"running": true, "staging": false}, "links": {},
            "relationships": {"running_spaces": {"data": [{"guid": "s"}]},
            "staging_spaces": {"data": []}}}]}"#;
        let page: Page = serde_json::from_str(text).expect("a page");
        let group = SecurityGroup::from(page.resources.into_iter().next().expect("a group"));
        assert_eq!(group.rules[0].r#type, 8);
        assert!(group.running_default && group.running_space_guids == ["s"]);
    }
}
