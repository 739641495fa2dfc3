//! All recorded requests with whole groups, and all recorded queries.

use cloud_controller::json::{Json, Object};
use cloud_controller::validate::rules::Flags;
use cloud_controller::validate::{group, query};

const CASES: &str = include_str!("fixtures/message-cases.json");
const FLAGS: Flags = Flags { ipv6: false, comma_destinations: true, strict: false };

/// Expands `{"repeat": "x", "count": 3}` to `"xxx"`.
fn written_out(value: &Json) -> Json {
    let Some(object) = value.as_object() else { return value.clone() };
    if let (Some(text), Some(count)) = (
        object.get("repeat").and_then(Json::as_str),
        object.get("count").and_then(Json::as_integer),
    ) {
        return Json::from(text.repeat(usize::try_from(count).unwrap()));
    }
    let mut out = Object::new();
    for (key, value) in object.entries() {
        out.set(key, written_out(value));
    }
    out.into()
}

/// A query in the format of the cases: a map, nested for operators.
fn parameters(input: &Object) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    for (key, value) in input.entries() {
        match value {
            Json::Object(operators) => {
                for (operator, value) in operators.entries() {
                    let value = value.as_str().unwrap().to_owned();
                    parameters.push((format!("{key}[{operator}]"), value));
                }
            }
            value => parameters.push((key.to_owned(), value.as_str().unwrap().to_owned())),
        }
    }
    parameters
}

fn errors(endpoint: &str, input: &Object) -> Vec<String> {
    let errors = match endpoint {
        "POST /v3/security_groups" => group::create(input, FLAGS).err(),
        "PATCH /v3/security_groups/:guid" => group::update(input, FLAGS).err(),
        "POST /v3/security_groups/:guid/relationships/{running,staging}_spaces" => {
            group::bind(input).err()
        }
        "GET /v3/security_groups (query)" => {
            query::read(&parameters(input), &query::SECURITY_GROUPS).err()
        }
        "GET /v3/spaces/:guid/{running,staging}_security_groups (query)" => {
            query::read(&parameters(input), &query::SPACE_SECURITY_GROUPS).err()
        }
        other => panic!("a new endpoint: {other}"),
    };
    errors.unwrap_or_default()
}

#[test]
fn messages_are_those_recorded() {
    let document = Json::parse(CASES.as_bytes()).unwrap();
    let cases = document.at(&["cases"]).and_then(Json::as_array).unwrap();
    assert!(cases.len() >= 46, "{}", cases.len());
    for case in cases {
        let endpoint = case.at(&["endpoint"]).and_then(Json::as_str).unwrap();
        let input = written_out(case.at(&["input"]).unwrap());
        let expected = case.at(&["errors"]).and_then(Json::as_array).unwrap();
        let expected: Vec<&str> = expected.iter().map(|error| error.as_str().unwrap()).collect();
        let valid = case.at(&["valid"]).and_then(Json::as_bool).unwrap();
        assert_eq!(valid, expected.is_empty());
        assert_eq!(errors(endpoint, input.as_object().unwrap()), expected, "{endpoint} {input}");
    }
}

#[test]
fn what_the_cases_do_not_show() {
    let create = |body: &str| {
        let body = Json::parse(body.as_bytes()).unwrap();
        group::create(body.as_object().unwrap(), FLAGS).err().unwrap_or_default()
    };
    let update = |body: &str| {
        let body = Json::parse(body.as_bytes()).unwrap();
        group::update(body.as_object().unwrap(), FLAGS).err().unwrap_or_default()
    };
    assert_eq!(
        create(r#"{"z":1,"rules":[7],"globally_enabled":[]}"#),
        [
            "Unknown field(s): 'z'",
            "Rules[0]: must be an object",
            "Name can't be blank",
            "Name must be a string",
            "Globally enabled must be an object",
        ]
    );
    assert_eq!(create(r#"{"name":" \t"}"#), ["Name can't be blank"]);
    assert_eq!(create(r#"{"name":"a","globally_enabled":null}"#), Vec::<String>::new());
    assert_eq!(
        create(r#"{"name":"a","relationships":[]}"#),
        ["Relationships 'relationships' is not an object"]
    );
    assert_eq!(
        create(
            r#"{"name":"a","relationships":{"staging_spaces":{"data":[{"guid":3},{"guid":"x"}]}}}"#
        ),
        [
            "Relationships Staging space guids must be a string",
            "Relationships Staging space guids must be between 1 and 200 characters",
        ]
    );
    assert_eq!(
        update(r#"{"name":null}"#),
        ["Name must be a string", "Name is too short (minimum is 1 character)"]
    );
    assert_eq!(update("{}"), Vec::<String>::new());
    let bind = Json::parse(br#"{"data":[{"guid":"a"},{"guid":5},{}],"more":1}"#).unwrap();
    assert_eq!(
        group::bind(bind.as_object().unwrap()).unwrap_err(),
        [
            "Unknown field(s): 'more'",
            "Invalid data type: Data[1] guid should be a string.",
            "Invalid data type: Data[2] guid should be a string.",
        ]
    );
}
