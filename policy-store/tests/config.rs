//! The configuration file.

use std::time::Duration;

use policy_store::{
    access::{Access, CellIdentity},
    config::{Config, Database},
};
use runtime::config::HostPort;
use serde_json::{Value, json};
use storage::server::{Dialect, Tls};

fn minimal() -> Value {
    json!({
        "ca_cert_file": "ca", "server_cert_file": "cert", "server_key_file": "key",
        "database": { "type": "sqlite", "path": "/db" },
    })
}

fn with(changes: &Value) -> Value {
    let mut config = minimal();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(config: &Value) -> Config {
    let loaded = runtime::config::parse::<Config>(&config.to_string()).unwrap();
    assert_eq!(loaded.unknown, Vec::<String>::new());
    loaded.config
}

fn problems(config: &Value) -> Vec<String> {
    let error = runtime::config::parse::<Config>(&config.to_string()).unwrap_err();
    error.problems().to_vec()
}

#[test]
fn what_is_not_given_has_the_documented_default() {
    let config = read(&minimal());
    assert_eq!(config.grpc_listen_address.as_str(), "0.0.0.0:4004");
    assert_eq!(config.admin_listen_address.as_str(), "127.0.0.1:4005");
    assert_eq!(config.stale_after, Some(Duration::from_secs(600)));
    assert_eq!(config.report_save_interval, Duration::from_secs(5));
    assert_eq!(config.drain_timeout, Duration::from_secs(10));
    assert_eq!(config.drain_spread, Duration::from_secs(5));
    assert_eq!(config.replaces.timeout, Duration::from_secs(600));
    assert_eq!(config.replaces.token_step, Some(1_000_000));
    assert_eq!(config.metron_address, None);
    assert_eq!(config.log_prefix, "cfnetworking");
    let list = |text: &str| vec![text.parse().unwrap()];
    let expected = Access {
        writers: list("cn=syncer"),
        cells: list("ou=cell"),
        operators: list("cn=operator"),
        pollers: None,
        cell_identity: CellIdentity::CommonName,
    };
    assert_eq!(config.access, expected);
}

/// The example of the documentation is valid, and every key that it lists is read or
/// accepted.
#[test]
fn the_documentation_agrees() {
    let text = include_str!("../../docs/config/policy-store.md");
    let example = text.split("```json").nth(1).unwrap().split("```").next().unwrap();
    read(&serde_json::from_str(example).unwrap());
    let mut config = minimal();
    let listed = text.split("### Accepted and not used").nth(1).unwrap();
    let (ours, databases) = listed.split("## Example").next().unwrap().split_once(';').unwrap();
    for key in ours.split('`').skip(1).step_by(2) {
        config[key] = json!(1);
    }
    for key in databases.split('`').skip(1).step_by(2).filter(|key| *key != "database") {
        config["database"][key] = json!(1);
    }
    read(&config);
}

#[test]
fn the_originals_database_name_is_the_file() {
    let config = with(&json!({ "database": { "type": "sqlite", "database_name": "/other" } }));
    let Database::Sqlite(path) = read(&config).database else { panic!("a file") };
    assert_eq!(path, std::path::Path::new("/other"));
}

#[test]
fn a_store_that_may_be_stale_forever_can_be_had() {
    assert_eq!(read(&with(&json!({ "stale_after_seconds": 0 }))).stale_after, None);
}

#[test]
fn every_problem_is_told_at_once() {
    let problems = problems(&json!({
        "grpc_listen_address": "nowhere",
        "database": { "type": "oracle" },
        "writer_identities": ["syncer"],
        "cell_id_from": "ip",
        "report_save_interval_seconds": 0,
        "log_level": "loud",
        "rollout": {
            "canary_cells": ["a*b*"], "percent_steps": [10, 10], "pause_seconds": 0,
            "max_failing_percent": 100,
        },
    }));
    for start in [
        "rollout.canary_cells: must be ids of cells with at most one `*` each",
        "rollout.percent_steps: expects an array of ascending numbers from 1 to 99",
        "rollout.pause_seconds: must not be zero",
        "rollout.max_failing_percent: must be from 0 to 99",
        "grpc_listen_address: ",
        "ca_cert_file: missing",
        "server_cert_file: missing",
        "server_key_file: missing",
        "database.type: must be sqlite, postgres or mysql (the value is \"oracle\")",
        "writer_identities: \"syncer\" is not of the form cn=NAME",
        "cell_id_from: \"ip\" is not one of cn, dns and any",
        "report_save_interval_seconds: must not be zero",
        "log_level: ",
    ] {
        assert!(problems.iter().any(|text| text.starts_with(start)), "{start} in {problems:#?}");
    }
}

#[test]
fn a_rollout_has_a_step() {
    let rollout = |section| with(&json!({ "rollout": section }));
    assert_eq!(
        problems(&rollout(json!({}))),
        ["rollout.percent_steps: must have an element, or canary_cells must have one"]
    );
    let plan = read(&rollout(json!({ "canary_cells": ["c-*"], "percent_steps": [5, 50] })));
    let plan = plan.rollout.unwrap();
    assert_eq!(
        (plan.steps(), plan.pause, plan.max_failing_percent),
        (3, Duration::from_secs(30), 0)
    );
}

#[test]
fn a_database_without_a_file_is_a_problem() {
    let problems = problems(&with(&json!({ "database": { "type": "sqlite" } })));
    assert_eq!(problems, ["database.path: missing: the file of the database"]);
}

#[test]
fn the_drain_is_as_long_as_its_parts() {
    let spread = |changes: Value| read(&with(&changes)).drain_spread;
    assert_eq!(spread(json!({ "drain_timeout_seconds": 3 })), Duration::from_millis(1500));
    assert_eq!(spread(json!({ "drain_spread_seconds": 0 })), Duration::ZERO);
    let problems = problems(&with(&json!({ "drain_spread_seconds": 11 })));
    let text = "drain_spread_seconds: must not be more than drain_timeout_seconds";
    assert!(matches!(&problems[..], [problem] if problem.starts_with(text)), "{problems:?}");
}

/// As the job template of the original renders it.
#[test]
fn the_originals_file_is_enough() {
    let mut file = server("postgres");
    for (key, value) in [
        ("listen_host", json!("0.0.0.0")),
        ("internal_listen_port", json!(4003)),
        ("debug_server_host", json!("127.0.0.1")),
        ("debug_server_port", json!(31945)),
        ("health_check_port", json!(31946)),
        ("ca_cert_file", json!("ca")),
        ("server_cert_file", json!("cert")),
        ("server_key_file", json!("key")),
        ("tag_length", json!(2)),
        ("metron_address", json!("127.0.0.1:3457")),
        ("log_level", json!("info")),
        ("log_prefix", json!("cfnetworking")),
        ("max_idle_connections", json!(10)),
        ("max_open_connections", json!(200)),
        ("connections_max_lifetime_seconds", json!(3600)),
        ("request_timeout", json!(5)),
    ] {
        file[key] = value;
    }
    let config = read(&file);
    let text = |address: Option<HostPort>| address.unwrap().as_str().to_owned();
    assert_eq!(text(config.internal_listen_address), "0.0.0.0:4003");
    assert_eq!(text(config.health_check_address), "127.0.0.1:31946");
    assert_eq!(config.admin_listen_address.as_str(), "127.0.0.1:31945");
    assert_eq!(text(config.metron_address), "127.0.0.1:3457");
}

/// The original's object, with a password that needs escaping.
fn server(kind: &str) -> Value {
    json!({ "database": {
        "type": kind, "user": "policy", "password": "p' @/:\\ w", "host": "10.0.0.5", "port": 1234,
        "timeout": 120, "database_name": "network_policy", "require_ssl": true, "ca_cert": "/ca",
        "skip_hostname_validation": true,
    } })
}

#[test]
fn the_originals_database_is_understood() {
    for (kind, dialect) in [("postgres", Dialect::Postgres), ("mysql", Dialect::MySql)] {
        let config = read(&with(&server(kind)));
        let text = format!("{config:?}");
        assert!(!text.contains("p' @"), "the password: {text}");
        let Database::Server { options, write_original_tables } = config.database else {
            panic!("a server")
        };
        assert!(!write_original_tables);
        assert_eq!(options.dialect, dialect);
        assert_eq!(options.operation_timeout, Duration::from_secs(120));
        assert_eq!(options.connect_timeout, Duration::from_secs(10));
        let tls = Tls { ca: "/ca".into(), verify_identity: false };
        assert_eq!(options.tls, Some(tls));
    }
}

#[test]
fn the_originals_tables_are_on_a_server() {
    let mut file = server("mysql");
    file["database"]["write_original_tables"] = json!(true);
    let Database::Server { write_original_tables, .. } = read(&with(&file)).database else {
        panic!("a server")
    };
    assert!(write_original_tables);
    let database = json!({ "type": "sqlite", "path": "/db", "write_original_tables": true });
    let problems = problems(&with(&json!({ "database": database })));
    let start = "database.write_original_tables: must be false: ";
    assert!(matches!(&problems[..], [problem] if problem.starts_with(start)), "{problems:?}");
}

#[test]
fn a_server_without_what_it_needs_is_told_so_at_once() {
    for kind in ["postgres", "mysql"] {
        let database = json!({ "type": kind, "timeout": 0, "require_ssl": true, "port": "x" });
        let problems = problems(&with(&json!({ "database": database })));
        for start in [
            "database.user: missing",
            "database.host: missing",
            "database.port: ",
            "database.database_name: missing",
            "database.timeout: must not be zero",
            "database.ca_cert: missing",
        ] {
            assert!(problems.iter().any(|text| text.starts_with(start)), "{start}: {problems:#?}");
        }
        assert_eq!(problems.len(), 6, "{problems:#?}");
    }
}

#[test]
fn a_password_is_never_shown() {
    let mut config = server("postgres");
    config["database"]["password"] = json!(["hidden"]);
    let problems = problems(&with(&config));
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].starts_with("database.password: "), "{problems:#?}");
    assert!(!problems[0].contains("hidden"), "{problems:#?}");
}
