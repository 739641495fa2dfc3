//! portcullisctl with real servers: its output for people and programs, and its exit status.

use std::process::Command;

use integration_tests::{
    binaries,
    process::Process,
    services::{ControlPlane, LockServer, Site},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::cell_agent::{APP, HANDLE, start};

/// Exit status and output of a command.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(args: &[&str]) -> Ended {
    let mut command = Command::new(binaries::path("portcullisctl"));
    let output = command.args(args).env("PORTCULLIS_CA", "").output();
    let output = output.expect("portcullisctl can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    Ended { code: output.status.code(), out, err }
}

/// Whether line feeds are the only control characters.
fn is_safe(text: &str) -> bool {
    !text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}')
}

#[test]
fn texts_of_peers_do_not_reach_the_terminal_raw() {
    let site = Site::new();
    let _agent = start(&site);
    let socket = site.path("control.sock").display().to_string();
    let ask = |args: &[&str]| run(&[&["--cell-socket", &socket], args].concat());

    let table = ask(&["containers"]);
    assert!(is_safe(&table.out) && table.out.contains("app\\u{1b}[31m"), "{table:?}");
    assert_eq!(table.out.lines().count(), 2, "{table:?}");
    let json = ask(&["containers", "--json"]);
    assert!(is_safe(&json.out), "{json:?}");
    let container: Value = serde_json::from_str(&json.out).expect("one object");
    assert_eq!(container["app"], APP, "JSON has the whole text");
    assert_eq!(container["rules"], 0);

    let error = ask(&["rules", "nobody\u{202e}\u{7f}"]);
    assert_eq!(error.code, Some(1), "{error:?}");
    assert!(is_safe(&error.err), "{error:?}");
}

#[test]
fn explain_accepts_a_prefix_and_exits_with_the_verdict() {
    let site = Site::new();
    let agent = start(&site);
    let socket = site.path("control.sock").display().to_string();
    let ask = |args: &[&str]| run(&[&["--cell-socket", &socket], args].concat());

    let denied = ask(&["explain", &HANDLE[..4], "tcp", "1.2.3.4:80", "--exit-code"]);
    assert_eq!(denied.code, Some(3), "{denied:?}");
    assert!(denied.out.starts_with("verdict    denied\nreason     "), "{denied:?}");
    let loopback = ask(&["explain", &HANDLE[..4], "tcp", "127.0.0.1:80", "--exit-code", "--json"]);
    assert_eq!(loopback.code, Some(4), "{loopback:?}");
    let verdict = "{\"verdict\":\"not decided by security groups\",";
    assert!(loopback.out.starts_with(verdict), "{loopback:?}");
    assert_eq!(ask(&["explain", HANDLE, "tcp", "1.2.3.4:80"]).code, Some(0));

    // The sentence precedes the gRPC code.
    let sentence = "rules: there is no container nobody on this cell";
    let error = ask(&["rules", "nobody"]);
    let expected = format!("portcullisctl: {sentence} (rpc error: code = NotFound)\n");
    assert_eq!((error.code, error.err), (Some(1), expected));
    let error = ask(&["rules", "nobody", "--json"]);
    let object: Value = serde_json::from_str(&error.err).expect("one object");
    assert_eq!(object, json!({ "error": sentence, "code": "NotFound" }));

    agent.signal(Signal::SIGSTOP);
    let late = ask(&["cell", "--timeout", "300ms"]);
    agent.signal(Signal::SIGCONT);
    assert_eq!(late.code, Some(1));
    assert!(late.err.contains("cell status: no answer within 300ms (--timeout)"), "{late:?}");
}

#[test]
fn groups_shows_rules_and_warns_of_a_space_that_has_none() {
    let plane = ControlPlane::start();
    let _syncer = plane.syncer("syncer-1");
    let guid = plane.cloud.create_group("first", "10.1.0.0/16");
    let evil = "evil\u{202e}gnp.exe";
    plane.cloud.create_group(evil, "10.2.0.0/16");
    plane.wait_until_synced();
    let files = plane.site.certificate("operator");
    let [ca, cert, key] =
        [&files.ca, &files.cert, &files.key].map(|path| path.display().to_string());
    let store = plane.store_address.as_str();
    let flags = ["--ca", &ca, "--cert", &cert, "--key", &key, "--policy-store", store];
    let ask = |args: &[&str]| run(&[&flags[..], args].concat());

    for name in ["first", &guid, &guid[..13]] {
        let json = ask(&["groups", name, "--json"]);
        let rule: Value = serde_json::from_str(&json.out).expect("one rule");
        assert_eq!(rule["destination"], "10.1.0.0/16");
        assert_eq!((&rule["group"], &rule["group_guid"]), (&json!("first"), &json!(guid)));
        let text = ask(&["groups", name]);
        assert!(text.out.starts_with("name                first\n"), "{text:?}");
        assert!(text.out.contains("10.1.0.0/16"), "{text:?}");
    }
    let none = ask(&["groups", "no-such-group"]);
    assert_eq!((none.code, none.out.as_str()), (Some(1), ""), "{none:?}");

    let all = ask(&["groups", "--json"]);
    let groups = all.out.lines().map(|line| {
        let group: Value = serde_json::from_str(line).expect("an object");
        assert!(group["running"].is_array() && group["running_everywhere"].is_boolean(), "{line}");
        group["name"].clone()
    });
    assert_eq!(groups.filter(|name| name == evil).count(), 1, "JSON has the whole name");
    let table = ask(&["groups"]);
    assert!(is_safe(&all.out) && is_safe(&table.out), "{table:?}");
    assert_eq!(table.out.lines().count(), all.out.lines().count() + 1, "{table:?}");
    let typo = ask(&["groups", "--space", "typo"]);
    assert_eq!(typo.code, Some(3), "{typo:?}");
    assert!(typo.err.contains("no security group is bound to the space \"typo\""), "{typo:?}");
    assert!(typo.out.contains("first"), "the global groups apply: {typo:?}");
    let status: Value = serde_json::from_str(&ask(&["status", "--json"]).out).expect("an object");
    assert!(status["synced_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{status}");
}

#[test]
fn watch_locks_continues_after_an_outage_of_the_server() {
    let site = Site::new();
    let mut server = LockServer::start(&site);
    server.lock("one", "owner-1");
    let files = [&server.files.ca, &server.files.cert, &server.files.key];
    let [ca, cert, key] = files.map(|path| path.display().to_string());
    let address = server.address.clone();
    let flags = ["--ca", &ca, "--cert", &cert, "--key", &key, "--lock-server", &address];
    let mut watch =
        Process::start("portcullisctl", &[&flags[..], &["watch-locks", "--json"]].concat());
    seen(&watch, "one");
    server.process.kill();
    wait::until("the loss to be told", || {
        let lines = watch.lines();
        let told = lines.iter().any(|line| line.ends_with("; reconnecting"));
        if told { Ok(()) } else { Err(lines.join("\n")) }
    });
    server.restart();
    server.lock("two", "owner-2");
    seen(&watch, "two");
    assert!(watch.is_running());
    watch.kill();
}

/// Waits for an event of the key, from the initial state or later.
fn seen(watch: &Process, key: &str) {
    wait::until(&format!("an event of {key}"), || {
        let found = watch.log().iter().any(|event| event["key"] == key);
        if found { Ok(()) } else { Err(watch.lines().join("\n")) }
    });
}
