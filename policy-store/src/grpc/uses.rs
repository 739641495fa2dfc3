//! Parses the uses of rules that a cell reports.

use model::{
    ids::GroupGuid,
    uses::{PermitKey, Window},
};
use proto::policy_v1::watch_request::RuleUses;

use super::status::{Error, invalid};
use crate::uses::Reported;

/// Limit of permits of a message.
const PERMITS: usize = 10_000;

/// A message of a cell.
pub(super) fn reported(message: RuleUses) -> Result<Reported, Error> {
    let RuleUses { groups, from, until } = message;
    let permits: usize = groups.iter().map(|group| group.permits.len()).sum();
    if permits > PERMITS || groups.len() > PERMITS {
        let problem = format_args!("have {permits} permits, at most {PERMITS} are allowed");
        return Err(invalid("rule_uses.groups", problem));
    }
    let mut used = Vec::with_capacity(permits);
    for group in groups {
        let guid = GroupGuid::parse(&group.guid);
        let guid = guid.map_err(|error| invalid("rule_uses.groups.guid", error))?;
        for permit in group.permits {
            let key = PermitKey::from_bytes(&permit);
            let problem = || format!("has {} bytes instead of 16", permit.len());
            let key = key.ok_or_else(|| invalid("rule_uses.groups.permits", problem()))?;
            used.push((guid.clone(), key));
        }
    }
    let window = match (from, until) {
        (Some(from), Some(until)) if 0 <= from && from <= until => Some(Window { from, until }),
        (None, None) => None,
        _ => return Err(invalid("rule_uses.from", "is negative, alone, or later than until")),
    };
    Ok(Reported { used, window })
}

#[cfg(test)]
mod tests {
    use proto::policy_v1::watch_request::rule_uses::Group;

    use super::*;

    #[test]
    fn a_message_is_parsed_and_bad_ones_name_the_field() {
        let message = |key: &[u8], count: usize, from, until| RuleUses {
            groups: vec![Group { guid: "g".to_owned(), permits: vec![key.to_vec(); count] }],
            from,
            until,
        };
        let good = reported(message(&[7; 16], 1, Some(3), Some(5))).unwrap();
        assert_eq!(good.used.len(), 1);
        assert_eq!(good.window, Some(Window { from: 3, until: 5 }));
        assert_eq!(reported(RuleUses::default()).unwrap(), Reported::default());
        for (bad, field) in [
            (message(&[7; 15], 1, None, None), "permits"),
            (message(&[7; 16], PERMITS + 1, None, None), "groups"),
            (message(&[7; 16], 1, Some(5), Some(3)), "from"),
            (message(&[7; 16], 1, Some(-1), Some(3)), "from"),
            (message(&[7; 16], 1, None, Some(3)), "from"),
        ] {
            let error = reported(bad).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
