//! The configuration file.

use std::time::Duration;

use runtime::config::{self, Error, Loaded};
use serde_json::{Value, json};
use syncer::{
    config::{Config, InternalTls},
    lease::Times,
};

/// As the original's BOSH job renders it, with the additional required keys.
fn bosh() -> Value {
    json!({
        "uuid": "instance-1",
        "asg_poll_interval_seconds": 60,
        "retry_deadline_seconds": 300,
        "database": {"type": "postgres", "user": "u", "host": "h", "port": 5432, "timeout": 120},
        "uaa_client": "network-policy", "uaa_client_secret": "hush", "uaa_ca": "/c/uaa.crt",
        "uaa_url": "https://uaa.service.cf.internal", "uaa_port": 8443,
        "cc_url": "https://cloud-controller-ng.service.cf.internal:9024/", "cc_ca_cert": "/c/cc.crt",
        "cc_internal_url": "https://cloud-controller-ng.service.cf.internal:9023",
        "cc_internal_ca_cert": "/c/i-ca.crt", "cc_internal_client_cert": "/c/i.crt",
        "cc_internal_client_key": "/c/i.key",
        "skip_ssl_validation": false, "log_level": "info", "log_prefix": "cfnetworking",
        "metron_address": "127.0.0.1:3457",
        "locket_address": "locket.service.cf.internal:8891",
        "locket_ca_cert_file": "/c/l-ca.crt", "locket_client_cert_file": "/c/l.crt",
        "locket_client_key_file": "/c/l.key",
        "policy_store_address": "policy-store.service.cf.internal:4003",
        "policy_store_ca_cert_file": "/c/p-ca.crt", "policy_store_client_cert_file": "/c/p.crt",
        "policy_store_client_key_file": "/c/p.key",
    })
}

fn read(json: &Value) -> Result<Loaded<Config>, Error> {
    config::parse(&json.to_string())
}

fn with(key: &str, value: Value) -> Value {
    let mut json = bosh();
    json[key] = value;
    json
}

#[test]
fn the_originals_file_is_taken_as_it_is() {
    let Loaded { config, unknown } = read(&bosh()).unwrap();
    assert_eq!(unknown, [""; 0]);
    assert_eq!(config.uuid.as_str(), "instance-1");
    assert_eq!(config.poll.intervals.poll, Duration::from_secs(60));
    assert_eq!(config.poll.intervals.poll_share, 0);
    let cc = &config.cloud_controller;
    assert_eq!(cc.settings.url, "https://cloud-controller-ng.service.cf.internal:9024");
    assert_eq!(cc.settings.uaa.url, "https://uaa.service.cf.internal:8443");
    assert_eq!(cc.authorities.len(), 2);
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let mut json = bosh();
    for key in [
        "asg_poll_interval_seconds",
        "retry_deadline_seconds",
        "database",
        "uaa_ca",
        "cc_ca_cert",
        "skip_ssl_validation",
        "log_level",
        "log_prefix",
        "metron_address",
    ] {
        json.as_object_mut().unwrap().remove(key);
    }
    let config = read(&json).unwrap().config;
    let seconds = Duration::from_secs;
    assert_eq!(config.poll.intervals.poll, Duration::from_millis(250));
    assert_eq!(config.poll.intervals.poll_share, 100);
    assert_eq!(config.poll.intervals.full, seconds(300));
    assert_eq!(config.poll.intervals.unstamped, seconds(60));
    assert_eq!(config.poll.retry_deadline, seconds(300));
    let times = |ttl, retry| Times { ttl: seconds(ttl), retry_interval: seconds(retry) };
    assert_eq!(config.lock.times, times(15, 5));
    assert_eq!(config.lock.times_with_tokens, times(5, 1));
    assert!(!config.lock.exit_on_loss && !config.store.allow_mass_removal);
    assert_eq!(config.store.timeout, seconds(60));
    assert_eq!(config.cloud_controller.settings.page_size, 5000);
    assert_eq!(config.cloud_controller.settings.call_timeout, seconds(10));
    assert_eq!(config.cloud_controller.settings.page_timeout, seconds(120));
    assert!(config.cloud_controller.user_agent.starts_with("portcullis-syncer/"));
    assert!(config.cloud_controller.authorities.is_empty());
    assert!(config.debug_server.is_none() && config.metron.is_none());
}

#[test]
fn every_problem_is_told_at_once() {
    let mut json = bosh();
    for (key, value) in [
        ("uuid", json!("")),
        ("asg_poll_interval_seconds", json!(0)),
        ("uaa_url", json!("uaa.service.cf.internal")),
        ("uaa_port", json!(0)),
        ("cc_page_size", json!(5001)),
        ("cc_internal_client_key", Value::Null),
        ("locket_address", json!("locket")),
        ("log_level", json!("loud")),
        ("lock_retry_interval_seconds", json!(8)),
        ("policy_store_timeout_seconds", json!("60")),
    ] {
        json[key] = value;
    }
    let problems = read(&json).unwrap_err().problems().join("\n");
    for key in [
        "uuid: must not be empty",
        "asg_poll_interval_seconds: must be at least 1",
        "uaa_url: expects a URL that begins with https:// or http://",
        "uaa_port: must not be zero",
        "cc_page_size: must be from 1 to 5000",
        "cc_internal_client_key: missing",
        "locket_address: ",
        "log_level: ",
        "lock_retry_interval_seconds: must be at most half of lock_ttl_seconds",
        "policy_store_timeout_seconds: ",
    ] {
        assert!(problems.contains(key), "{key} is not in:\n{problems}");
    }
    assert_eq!(problems.lines().count(), 10, "{problems}");
}

#[test]
fn a_debug_server_needs_only_a_port() {
    let address = |json| read(&json).unwrap().config.debug_server.unwrap().to_string();
    assert_eq!(address(with("debug_server_port", json!(17019))), "127.0.0.1:17019");
    assert_eq!(address(with("debug_server_port", json!(0))), "127.0.0.1:0");
    let mut both = with("debug_server_port", json!(17019));
    both["debug_server_host"] = json!("::1");
    assert_eq!(address(both), "[::1]:17019");
}

#[test]
fn skipping_validation_keeps_a_client_certificate_if_there_is_one() {
    let mut json = with("skip_ssl_validation", json!(true));
    let tls = |json: &Value| read(json).unwrap().config.cloud_controller.internal_tls;
    assert!(matches!(tls(&json), InternalTls::Skip(Some(_))));
    json["cc_internal_client_cert"] = Value::Null;
    json["cc_internal_ca_cert"] = Value::Null;
    assert!(matches!(tls(&json), InternalTls::Skip(None)));
}

/// The documented example is valid, and the documentation names every key.
#[test]
fn the_documentation_is_complete() {
    let text = include_str!("../../docs/config/syncer.md");
    let example = text.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let Loaded { unknown, .. } = config::parse::<Config>(example).unwrap();
    assert_eq!(unknown, [""; 0]);
    let source = include_str!("../src/config.rs");
    let keys = source.split('"').skip(1).step_by(2).filter(|text| {
        text.contains('_') && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    });
    let mut count = 0;
    for key in keys.chain(["uuid", "database"]) {
        assert!(text.contains(&format!("| `{key}` |")), "{key} is not documented");
        count += 1;
    }
    assert!(count >= 35, "only {count} keys were found in the source");
}
