//! Validates request bodies of organizations, spaces, roles and users.

use super::group::unknown_fields;
use crate::json::{Json, Object};
use crate::ruby;

const MAX_NAME: usize = 255;

/// Fields that organizations and spaces have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// Labels and annotations, as sent.
    pub metadata: Option<Json>,
}

/// `POST /v3/organizations`: the organization, and whether it is suspended.
pub fn organization(body: &Object) -> Result<(Named, bool), Vec<String>> {
    let mut errors = unknown_fields(body, &["name", "suspended", "metadata"]);
    check_name(body, &mut errors);
    check_metadata(body, &mut errors);
    let suspended = body.get("suspended").unwrap_or(&Json::Bool(false));
    let suspended = match suspended {
        Json::Null => Some(false),
        value => value.as_bool(),
    };
    if suspended.is_none() {
        errors.push("Suspended must be a boolean".to_owned());
    }
    named(body, &errors).zip(suspended).ok_or(errors)
}

/// `POST /v3/spaces`: the space, and the GUID of its organization.
pub fn space(body: &Object) -> Result<(Named, String), Vec<String>> {
    let mut errors = unknown_fields(body, &["name", "relationships", "metadata"]);
    let organization = match body.get("relationships") {
        Some(Json::Object(relationships)) if relationships.is_empty() => {
            errors.push(
                "Relationships 'relationships' must include one or more valid relationships"
                    .to_owned(),
            );
            None
        }
        Some(Json::Object(relationships)) => {
            let unknown = unknown_fields(relationships, &["organization"]);
            errors.extend(unknown.into_iter().map(|text| format!("Relationships {text}")));
            to_one(relationships, "organization", &mut errors)
        }
        _ => {
            errors.push("Relationships 'relationships' is not an object".to_owned());
            None
        }
    };
    check_metadata(body, &mut errors);
    check_name(body, &mut errors);
    named(body, &errors).zip(organization).ok_or(errors)
}

/// Parses an update of name or metadata, for organizations and spaces.
pub fn rename(body: &Object, also: &[&str]) -> Result<(Option<String>, Option<Json>), Vec<String>> {
    let known: Vec<&str> = ["name", "metadata"].into_iter().chain(also.iter().copied()).collect();
    let mut errors = unknown_fields(body, &known);
    if body.has("name") {
        check_name(body, &mut errors);
    }
    check_metadata(body, &mut errors);
    if errors.is_empty() {
        let name = body.get("name").and_then(Json::as_str).map(str::to_owned);
        Ok((name, body.get("metadata").cloned()))
    } else {
        Err(errors)
    }
}

/// `POST /v3/roles`
#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    /// Such as `space_developer`.
    pub kind: String,
    /// The user who gets the role.
    pub user: UserReference,
    /// The GUID of the space or the organization, depending on the kind.
    pub place: Place,
}

/// A request's reference to a user.
#[derive(Debug, Clone, PartialEq)]
pub enum UserReference {
    /// By GUID; clients are users too.
    Guid(String),
    /// By name, with the origin if one was given.
    Name(String, Option<String>),
}

/// The organization or space of a role.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// In an organization.
    Organization(String),
    /// In a space.
    Space(String),
}

const ROLES: [&str; 8] = [
    "organization_user",
    "organization_auditor",
    "organization_billing_manager",
    "organization_manager",
    "space_auditor",
    "space_supporter",
    "space_developer",
    "space_manager",
];

/// Parses the body of a role request.
pub fn role(body: &Object) -> Result<Role, Vec<String>> {
    let mut errors = unknown_fields(body, &["type", "relationships"]);
    let kind = body.get("type").and_then(Json::as_str).unwrap_or_default();
    let Some(relationships) = body.get("relationships").and_then(Json::as_object) else {
        errors.push("Relationships 'relationships' is not an object".to_owned());
        return Err(errors);
    };
    let user = role_user(relationships, &mut errors);
    let place = role_place(kind, relationships, &mut errors);
    if !ROLES.contains(&kind) {
        let allowed = ruby::inspect_all(ROLES);
        errors.push(format!("Type must be one of the allowed types {allowed}"));
    }
    match (user, place) {
        (Some(user), Some(place)) if errors.is_empty() => {
            Ok(Role { kind: kind.to_owned(), user, place })
        }
        _ => Err(errors),
    }
}

fn role_user(relationships: &Object, errors: &mut Vec<String>) -> Option<UserReference> {
    let data = relationships.get("user").and_then(|user| user.at(&["data"]));
    let text = |key: &str| data.and_then(|data| data.at(&[key])).and_then(Json::as_str);
    match (text("guid"), text("username")) {
        (Some(_), Some(_)) => {
            errors.push(
                "Relationships Username cannot be specified when identifying user by guid"
                    .to_owned(),
            );
            None
        }
        (Some(guid), None) => Some(UserReference::Guid(guid.to_owned())),
        (None, Some(name)) => {
            Some(UserReference::Name(name.to_owned(), text("origin").map(str::to_owned)))
        }
        (None, None) => {
            errors.push("Relationships User must have a username or guid specified".to_owned());
            None
        }
    }
}

fn role_place(kind: &str, relationships: &Object, errors: &mut Vec<String>) -> Option<Place> {
    let has = |key: &str| relationships.get(key).is_some_and(|value| value.at(&["data"]).is_some());
    match (has("organization"), has("space")) {
        (true, true) => {
            errors
                .push("Relationships cannot specify both an organization and a space.".to_owned());
            None
        }
        (false, false) => {
            errors.push("Relationships must specify either a space or an organization.".to_owned());
            None
        }
        (true, false) if kind.starts_with("space_") => {
            errors.push(format!(
                "Relationships Organization cannot be provided with the space role type: '{kind}'."
            ));
            None
        }
        (false, true) if kind.starts_with("organization_") => {
            errors.push(format!(
                "Relationships Space cannot be provided with the organization role type: '{kind}'."
            ));
            None
        }
        (true, false) => to_one(relationships, "organization", errors).map(Place::Organization),
        (false, true) => to_one(relationships, "space", errors).map(Place::Space),
    }
}

/// `POST /v3/users`: the GUID.
pub fn user(body: &Object) -> Result<String, Vec<String>> {
    let mut errors = unknown_fields(body, &["guid", "username", "origin", "metadata"]);
    let guid = body.get("guid").and_then(Json::as_str).unwrap_or_default();
    if !(1..=200).contains(&guid.chars().count()) {
        errors.push("Guid must be between 1 and 200 characters".to_owned());
    }
    if errors.is_empty() { Ok(guid.to_owned()) } else { Err(errors) }
}

fn to_one(relationships: &Object, key: &str, errors: &mut Vec<String>) -> Option<String> {
    let mut title = key.to_owned();
    title[..1].make_ascii_uppercase();
    let value = relationships.get(key).unwrap_or(&Json::Null);
    if value.is_blank() {
        errors.push(format!("Relationships {title} can't be blank"));
    }
    let Some(guid) = value.at(&["data", "guid"]) else {
        errors.push(format!(
            "Relationships {title} must be structured like this: \
             \"{key}: {{\"data\": {{\"guid\": \"valid-guid\"}}}}\""
        ));
        return None;
    };
    let guid = guid.as_str();
    if guid.is_none() {
        errors.push(format!("Relationships {title} guid must be a string"));
    }
    let fits = |guid: &&str| (1..=200).contains(&guid.chars().count());
    let guid = guid.filter(fits).map(str::to_owned);
    if guid.is_none() {
        errors.push(format!("Relationships {title} guid must be between 1 and 200 characters"));
    }
    guid
}

fn check_name(body: &Object, errors: &mut Vec<String>) {
    let name = body.get("name").unwrap_or(&Json::Null);
    if name.is_blank() {
        errors.push("Name can't be blank".to_owned());
    }
    if name.as_str().is_none() && *name != Json::Null {
        errors.push("Name must be a string".to_owned());
    }
    if ruby::length(name) > MAX_NAME {
        errors.push(format!("Name is too long (maximum is {MAX_NAME} characters)"));
    }
    if name.as_str().is_some_and(|name| name.chars().any(char::is_control)) {
        errors.push("Name must not contain escaped characters".to_owned());
    }
}

fn check_metadata(body: &Object, errors: &mut Vec<String>) {
    if body.get("metadata").is_some_and(|metadata| metadata.as_object().is_none()) {
        errors.push("Metadata must be an object".to_owned());
    }
}

fn named(body: &Object, errors: &[String]) -> Option<Named> {
    let name = body.get("name").and_then(Json::as_str).filter(|_| errors.is_empty())?;
    Some(Named { name: name.to_owned(), metadata: body.get("metadata").cloned() })
}
