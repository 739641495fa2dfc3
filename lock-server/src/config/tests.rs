use runtime::{config::parse, lager::Level};

use super::*;

const MINIMAL: &str = r#"{
    "ca_file": "ca", "cert_file": "cert", "key_file": "key",
    "database_connection_string": "locket.db", "log_level": "info"
}"#;

/// The minimal file with additional keys.
fn with(more: &str) -> String {
    MINIMAL.replacen('{', &format!("{{{more},"), 1)
}

fn read(more: &str) -> Config {
    let loaded = parse::<Config>(&with(more)).unwrap();
    assert!(loaded.unknown.is_empty(), "{:?}", loaded.unknown);
    loaded.config
}

fn server(more: &str) -> Options {
    match read(more).database {
        Database::Shared(server) => server,
        Database::Embedded(path) => panic!("a file: {}", path.display()),
    }
}

#[test]
fn what_is_not_said_has_its_default() {
    let loaded = parse::<Config>(MINIMAL).unwrap();
    assert!(loaded.unknown.is_empty());
    let Config {
        listen_address,
        tls,
        database,
        operation_timeout,
        drain_timeout,
        max_connections,
        access,
        health_check,
        report_interval,
        loggregator,
        debug_address,
        log,
        redactor: _,
    } = loaded.config;
    assert_eq!(listen_address, ":0");
    assert_eq!((tls.ca, tls.cert, tls.key), ("ca".into(), "cert".into(), "key".into()));
    assert_eq!(database, Database::Embedded("locket.db".into()));
    assert_eq!((operation_timeout, drain_timeout), (10 * SECOND, 10 * SECOND));
    assert_eq!(max_connections, 16_384);
    assert_eq!(access, Access::default());
    assert_eq!(health_check, None);
    assert_eq!(report_interval, 60 * SECOND);
    assert_eq!(loggregator, None);
    assert_eq!(debug_address, None);
    assert_eq!((log.level, log.format), (Level::Info, TimeFormat::UnixEpoch));
}

#[test]
fn a_server_has_what_the_original_has() {
    let plain = server(r#""database_driver": "postgres""#);
    let expected = Options {
        tls: None,
        max_open: 0,
        max_lifetime: None,
        connect_timeout: 10 * SECOND,
        operation_timeout: 10 * SECOND,
        start_timeout: 300 * SECOND,
        application_name: "locket".into(),
        ..Options::new(Dialect::Postgres, "locket.db")
    };
    assert_eq!(plain, expected);
    let job = server(
        r#""database_driver": "mysql", "sql_ca_cert_file": "sql/ca.crt",
           "sql_enable_identity_verification": true, "max_open_database_connections": 200,
           "max_database_connection_lifetime": "1h", "db_connection_timeout": "30s",
           "db_read_timeout": "60s", "db_write_timeout": "4s", "db_start_timeout": "0s""#,
    );
    let expected = Options {
        dialect: Dialect::MySql,
        tls: Some(Tls { ca: "sql/ca.crt".into(), verify_identity: true }),
        max_open: 200,
        max_lifetime: Some(3_600 * SECOND),
        connect_timeout: 30 * SECOND,
        operation_timeout: 4 * SECOND,
        start_timeout: Duration::ZERO,
        ..expected
    };
    assert_eq!(job, expected);
}

#[test]
fn a_password_is_in_no_debug_text() {
    let config = read(r#""DATABASE_DRIVER": "mysql""#);
    assert!(!format!("{config:?}").contains("locket.db"), "{config:?}");
}

#[test]
fn durations_that_are_none_are_the_default() {
    for (given, expected) in [("1m30s", 90_000), ("500ms", 500), ("0s", 10_000), ("-5s", 10_000)] {
        let config = read(&format!(r#""db_operation_timeout": "{given}""#));
        assert_eq!(config.operation_timeout, Duration::from_millis(expected), "{given}");
        assert_eq!(config.drain_timeout, config.operation_timeout, "{given}");
    }
    // The original panics at an interval of 0.
    assert_eq!(read(r#""report_interval": "0s""#).report_interval, 60 * SECOND);
    assert_eq!(read(r#""drain_timeout": "2m""#).drain_timeout, 120 * SECOND);
}

#[test]
fn the_health_check_is_off_until_it_is_wanted() {
    assert_eq!(read(r#""health_check_timeout": "1s""#).health_check, None);
    let defaults = HealthCheck { timeout: 5 * SECOND, interval: 10 * SECOND, attempts: 3 };
    assert_eq!(read(r#""enable_db_health_check": true"#).health_check, Some(defaults));
    let check = read(
        r#""enable_db_health_check": true, "health_check_timeout": "500ms",
           "health_check_interval": "2s", "health_check_failure_threshold": 2"#,
    );
    let expected = HealthCheck { timeout: SECOND / 2, interval: 2 * SECOND, attempts: 2 };
    assert_eq!(check.health_check, Some(expected));
}

#[test]
fn lists_of_identities_are_patterns() {
    let access = read(r#""writer_identities": ["cn=bbs", "ou=cell,dns=*.cf"]"#).access;
    let writers = ["cn=bbs", "ou=cell,dns=*.cf"].map(|text| text.parse().unwrap());
    assert_eq!(access, Access { writers: Some(writers.into()), ..Access::default() });
    let error = parse::<Config>(&with(r#""reader_identities": ["bbs"]"#)).unwrap_err();
    assert!(error.to_string().contains("reader_identities: \"bbs\" is not of the form"), "{error}");
}

#[test]
fn keys_and_times_to_live_have_bounds_if_wanted() {
    let rules =
        r#""key_identities": [{"keys": "bbs*", "identities": ["cn=bbs"]}], "max_lock_ttl": "1m""#;
    let access = read(rules).access;
    let rule = KeyRule { keys: "bbs*".to_owned(), identities: vec!["cn=bbs".parse().unwrap()] };
    assert_eq!((access.keys, access.longest), (vec![rule], Some(60 * SECOND)));
    for (rules, problem) in [
        ("{}", "key_identities: must be a list of objects"),
        (
            r#"[{"keys": "a*b*", "identities": []}]"#,
            "[0]: keys: \"a*b*\" must be a text with at most",
        ),
        (r#"[{"keys": "a"}]"#, "[0]: identities is missing"),
        (
            r#"[{"keys": "a", "identities": ["bbs"]}]"#,
            "[0]: identities: \"bbs\" is not of the form",
        ),
        (r#"[{"keys": "a", "identities": [], "b": 1}]"#, "[0]: \"b\" is not one of keys and"),
    ] {
        let text = with(&format!(r#""key_identities": {rules}"#));
        let error = parse::<Config>(&text).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

/// Everything in section 4.2 that Go's decoder accepts.
#[test]
fn the_file_is_read_as_go_reads_it() {
    let odd = format!(
        "{} trailing garbage {{",
        with(
            r#""LISTEN_Address": "127.0.0.1:8891", "time_format": 1, "loggregator": null,
           "debug_address": "", "redact_patterns": null, "max_data_string_length": 0,
           "loggregator": {"loggregator_api_port": 3458, "loggregator_job_origin": "locket"},
           "report_interval": null, "of_another_version": {"a": []}"#,
        )
    );
    let loaded = parse::<Config>(&odd).unwrap();
    assert_eq!(loaded.unknown, ["of_another_version"]);
    assert_eq!(loaded.config.listen_address, "127.0.0.1:8891");
    assert_eq!(loaded.config.log.format, TimeFormat::Rfc3339);
    assert_eq!(loaded.config.loggregator.unwrap().origin, "locket");
}

#[test]
fn every_problem_is_told_with_its_key() {
    let error = parse::<Config>(
        r#"{
            "database_driver": "oracle", "log_level": "loud", "db_operation_timeout": 10,
            "max_open_database_connections": "many", "health_check_failure_threshold": 1.5,
            "report_interval": "1 minute", "redact_patterns": ["("], "redact_secrets": "yes",
            "loggregator": {"loggregator_cert_path": "c"}, "writer_identities": "cn=a",
            "time_format": "iso", "sql_enable_identity_verification": 1
        }"#,
    )
    .unwrap_err();
    let keys = [
        "ca_file",
        "cert_file",
        "key_file",
        "database_connection_string",
        "database_driver",
        "log_level",
        "db_operation_timeout",
        "max_open_database_connections",
        "health_check_failure_threshold",
        "report_interval",
        "redact_patterns",
        "redact_secrets",
        "loggregator.loggregator_ca_path",
        "loggregator.loggregator_key_path",
        "writer_identities",
        "time_format",
        "sql_enable_identity_verification",
    ];
    for key in keys {
        let begins = format!("{key}: ");
        let told = error.problems().iter().filter(|problem| problem.starts_with(&begins));
        assert_eq!(told.count(), 1, "{key} in {error}");
    }
    assert_eq!(error.problems().len(), keys.len(), "{error}");
}

/// The example of the documentation is valid, also the one with the original's
/// database keys.
#[test]
fn the_documentation_agrees() {
    let text = include_str!("../../../docs/config/lock-server.md");
    let example = text.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let loaded = parse::<Config>(example).unwrap();
    assert!(loaded.unknown.is_empty(), "{:?}", loaded.unknown);
    let database = text.split("are as in its file").nth(1).unwrap();
    let texts: Vec<_> = database.split('`').skip(1).step_by(2).take(2).collect();
    let read = server(&format!(
        r#""database_driver": {}, "database_connection_string": {}"#,
        texts[0], texts[1]
    ));
    assert_eq!(read.dialect, Dialect::Postgres);
}
