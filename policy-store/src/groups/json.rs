//! JSON text of a group in the original's response
//! (docs/compatibility/policy-server-internal.md#routes), byte for byte as Go's encoder writes it.
//!
//! `rules` is a string that contains JSON. Its readers unquote it with Go's
//! `strconv.Unquote`, which supports fewer escapes than JSON: the inner text has every
//! control character escaped already, so that the outer string needs only `\"` and
//! `\\`, which both support.

use proto::policy_v1;
use runtime::go_json::Go;
use serde::Serialize;

/// One group, with all keys in the original's order.
#[derive(Serialize)]
struct Group<'a> {
    guid: &'a str,
    name: &'a str,
    rules: &'a str,
    staging_default: bool,
    running_default: bool,
    staging_space_guids: &'a [String],
    running_space_guids: &'a [String],
}

/// The JSON text of a group.
#[must_use]
pub fn to_text(group: &policy_v1::SecurityGroup) -> String {
    let policy_v1::SecurityGroup {
        guid,
        name,
        rules,
        running_default,
        staging_default,
        running_space_guids,
        staging_space_guids,
    } = group;
    encode(&Group {
        guid,
        name,
        rules: &encode(rules),
        staging_default: *staging_default,
        running_default: *running_default,
        staging_space_guids,
        running_space_guids,
    })
}

/// Encodes like Go's `json.Marshal`.
pub(crate) fn encode(value: &impl Serialize) -> String {
    Go::V1_21.to_string(value).expect("texts, numbers and booleans are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_originals_keys_in_their_order() {
        let group = policy_v1::SecurityGroup {
            guid: "594afa3a".to_owned(),
            name: "asg-00000".to_owned(),
            rules: vec![policy_v1::Rule {
                protocol: "tcp".to_owned(),
                destination: "10.88.139.92".to_owned(),
                ports: "57506".to_owned(),
                description: "rule 0".to_owned(),
                log: true,
                ..policy_v1::Rule::default()
            }],
            running_default: true,
            staging_default: true,
            running_space_guids: vec!["s1".to_owned(), "s2".to_owned()],
            staging_space_guids: Vec::new(),
        };
        let expected = r#"{"guid":"594afa3a","name":"asg-00000","rules":"[{\"protocol\":\"tcp\",\"destination\":\"10.88.139.92\",\"ports\":\"57506\",\"type\":0,\"code\":0,\"description\":\"rule 0\",\"log\":true}]","staging_default":true,"running_default":true,"staging_space_guids":[],"running_space_guids":["s1","s2"]}"#;
        assert_eq!(to_text(&group), expected);
        let none = policy_v1::SecurityGroup { rules: Vec::new(), ..group };
        assert!(to_text(&none).contains(r#""rules":"[]""#));
    }
}
