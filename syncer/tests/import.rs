//! The Cloud Controller's JSON, valid and invalid.

use model::{group::SecurityGroup, rule::RuleSpec};
use proptest::prelude::*;
use serde_json::{Value, json};
use syncer::import::{self, Malformed, Page};

fn read(json: &Value) -> Result<SecurityGroup, Malformed> {
    import::group(&json.to_string())
}

/// A group with one change.
fn with(pointer: &str, value: Value) -> Value {
    let mut group = json!({
        "guid": "g1", "name": "one", "created_at": "2026-11-23T01:53:08Z",
        "rules": [
            {"protocol": "tcp", "destination": "10.0.0.1", "ports": "80,443", "log": true,
             "description": "web"},
            {"protocol": "icmp", "destination": "0.0.0.0/0", "type": 8, "code": -1},
        ],
        "globally_enabled": {"running": true, "staging": false},
        "relationships": {
            "running_spaces": {"data": [{"guid": "s2"}, {"guid": "s1"}, {"guid": "s2"}]},
            "staging_spaces": {"data": []},
        },
        "links": {"self": {"href": "https://api.example.org/v3/security_groups/g1"}},
    });
    *group.pointer_mut(pointer).expect("a place in the group") = value;
    group
}

fn whole() -> Value {
    with("/name", json!("one"))
}

/// Every value that the Cloud Controller accepted, under any flags, is imported unchanged:
/// cells report rules that cannot be enforced.
#[test]
fn every_rule_that_the_cloud_controller_takes_is_read() {
    let recorded = include_str!("../../dev/cloud-controller/tests/fixtures/rule-cases.json");
    let recorded: Value = serde_json::from_str(recorded).unwrap();
    let mut taken = 0;
    for case in recorded["cases"].as_array().unwrap() {
        let outcomes = case["expected"].as_object().unwrap().values();
        let Some(rules) = case["rules"].as_array() else { continue };
        if !outcomes.into_iter().any(|outcome| outcome["status"] == 201) {
            continue;
        }
        taken += 1;
        let group = read(&with("/rules", json!(rules))).unwrap();
        assert_eq!(group.rules.len(), rules.len(), "{case}");
        for (read, sent) in group.rules.iter().zip(rules) {
            let text = |key: &str| sent[key].as_str().unwrap_or_default();
            let number = |key: &str| sent[key].as_i64().unwrap_or_default();
            let texts = [&read.protocol, &read.destination, &read.ports, &read.description];
            assert_eq!(texts, ["protocol", "destination", "ports", "description"].map(text));
            let numbers = [read.icmp_type, read.icmp_code].map(i64::from);
            assert_eq!(numbers, ["type", "code"].map(number), "{case}");
            assert_eq!(read.log, sent["log"].as_bool().unwrap_or_default(), "{case}");
        }
    }
    assert!(taken > 40, "only {taken} cases");
}

#[test]
fn a_group_is_read_whole() {
    let group = read(&whole()).unwrap();
    assert_eq!((group.guid.as_str(), group.name.as_str()), ("g1", "one"));
    let web = RuleSpec {
        protocol: "tcp".to_owned(),
        destination: "10.0.0.1".to_owned(),
        ports: "80,443".to_owned(),
        description: "web".to_owned(),
        log: true,
        ..RuleSpec::default()
    };
    let ping = RuleSpec {
        protocol: "icmp".to_owned(),
        destination: "0.0.0.0/0".to_owned(),
        icmp_type: 8,
        icmp_code: -1,
        ..RuleSpec::default()
    };
    assert_eq!(group.rules, [web, ping]);
    assert!(group.running.everywhere && !group.staging.everywhere);
    let spaces: Vec<_> = group.running.spaces.iter().map(|space| space.as_str()).collect();
    assert_eq!(spaces, ["s1", "s2"], "a pair that the Cloud Controller holds twice counts once");
    assert!(group.staging.spaces.is_empty());
}

/// docs/compatibility/asg-syncer.md#errors: null and absent are the default.
#[test]
fn what_is_null_or_absent_is_the_default() {
    let bare = read(&json!({"guid": "g1"})).unwrap();
    assert_eq!(bare.name, "");
    assert!(bare.rules.is_empty() && !bare.is_global());
    for pointer in ["/name", "/rules", "/globally_enabled", "/relationships"] {
        assert!(read(&with(pointer, Value::Null)).is_ok(), "{pointer}");
    }
    for pointer in [
        "/globally_enabled/running",
        "/relationships/running_spaces",
        "/relationships/running_spaces/data",
        "/rules/0/protocol",
        "/rules/0/destination",
        "/rules/0/ports",
        "/rules/0/description",
        "/rules/0/log",
        "/rules/1/type",
        "/rules/1/code",
    ] {
        assert!(read(&with(pointer, Value::Null)).is_ok(), "{pointer}");
    }
    let nothing = read(&with("/rules/1", json!({}))).unwrap();
    assert_eq!(nothing.rules[1], RuleSpec::default());
    assert_eq!(read(&with("/rules/1", Value::Null)).unwrap().rules[1], RuleSpec::default());
}

#[test]
fn what_cannot_be_read_is_named_by_its_path() {
    for (pointer, value, reason) in [
        (
            "/rules/0/ports",
            json!(80),
            "rules: rule 1: ports: invalid type: integer `80`, expected a string",
        ),
        (
            "/rules/1/type",
            json!("8"),
            "rules: rule 2: type: invalid type: string \"8\", expected i32",
        ),
        (
            "/rules/1/code",
            json!(1.5),
            "rules: rule 2: code: invalid type: floating point `1.5`, expected i32",
        ),
        (
            "/rules/1/type",
            json!(3_000_000_000_u64),
            "rules: rule 2: type: invalid value: integer `3000000000`, expected i32",
        ),
        (
            "/rules/0/log",
            json!("true"),
            "rules: rule 1: log: invalid type: string \"true\", expected a boolean",
        ),
        ("/rules", json!({}), "rules: invalid type: map, expected a list of rules"),
        (
            "/globally_enabled/staging",
            json!(1),
            "globally_enabled: staging: invalid type: integer `1`, expected a boolean",
        ),
        (
            "/relationships/running_spaces/data/1",
            json!({}),
            "no 'guid' found for running-space-relationship on asg 'g1'",
        ),
        (
            "/relationships/staging_spaces/data",
            json!([{"guid": null}]),
            "no 'guid' found for staging-space-relationship on asg 'g1'",
        ),
        (
            "/relationships/running_spaces/data/1/guid",
            json!(""),
            "running-space-relationship: space guid is empty",
        ),
    ] {
        let Malformed { guid, name, reason: told } = read(&with(pointer, value)).unwrap_err();
        assert_eq!(guid.unwrap().as_str(), "g1", "{pointer}");
        assert_eq!(name, "one", "{pointer}");
        assert!(told.starts_with(reason), "{pointer}: {told}");
    }
}

/// serde alone accepts a list for a struct, with the fields in order.
#[test]
fn a_list_is_no_object() {
    for (pointer, value) in [
        ("/globally_enabled", json!([true, true])),
        ("/globally_enabled", json!([])),
        ("/relationships", json!([])),
        ("/relationships/running_spaces", json!([[{"guid": "s1"}]])),
        ("/relationships/running_spaces/data/0", json!(["s1"])),
        ("/rules/0", json!(["tcp", "10.0.0.1", "443"])),
        ("/rules/0", json!([])),
    ] {
        let malformed = read(&with(pointer, value.clone())).expect_err(pointer);
        assert_eq!(malformed.guid.unwrap().as_str(), "g1", "{pointer} {value}");
        let reason = malformed.reason;
        assert!(reason.contains("invalid type: sequence, expected "), "{pointer}: {reason}");
    }
    let (read, seen) = page(r#"{"resources":[["g1"],{"guid":"g2"}]}"#);
    assert_eq!(seen, ["malformed ", "g2"]);
    assert!(read.unwrap().listed);
    for body in [
        r#"{"resources":[],"pagination":[]}"#,
        r#"{"resources":[],"pagination":{"next":["https://api.example.org/x"]}}"#,
    ] {
        assert!(page(body).0.is_err(), "{body}");
    }
}

/// JSON with invalid Unicode in any field.
#[test]
fn half_a_surrogate_pair_does_not_cost_the_guid() {
    for (body, name) in [
        (r#"{"guid":"g1","name":"\ud83d"}"#, ""),
        (r#"{"name":"\ud83d","guid":"g1"}"#, ""),
        (r#"{"guid":"g1","name":"n","rules":[{"description":"\ud83d"}]}"#, "n"),
        (r#"{"\ud83d":1,"guid":"g1","name":"n"}"#, "n"),
        (r#"{"guid":"g1","name":"n","rules":[{"\udc00":1}]}"#, "n"),
    ] {
        let malformed = import::group(body).unwrap_err();
        assert_eq!(malformed.guid.map(|guid| guid.to_string()).as_deref(), Some("g1"), "{body}");
        assert_eq!(malformed.name, name, "{body}");
    }
    assert_eq!(import::group(r#"{"guid":"\ud83d","name":"n"}"#).unwrap_err().guid, None);
}

#[test]
fn a_group_without_a_guid_is_named_by_its_name() {
    for guid in [Value::Null, json!(""), json!(7), json!("g\n1"), json!("g".repeat(256))] {
        let malformed = read(&with("/guid", guid.clone())).unwrap_err();
        assert_eq!(malformed.guid, None, "{guid}");
        assert_eq!(malformed.name, "one", "{guid}");
        assert!(malformed.reason.contains("guid"), "{}", malformed.reason);
    }
    let nameless = read(&with("/name", json!(5))).unwrap_err();
    assert_eq!((nameless.guid.unwrap().as_str(), nameless.name.as_str()), ("g1", ""));
    assert!(import::group("null").is_err());
    assert!(import::group("[]").is_err());
}

const NUMBERLESS: Page =
    Page { more: false, listed: false, total_results: None, total_pages: None };

fn page(body: &str) -> (Result<Page, import::Error>, Vec<String>) {
    let mut seen = Vec::new();
    let page = import::page(body.as_bytes(), &mut |group| {
        seen.push(match group {
            Ok(group) => group.guid.as_str().to_owned(),
            Err(malformed) => format!("malformed {}", malformed.name),
        });
    });
    (page, seen)
}

#[test]
fn one_malformed_group_does_not_hold_up_the_others() {
    let body = json!({"resources": [whole(), with("/rules/0/ports", json!(1)), {"guid": "g3"}]});
    let (read, seen) = page(&body.to_string());
    assert_eq!(seen, ["g1", "malformed one", "g3"]);
    assert_eq!(read.unwrap(), Page { more: false, listed: true, ..NUMBERLESS });
}

#[test]
fn only_a_link_means_another_page() {
    for (pagination, more) in [
        (json!({"next": {"href": "https://api.example.org/x"}}), true),
        (json!({"next": {"href": ""}}), false),
        (json!({"next": {"href": null}}), false),
        (json!({"next": {}}), false),
        (json!({"next": null}), false),
        (json!({}), false),
        (Value::Null, false),
    ] {
        let body = json!({"pagination": pagination, "resources": []}).to_string();
        assert_eq!(page(&body).0.unwrap(), Page { more, listed: true, ..NUMBERLESS }, "{body}");
    }
}

#[test]
fn a_page_states_how_long_the_list_is() {
    let body = r#"{"pagination":{"total_results":7,"total_pages":2},"resources":[]}"#;
    let expected = Page { more: false, listed: true, total_results: Some(7), total_pages: Some(2) };
    assert_eq!(page(body).0.unwrap(), expected);
    for total in ["-1", "\"7\"", "7.5"] {
        let body = format!(r#"{{"pagination":{{"total_results":{total}}},"resources":[]}}"#);
        assert!(page(&body).0.is_err(), "{body}");
    }
}

#[test]
fn no_list_is_not_an_empty_list() {
    for body in ["{}", r#"{"resources":null}"#, r#"{"errors":[]}"#] {
        assert!(!page(body).0.unwrap().listed, "{body}");
    }
}

#[test]
fn what_is_no_page_is_an_error() {
    for body in [
        "",
        "null",
        "[]",
        "<html>",
        r#"{"resources":{}}"#,
        r#"{"resources":[{"guid":"g1"}"#,
        r#"{"resources":[]} trailing"#,
        r#"{"resources":[],"pagination":{"next":5}}"#,
    ] {
        assert!(page(body).0.is_err(), "{body}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn keys() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "guid",
        "name",
        "rules",
        "globally_enabled",
        "relationships",
        "running",
        "staging",
        "running_spaces",
        "data",
        "protocol",
        "ports",
        "type",
        "log",
        "else",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    /// Law 6: whatever one entry of the list contains, its neighbours are imported, and the
    /// entry is a group or malformed with a reason.
    #[test]
    fn neighbours_always_arrive(anything in any_json()) {
        let body = json!({"resources": [{"guid": "before"}, anything, {"guid": "after"}]});
        let mut reasons = Vec::new();
        let mut guids = Vec::new();
        let read = import::page(body.to_string().as_bytes(), &mut |group| match group {
            Ok(group) => guids.push(group.guid.as_str().to_owned()),
            Err(malformed) => reasons.push(malformed.reason),
        });
        prop_assert!(read.unwrap().listed);
        prop_assert_eq!(guids.len() + reasons.len(), 3);
        prop_assert_eq!(guids.first().map(String::as_str), Some("before"));
        prop_assert_eq!(guids.last().map(String::as_str), Some("after"));
        prop_assert!(reasons.iter().all(|reason| !reason.is_empty()));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        _ = import::page(&*bytes, &mut |_| {});
    }
}
