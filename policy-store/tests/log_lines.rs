//! The lines of the original's log (docs/compatibility/policy-server-internal.md#logs): names,
//! levels and keys of the data.

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    client::{Cell, replace},
    http::Poller,
    process::Program,
    sets::{fenced, named},
    site::Site,
};

fn keys(line: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = line["data"].as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// The message after the source.
fn message(line: &Value) -> &str {
    let source = line["source"].as_str().unwrap();
    assert_eq!(source, "cfnetworking.policy-server-internal");
    line["message"].as_str().unwrap().strip_prefix(source).unwrap().strip_prefix('.').unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_levels_and_keys_are_the_originals() {
    let site = Site::new();
    let mut config = site.config();
    config["log_level"] = json!("debug");
    config["internal_api_identities"] = json!(["cn=agent"]);
    let mut program = tokio::task::block_in_place(|| Program::start_with(&site, &config));
    for (action, expected) in [
        ("getting db connection", vec![]),
        ("db connection retrieved", vec![]),
        ("starting internal server", vec!["listen-address", "port"]),
    ] {
        let line = program.line(action, 0);
        assert_eq!(
            (message(&line), &line["level"], keys(&line)),
            (action, &json!("info"), expected)
        );
    }
    assert!(program.line("starting internal server", 0)["data"]["port"].is_number());
    let writer = site.client(&program.address, "syncer", None);
    replace(&writer, &fenced(&named(3, "x"), "syncer-a", 1)).await.unwrap();
    let agent = Poller::new(&site, &program.internal(), "agent");
    let other = Poller::new(&site, &program.internal(), "other");
    let path = |rest: &str| format!("/networking/v1/internal/{rest}");
    let handlers = [
        (Method::GET, path("policies"), "index-policies-internal"),
        (Method::GET, path("policies_last_updated"), "policies-last-updated-internal"),
        (Method::GET, path("security_groups?from=x"), "index-security-group-rules"),
        (
            Method::GET,
            path("security_groups_last_updated"),
            "security-groups-last-updated-internal",
        ),
        (Method::PUT, path("tags"), "create-tags"),
    ];
    for (nth, (method, path, handler)) in handlers.iter().enumerate() {
        // Two requests: one that succeeds or fails in the handler, one that is denied.
        let answer = agent.ask(method.clone(), path).await;
        other.ask(method.clone(), path).await;
        let id = answer.headers()["x-vcap-request-id"].to_str().unwrap().to_owned();
        for action in ["serving", "done"] {
            let line = program.line(action, 2 * nth);
            assert_eq!(message(&line), format!("request_{id}.{action}"));
            assert_eq!(line["level"], "debug");
            assert_eq!(keys(&line), ["method", "request", "request_guid", "session"]);
            let data = &line["data"];
            assert_eq!(
                (&data["method"], &data["request"]),
                (&json!(method.as_str()), &json!(path))
            );
            assert_eq!(data["request_guid"], json!(id));
        }
        let line = program.line("permission denied", nth);
        assert!(message(&line).ends_with(&format!(".{handler}.permission denied")), "{line}");
        assert_eq!(line["level"], "error");
        assert_eq!(line["data"]["error"], "the peer cn=other may not poll");
    }
    for (description, handler) in [
        ("invalid value for 'from' parameter", "index-security-group-rules"),
        ("failed parsing request body", "create-tags"),
    ] {
        let line = program.line(description, 0);
        assert!(message(&line).ends_with(&format!(".{handler}.{description}")), "{line}");
        assert_eq!(line["level"], "error");
        assert!(line["data"]["error"].is_string(), "{line}");
    }

    // A cell that claims another id.
    let client = site.client(&program.address, "cell-1", Some("cell"));
    Cell::hello(&client, "cell-2", &[]).await.end().await;
    let line = program.line("permission-denied", 0);
    assert_eq!((&line["level"], keys(&line)), (&json!("error"), vec!["error"]));
    assert_eq!(line["data"]["error"], "the peer cn=cell-1,ou=cell may not watch as cell cell-2");

    program.signal(Signal::SIGTERM);
    assert!(tokio::task::block_in_place(|| program.wait()).success());
    let line = program.line("exited", 0);
    assert_eq!((message(&line), keys(&line)), ("exited", vec![]));
}
