//! Every recorded rule, in every combination of the operator's flags, through
//! create and update.

use std::collections::BTreeSet;

use cloud_controller::json::{Json, Object};
use cloud_controller::refusal::Refusal;
use cloud_controller::state::access::{Authority, Caller};
use cloud_controller::state::{Moment, State};
use cloud_controller::validate::rules::Flags;
use jiff::Timestamp;

const CASES: &str = include_str!("fixtures/rule-cases.json");

fn cases() -> Vec<Json> {
    let document = Json::parse(CASES.as_bytes()).unwrap();
    document.at(&["cases"]).and_then(Json::as_array).unwrap().to_vec()
}

fn text<'a>(json: &'a Json, path: &[&str]) -> &'a str {
    json.at(path).and_then(Json::as_str).unwrap_or_else(|| panic!("{path:?} in {json}"))
}

/// The rules of a case; very long texts are generated.
fn rules(case: &Json) -> Json {
    let Some(recipe) = case.at(&["generate"]) else {
        return case.at(&["rules"]).unwrap().clone();
    };
    let count = usize::try_from(recipe.at(&["count"]).and_then(Json::as_integer).unwrap()).unwrap();
    let mut rule = Object::new();
    rule.set("protocol", text(recipe, &["protocol"]));
    match text(recipe, &["kind"]) {
        "repeat_destination" => {
            rule.set("destination", vec![text(recipe, &["value"]); count].join(","));
        }
        "repeat_description" => {
            rule.set("destination", text(recipe, &["destination"]));
            rule.set("description", text(recipe, &["char"]).repeat(count));
        }
        other => panic!("a new kind of recipe: {other}"),
    }
    Json::Array(vec![rule.into()])
}

fn body(name: &str, rules: &Json) -> Object {
    let mut body = Object::new();
    body.set("name", name);
    body.set("rules", rules.clone());
    body
}

fn admin() -> Caller {
    let admin = "admin".to_owned();
    Caller { id: admin.clone(), name: admin, authority: Authority::Admin }
}

fn moment(guid: &str) -> Moment {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    Moment { now, guid: guid.to_owned() }
}

fn outcome<T>(result: Result<T, Refusal>) -> Result<T, Vec<String>> {
    result.map_err(|refusal| match refusal {
        Refusal::Unprocessable(messages) => messages,
        other => panic!("{other:?}"),
    })
}

fn check(case: &Json, key: &str, flags: Flags) {
    let id = text(case, &["id"]);
    let title = format!("case {id} with {key}");
    let expected = case.at(&["expected", key]).or_else(|| case.at(&["expected", "default"]));
    let expected = expected.unwrap();
    let rules = rules(case);
    let mut state = State::fresh(moment("").now, || "seed".to_owned());
    let created = outcome(state.create_group(&admin(), &body("g", &rules), flags, &moment("a")));
    let stamp = state.last_update();
    let old = body("old", &Json::Array(Vec::new()));
    state.create_group(&admin(), &old, flags, &moment("b")).unwrap();
    let before = state.last_update();
    let updated = state.update_group(&admin(), "b", &body("new", &rules), flags, &moment("c"));
    let updated = outcome(updated);
    if expected.at(&["status"]).and_then(Json::as_integer) == Some(201) {
        assert_eq!(created.expect(&title).rules, rules, "{title}");
        assert_eq!(updated.expect(&title).rules, rules, "{title}");
        assert!(0 < stamp && before < state.last_update(), "{title}");
        return;
    }
    let errors = expected.at(&["errors"]).and_then(Json::as_array).unwrap();
    let errors: Vec<&str> = errors.iter().map(|error| error.as_str().unwrap()).collect();
    assert_eq!(created.expect_err(&title), errors, "{title}");
    assert_eq!(updated.expect_err(&title), errors, "{title}");
    assert_eq!((stamp, before), (0, state.last_update()), "{title}: the stamp moved");
    let group = state.visible_group(&admin(), "b").unwrap();
    assert_eq!((group.name.as_str(), group.rules.to_text()), ("old", "[]".to_owned()), "{title}");
}

#[test]
fn rules_are_accepted_and_refused_as_recorded() {
    let cases = cases();
    assert!(cases.len() >= 152, "{}", cases.len());
    for case in &cases {
        for (key, ipv6, comma_destinations) in [
            ("default", false, false),
            ("ipv6", true, false),
            ("comma", false, true),
            ("ipv6+comma", true, true),
        ] {
            check(case, key, Flags { ipv6, comma_destinations, strict: false });
        }
    }
}

/// The strict option refuses exactly the rules that the original accepts but its agents
/// cannot parse.
#[test]
fn strict_refuses_only_rules_that_agents_cannot_parse() {
    let flags = Flags { ipv6: true, comma_destinations: true, strict: true };
    let mut refused = BTreeSet::new();
    let mut poison = BTreeSet::new();
    for case in &cases() {
        let id = text(case, &["id"]);
        let expected = case.at(&["expected", "ipv6+comma"]);
        let expected = expected.or_else(|| case.at(&["expected", "default"])).unwrap();
        if expected.at(&["status"]).and_then(Json::as_integer) != Some(201) {
            continue;
        }
        if case.at(&["reference_agent", "parses"]).and_then(Json::as_bool) == Some(false) {
            poison.insert(id.to_owned());
        }
        let mut state = State::default();
        let body = body("g", &rules(case));
        if let Err(errors) = outcome(state.create_group(&admin(), &body, flags, &moment("a"))) {
            assert!(errors[0].contains("cannot be enforced: destination"), "{errors:?}");
            refused.insert(id.to_owned());
        }
    }
    assert_eq!(refused, poison);
    assert!(poison.len() >= 5, "{poison:?}");
}

#[test]
fn what_the_cases_do_not_show() {
    let both = Flags { ipv6: true, comma_destinations: true, strict: false };
    let zeros = "destination octets cannot contain leading zeros";
    let range = "destination IP address range is invalid";
    let bad = "destination must contain valid CIDR(s), IP address(es), or IP address range(s)";
    for (destination, expected) in [
        ("10.0.0.0/255.0.255.0", vec![bad]),
        ("2001:db8::/ffff:ffff::", vec![]),
        ("1.0.0.000-1.0.0.200", vec![zeros, range]),
        ("010.0.0.300", vec![zeros, bad]),
        ("10.0.0.0/", vec![zeros, bad]),
        ("10.0.0.0/010", vec![bad]),
        ("::ffff:10.0.0.01", vec![zeros, bad]),
        ("2001:0db8::1-2001:0db8::0002", vec![]),
        (
            "10.0.0.1-10.0.0.2,10.0.0.9-10.0.0.3",
            vec![
                "beginning of IP address range is numerically greater than the end of its range (range endpoints are inverted)",
            ],
        ),
    ] {
        let mut rule = Object::new();
        rule.set("protocol", "all");
        rule.set("destination", destination);
        let rules = Json::Array(vec![rule.into()]);
        let mut state = State::default();
        let made = outcome(state.create_group(&admin(), &body("g", &rules), both, &moment("a")));
        let expected: Vec<String> =
            expected.into_iter().map(|text| format!("Rules[0]: {text}")).collect();
        assert_eq!(made.err().unwrap_or_default(), expected, "{destination}");
    }
}
