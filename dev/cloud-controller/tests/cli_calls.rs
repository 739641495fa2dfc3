//! Replays the recorded calls of a genuine cf CLI in order. Each call must get the
//! recorded status, and together the responses must have the data of the recorded
//! output.
//!
//! GUIDs and tokens of the recording are placeholders. A placeholder in a request is
//! bound when the response that creates it arrives, as in the CLI.

use std::collections::BTreeMap;

use cloud_controller::json::Json;
use reqwest::Method;

use crate::cli_output;
use crate::support::{Controller, Reply, send};

const CASES: &str = include_str!("fixtures/cf-cli-calls.json");

/// Binds the placeholders that the response to this call creates.
fn learn(names: &mut BTreeMap<String, String>, call: &Call, reply: &Reply, command: &str) {
    let guid = || reply.guid();
    let (name, guid) = match (call.method.as_str(), call.path.as_str(), reply.status) {
        ("POST", "/v3/organizations", 201) => ("<guid1>", guid()),
        ("POST", "/v3/spaces", 201) if command.starts_with("cf create-space s1") => {
            ("<guid2>", guid())
        }
        ("POST", "/v3/spaces", 201) => ("<guid3>", guid()),
        ("POST", "/v3/security_groups", 201) if command.contains("g1") => ("<guid4>", guid()),
        ("DELETE", path, 202) => {
            let location = reply.location.clone().unwrap();
            let (base, job) = location.rsplit_once("/v3/jobs/").unwrap();
            assert!(base.starts_with("http://127.0.0.1:"), "{location}");
            let name = match path {
                path if path.starts_with("/v3/security_groups/") => "<guid6>",
                path if path.starts_with("/v3/spaces/") => "<guid7>",
                _ => "<guid8>",
            };
            (name, job.to_owned())
        }
        _ => return,
    };
    names.insert(name.to_owned(), guid);
}

struct Call {
    method: String,
    path: String,
    query: String,
    body: String,
    status: i64,
    auth: String,
    content_type: String,
}

impl Call {
    fn read(json: &Json, names: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| {
            let text = json.at(&[key]).and_then(Json::as_str).unwrap();
            let text =
                names.iter().fold(text.to_owned(), |text, (name, guid)| text.replace(name, guid));
            assert!(!text.contains("<guid"), "a placeholder that nothing created: {text}");
            text
        };
        Self {
            method: text("method"),
            path: text("path"),
            query: text("query"),
            body: text("body"),
            status: json.at(&["status"]).and_then(Json::as_integer).unwrap(),
            auth: text("auth"),
            content_type: text("content_type"),
        }
    }
}

#[tokio::test]
async fn every_recorded_call_gets_the_recorded_status_and_data() {
    let controller = Controller::start(
        r#""users":[{"name":"admin","password":"secret","scopes":["cloud_controller.admin"]}],
           "clients":[{"id":"dyn-client","secret":"dynsecret","authorities":["cloud_controller.admin"]}]"#,
    )
    .await;
    let document = Json::parse(CASES.as_bytes()).unwrap();
    let observations = document.at(&["observations"]).and_then(Json::as_array).unwrap();
    let mut names = BTreeMap::new();
    let mut token = String::new();
    let (mut calls, mut tables) = (0, 0);
    for observation in observations {
        let command = observation.at(&["command"]).and_then(Json::as_str).unwrap();
        let mut replies = Vec::new();
        for json in observation.at(&["calls"]).and_then(Json::as_array).unwrap() {
            let call = Call::read(json, &names);
            let title = format!("{command}: {} {}?{}", call.method, call.path, call.query);
            let reply = replay(&controller, &call, &token).await;
            assert_eq!(i64::from(reply.status), call.status, "{title}: {}", reply.text);
            check_document(&call, &reply, &title);
            if call.path == "/oauth/token" && reply.status == 200 {
                token = reply.at(&["access_token"]);
            }
            learn(&mut names, &call, &reply, command);
            calls += 1;
            if call.method == "GET" && reply.status == 200 {
                replies.push((call.path, reply.json()));
            }
        }
        let output = observation.at(&["stdout"]).and_then(Json::as_str).unwrap();
        tables += usize::from(cli_output::check(command, output, &replies));
    }
    assert!(calls >= 100, "{calls}");
    assert_eq!(tables, 10);
}

async fn replay(controller: &Controller, call: &Call, token: &str) -> Reply {
    let method: Method = call.method.parse().unwrap();
    let path = format!("{}?{}", call.path, call.query);
    let request = match call.path.as_str() {
        "/login" | "/oauth/token" => controller.uaa(method, &path),
        _ => controller.api(method, &path),
    };
    let request = match call.auth.as_str() {
        "none" => request,
        "basic cf:" => request.basic_auth("cf", Some("")),
        "bearer" => request.header("authorization", format!("bearer {token}")),
        other => panic!("a new kind of authentication: {other}"),
    };
    let request = match call.content_type.as_str() {
        "" => request,
        content_type => request.header("content-type", content_type),
    };
    send(request.body(call.body.clone())).await
}

/// Checks the fields that the CLI requires in a response.
fn check_document(call: &Call, reply: &Reply, title: &str) {
    match (call.path.as_str(), reply.status) {
        ("/v3/security_groups", 200) => {
            let json = reply.json();
            for group in json.at(&["resources"]).and_then(Json::as_array).unwrap() {
                for lifecycle in ["running", "staging"] {
                    let flag = group.at(&["globally_enabled", lifecycle]);
                    assert!(flag.and_then(Json::as_bool).is_some(), "{title}");
                    let spaces = format!("{lifecycle}_spaces");
                    let spaces = group.at(&["relationships", &spaces, "data"]);
                    assert!(spaces.and_then(Json::as_array).is_some(), "{title}");
                }
            }
        }
        ("/v3/spaces", 200) if call.query.contains("include=organization") => {
            let json = reply.json();
            let included = json.at(&["included", "organizations"]).and_then(Json::as_array);
            assert_eq!(included.unwrap().len(), 1, "{title}");
        }
        ("/v3/apps" | "/v3/service_instances", 200) => {
            assert_eq!(reply.listed("guid"), Vec::<String>::new(), "{title}");
        }
        (path, 200) if path.ends_with("isolation_segment") => {
            assert_eq!(reply.json().at(&["data"]), Some(&Json::Null), "{title}");
        }
        (path, 200) if path.starts_with("/v3/jobs/") => {
            assert_eq!(reply.at(&["state"]), "COMPLETE", "{title}");
        }
        ("/v3/roles", 422) => assert!(reply.detail().contains("already has"), "{title}"),
        ("/v3/organizations", 422) => {
            assert_eq!(reply.detail(), "Organization 'o1' already exists.", "{title}");
        }
        ("/v3/spaces", 422) => {
            assert_eq!(reply.detail(), "Name must be unique per organization", "{title}");
        }
        (path, 422) if path.contains("/relationships/") => {
            let detail = reply.detail();
            assert!(
                detail.ends_with("Ensure the space is bound to this security group."),
                "{title}"
            );
        }
        (path, 404) => assert_eq!((path, reply.detail()), ("/v3/nope", "Unknown request".into())),
        ("/oauth/token", 401) => assert_eq!(reply.at(&["error_description"]), "Bad credentials"),
        _ => {}
    }
}
