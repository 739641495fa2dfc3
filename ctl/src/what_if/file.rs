//! Files with rules, as `cf create-security-group` takes them: a JSON array of rules; or as the
//! Cloud Controller's API v3 has a group: an object with `name` and `rules`.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, ensure};
use proto::policy_v1::Rule;
use serde::Deserialize;
use serde_json::Value;

use crate::report::warn;

/// Size limit of a file: the Cloud Controller accepts less.
const LARGEST: u64 = 16 << 20;
/// Keys of API v3 that say where a group applies.
const BINDINGS: [&str; 2] = ["globally_enabled", "relationships"];

/// The content of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Written {
    /// Name of the group, if the file has it.
    pub(super) name: Option<String>,
    pub(super) rules: Vec<Rule>,
}

/// A rule. A key that the Cloud Controller does not know is an error there, too.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    protocol: String,
    destination: String,
    ports: Option<String>,
    r#type: Option<i32>,
    code: Option<i32>,
    description: Option<String>,
    log: Option<bool>,
}

/// Reads a file; `-` is standard input.
pub(super) fn read(path: &Path) -> anyhow::Result<Written> {
    let context = || format!("--file {}", path.display());
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(LARGEST + 1).read_to_string(&mut text),
        false => std::fs::File::open(path)
            .and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text)),
    };
    let length = read.with_context(context)?;
    ensure!(length as u64 <= LARGEST, "--file {}: more than {LARGEST} bytes", path.display());
    let (written, ignored) = parse(&text).with_context(context)?;
    if !ignored.is_empty() {
        let (path, keys) = (path.display(), ignored.join(" and "));
        warn(&format!("--file {path}: {keys}: not read, use --bind and --unbind"));
    }
    Ok(written)
}

/// Also returns the keys with bindings.
fn parse(text: &str) -> anyhow::Result<(Written, Vec<&'static str>)> {
    let value: Value = serde_json::from_str(text).context("not JSON")?;
    match value {
        Value::Array(items) => Ok((Written { name: None, rules: rules(items)? }, Vec::new())),
        Value::Object(mut object) => {
            let name = match object.remove("name") {
                None => None,
                Some(Value::String(name)) => Some(name),
                Some(other) => anyhow::bail!("name: {other} is not a text"),
            };
            let Some(Value::Array(items)) = object.remove("rules") else {
                anyhow::bail!("rules: a list of rules is missing");
            };
            let ignored = BINDINGS.into_iter().filter(|key| object.contains_key(*key)).collect();
            Ok((Written { name, rules: rules(items)? }, ignored))
        }
        _ => anyhow::bail!("neither a list of rules nor an object with name and rules"),
    }
}

fn rules(items: Vec<Value>) -> anyhow::Result<Vec<Rule>> {
    let rule = |(index, item)| rule(item).with_context(|| format!("rules[{index}]"));
    items.into_iter().enumerate().map(rule).collect()
}

fn rule(item: Value) -> anyhow::Result<Rule> {
    let WrittenRule { protocol, destination, ports, r#type, code, description, log } =
        serde_json::from_value(item)?;
    if matches!(protocol.as_str(), "icmp" | "icmpv6") {
        ensure!(r#type.is_some(), "type: is missing; -1 means all types");
        ensure!(code.is_some(), "code: is missing; -1 means all codes");
    }
    Ok(Rule {
        protocol,
        destination,
        ports: ports.unwrap_or_default(),
        r#type: r#type.unwrap_or_default(),
        code: code.unwrap_or_default(),
        description: description.unwrap_or_default(),
        log: log.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let rules = r#"[{"protocol":"tcp","destination":"10.0.0.0/24","ports":"80,443","log":true},
            {"protocol":"icmp","destination":"10.0.0.1","type":8,"code":-1,"description":null}]"#;
        let (list, ignored) = parse(rules).unwrap();
        assert_eq!((list.name, ignored.len()), (None, 0));
        assert_eq!((list.rules[0].ports.as_str(), list.rules[0].log), ("80,443", true));
        assert_eq!((list.rules[1].r#type, list.rules[1].code), (8, -1));
        let object = format!(r#"{{"guid":"g","name":"db","rules":{rules},"relationships":{{}}}}"#);
        let (group, ignored) = parse(&object).unwrap();
        assert_eq!(group, Written { name: Some("db".to_owned()), rules: list.rules });
        assert_eq!(ignored, ["relationships"]);
    }

    #[test]
    fn errors_name_the_rule_and_the_key() {
        for (text, start) in [
            ("[", "not JSON: "),
            ("7", "neither a list of rules nor an object"),
            (r#"{"name":7,"rules":[]}"#, "name: 7 is not a text"),
            (r#"{"name":"x"}"#, "rules: a list of rules is missing"),
            (r#"[{"protocol":"tcp"}]"#, "rules[0]: missing field `destination`"),
            (
                r#"[{"protocol":"tcp","destination":"10.0.0.1","port":"80"}]"#,
                "rules[0]: unknown field `port`",
            ),
            (r#"[{"protocol":"icmp","destination":"10.0.0.1","type":8}]"#, "rules[0]: code: is"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }
}
