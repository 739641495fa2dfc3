//! Parses the JSON of policy-server-internal
//! (docs/compatibility/vxlan-policy-agent.md#calls,
//! docs/compatibility/policy-server-internal.md#routes). Pure.
//!
//! An unreadable group or rule is reported by name and affects nothing else: the rule
//! counts as unenforceable, so that the others keep their indexes, and the last good
//! version of the group stays. A response without a list is an error, and never an
//! empty list.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    effective::ReadGroup,
    group::{GroupId, StoredGroup},
    ids::GroupGuid,
};
use proto::policy_v1::{Rule, SecurityGroup};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

/// Maximum length of a shown value.
const LONGEST: usize = 120;

/// Groups by GUID.
pub type Groups = BTreeMap<GroupGuid, Arc<ReadGroup>>;

/// One response.
#[derive(Debug)]
pub struct Page {
    /// Start of the next page; 0 when there is none.
    pub next: u64,
    /// Groups in the order of the server.
    pub groups: Vec<Entry>,
}

/// One group of a response.
#[derive(Debug)]
pub struct Entry {
    /// Its GUID, if readable.
    pub guid: Option<String>,
    /// The group, or the error.
    pub group: Result<SecurityGroup, String>,
    /// Rules that cannot be parsed, each as a sentence.
    pub problems: Vec<String>,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    next: Option<u64>,
    #[serde(borrow)]
    security_groups: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawGuid {
    guid: String,
}

#[derive(Deserialize)]
struct RawGroup {
    guid: String,
    #[serde(default)]
    name: Option<String>,
    rules: String,
    #[serde(default)]
    staging_default: Option<bool>,
    #[serde(default)]
    running_default: Option<bool>,
    #[serde(default)]
    staging_space_guids: Option<Vec<String>>,
    #[serde(default)]
    running_space_guids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRule {
    protocol: Option<String>,
    destination: Option<String>,
    ports: Option<String>,
    #[serde(rename = "type")]
    icmp_type: Option<i32>,
    code: Option<i32>,
    description: Option<String>,
    log: Option<bool>,
}

impl Page {
    /// Parses a response.
    ///
    /// # Errors
    /// The text is not JSON, or has no list of groups.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let RawPage { next, security_groups } =
            runtime::json::from_slice(text).map_err(|error| error.to_string())?;
        let groups = security_groups.into_iter().map(Entry::parse).collect();
        Ok(Self { next: next.unwrap_or_default(), groups })
    }
}

impl Entry {
    fn parse(raw: &RawValue) -> Self {
        let guid = runtime::json::from_str(raw.get()).map(|RawGuid { guid }| guid).ok();
        let mut problems = Vec::new();
        let group = runtime::json::from_str(raw.get()).map_err(|error| fault(raw, GROUP, &error));
        let group = group.and_then(|group| read(group, &mut problems));
        Self { guid, group, problems }
    }
}

fn read(raw: RawGroup, problems: &mut Vec<String>) -> Result<SecurityGroup, String> {
    let RawGroup {
        guid,
        name,
        rules,
        staging_default,
        running_default,
        staging_space_guids,
        running_space_guids,
    } = raw;
    let list: Option<Vec<&RawValue>> =
        runtime::json::from_str(&rules).map_err(|error| format!("rules: {error}"))?;
    let rules = list.unwrap_or_default().into_iter().enumerate();
    let rules = rules.map(|(index, raw)| {
        rule(raw).unwrap_or_else(|error| {
            let error = fault(raw, RULE, &error);
            problems.push(format!("rule {index}: {error}"));
            // Without a protocol the rule allows nothing.
            Rule { description: format!("not readable: {error}"), ..Rule::default() }
        })
    });
    Ok(SecurityGroup {
        rules: rules.collect(),
        guid,
        name: name.unwrap_or_default(),
        running_default: running_default.unwrap_or_default(),
        staging_default: staging_default.unwrap_or_default(),
        running_space_guids: running_space_guids.unwrap_or_default(),
        staging_space_guids: staging_space_guids.unwrap_or_default(),
    })
}

fn rule(raw: &RawValue) -> Result<Rule, serde_json::Error> {
    let RawRule { protocol, destination, ports, icmp_type, code, description, log } =
        runtime::json::from_str::<Option<_>>(raw.get())?.unwrap_or_default();
    Ok(Rule {
        protocol: protocol.unwrap_or_default(),
        destination: destination.unwrap_or_default(),
        ports: ports.unwrap_or_default(),
        r#type: icmp_type.unwrap_or_default(),
        code: code.unwrap_or_default(),
        description: description.unwrap_or_default(),
        log: log.unwrap_or_default(),
    })
}

/// A field name, a check of its value, and a description of valid values.
type Field = (&'static str, fn(&Value) -> bool, &'static str);

const GROUP: &[Field] = &[
    ("guid", Value::is_string, "a text"),
    ("name", Value::is_string, "a text"),
    ("rules", Value::is_string, "JSON in a text"),
    ("staging_default", Value::is_boolean, "true or false"),
    ("running_default", Value::is_boolean, "true or false"),
    ("staging_space_guids", are_texts, "a list of texts"),
    ("running_space_guids", are_texts, "a list of texts"),
];

const RULE: &[Field] = &[
    ("protocol", Value::is_string, "a text"),
    ("destination", Value::is_string, "a text"),
    ("ports", Value::is_string, "a text"),
    ("type", is_small, "a number of 32 bits"),
    ("code", is_small, "a number of 32 bits"),
    ("description", Value::is_string, "a text"),
    ("log", Value::is_boolean, "true or false"),
];

fn are_texts(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
}

fn is_small(value: &Value) -> bool {
    value.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}

/// The error of an unreadable object, with field and value if a field is at fault.
fn fault(raw: &RawValue, fields: &[Field], error: &serde_json::Error) -> String {
    let object = runtime::json::from_str::<Map<String, Value>>(raw.get()).unwrap_or_default();
    let wrong = fields.iter().find_map(|(name, fits, what)| {
        let value = object.get(*name).filter(|value| !value.is_null() && !fits(value))?;
        let shown: String = value.to_string().chars().take(LONGEST).collect();
        Some(format!("{name}: {shown} is not {what}"))
    });
    wrong.unwrap_or_else(|| error.to_string())
}

/// Merges the pages of one response. A group's index in the response becomes its ID.
/// Unreadable groups are reported; `before` has the last good versions.
#[must_use]
pub fn collect(entries: Vec<Entry>, before: &Groups) -> (Groups, Vec<String>) {
    let (mut groups, mut problems) = (Groups::new(), Vec::new());
    for (id, Entry { guid, group, problems: of_rules }) in (1..).zip(entries) {
        let name = guid.as_deref().map_or(format!("number {id}"), |guid| format!("{guid:?}"));
        problems.extend(of_rules.iter().map(|problem| format!("group {name}: {problem}")));
        let stored = group.and_then(|group| {
            let group = group.try_into().map_err(|error: proto::Error| error.to_string())?;
            Ok::<_, String>(StoredGroup { id: GroupId(id), group: Arc::new(group) })
        });
        match stored {
            Ok(stored) => {
                let guid = stored.group.guid.clone();
                groups.insert(guid, kept(before, stored));
            }
            Err(error) => {
                problems.push(format!("group {name}: {error}"));
                let guid = guid.and_then(|guid| GroupGuid::parse(&guid).ok());
                let last_good = guid.and_then(|guid| before.get_key_value(&guid));
                groups.extend(last_good.map(|(guid, group)| (guid.clone(), Arc::clone(group))));
            }
        }
    }
    (groups, problems)
}

/// Reuses the previous value of an unchanged group.
fn kept(before: &Groups, stored: StoredGroup) -> Arc<ReadGroup> {
    match before.get(&stored.group.guid) {
        Some(same) if same.stored == stored => Arc::clone(same),
        _ => Arc::new(ReadGroup::new(stored)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guid(text: &str) -> GroupGuid {
        GroupGuid::parse(text).unwrap()
    }

    fn groups(text: &str, before: &Groups) -> (Groups, Vec<String>) {
        collect(Page::parse(text.as_bytes()).unwrap().groups, before)
    }

    #[test]
    fn the_servers_own_answer_is_read() {
        // docs/compatibility/policy-server-internal.md#routes
        let page = Page::parse(
            br#"{"next":2,"security_groups":[{"guid":"594afa3a","name":"asg-00000","rules":
            "[{\"protocol\":\"tcp\",\"destination\":\"10.88.139.92\",\"ports\":\"57506\",\"type\":0,\"code\":0,\"description\":\"rule 0\",\"log\":true}]",
            "staging_default":true,"running_default":true,"staging_space_guids":["s1"],"running_space_guids":["s1","s2"]}]}"#,
        )
        .unwrap();
        assert_eq!(page.next, 2);
        let (groups, problems) = collect(page.groups, &Groups::new());
        assert!(problems.is_empty(), "{problems:?}");
        let group = &groups[&guid("594afa3a")].stored;
        assert_eq!((group.id.0, group.group.name.as_str()), (1, "asg-00000"));
        assert_eq!((group.group.running.spaces.len(), group.group.staging.spaces.len()), (2, 1));
        let [rule] = group.group.rules.as_slice() else { panic!("{group:?}") };
        assert_eq!((rule.destination.as_str(), rule.ports.as_str()), ("10.88.139.92", "57506"));
        assert!(rule.log && group.group.running.everywhere && group.group.staging.everywhere);
    }

    #[test]
    fn absent_or_null_fields_are_empty() {
        let text = r#"{"security_groups":[{"guid":"a","rules":"null"},
            {"guid":"b","name":null,"rules":"[{\"protocol\":\"all\",\"type\":null},null]","running_space_guids":null}]}"#;
        let (groups, problems) = groups(text, &Groups::new());
        assert!(problems.is_empty(), "{problems:?}");
        assert!(groups[&guid("a")].stored.group.rules.is_empty());
        assert_eq!(groups[&guid("b")].stored.group.rules.len(), 2);
    }

    #[test]
    fn an_answer_without_a_list_is_no_answer() {
        for text in ["{}", "", "null", r#"{"security_groups":null}"#, r#"{"error":"x"}"#, "[]"] {
            Page::parse(text.as_bytes()).unwrap_err();
        }
        assert!(Page::parse(br#"{"next":0,"security_groups":[]}"#).unwrap().groups.is_empty());
    }

    #[test]
    fn a_bad_group_keeps_its_last_good_version() {
        let good = r#"{"next":0,"security_groups":[
            {"guid":"a","rules":"[{\"protocol\":\"all\",\"destination\":\"10.0.0.1\"}]"},{"guid":"b","rules":"[]"}]}"#;
        let (before, _) = groups(good, &Groups::new());
        let bad = r#"{"next":0,"security_groups":[
            {"guid":"a","rules":[]},{"guid":"new","rules":"{"},{"guid":7},3,{"guid":"b","rules":"[]"}]}"#;
        let (after, problems) = groups(bad, &before);
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert_eq!(problems[0], "group \"a\": rules: [] is not JSON in a text");
        assert!(problems[2].starts_with("group number 3: "), "{problems:?}");
        assert_eq!(after.keys().collect::<Vec<_>>(), [&guid("a"), &guid("b")]);
        assert!(Arc::ptr_eq(&after[&guid("a")], &before[&guid("a")]));
    }

    /// By default, serde accepts a list for a struct, with the fields in order.
    #[test]
    fn a_list_is_no_group_and_no_rule() {
        let text = r#"{"security_groups":[["a","name","[]"],{"guid":"b","rules":
            "[[\"all\",\"0.0.0.0/0\"],{\"protocol\":\"all\",\"destination\":\"10.0.0.1\"}]"}]}"#;
        let (groups, problems) = groups(text, &Groups::new());
        assert_eq!(groups.keys().collect::<Vec<_>>(), [&guid("b")]);
        assert_eq!(groups[&guid("b")].problems().map(|(index, _)| index).collect::<Vec<_>>(), [0]);
        assert!(problems.iter().any(|problem| problem.starts_with("group number 1: ")));
        assert!(problems.iter().any(|problem| problem.starts_with("group \"b\": rule 0: ")));
        Page::parse(br#"[0,[{"guid":"a","rules":"[]"}]]"#).unwrap_err();
    }

    #[test]
    fn a_bad_rule_allows_nothing_and_keeps_its_place() {
        let text = r#"{"security_groups":[{"guid":"a","rules":
            "[{\"protocol\":\"all\",\"ports\":443,\"destination\":\"0.0.0.0/0\"},{\"protocol\":\"all\",\"destination\":\"10.0.0.1\"}]"}]}"#;
        let (groups, problems) = groups(text, &Groups::new());
        assert_eq!(problems[0], "group \"a\": rule 0: ports: 443 is not a text");
        let read = &groups[&guid("a")];
        assert_eq!(read.stored.group.rules.len(), 2);
        assert_eq!(read.problems().map(|(index, _)| index).collect::<Vec<_>>(), [0]);
    }
}

#[cfg(test)]
#[path = "page_fuzz_tests.rs"]
mod fuzz_tests;
