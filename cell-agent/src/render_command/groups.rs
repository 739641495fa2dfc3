//! Reads a file of security groups in the format of a policy-server-internal response.

use serde_json::{Value, json};

use crate::groups::page::Page;

/// Parses a page, or only its list. `rules` may be a JSON list, as people write it, or
/// the text of one, as the server sends it.
pub(super) fn read(text: &[u8]) -> Result<Page, String> {
    let read: Value = runtime::json::from_slice(text).map_err(|error| error.to_string())?;
    let mut page = match read {
        Value::Array(list) => json!({ "security_groups": list }),
        Value::Object(_) => read,
        other => return Err(format!("{other} is neither a list of groups nor a page of them")),
    };
    match page.get("next") {
        None | Some(Value::Null) => {}
        Some(next) if next.is_u64() => {}
        Some(next) => return Err(format!("next: {next} is not a number")),
    }
    let list = match page.get_mut("security_groups") {
        Some(Value::Array(list)) => list,
        Some(other) => return Err(format!("security_groups: {other} is not a list")),
        None => return Err("security_groups: missing".to_owned()),
    };
    for group in list {
        if let Some(rules @ Value::Array(_)) = group.get_mut("rules") {
            *rules = Value::String(rules.to_string());
        }
    }
    Page::parse(page.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::page::{Groups, collect};

    fn rules(text: &str) -> Vec<String> {
        let (groups, problems) = collect(read(text.as_bytes()).unwrap().groups, &Groups::new());
        assert!(problems.is_empty(), "{problems:?}");
        let rules = groups.values().flat_map(|group| &group.stored.group.rules);
        rules.map(|rule| rule.destination.clone()).collect()
    }

    #[test]
    fn a_list_and_a_page_are_the_same() {
        let rule = r#"{\"protocol\":\"all\",\"destination\":\"10.0.0.1\"}"#;
        let group = format!(r#"{{"guid":"a","name":"a","rules":"[{rule}]"}}"#);
        let plain =
            r#"{"guid":"b","hash":"x","rules":[{"protocol":"all","destination":"10.0.0.2"}]}"#;
        let both = ["10.0.0.1", "10.0.0.2"];
        assert_eq!(rules(&format!("[{group},{plain}]")), both);
        assert_eq!(rules(&format!(r#"{{"next":0,"security_groups":[{group},{plain}]}}"#)), both);
    }

    #[test]
    fn the_error_for_a_missing_list_names_field_and_value() {
        for (text, problem) in [
            ("{}", "security_groups: missing"),
            (r#"{"security_groups":7}"#, "security_groups: 7 is not a list"),
            (r#"{"next":"x","security_groups":[]}"#, "next: \"x\" is not a number"),
            ("7", "7 is neither a list of groups nor a page of them"),
        ] {
            assert_eq!(read(text.as_bytes()).unwrap_err(), problem);
        }
        assert!(read(b"{").unwrap_err().contains("line 1"));
    }
}
