//! Errors at the start of a process: one clear sentence, and the documented exit status.

use integration_tests::{
    process::Process,
    services::{LockServer, Site},
};
use serde_json::json;

const SERVICES: [(&str, &str, i32); 4] = [
    ("lock-server", "-config", 2),
    ("syncer", "-config-file", 1),
    ("policy-store", "-config-file", 1),
    ("cell-agent", "-config-file", 1),
];

fn ended(name: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut process = Process::start(name, args);
    let status = process.wait();
    (status.code(), process.lines().join("\n"))
}

#[test]
fn help_and_version_are_there() {
    for (name, flag, _) in SERVICES {
        let (code, text) = ended(name, &["--help"]);
        assert!(code == Some(0) && text.contains(&flag[1..]), "{name}: {text}");
        let (code, text) = ended(name, &["--version"]);
        assert!(code == Some(0) && text.contains(env!("CARGO_PKG_VERSION")), "{name}: {text}");
    }
}

#[test]
fn a_missing_configuration_file_is_named() {
    for (name, flag, exit) in SERVICES {
        let (code, text) = ended(name, &[flag, "/nowhere/at-all.json"]);
        assert_eq!(code, Some(exit), "{name}: {text}");
        assert!(text.contains("/nowhere/at-all.json"), "{name}: {text}");
        assert!(!text.contains("panicked"), "{name}: {text}");
    }
}

#[test]
fn all_problems_of_a_configuration_are_reported_at_once() {
    let site = Site::new();
    for (name, flag, exit) in SERVICES {
        let config = site.config(name, &json!({ "log_level": "loud", "no_such_key": 1 }));
        let (code, text) = ended(name, &[flag, &config.display().to_string()]);
        assert_eq!(code, Some(exit), "{name}: {text}");
        assert!(text.contains("log_level") && text.contains("loud"), "{name}: {text}");
        assert!(text.lines().count() > 1, "{name} tells only one problem: {text}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let site = Site::new();
    let first = LockServer::start(&site);
    let config = site.config(
        "second",
        &json!({
            "listen_address": first.address,
            "ca_file": first.files.ca, "cert_file": first.files.cert, "key_file": first.files.key,
            "database_connection_string": site.path("second.db"),
            "log_level": "info",
        }),
    );
    let (code, text) = ended("lock-server", &["-config", &config.display().to_string()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&first.address), "{text}");
    assert!(text.contains("exited-with-failure"), "{text}");
}

/// The server starts unready; certificate files that appear later are loaded without a
/// restart.
#[test]
fn an_unreadable_certificate_is_named() {
    let site = Site::new();
    let config = site.config(
        "lock-server",
        &json!({
            "listen_address": "127.0.0.1:0",
            "ca_file": "/nowhere/ca.crt", "cert_file": "/nowhere/a.crt", "key_file": "/nowhere/a.key",
            "database_connection_string": site.path("locks.db"),
            "log_level": "info",
        }),
    );
    let mut process = Process::serve("lock-server", "-config", &config);
    let line = process.wait_for("certificate-unusable");
    assert!(line["data"]["error"].to_string().contains("/nowhere/ca.crt"), "{line}");
    process.wait_for("started");
    assert!(process.is_running());
}
