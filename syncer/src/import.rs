//! Parses the Cloud Controller's list of security groups into the model.
//!
//! Pure. Tolerant as the original is (docs/compatibility/asg-syncer.md#errors): null or
//! absent values take their default, unknown keys are ignored. One rule is stricter: an
//! invalid value makes its group [`Malformed`], with guid, name and the path of the
//! field, and never the whole page. A list is not accepted as an object
//! ([`runtime::json`]), as in Go. A page with invalid JSON syntax is an error as a whole,
//! since it is unknown what is missing from it.
//!
//! Groups are passed on one by one during parsing, so a page of thousands of groups
//! costs its text and one group.

use std::{collections::BTreeSet, fmt, io};

use model::{
    group::{Scope, SecurityGroup},
    ids::{GroupGuid, SpaceGuid},
    rule::RuleSpec,
};
use runtime::json;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

/// A group that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Absent when the guid itself is invalid.
    pub guid: Option<GroupGuid>,
    /// Empty when absent or invalid.
    pub name: String,
    /// Path of the field and the problem.
    pub reason: String,
}

/// Fields of a page besides its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Whether `pagination.next.href` has a link to another page.
    pub more: bool,
    /// Whether the page had a list; `resources` may be null or absent.
    pub listed: bool,
    /// `pagination.total_results`: groups on all pages, if stated.
    pub total_results: Option<u64>,
    /// `pagination.total_pages`, if stated.
    pub total_pages: Option<u64>,
}

/// Invalid page.
#[derive(Debug, thiserror::Error)]
#[error("unmarshal json")]
pub struct Error(#[from] serde_json::Error);

/// Parses one page of `GET /v3/security_groups` and passes each group to `each`, in the
/// Cloud Controller's order.
///
/// # Errors
/// The body is not a JSON object with the structure of a page. Groups passed to `each`
/// before must be discarded.
pub fn page(
    body: impl io::Read,
    each: &mut dyn FnMut(Result<SecurityGroup, Malformed>),
) -> Result<Page, Error> {
    Ok(json::from_reader(body, PageReader { each })?)
}

struct PageReader<'f> {
    each: &'f mut dyn FnMut(Result<SecurityGroup, Malformed>),
}

impl<'de> DeserializeSeed<'de> for PageReader<'_> {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageReader<'_> {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a page of security groups")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        let mut page = Page { more: false, listed: false, total_results: None, total_pages: None };
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "pagination" => {
                    let pagination = map.next_value::<Option<Pagination>>()?.unwrap_or_default();
                    page.more = pagination.names_next();
                    page.total_results = pagination.total_results;
                    page.total_pages = pagination.total_pages;
                }
                "resources" => page.listed = map.next_value_seed(Resources { each: self.each })?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(page)
    }
}

#[derive(Deserialize, Default)]
struct Pagination {
    next: Option<Link>,
    total_results: Option<u64>,
    total_pages: Option<u64>,
}

#[derive(Deserialize)]
struct Link {
    href: Option<String>,
}

impl Pagination {
    fn names_next(&self) -> bool {
        self.next.as_ref().and_then(|link| link.href.as_ref()).is_some_and(|href| !href.is_empty())
    }
}

struct Resources<'f> {
    each: &'f mut dyn FnMut(Result<SecurityGroup, Malformed>),
}

impl<'de> DeserializeSeed<'de> for Resources<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Resources<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of security groups")
    }

    fn visit_none<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut groups: A) -> Result<bool, A::Error> {
        while let Some(raw) = groups.next_element::<Box<RawValue>>()? {
            (self.each)(group(raw.get()));
        }
        Ok(true)
    }
}

/// Parses one group.
///
/// # Errors
/// The problem, and the identity of the group as far as it is readable.
pub fn group(json: &str) -> Result<SecurityGroup, Malformed> {
    let wire: Group = json::from_str(json)
        .map_err(|err| Malformed { reason: err.to_string(), ..identify(json) })?;
    wire.into_model().map_err(|reason| Malformed { reason, ..identify(json) })
}

/// The readable part of a group's identity; the rest may be arbitrary, including invalid
/// Unicode (half a surrogate pair).
fn identify(json: &str) -> Malformed {
    let Fields(fields) = json::from_str(json).unwrap_or_default();
    let text = |key: &str| {
        let is_key = |name: &RawValue| json::from_str::<String>(name.get()).is_ok_and(|n| n == key);
        let (_, value) = fields.iter().find(|(name, _)| is_key(name))?;
        json::from_str::<String>(value.get()).ok()
    };
    Malformed {
        guid: text("guid").and_then(|guid| GroupGuid::parse(&guid).ok()),
        name: text("name").unwrap_or_default(),
        reason: String::new(),
    }
}

/// The unparsed fields of an object.
#[derive(Default)]
struct Fields<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}

/// A deserializer per field: null becomes the default, and an error begins with the name
/// of the field, so that the names of nested fields form its path.
macro_rules! fields {
    ($($reader:ident $name:literal: $type:ty),+ $(,)?) => {$(
        fn $reader<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
            Option::<$type>::deserialize(deserializer)
                .map(Option::unwrap_or_default)
                .map_err(|err| D::Error::custom(format_args!("{}: {err}", $name)))
        }
    )+};
}

fields! {
    guid "guid": String,
    name "name": String,
    rules "rules": Rules,
    globally_enabled "globally_enabled": Enabled,
    relationships "relationships": Relationships,
    running "running": bool,
    staging "staging": bool,
    running_spaces "running_spaces": Bindings,
    staging_spaces "staging_spaces": Bindings,
    data "data": Vec<Binding>,
    protocol "protocol": String,
    destination "destination": String,
    ports "ports": String,
    icmp_type "type": i32,
    icmp_code "code": i32,
    description "description": String,
    log "log": bool,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Group {
    #[serde(deserialize_with = "guid")]
    guid: String,
    #[serde(deserialize_with = "name")]
    name: String,
    #[serde(deserialize_with = "globally_enabled")]
    globally_enabled: Enabled,
    #[serde(deserialize_with = "rules")]
    rules: Rules,
    #[serde(deserialize_with = "relationships")]
    relationships: Relationships,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Enabled {
    #[serde(deserialize_with = "running")]
    running: bool,
    #[serde(deserialize_with = "staging")]
    staging: bool,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Relationships {
    #[serde(deserialize_with = "staging_spaces")]
    staging_spaces: Bindings,
    #[serde(deserialize_with = "running_spaces")]
    running_spaces: Bindings,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Bindings {
    #[serde(deserialize_with = "data")]
    data: Vec<Binding>,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Binding {
    guid: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Rule {
    #[serde(deserialize_with = "protocol")]
    protocol: String,
    #[serde(deserialize_with = "destination")]
    destination: String,
    #[serde(deserialize_with = "ports")]
    ports: String,
    #[serde(rename = "type", deserialize_with = "icmp_type")]
    icmp_type: i32,
    #[serde(rename = "code", deserialize_with = "icmp_code")]
    icmp_code: i32,
    #[serde(deserialize_with = "description")]
    description: String,
    #[serde(deserialize_with = "log")]
    log: bool,
}

#[derive(Serialize, Default)]
struct Rules(Vec<RuleSpec>);

impl<'de> Deserialize<'de> for Rules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(RulesVisitor)
    }
}

struct RulesVisitor;

impl<'de> Visitor<'de> for RulesVisitor {
    type Value = Rules;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rules")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rules, A::Error> {
        let mut rules = Vec::with_capacity(list.size_hint().unwrap_or(0));
        loop {
            let next = list
                .next_element::<Option<Rule>>()
                .map_err(|err| A::Error::custom(format_args!("rule {}: {err}", rules.len() + 1)))?;
            match next {
                Some(rule) => rules.push(rule.unwrap_or_default().into_model()),
                None => return Ok(Rules(rules)),
            }
        }
    }
}

impl Rule {
    fn into_model(self) -> RuleSpec {
        let Self { protocol, destination, ports, icmp_type, icmp_code, description, log } = self;
        RuleSpec { protocol, destination, ports, icmp_type, icmp_code, description, log }
    }
}

impl Group {
    fn into_model(self) -> Result<SecurityGroup, String> {
        let Self { guid, name, globally_enabled, rules, relationships } = self;
        let guid = GroupGuid::parse(&guid).map_err(|err| err.to_string())?;
        let Relationships { running_spaces, staging_spaces } = relationships;
        Ok(SecurityGroup {
            name,
            rules: rules.0,
            running: Scope {
                everywhere: globally_enabled.running,
                spaces: running_spaces.into_model("running", &guid)?,
            },
            staging: Scope {
                everywhere: globally_enabled.staging,
                spaces: staging_spaces.into_model("staging", &guid)?,
            },
            guid,
        })
    }
}

impl From<&SecurityGroup> for Group {
    fn from(group: &SecurityGroup) -> Self {
        let SecurityGroup { guid, name, rules, running, staging } = group;
        Self {
            guid: guid.to_string(),
            name: name.clone(),
            globally_enabled: Enabled { running: running.everywhere, staging: staging.everywhere },
            rules: Rules(rules.clone()),
            relationships: Relationships {
                staging_spaces: Bindings::of(staging),
                running_spaces: Bindings::of(running),
            },
        }
    }
}

/// A group in the format of the original's debug lines: its own structs, with every key present.
#[must_use]
pub(crate) fn echo(group: &SecurityGroup) -> Box<RawValue> {
    to_raw_value(&Group::from(group)).expect("texts, numbers and lists are JSON")
}

impl Bindings {
    fn of(scope: &Scope) -> Self {
        let binding = |space: &SpaceGuid| Binding { guid: Some(space.to_string()) };
        Self { data: scope.spaces.iter().map(binding).collect() }
    }

    /// The texts are the original's, where this error fails the whole sync.
    fn into_model(self, lifecycle: &str, group: &GroupGuid) -> Result<BTreeSet<SpaceGuid>, String> {
        let mut spaces = BTreeSet::new();
        for Binding { guid } in self.data {
            let guid = guid.ok_or_else(|| {
                format!("no 'guid' found for {lifecycle}-space-relationship on asg '{group}'")
            })?;
            let space = SpaceGuid::parse(&guid)
                .map_err(|err| format!("{lifecycle}-space-relationship: {err}"))?;
            spaces.insert(space);
        }
        Ok(spaces)
    }
}
