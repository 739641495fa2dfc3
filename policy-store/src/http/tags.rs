//! Tags of app groups.
//!
//! Container-to-container policies are not supported: no rule refers to a tag. But an
//! agent first requests the tag of the ingress router, and marks packets with it. So
//! tags are assigned as the original assigns them, the lowest free one to each new id,
//! and are lost at process exit.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

/// Length limit of the original's columns.
const MAX_CHARS: usize = 255;
/// Limit of tags: bounds the memory.
const MAX_TAGS: usize = 65_535;

/// App group that requests a tag.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// Id of the group.
    pub id: String,
    /// Type of the group.
    pub kind: String,
}

/// Reason why no tag is assigned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body is not a JSON object with string values.
    #[error("{0}")]
    Body(String),
    /// The group has another type.
    #[error("group {id:?} has the type {stored:?}, not {given:?}")]
    OtherType {
        /// Id of the group.
        id: String,
        /// Stored type.
        stored: String,
        /// Requested type.
        given: String,
    },
    /// An id or a type is too long.
    #[error("{what} has more than {MAX_CHARS} characters")]
    TooLong {
        /// Name of the field.
        what: &'static str,
    },
    /// All tags are assigned.
    #[error("all {0} tags are given")]
    NoneLeft(usize),
}

/// The fields of an object in document order.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Parses a body. As in Go, names match case-insensitively, the last of several values
/// counts, `null` means absent, and invalid UTF-8 bytes are replaced.
///
/// # Errors
/// The body is not such JSON.
pub fn parse(body: &[u8]) -> Result<Group, Error> {
    let bad = |error: serde_json::Error| Error::Body(error.to_string());
    let text = String::from_utf8_lossy(body);
    let fields: Option<Fields> = runtime::json::from_str(&text).map_err(bad)?;
    let mut group = Group::default();
    for (name, value) in fields.into_iter().flat_map(|Fields(fields)| fields) {
        let field = match name.to_ascii_lowercase().as_str() {
            "id" => &mut group.id,
            "type" => &mut group.kind,
            _ => continue,
        };
        if let Some(text) = Option::<String>::deserialize(value).map_err(bad)? {
            *field = text;
        }
    }
    Ok(group)
}

/// Assigned tags.
#[derive(Debug)]
pub struct Tags {
    /// Hexadecimal digits of a tag.
    digits: usize,
    most: usize,
    /// Type and number of each id; numbers start at 1.
    given: Mutex<HashMap<String, (String, usize)>>,
}

impl Tags {
    /// Tags with this length in bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let most = match bytes {
            0 => 0,
            1 => 255,
            _ => MAX_TAGS,
        };
        Self { digits: 2 * bytes, most, given: Mutex::default() }
    }

    /// Returns the tag of the group, and assigns it at the first call.
    ///
    /// # Errors
    /// No tag can be assigned.
    pub fn tag(&self, group: &Group) -> Result<String, Error> {
        let Group { id, kind } = group;
        for (what, text) in [("id", id), ("type", kind)] {
            if text.chars().count() > MAX_CHARS {
                return Err(Error::TooLong { what });
            }
        }
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match given.get(id) {
            Some((stored, number)) if stored == kind => *number,
            Some((stored, _)) => {
                let (id, stored, given) = (id.clone(), stored.clone(), kind.clone());
                return Err(Error::OtherType { id, stored, given });
            }
            None if given.len() >= self.most => return Err(Error::NoneLeft(self.most)),
            None => {
                let number = given.len() + 1;
                given.insert(id.clone(), (kind.clone(), number));
                number
            }
        };
        Ok(format!("{number:0width$X}", width = self.digits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(id: &str, kind: &str) -> Group {
        Group { id: id.to_owned(), kind: kind.to_owned() }
    }

    #[test]
    fn bodies() {
        let router = group("INGRESS_ROUTER", "router");
        for body in [
            r#"{"id":"INGRESS_ROUTER","type":"router"}"#,
            r#"{"ID":"INGRESS_ROUTER","Type":"router"}"#,
            r#"{"else":1,"TYPE":"router","id":"INGRESS_ROUTER"}"#,
            r#"{"type":"router","id":"x","ID":null,"ID":"INGRESS_ROUTER","Type":null}"#,
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap(), router, "{body}");
        }
        assert_eq!(parse(b"{\"id\":\"\xff\"}").unwrap(), group("\u{fffd}", ""));
        for body in ["{}", "null", r#"{"id":null}"#] {
            assert_eq!(parse(body.as_bytes()).unwrap(), Group::default(), "{body}");
        }
        for body in ["", "{", "[]", "1", r#"{"id":1}"#, "{} {}"] {
            assert!(matches!(parse(body.as_bytes()), Err(Error::Body(_))), "{body}");
        }
    }

    #[test]
    fn each_group_has_the_lowest_tag_that_was_free() {
        let tags = Tags::new(2);
        assert_eq!(tags.tag(&group("INGRESS_ROUTER", "router")).unwrap(), "0001");
        assert_eq!(tags.tag(&group("", "")).unwrap(), "0002");
        assert_eq!(tags.tag(&group("INGRESS_ROUTER", "router")).unwrap(), "0001");
        let error = tags.tag(&group("INGRESS_ROUTER", "app")).unwrap_err();
        assert_eq!(error.to_string(), r#"group "INGRESS_ROUTER" has the type "router", not "app""#);
        let long = "x".repeat(256);
        assert_eq!(tags.tag(&group(&long, "")), Err(Error::TooLong { what: "id" }));
        assert_eq!(tags.tag(&group("a", &long)), Err(Error::TooLong { what: "type" }));
    }

    #[test]
    fn there_are_as_many_as_fit() {
        let tags = Tags::new(1);
        for number in 1..=255 {
            let tag = tags.tag(&group(&number.to_string(), "app")).unwrap();
            assert_eq!(tag, format!("{number:02X}"));
        }
        assert_eq!(tags.tag(&group("more", "app")), Err(Error::NoneLeft(255)));
    }
}
