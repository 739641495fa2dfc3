//! Rows of the original's `security_groups`, as it writes them.

use model::{group::ContentHash, ids::SpaceGuid};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::groups::{content::Content, json};

/// Lengths of the original's columns, in characters.
const GUID_CHARS: usize = 36;
const NAME_CHARS: usize = 255;
/// Length of MySQL's `mediumtext`, in bytes.
const RULES_BYTES: usize = (16 << 20) - 1;

/// Which of the tables and columns of later versions exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// `security_groups_info.last_updated`.
    pub(super) stamp: bool,
    /// `security_groups.hash`.
    pub(super) hash: bool,
    /// The tables of spaces.
    pub(super) spaces: bool,
}

/// A row, with the spaces of its group.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) guid: String,
    pub(super) name: String,
    pub(super) rules: String,
    pub(super) staging_default: bool,
    pub(super) running_default: bool,
    pub(super) staging_spaces: Vec<String>,
    pub(super) running_spaces: Vec<String>,
    /// Empty if the table has no such column.
    pub(super) hash: String,
}

/// What identifies the content of a row in the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// SHA-256 of the columns, in hexadecimal; absent if one of them is NULL.
    pub(super) digest: Option<String>,
    /// Number of rows in the tables of spaces; 0 without such tables.
    pub(super) staging_spaces: i64,
    pub(super) running_spaces: i64,
}

/// The expected row of a group.
#[derive(Debug)]
pub(super) struct Expected {
    /// Content that the row was made from.
    pub(super) content: ContentHash,
    pub(super) found: Found,
}

/// The original's struct, whose JSON text it hashes.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Hashed<'a> {
    guid: &'a str,
    name: &'a str,
    rules: &'a str,
    staging_default: bool,
    running_default: bool,
    staging_space_guids: &'a [String],
    running_space_guids: &'a [String],
}

/// Why the original's tables cannot hold a group.
pub(super) fn unfit(content: &Content, most: usize) -> Option<&'static str> {
    let is_long = |text: &str, most: usize| text.chars().count() > most;
    if is_long(content.guid.as_str(), GUID_CHARS) {
        return Some("the guid has more than 36 characters");
    }
    if content.bound_spaces().any(|space| is_long(space.as_str(), GUID_CHARS)) {
        return Some("the guid of a space has more than 36 characters");
    }
    if is_long(&content.name, NAME_CHARS) {
        return Some("the name has more than 255 characters");
    }
    if content.name.contains('\0') {
        return Some("the name contains a NUL character");
    }
    // An escape takes six bytes instead of one.
    let may_be_long = content.encoded().len() * 6 > most.min(RULES_BYTES);
    if may_be_long && json::encode(&content.rules()).len() > most.min(RULES_BYTES) {
        return Some("the rules are too long");
    }
    None
}

impl Row {
    pub(super) fn new(content: &Content, layout: Layout) -> Self {
        let guids = |spaces: &std::collections::BTreeSet<SpaceGuid>| {
            spaces.iter().map(|space| space.as_str().to_owned()).collect::<Vec<_>>()
        };
        let mut row = Self {
            guid: content.guid.as_str().to_owned(),
            name: content.name.clone(),
            rules: json::encode(&content.rules()),
            staging_default: content.staging.everywhere,
            running_default: content.running.everywhere,
            staging_spaces: guids(&content.staging.spaces),
            running_spaces: guids(&content.running.spaces),
            hash: String::new(),
        };
        if layout.hash {
            row.hash = row.hash();
        }
        row
    }

    /// The original's hash; two syncs write the same group only if it differs.
    fn hash(&self) -> String {
        let hashed = Hashed {
            guid: &self.guid,
            name: &self.name,
            rules: &self.rules,
            staging_default: self.staging_default,
            running_default: self.running_default,
            staging_space_guids: &self.staging_spaces,
            running_space_guids: &self.running_spaces,
        };
        hex(&json::encode(&hashed))
    }

    /// What the database finds after the row was written.
    pub(super) fn found(&self, layout: Layout) -> Found {
        let mut text = format!(
            "{}{}{}{}{}",
            u8::from(self.staging_default),
            u8::from(self.running_default),
            list(&self.staging_spaces),
            list(&self.running_spaces),
            self.rules,
        );
        if layout.hash {
            text.push_str(&self.hash);
            text.push(' ');
        }
        text.push_str(&self.name);
        let count = |spaces: &[String]| match layout.spaces {
            true => i64::try_from(spaces.len()).expect("fewer than the memory"),
            false => 0,
        };
        Found {
            digest: Some(hex(&text)),
            staging_spaces: count(&self.staging_spaces),
            running_spaces: count(&self.running_spaces),
        }
    }
}

/// A list of spaces as the databases print it: with a space after each comma. MariaDB keeps
/// the text that is written.
pub(super) fn list(spaces: &[String]) -> String {
    let spaces = spaces.iter().map(|space| serde_json::Value::from(space.as_str()).to_string());
    format!("[{}]", spaces.collect::<Vec<_>>().join(", "))
}

fn hex(text: &str) -> String {
    format!("{:x}", Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use model::{
        group::{Scope, SecurityGroup},
        ids::GroupGuid,
    };

    use super::*;

    fn row(guid: &str, name: &str, rules: &str, running: &[&str]) -> Row {
        let spaces = |guids: &[&str]| guids.iter().map(|&guid| guid.to_owned()).collect();
        Row {
            guid: guid.to_owned(),
            name: name.to_owned(),
            rules: rules.to_owned(),
            staging_default: guid == "third-guid",
            running_default: false,
            staging_spaces: spaces(&[name.split_once('-').unwrap().0]),
            running_spaces: spaces(running),
            hash: String::new(),
        }
    }

    /// Two hashes that the original's tests expect.
    #[test]
    fn hashes_are_the_originals() {
        let mut second = row("new-guid", "second-name", "secondRules", &["second-space"]);
        second.staging_spaces = vec!["second-space".to_owned()];
        let expected = "f842efd3fd4944dc6dd669b8f6817f914826485ebec5aa697632d8a10f3ddc30";
        assert_eq!(second.hash(), expected);
        let mut third = row("third-guid", "third-name", "thirdRules", &[]);
        third.staging_spaces = vec!["third-space".to_owned()];
        let expected = "2a3d6609af1920ccf8fa2c9d2e5d829592ee91f146c46fee2506c01a59aacd3f";
        assert_eq!(third.hash(), expected);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let group = |guid: &str, name: &str, space: &str| {
            let guid = GroupGuid::parse(guid).unwrap();
            let spaces = [SpaceGuid::parse(space).unwrap()].into();
            let running = Scope { everywhere: false, spaces };
            let (name, rules, staging) = (name.to_owned(), Vec::new(), Scope::default());
            Content::from(SecurityGroup { guid, name, rules, running, staging })
        };
        let long = "é".repeat(37);
        let unfit = |guid: &str, name: &str, space: &str| unfit(&group(guid, name, space), 1000);
        assert_eq!(unfit(&long[2..], &"é".repeat(255), &long[2..]), None);
        for (why, problem) in [
            ("guid has", unfit(&long, "n", "s")),
            ("space has", unfit("g", "n", &long)),
            ("name has more", unfit("g", &"é".repeat(256), "s")),
            ("NUL", unfit("g", "a\0b", "s")),
        ] {
            assert!(problem.unwrap().contains(why), "{why}");
        }
    }
}
