//! JSON documents of responses (docs/compatibility/cloud-controller.md#security-group,
//! #cli).
//!
//! Every URL is absolute and begins with the [`Base`] that the client used: clients
//! follow URLs literally.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::json::{Json, Object, object};
use super::ruby;
use super::state::access::Spaces;
use super::state::{Group, Job, Lifecycle, Organization, Role, Space, State};
use super::validate::query::Query;

/// The announced API version.
pub(crate) const API_VERSION: &str = "3.228.0";

/// `http://host:port`, as the client wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    /// `http` or `https`.
    pub(crate) scheme: &'static str,
    /// The host, with the port if the client named one.
    pub(crate) host: String,
}

impl Base {
    /// The URL of a path, which begins with a slash.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.host)
    }

    /// The same host with another port.
    pub(crate) fn at_port(&self, port: u16) -> String {
        let host = match self.host.rsplit_once(':') {
            Some((host, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.host,
        };
        format!("{}://{host}:{port}", self.scheme)
    }
}

fn link(href: String) -> Json {
    object! { "href": href }
}

fn time(time: Timestamp) -> String {
    time.to_string()
}

fn guids<'a>(guids: impl IntoIterator<Item = &'a String>) -> Json {
    let data: Json = guids.into_iter().map(|guid| object! { "guid": guid }).collect();
    object! { "data": data }
}

/// A security group; only spaces in `visible` are included.
pub(crate) fn group(group: &Group, visible: &Spaces, base: &Base) -> Json {
    let shown = |lifecycle| guids(group.spaces(lifecycle).iter().filter(|guid| visible.has(guid)));
    let href = base.url(&format!("/v3/security_groups/{}", group.guid));
    object! {
        "guid": &group.guid,
        "created_at": time(group.created_at),
        "updated_at": time(group.updated_at),
        "name": &group.name,
        "rules": group.rules.clone(),
        "globally_enabled": object! { "running": group.running, "staging": group.staging },
        "relationships": object! {
            "running_spaces": shown(Lifecycle::Running),
            "staging_spaces": shown(Lifecycle::Staging),
        },
        "links": object! { "self": link(href) },
    }
}

/// The response to a bind request: every bound space.
pub(crate) fn bound_spaces(group: &Group, lifecycle: Lifecycle, base: &Base) -> Json {
    let path =
        format!("/v3/security_groups/{}/relationships/{}_spaces", group.guid, lifecycle.name());
    let data: Json = group.spaces(lifecycle).iter().map(|guid| object! { "guid": guid }).collect();
    object! { "data": data, "links": object! { "self": link(base.url(&path)) } }
}

fn metadata(sent: Option<&Json>) -> Json {
    let part = |key: &str| {
        let part = sent.and_then(|metadata| metadata.at(&[key])).cloned();
        part.filter(|part| part.as_object().is_some()).unwrap_or_else(|| object! {})
    };
    object! { "labels": part("labels"), "annotations": part("annotations") }
}

fn to_one(guid: impl Into<Json>) -> Json {
    object! { "data": object! { "guid": guid } }
}

/// An organization.
pub(crate) fn organization(organization: &Organization, quota: &str, base: &Base) -> Json {
    let path = format!("/v3/organizations/{}", organization.guid);
    let below = |rest: &str| link(base.url(&format!("{path}{rest}")));
    object! {
        "guid": &organization.guid,
        "created_at": time(organization.created_at),
        "updated_at": time(organization.updated_at),
        "name": &organization.name,
        "suspended": organization.suspended,
        "relationships": object! { "quota": to_one(quota) },
        "metadata": metadata(organization.metadata.as_ref()),
        "links": object! {
            "self": below(""),
            "domains": below("/domains"),
            "default_domain": below("/domains/default"),
            "quota": link(base.url(&format!("/v3/organization_quotas/{quota}"))),
        },
    }
}

/// A space.
pub(crate) fn space(space: &Space, base: &Base) -> Json {
    let path = format!("/v3/spaces/{}", space.guid);
    let below = |rest: &str| link(base.url(&format!("{path}{rest}")));
    object! {
        "guid": &space.guid,
        "created_at": time(space.created_at),
        "updated_at": time(space.updated_at),
        "name": &space.name,
        "relationships": object! {
            "organization": to_one(&space.organization),
            "quota": object! { "data": Json::Null },
        },
        "metadata": metadata(space.metadata.as_ref()),
        "links": object! {
            "self": below(""),
            "organization": link(base.url(&format!("/v3/organizations/{}", space.organization))),
            "features": below("/features"),
            "apply_manifest": below("/actions/apply_manifest"),
            "running_security_groups": below("/running_security_groups"),
            "staging_security_groups": below("/staging_security_groups"),
        },
    }
}

/// A role.
pub(crate) fn role(role: &Role, base: &Base) -> Json {
    let place = |guid: &Option<String>| match guid {
        Some(guid) => to_one(guid),
        None => object! { "data": Json::Null },
    };
    object! {
        "guid": &role.guid,
        "created_at": time(role.created_at),
        "updated_at": time(role.created_at),
        "type": &role.kind,
        "relationships": object! {
            "user": to_one(&role.user),
            "organization": place(&role.organization),
            "space": place(&role.space),
        },
        "links": object! {
            "self": link(base.url(&format!("/v3/roles/{}", role.guid))),
            "user": link(base.url(&format!("/v3/users/{}", role.user))),
        },
    }
}

/// The Cloud Controller's view of a user.
pub(crate) fn user(guid: &str, name: Option<&String>, base: &Base) -> Json {
    object! {
        "guid": guid,
        "username": name.cloned(),
        "presentation_name": name.cloned().unwrap_or_else(|| guid.to_owned()),
        "origin": name.map(|_| "uaa"),
        "metadata": metadata(None),
        "links": object! { "self": link(base.url(&format!("/v3/users/{guid}"))) },
    }
}

/// A job; all jobs are complete.
pub(crate) fn job(job: &Job, base: &Base) -> Json {
    object! {
        "guid": &job.guid,
        "created_at": time(job.created_at),
        "updated_at": time(job.created_at),
        "operation": &job.operation,
        "state": "COMPLETE",
        "errors": Vec::new(),
        "warnings": Vec::new(),
        "links": object! { "self": link(base.url(&format!("/v3/jobs/{}", job.guid))) },
    }
}

/// One page of `all`, which must be sorted.
pub(crate) fn page<T>(
    all: &[T],
    query: &Query,
    path: &str,
    base: &Base,
    present: impl Fn(&T) -> Json,
) -> Object {
    let resources: Json = shown(all, query).into_iter().map(present).collect();
    let mut document = Object::new();
    document.set("pagination", pagination(all.len(), query, path, base));
    document.set("resources", resources);
    document
}

fn pagination(total: usize, query: &Query, path: &str, base: &Base) -> Json {
    let pages = total.div_ceil(query.per_page).max(1);
    let href = |page: usize| {
        let mut parameters = query.filter_parameters();
        parameters.push(("page".to_owned(), page.to_string()));
        parameters.push(("per_page".to_owned(), query.per_page.to_string()));
        parameters.extend(query.order_by.map(|o| ("order_by".to_owned(), o.to_parameter())));
        parameters.sort();
        let text =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        link(base.url(&format!("{path}?{text}")))
    };
    let next = (query.page < pages).then(|| href(query.page + 1));
    let previous = (query.page > 1).then(|| href(query.page - 1));
    object! {
        "total_results": total,
        "total_pages": pages,
        "first": href(1),
        "last": href(pages),
        "next": next,
        "previous": previous,
    }
}

/// An empty page, for unsupported resources.
pub(crate) fn empty_page(path: &str, base: &Base) -> Json {
    page::<Json>(&[], &Query::default(), path, base, Json::clone).into()
}

/// The items on the requested page.
fn shown<'a, T>(all: &'a [T], query: &Query) -> Vec<&'a T> {
    let start = query.page.saturating_sub(1).saturating_mul(query.per_page);
    all.iter().skip(start).take(query.per_page).collect()
}

/// The `include`d part of a list of roles: users, spaces and organizations of the page,
/// each once.
pub(crate) fn included_with_roles(
    state: &State,
    roles: &[Arc<Role>],
    query: &Query,
    base: &Base,
) -> Json {
    let roles = shown(roles, query);
    let wants =
        |kind: &str| query.list("include").is_some_and(|list| list.iter().any(|i| i == kind));
    let mut included = Object::new();
    if wants("user") {
        let guids: BTreeSet<&String> = roles.iter().map(|role| &role.user).collect();
        let users = guids.into_iter().map(|guid| user(guid, state.user_name(guid), base));
        included.set("users", users.collect::<Json>());
    }
    if wants("space") {
        let of_role =
            |s: &&Arc<Space>| roles.iter().any(|role| role.space.as_ref() == Some(&s.guid));
        let spaces = state.spaces().filter(of_role).map(|s| space(s, base));
        included.set("spaces", spaces.collect::<Json>());
    }
    if wants("organization") {
        let of_role = |o: &&Arc<Organization>| {
            roles.iter().any(|role| role.organization.as_ref() == Some(&o.guid))
        };
        let organizations = state.organizations().filter(of_role);
        let organizations = organizations.map(|o| organization(o, state.quota_guid(), base));
        included.set("organizations", organizations.collect::<Json>());
    }
    included.into()
}

/// The organizations of the spaces on a page, each once.
pub(crate) fn included_organizations(
    state: &State,
    spaces: &[Arc<Space>],
    query: &Query,
    base: &Base,
) -> Json {
    let shown = shown(spaces, query);
    let belongs = |o: &&Arc<Organization>| shown.iter().any(|space| space.organization == o.guid);
    let organizations = state.organizations().filter(belongs);
    let organizations: Json =
        organizations.map(|o| organization(o, state.quota_guid(), base)).collect();
    object! { "organizations": organizations }
}

/// `/`: the document from which the cf CLI discovers all endpoints.
pub(crate) fn root(base: &Base, uaa_port: u16) -> Json {
    let uaa = base.at_port(uaa_port);
    object! {
        "links": object! {
            "self": link(base.url("")),
            "cloud_controller_v2": Json::Null,
            "cloud_controller_v3": object! {
                "href": base.url("/v3"),
                "meta": object! { "version": API_VERSION },
            },
            "network_policy_v0": link(base.url("/networking/v0/external")),
            "network_policy_v1": link(base.url("/networking/v1/external")),
            "login": link(uaa.clone()),
            "uaa": link(uaa),
            "credhub": Json::Null,
            "routing": Json::Null,
            "logging": Json::Null,
            "log_cache": Json::Null,
            "log_stream": Json::Null,
            "app_ssh": Json::Null,
        },
    }
}

/// `/v3`
pub(crate) fn v3_root(base: &Base) -> Json {
    let resources = [
        "apps",
        "domains",
        "isolation_segments",
        "organizations",
        "organization_quotas",
        "roles",
        "security_groups",
        "service_instances",
        "spaces",
        "users",
    ];
    let mut links = Object::new();
    links.set("self", link(base.url("/v3")));
    for name in resources {
        links.set(name, link(base.url(&format!("/v3/{name}"))));
    }
    object! { "links": links }
}

/// `/v3/info`
pub(crate) fn v3_info(base: &Base) -> Json {
    object! {
        "build": concat!("portcullis-dev ", env!("CARGO_PKG_VERSION")),
        "cli_version": object! { "minimum": "", "recommended": "" },
        "custom": object! {},
        "description": "The development Cloud Controller of Portcullis",
        "name": "portcullis-dev",
        "version": 0i64,
        "osbapi_version": "2.15",
        "rate_limits": object! {
            "enabled": false,
            "general_limit": 0i64,
            "reset_interval_in_minutes": 0i64,
        },
        "links": object! {
            "self": link(base.url("/v3/info")),
            "support": link(String::new()),
        },
    }
}

/// `/internal/v4/asg_latest_update`: nine fractional digits, of which the last three
/// are zeros.
pub(crate) fn last_update(microseconds: i64) -> Json {
    let time = Timestamp::from_microsecond(microseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let text = time.strftime("%Y-%m-%dT%H:%M:%S.%9f+00:00").to_string();
    object! { "last_update": text }
}

/// Sorts a listing as its query requests. The default is creation order.
pub(crate) fn sort<T>(
    found: &mut [T],
    query: &Query,
    key: impl Fn(&T) -> (Timestamp, Timestamp, &str),
) {
    use super::validate::query::Column;
    let Some(order) = query.order_by else { return };
    match order.column {
        Column::CreatedAt => found.sort_by_key(|entry| key(entry).0),
        Column::UpdatedAt => found.sort_by_key(|entry| key(entry).1),
        Column::Name => found.sort_by(|a, b| key(a).2.cmp(key(b).2)),
    }
    if order.descending {
        found.reverse();
    }
}

/// The GUIDs for a log line, as Ruby prints them.
pub(crate) fn guid_list(guids: &[String]) -> String {
    ruby::inspect_all(guids.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_has_nine_digits() {
        let text = |stamp| last_update(stamp).to_text();
        assert_eq!(text(0), r#"{"last_update":"1970-01-01T00:00:00.000000000+00:00"}"#);
        assert_eq!(
            text(1_795_399_963_691_713),
            r#"{"last_update":"2026-11-23T02:12:43.691713000+00:00"}"#
        );
    }

    #[test]
    fn other_ports_of_the_same_host() {
        for (host, expected) in [
            ("api.example:9022", "http://api.example:8080"),
            ("api.example", "http://api.example:8080"),
            ("[::1]:9022", "http://[::1]:8080"),
            ("[::1]", "http://[::1]:8080"),
        ] {
            let base = Base { scheme: "http", host: host.to_owned() };
            assert_eq!(base.at_port(8080), expected);
        }
    }

    #[test]
    fn hrefs_repeat_the_query() {
        let parameters = [
            ("names".to_owned(), "a,b c%2Cd".to_owned()),
            ("order_by".to_owned(), "-updated_at".to_owned()),
            ("page".to_owned(), "2".to_owned()),
            ("per_page".to_owned(), "1".to_owned()),
        ];
        let spec = crate::validate::query::SECURITY_GROUPS;
        let query = crate::validate::query::read(&parameters, &spec).unwrap();
        let base = Base { scheme: "https", host: "h:1".to_owned() };
        let document = page(&[1i64, 2, 3], &query, "/v3/x", &base, |n| Json::from(*n));
        let at = |page| {
            format!(
                "https://h:1/v3/x?names=a%2Cb+c%252Cd&order_by=-updated_at&page={page}&per_page=1"
            )
        };
        let page = Json::from(document);
        let href = |key: &str| page.at(&["pagination", key, "href"]).and_then(Json::as_str);
        assert_eq!(href("first"), Some(at(1).as_str()));
        assert_eq!(href("previous"), Some(at(1).as_str()));
        assert_eq!(href("next"), Some(at(3).as_str()));
        assert_eq!(href("last"), Some(at(3).as_str()));
        assert_eq!(page.at(&["resources"]).map(Json::to_text).as_deref(), Some("[2]"));
    }
}
