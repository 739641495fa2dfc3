//! Rules of a group in one column, as JSON with the keys of the original
//! (docs/compatibility/policy-server-internal.md#rules-as-stored).
//!
//! One column instead of a table: rules are an ordered list that is always written and
//! read as a whole, no query selects a single rule, and a set of 5,000 groups has
//! 250,000 rules.

use model::rule::RuleSpec;

pub(super) fn to_text(rules: &[RuleSpec]) -> String {
    serde_json::to_string(rules).expect("texts, numbers and booleans are JSON")
}

pub(super) fn parse(text: &str) -> Result<Vec<RuleSpec>, serde_json::Error> {
    runtime::json::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_originals_keys_in_their_order() {
        let rule = RuleSpec {
            protocol: "icmp".to_owned(),
            destination: "10.0.0.0/8".to_owned(),
            icmp_type: -1,
            icmp_code: 3,
            description: "quote \" and \u{1F600}".to_owned(),
            log: true,
            ..RuleSpec::default()
        };
        let text = to_text(std::slice::from_ref(&rule));
        assert_eq!(
            text,
            "[{\"protocol\":\"icmp\",\"destination\":\"10.0.0.0/8\",\"ports\":\"\",\"type\":-1,\
             \"code\":3,\"description\":\"quote \\\" and \u{1F600}\",\"log\":true}]"
        );
        assert_eq!(parse(&text).unwrap(), [rule]);
        assert_eq!(parse("[]").unwrap(), []);
        parse(r#"[["all","0.0.0.0/0","",0,0,"",false]]"#).unwrap_err();
    }
}
