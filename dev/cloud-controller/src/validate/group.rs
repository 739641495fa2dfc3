//! Validates request bodies of security groups
//! (docs/compatibility/cloud-controller.md#refusals).
//!
//! Each function parses a body and returns the request, or all error messages in the
//! original's order.

use super::rules::{self, Flags};
use crate::json::{Json, Object};
use crate::ruby;

/// `POST /v3/security_groups`
#[derive(Debug, Clone, PartialEq)]
pub struct Create {
    /// The name.
    pub name: String,
    /// The rules; an empty array when there are none.
    pub rules: Json,
    /// The global switches to enable.
    pub globally_enabled: Globally,
    /// Spaces of running apps to bind.
    pub running_spaces: Vec<String>,
    /// Spaces of staging apps to bind.
    pub staging_spaces: Vec<String>,
}

/// `PATCH /v3/security_groups/:guid`; absent fields are unchanged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Update {
    /// A new name.
    pub name: Option<String>,
    /// New rules, which replace the old ones.
    pub rules: Option<Json>,
    /// Changes of the global switches.
    pub globally_enabled: Globally,
}

/// `globally_enabled`; `None` means no change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Globally {
    /// For running apps of all spaces.
    pub running: Option<bool>,
    /// For staging apps of all spaces.
    pub staging: Option<bool>,
}

const MAX_NAME: usize = 250;

/// Parses the body of a create request.
pub fn create(body: &Object, flags: Flags) -> Result<Create, Vec<String>> {
    let mut errors = unknown_fields(body, &["name", "globally_enabled", "relationships", "rules"]);
    if let Some(relationships) = body.get("relationships") {
        check_relationships(relationships, &mut errors);
    }
    if let Some(rules) = body.get("rules") {
        errors.extend(rules::message_errors(rules, flags));
    }
    let name = body.get("name").unwrap_or(&Json::Null);
    if name.is_blank() {
        errors.push("Name can't be blank".to_owned());
    }
    if name.as_str().is_none() {
        errors.push("Name must be a string".to_owned());
    }
    check_name_maximum(name, &mut errors);
    check_globally(body, &mut errors);
    let Some(name) = name.as_str().filter(|_| errors.is_empty()) else {
        return Err(errors);
    };
    Ok(Create {
        name: name.to_owned(),
        rules: body.get("rules").cloned().unwrap_or_else(|| Json::Array(Vec::new())),
        globally_enabled: globally(body),
        running_spaces: relationship_guids(body, "running_spaces"),
        staging_spaces: relationship_guids(body, "staging_spaces"),
    })
}

/// Parses the body of an update request.
pub fn update(body: &Object, flags: Flags) -> Result<Update, Vec<String>> {
    let mut errors = unknown_fields(body, &["name", "globally_enabled", "rules"]);
    if let Some(rules) = body.get("rules") {
        errors.extend(rules::message_errors(rules, flags));
    }
    check_globally(body, &mut errors);
    if let Some(name) = body.get("name") {
        if name.as_str().is_none() {
            errors.push("Name must be a string".to_owned());
        }
        if ruby::length(name) < 1 {
            errors.push("Name is too short (minimum is 1 character)".to_owned());
        }
        check_name_maximum(name, &mut errors);
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Update {
        name: body.get("name").and_then(Json::as_str).map(str::to_owned),
        rules: body.get("rules").cloned(),
        globally_enabled: globally(body),
    })
}

/// Parses the body of a bind request: the spaces to bind.
pub fn bind(body: &Object) -> Result<Vec<String>, Vec<String>> {
    let mut errors = unknown_fields(body, &["data"]);
    let data = body.get("data").unwrap_or(&Json::Null);
    if data.is_blank() {
        errors.push("Data can't be blank".to_owned());
    }
    if data.as_array().is_none() {
        errors.push("Data must be an array".to_owned());
    }
    let mut guids = Vec::new();
    for (index, entry) in data.as_array().unwrap_or_default().iter().enumerate() {
        match entry.at(&["guid"]).and_then(Json::as_str) {
            Some(guid) => guids.push(guid.to_owned()),
            None => {
                errors.push(format!("Invalid data type: Data[{index}] guid should be a string."));
            }
        }
    }
    if errors.is_empty() { Ok(guids) } else { Err(errors) }
}

/// Errors of the database model for a group that passed request validation.
pub fn model_errors(name: &str, rules: &Json, flags: Flags) -> Vec<String> {
    let mut errors = Vec::new();
    if !is_storable_name(name) {
        errors.push("name format".to_owned());
    }
    errors.extend(rules::model_errors(rules, flags));
    errors
}

/// Printable characters; the original's pattern accepts one line feed at the end.
fn is_storable_name(name: &str) -> bool {
    let name = name.strip_suffix('\n').unwrap_or(name);
    !name.is_empty() && !name.chars().any(char::is_control)
}

/// The error message for unknown keys.
pub fn unknown_fields(body: &Object, known: &[&str]) -> Vec<String> {
    let unknown: Vec<&str> = body.keys().filter(|key| !known.contains(key)).collect();
    if unknown.is_empty() {
        return Vec::new();
    }
    vec![format!("Unknown field(s): '{}'", unknown.join("', '"))]
}

fn check_name_maximum(name: &Json, errors: &mut Vec<String>) {
    if ruby::length(name) > MAX_NAME {
        errors.push(format!("Name is too long (maximum is {MAX_NAME} characters)"));
    }
}

fn check_globally(body: &Object, errors: &mut Vec<String>) {
    let text = match body.get("globally_enabled") {
        None | Some(Json::Null) => return,
        Some(Json::Object(value)) => {
            if value.keys().any(|key| key != "running" && key != "staging") {
                "only allows keys 'running' or 'staging'"
            } else if value.values().any(|value| value.as_bool().is_none()) {
                "values must be booleans"
            } else {
                return;
            }
        }
        Some(_) => "must be an object",
    };
    errors.push(format!("Globally enabled {text}"));
}

fn globally(body: &Object) -> Globally {
    let value = |key: &str| {
        let section = body.get("globally_enabled").and_then(Json::as_object);
        section.and_then(|section| section.get(key)).and_then(Json::as_bool)
    };
    Globally { running: value("running"), staging: value("staging") }
}

fn check_relationships(relationships: &Json, errors: &mut Vec<String>) {
    let Some(relationships) = relationships.as_object() else {
        errors.push("Relationships 'relationships' is not an object".to_owned());
        return;
    };
    if relationships.is_empty() {
        errors.push(
            "Relationships 'relationships' must include one or more valid relationships".to_owned(),
        );
        return;
    }
    for (key, title) in [("running_spaces", "Running space"), ("staging_spaces", "Staging space")] {
        match relationships.get(key) {
            None | Some(Json::Null) => {}
            Some(value) => check_to_many(key, title, value, errors),
        }
    }
}

fn check_to_many(key: &str, title: &str, value: &Json, errors: &mut Vec<String>) {
    let entries = value.at(&["data"]).and_then(Json::as_array);
    let is_entry =
        |entry: &Json| entry.as_object().is_some_and(|entry| entry.len() == 1 && entry.has("guid"));
    let Some(entries) = entries.filter(|entries| entries.iter().all(is_entry)) else {
        errors.push(format!(
            "Relationships {title}s must be structured like this: \"{key}: \
             {{\"data\": [{{\"guid\": \"valid-guid\"}},{{\"guid\": \"valid-guid\"}}]}}\""
        ));
        return;
    };
    let mut guids = Vec::new();
    for entry in entries {
        flatten(entry.at(&["guid"]).unwrap_or(&Json::Null), &mut guids);
    }
    for guid in guids {
        if guid.as_str().is_none() {
            errors.push(format!("Relationships {title} guids must be a string"));
        }
        if !guid.as_str().is_some_and(|guid| (1..=200).contains(&guid.chars().count())) {
            errors
                .push(format!("Relationships {title} guids must be between 1 and 200 characters"));
        }
    }
}

/// GUIDs in nested arrays count individually, since the original flattens them.
fn flatten<'a>(value: &'a Json, into: &mut Vec<&'a Json>) {
    match value {
        Json::Array(items) => items.iter().for_each(|item| flatten(item, into)),
        _ => into.push(value),
    }
}

fn relationship_guids(body: &Object, key: &str) -> Vec<String> {
    let data = body.get("relationships").and_then(|value| value.at(&[key, "data"]));
    let entries = data.and_then(Json::as_array).unwrap_or_default();
    let mut guids = Vec::new();
    for entry in entries {
        flatten(entry.at(&["guid"]).unwrap_or(&Json::Null), &mut guids);
    }
    guids.into_iter().filter_map(Json::as_str).map(str::to_owned).collect()
}
