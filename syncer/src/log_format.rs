//! Security groups in the format of the original's debug lines: its own structs, with
//! every key present.

use model::{
    group::{Scope, SecurityGroup},
    rule::RuleSpec,
};
use serde::Serialize;
use serde_json::value::RawValue;

#[derive(Serialize)]
struct Group<'a> {
    guid: &'a str,
    name: &'a str,
    globally_enabled: Enabled,
    rules: &'a [RuleSpec],
    relationships: Relationships<'a>,
}

#[derive(Serialize)]
struct Enabled {
    running: bool,
    staging: bool,
}

#[derive(Serialize)]
struct Relationships<'a> {
    staging_spaces: Bindings<'a>,
    running_spaces: Bindings<'a>,
}

#[derive(Serialize)]
struct Bindings<'a> {
    data: Vec<Binding<'a>>,
}

#[derive(Serialize)]
struct Binding<'a> {
    guid: &'a str,
}

/// One group for the log.
#[must_use]
pub(crate) fn group(group: &SecurityGroup) -> Box<RawValue> {
    let SecurityGroup { guid, name, rules, running, staging } = group;
    let shown = Group {
        guid: guid.as_str(),
        name,
        globally_enabled: Enabled { running: running.everywhere, staging: staging.everywhere },
        rules,
        relationships: Relationships {
            staging_spaces: bindings(staging),
            running_spaces: bindings(running),
        },
    };
    serde_json::value::to_raw_value(&shown).expect("texts, numbers and lists are JSON")
}

fn bindings(scope: &Scope) -> Bindings<'_> {
    Bindings { data: scope.spaces.iter().map(|space| Binding { guid: space.as_str() }).collect() }
}
