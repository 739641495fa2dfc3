//! A place where a group applies, as users write it: `staging:GUID`.

use std::str::FromStr;

use proto::policy_v1::{Binding, Lifecycle};

/// A place where a group applies: `running`, `staging`, `GUID`, `running:GUID`, `staging:GUID`.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound(pub(crate) Binding);

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (lifecycle, space) = match text.split_once(':') {
            None => match text {
                "running" => (Lifecycle::Running, ""),
                "staging" => (Lifecycle::Staging, ""),
                space => (Lifecycle::Running, space),
            },
            Some(("running", space)) if !space.is_empty() => (Lifecycle::Running, space),
            Some(("staging", space)) if !space.is_empty() => (Lifecycle::Staging, space),
            Some(_) => {
                return Err("not running, staging, GUID, running:GUID or staging:GUID".into());
            }
        };
        if text.is_empty() {
            return Err("empty: not running, staging or the GUID of a space".to_owned());
        }
        Ok(Self(Binding { lifecycle: lifecycle.into(), space_guid: space.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        for (text, lifecycle, space) in [
            ("running", Lifecycle::Running, ""),
            ("staging", Lifecycle::Staging, ""),
            ("s1", Lifecycle::Running, "s1"),
            ("running:s1", Lifecycle::Running, "s1"),
            ("staging:s1", Lifecycle::Staging, "s1"),
        ] {
            let binding = Binding { lifecycle: lifecycle.into(), space_guid: space.to_owned() };
            assert_eq!(text.parse(), Ok(Bound(binding)), "{text}");
        }
        for text in ["", "staging:", "other:s1", ":s1"] {
            text.parse::<Bound>().unwrap_err();
        }
    }
}
