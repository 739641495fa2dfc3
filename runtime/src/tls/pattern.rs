//! Patterns for the names in certificates.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use serde_json::Value as Json;

use super::Identity;
use crate::config::Value;

/// A field of a certificate that identifies its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    CommonName,
    OrganizationalUnit,
    DnsName,
    Uri,
}

impl Field {
    const ALL: [(&'static str, Self); 4] = [
        ("cn", Self::CommonName),
        ("ou", Self::OrganizationalUnit),
        ("dns", Self::DnsName),
        ("uri", Self::Uri),
    ];

    fn values(self, identity: &Identity) -> impl Iterator<Item = &str> {
        let (one, many): (_, &[String]) = match self {
            Self::CommonName => (identity.common_name.as_deref(), &[]),
            Self::OrganizationalUnit => (None, &identity.organizational_units),
            Self::DnsName => (None, &identity.dns_names),
            Self::Uri => (None, &identity.uris),
        };
        one.into_iter().chain(many.iter().map(String::as_str))
    }
}

/// The names in [`Pattern`] syntax: `cn=syncer,dns=a.cf.internal`.
impl Display for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, field) in Field::ALL {
            for value in field.values(self) {
                write!(f, "{separator}{name}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// Selects certificates by conditions such as `cn=syncer` or `ou=cell,dns=*.cf`, all of which must
/// hold. A value may contain one `*`, which matches any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<(Field, String)>);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let condition = |condition: &str| {
            let (name, value) = condition
                .split_once('=')
                .ok_or_else(|| format!("{condition:?} is not of the form cn=NAME"))?;
            let field = Field::ALL.into_iter().find(|(known, _)| *known == name.trim());
            let (_, field) =
                field.ok_or_else(|| format!("{name:?} is not one of cn, ou, dns and uri"))?;
            match value.trim() {
                "" => Err(format!("{condition:?} has no value")),
                value if value.matches('*').count() > 1 => {
                    Err(format!("{condition:?} has more than one *"))
                }
                value => Ok((field, value.to_owned())),
            }
        };
        text.split(',').map(condition).collect::<Result<_, _>>().map(Self)
    }
}

impl Value for Vec<Pattern> {
    fn from_json(json: &Json) -> Result<Self, String> {
        Vec::<String>::from_json(json)?.iter().map(|text| text.parse()).collect()
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl Pattern {
    /// Whether all conditions hold.
    pub fn fits(&self, identity: &Identity) -> bool {
        let holds = |(field, wanted): &(Field, String)| {
            field.values(identity).any(|value| matches_wildcard(wanted, value))
        };
        self.0.iter().all(holds)
    }

    /// Whether one of the patterns selects the client; false for a client without a certificate.
    pub fn any_fits(patterns: &[Self], identity: Option<&Identity>) -> bool {
        identity.is_some_and(|identity| patterns.iter().any(|pattern| pattern.fits(identity)))
    }
}

/// Whether `value` equals `wanted`, in which one `*` matches any text.
pub fn matches_wildcard(wanted: &str, value: &str) -> bool {
    match wanted.split_once('*') {
        None => wanted == value,
        Some((start, end)) => {
            value.len() >= start.len() + end.len()
                && value.starts_with(start)
                && value.ends_with(end)
        }
    }
}
