//! Parses the query parameters of a listing
//! (docs/compatibility/cloud-controller.md#lists).

use jiff::Timestamp;
use jiff::civil::DateTime;

use super::parameters::{Parameters, comma_list};
use crate::ruby;

/// Parameters of one listing, besides `page`, `per_page`, `created_ats`, `updated_ats`
/// and `guids`, which all listings accept.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Comma-separated lists, in the order of error messages.
    pub lists: &'static [&'static str],
    /// Parameters with `true` or `false`.
    pub flags: &'static [&'static str],
    /// Whether `order_by` accepts `name`, besides `created_at` and `updated_at`.
    pub order_by_name: bool,
    /// Valid values of `include`; if empty, `include` is an unknown parameter.
    pub include: &'static [&'static str],
}

/// `GET /v3/security_groups`
pub const SECURITY_GROUPS: Spec = Spec {
    lists: &["names", "running_space_guids", "staging_space_guids"],
    flags: &["globally_enabled_running", "globally_enabled_staging"],
    order_by_name: false,
    include: &[],
};

/// `GET /v3/spaces/:guid/{running,staging}_security_groups`
pub const SPACE_SECURITY_GROUPS: Spec =
    Spec { lists: &["names"], flags: &[], order_by_name: false, include: &[] };

/// `GET /v3/organizations`
pub const ORGANIZATIONS: Spec =
    Spec { lists: &["label_selector", "names"], flags: &[], order_by_name: true, include: &[] };

/// `GET /v3/spaces`
pub const SPACES: Spec = Spec {
    lists: &["label_selector", "names", "organization_guids"],
    flags: &[],
    order_by_name: true,
    include: &["org", "organization"],
};

/// `GET /v3/roles`
pub const ROLES: Spec = Spec {
    lists: &["organization_guids", "space_guids", "user_guids", "types"],
    flags: &[],
    order_by_name: false,
    include: &["user", "space", "organization"],
};

/// `GET /v3/users`
pub const USERS: Spec = Spec {
    lists: &["label_selector", "usernames", "partial_usernames", "origins"],
    flags: &[],
    order_by_name: false,
    include: &[],
};

const COMMON: [&str; 6] = ["page", "per_page", "order_by", "created_ats", "updated_ats", "guids"];
const MAX_PER_PAGE: i128 = 5000;
const MAX_RESULT: i128 = i64::MAX as i128;
const DEFAULT_PER_PAGE: usize = 50;
const BAD_TIMESTAMP: &str =
    "has an invalid timestamp format. Timestamps should be formatted as 'YYYY-MM-DDThh:mm:ssZ'";

/// The parsed query of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// From 1.
    pub page: usize,
    /// From 1 to 5000.
    pub per_page: usize,
    /// `None`: creation order, by internal number.
    pub order_by: Option<OrderBy>,
    lists: Vec<(&'static str, Vec<String>)>,
    flags: Vec<(&'static str, bool)>,
    times: Vec<(&'static str, TimeFilter)>,
}

/// A sort order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderBy {
    /// The sort column.
    pub column: Column,
    /// Descending order.
    pub descending: bool,
}

/// Columns that a listing can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// `created_at`
    CreatedAt,
    /// `updated_at`
    UpdatedAt,
    /// `name`
    Name,
}

#[derive(Debug, Clone, PartialEq)]
enum TimeFilter {
    AnyOf(Vec<Timestamp>),
    Compared(Vec<(String, Timestamp)>),
}

impl Default for Query {
    fn default() -> Self {
        Self {
            page: 1,
            per_page: DEFAULT_PER_PAGE,
            order_by: None,
            lists: Vec::new(),
            flags: Vec::new(),
            times: Vec::new(),
        }
    }
}

impl Query {
    /// The values of a comma-separated list; `None` when the parameter is absent.
    pub fn list(&self, key: &str) -> Option<&[String]> {
        self.lists.iter().find(|(name, _)| *name == key).map(|(_, values)| values.as_slice())
    }

    /// Whether `value` passes the filter; an absent filter passes everything.
    pub fn admits(&self, key: &str, value: &str) -> bool {
        self.list(key).is_none_or(|values| values.iter().any(|wanted| wanted == value))
    }

    /// Like [`Query::admits`], for an object with several values.
    pub fn admits_any<'a>(&self, key: &str, mut has: impl Iterator<Item = &'a String>) -> bool {
        self.list(key).is_none_or(|values| has.any(|value| values.contains(value)))
    }

    /// The value of a flag, if present.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.flags.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    /// Whether the times pass `created_ats` and `updated_ats`.
    pub fn admits_times(&self, created: Timestamp, updated: Timestamp) -> bool {
        self.times.iter().all(|(key, filter)| {
            let time = if *key == "created_ats" { created } else { updated };
            match filter {
                TimeFilter::AnyOf(times) => times.contains(&time),
                TimeFilter::Compared(bounds) => {
                    bounds.iter().all(|(operator, bound)| compare(time, operator, *bound))
                }
            }
        })
    }

    /// The filters as repeated in the links of a page.
    pub fn filter_parameters(&self) -> Vec<(String, String)> {
        let escaped = |values: &[String]| {
            values
                .iter()
                .map(|value| value.replace('%', "%25").replace(',', "%2C"))
                .collect::<Vec<_>>()
                .join(",")
        };
        let lists = self.lists.iter().map(|(key, values)| ((*key).to_owned(), escaped(values)));
        let flags = self.flags.iter().map(|(key, value)| ((*key).to_owned(), value.to_string()));
        let times = self.times.iter().flat_map(|(key, filter)| match filter {
            TimeFilter::AnyOf(times) => {
                let texts: Vec<String> = times.iter().map(ToString::to_string).collect();
                vec![((*key).to_owned(), texts.join(","))]
            }
            TimeFilter::Compared(bounds) => bounds
                .iter()
                .map(|(operator, bound)| (format!("{key}[{operator}]"), bound.to_string()))
                .collect(),
        });
        lists.chain(flags).chain(times).collect()
    }
}

impl OrderBy {
    /// The parameter value, with the sign.
    pub fn to_parameter(self) -> String {
        let sign = if self.descending { '-' } else { '+' };
        let column = match self.column {
            Column::CreatedAt => "created_at",
            Column::UpdatedAt => "updated_at",
            Column::Name => "name",
        };
        format!("{sign}{column}")
    }
}

/// Parses decoded query parameters, in the order of the request.
pub fn read(parameters: &[(String, String)], spec: &Spec) -> Result<Query, Vec<String>> {
    let parameters = Parameters::new(parameters);
    let mut errors = Vec::new();
    let mut query = Query::default();
    read_page(&parameters, &mut query, &mut errors);
    read_order(&parameters, spec, &mut query, &mut errors);
    for key in ["created_ats", "updated_ats"] {
        read_times(&parameters, key, &mut query, &mut errors);
    }
    let known = known_parameters(spec);
    let unknown = parameters.unknown(&known);
    if !unknown.is_empty() {
        errors.push(format!(
            "Unknown query parameter(s): '{}'. Valid parameters are: '{}'",
            unknown.join("', '"),
            known.join("', '")
        ));
    }
    for key in ["guids"].iter().chain(spec.lists) {
        if let Some(value) = parameters.text(key) {
            query.lists.push((key, comma_list(value)));
        }
    }
    for key in spec.flags {
        match parameters.text(key) {
            None => {}
            Some("true") => query.flags.push((key, true)),
            Some("false") => query.flags.push((key, false)),
            Some(_) => errors.push(format!("{} must be 'true' or 'false'", humanize(key))),
        }
    }
    if !spec.include.is_empty() {
        read_include(&parameters, spec, &mut query, &mut errors);
    }
    if errors.is_empty() { Ok(query) } else { Err(errors) }
}

fn known_parameters(spec: &Spec) -> Vec<&'static str> {
    let include = if spec.include.is_empty() { None } else { Some("include") };
    let own = spec.lists.iter().chain(spec.flags).copied().chain(include);
    COMMON.into_iter().chain(own).collect()
}

fn read_page(parameters: &Parameters<'_>, query: &mut Query, errors: &mut Vec<String>) {
    let page = parameters.text("page").map(ruby::to_i);
    let per_page = parameters.text("per_page").map(ruby::to_i);
    if page.is_some_and(|page| page < 1) {
        errors.push("Page must be a positive integer".to_owned());
    }
    match per_page {
        Some(..=0) => errors.push("Per page must be a positive integer".to_owned()),
        Some(number) if number > MAX_PER_PAGE => {
            errors.push(format!("Per page must be between 1 and {MAX_PER_PAGE}"));
        }
        Some(_) | None => {}
    }
    let default = i128::try_from(DEFAULT_PER_PAGE).unwrap_or(MAX_PER_PAGE);
    if page.unwrap_or(1).saturating_mul(per_page.unwrap_or(default)) > MAX_RESULT {
        errors.push(format!("Maximum result (page * per_page) must be less than {MAX_RESULT}"));
    }
    let number = |number: Option<i128>| number.and_then(|number| usize::try_from(number).ok());
    query.page = number(page).unwrap_or(query.page);
    query.per_page = number(per_page).unwrap_or(query.per_page);
}

fn read_order(
    parameters: &Parameters<'_>,
    spec: &Spec,
    query: &mut Query,
    errors: &mut Vec<String>,
) {
    let Some(text) = parameters.text("order_by").filter(|text| !text.trim().is_empty()) else {
        return;
    };
    let (name, descending) = match text.strip_prefix('-') {
        Some(name) => (name, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    let column = match name {
        "created_at" => Column::CreatedAt,
        "updated_at" => Column::UpdatedAt,
        "name" if spec.order_by_name => Column::Name,
        _ => {
            let name = if spec.order_by_name { ", 'name'" } else { "" };
            errors.push(format!("Order by can only be: 'created_at', 'updated_at'{name}"));
            return;
        }
    };
    query.order_by = Some(OrderBy { column, descending });
}

fn read_times(
    parameters: &Parameters<'_>,
    key: &'static str,
    query: &mut Query,
    errors: &mut Vec<String>,
) {
    let title = humanize(key);
    let mut time = |text: &str| {
        let time = parse_time(text);
        if time.is_none() {
            errors.push(format!("{title} {BAD_TIMESTAMP}"));
        }
        time
    };
    if let Some(text) = parameters.text(key) {
        let times = comma_list(text).iter().filter_map(|text| time(text)).collect();
        query.times.push((key, TimeFilter::AnyOf(times)));
        return;
    }
    let mut bounds = Vec::new();
    for (operator, text) in parameters.nested(key) {
        if !matches!(operator, "lt" | "gt" | "lte" | "gte") {
            errors.push(format!("{title} Invalid relational operator: '{operator}'"));
        }
        if text.contains(',') {
            errors.push(format!("{title} only accepts one value when using a relational operator"));
            continue;
        }
        match parse_time(text) {
            Some(bound) => bounds.push((operator.to_owned(), bound)),
            None => errors.push(format!("{title} {BAD_TIMESTAMP}")),
        }
    }
    if !bounds.is_empty() {
        query.times.push((key, TimeFilter::Compared(bounds)));
    }
}

fn read_include(
    parameters: &Parameters<'_>,
    spec: &Spec,
    query: &mut Query,
    errors: &mut Vec<String>,
) {
    let Some(text) = parameters.text("include") else { return };
    let values = comma_list(text);
    for value in &values {
        if !spec.include.contains(&value.as_str()) {
            let valid = spec.include.join("', '");
            errors.push(format!(
                "Invalid included resource: '{value}'. Valid included resources are: '{valid}'"
            ));
        }
    }
    query.lists.push(("include", values));
}

fn compare(time: Timestamp, operator: &str, bound: Timestamp) -> bool {
    match operator {
        "lt" => time < bound,
        "gt" => time > bound,
        "lte" => time <= bound,
        _ => time >= bound,
    }
}

/// Exactly `YYYY-MM-DDThh:mm:ssZ`.
fn parse_time(text: &str) -> Option<Timestamp> {
    let shape = |(index, byte): (usize, u8)| match index {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        13 | 16 => byte == b':',
        19 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    };
    if text.len() != 20 || !text.bytes().enumerate().all(shape) {
        return None;
    }
    let time: DateTime = text[..19].parse().ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// `created_ats` -> `Created ats`
fn humanize(key: &str) -> String {
    let mut text = key.replace('_', " ");
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &[(&str, &str)]) -> Result<Query, Vec<String>> {
        let parameters: Vec<_> =
            text.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        read(&parameters, &SECURITY_GROUPS)
    }

    #[test]
    fn lists_split_at_commas_that_are_not_escaped() {
        let query = query(&[("names", "a, b,c%2Cd,%2541")]).unwrap();
        assert_eq!(query.list("names").unwrap(), ["a", "b", "c,d", "%41"]);
        assert_eq!(query.filter_parameters(), [("names".to_owned(), "a,b,c%2Cd,%2541".to_owned())]);
    }

    #[test]
    fn several_errors_are_in_order() {
        let errors = query(&[
            ("foo", "1"),
            ("globally_enabled_staging", "yes"),
            ("created_ats[gtt]", "2020-01-01"),
            ("created_ats[lt]", "a,b"),
            ("per_page", "6000"),
            ("page", "x"),
        ])
        .unwrap_err();
        assert_eq!(errors.len(), 7, "{errors:?}");
        assert_eq!(errors[0], "Page must be a positive integer");
        assert_eq!(errors[1], "Per page must be between 1 and 5000");
        assert_eq!(errors[2], "Created ats Invalid relational operator: 'gtt'");
        assert_eq!(errors[3], format!("Created ats {BAD_TIMESTAMP}"));
        assert_eq!(
            errors[4],
            "Created ats only accepts one value when using a relational operator"
        );
        assert!(errors[5].starts_with("Unknown query parameter(s): 'foo'. Valid"));
        assert_eq!(errors[6], "Globally enabled staging must be 'true' or 'false'");
    }

    #[test]
    fn a_page_far_beyond_is_refused() {
        let far = query(&[("page", "99999999999999999999")]).unwrap_err();
        assert_eq!(far, ["Maximum result (page * per_page) must be less than 9223372036854775807"]);
        assert_eq!(query(&[("page", "1000000"), ("per_page", "5000")]).unwrap().page, 1_000_000);
    }

    #[test]
    fn times_filter() {
        let at = |text: &str| parse_time(text).unwrap();
        let query = query(&[
            ("created_ats[gte]", "2026-01-01T00:00:00Z"),
            ("created_ats[lt]", "2026-02-01T00:00:00Z"),
        ])
        .unwrap();
        let now = at("2026-03-01T00:00:00Z");
        assert!(query.admits_times(at("2026-01-01T00:00:00Z"), now));
        assert!(!query.admits_times(at("2026-02-01T00:00:00Z"), now));
        assert_eq!(parse_time("2026-02-30T00:00:00Z"), None);
        assert_eq!(parse_time("2026-02-20T00:00:00+"), None);
    }
}
