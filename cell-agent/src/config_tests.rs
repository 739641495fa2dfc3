use runtime::config::{Loaded, parse};

use super::*;

const LEAST: &str = r#""cell_id":"cell-1","policy_store_address":"127.0.0.1:4004",
    "ca_cert_file":"ca","client_cert_file":"crt","client_key_file":"key",
    "cni_datastore_path":"/tmp/store.json","overlay_network":"10.255.0.0/16""#;

fn read(more: &str) -> Result<Loaded<Config>, Vec<String>> {
    parse(&format!("{{{LEAST}{more}}}")).map_err(|error| error.problems().to_vec())
}

#[test]
fn defaults_are_the_originals() {
    let Loaded { config, unknown } = read("").unwrap();
    assert!(unknown.is_empty());
    assert!(config.enabled);
    assert_eq!(config.control_address, "127.0.0.1:8722");
    assert_eq!(config.debug_address, "127.0.0.1:8721");
    assert_eq!(config.full_interval, Duration::from_secs(60));
    assert_eq!(config.control_socket, Path::new("/var/vcap/data/cell-agent/control.sock"));
    assert_eq!(config.settings.denied_logs_per_second, 1);
    assert_eq!(config.settings.udp_logs_per_second, 100);
    assert_eq!(config.settings.connection_limit, None);
    assert_eq!(config.loggregator, None);
}

#[test]
fn lines_for_apps_are_written_where_the_original_would() {
    let with = |section: &str| read(&format!(r#","loggregator":{{{section}}}"#));
    assert_eq!(with(r#""loggregator_api_port":1"#).unwrap().config.loggregator, None);
    let files =
        r#""loggregator_ca_path":"a","loggregator_cert_path":"b","loggregator_key_path":"c""#;
    let used = with(&format!(r#""loggregator_use_v2_api":true,{files}"#)).unwrap().config;
    assert_eq!(used.loggregator.unwrap().address, "localhost:3458");
    let problems = with(r#""loggregator_use_v2_api":true"#).unwrap_err();
    assert!(problems[0].starts_with("loggregator: needs loggregator_ca_path"), "{problems:?}");
}

#[test]
fn denied_packets_are_recorded_in_our_own_table_unless_asked_otherwise() {
    let record = |more: &str| read(more).map(|read| read.config.settings.records_denied());
    let asked = |section: &str| record(&format!(r#","denied_connections":{{{section}}}"#));
    let default = RecordDenied { group: 7077, per_second: 100, asked_for: false };
    assert_eq!(record(""), Ok(Some(default)));
    assert_eq!(record(r#","data_plane":"iptables""#), Ok(None));
    assert_eq!(asked(r#""record":false"#), Ok(None));
    let other = RecordDenied { group: 7, per_second: 5, asked_for: true };
    let keys = r#""record":true,"nflog_group":7,"records_per_sec":5"#;
    assert_eq!(asked(keys), Ok(Some(other)));
    let more = format!(r#","data_plane":"iptables","denied_connections":{{{keys}}}"#);
    assert_eq!(record(&more), Ok(Some(other)));
    for (keys, problem) in [
        (r#""nflog_group":0"#, "nflog_group: must not be zero"),
        (r#""nflog_group":65536"#, "nflog_group"),
        (r#""records_per_sec":501"#, "records_per_sec: must be at most 500"),
        (r#""record":"yes""#, "record"),
    ] {
        let problems = asked(keys).unwrap_err();
        assert!(problems[0].contains(problem), "{keys}: {problems:?}");
    }
    // A cell without nft falls back to iptables.
    let mut config = read("").unwrap().config;
    assert!(config.fall_back());
    assert_eq!(config.settings.records_denied(), None);
}

#[test]
fn the_data_plane_is_ours_unless_iptables_is_asked_for() {
    let config = read("").unwrap().config;
    assert_eq!(config.plane, DataPlane::Nftables);
    assert!(config.fallback.is_some());
    assert_eq!(read(r#","data_plane":"nftables""#).unwrap().config.fallback, None);
    assert_eq!(config.drift_interval, Duration::from_secs(2));
    let more =
        r#","data_plane":"iptables","iptables_path":"/x/iptables","iptables_lock_file":"/x/lock""#;
    let config = read(more).unwrap().config;
    let (path, lock) = ("/x/iptables".into(), "/x/lock".into());
    assert_eq!(config.plane, DataPlane::Iptables { path, lock });
    assert_eq!(config.drift_interval, Duration::from_secs(5));
    let problems = read(r#","data_plane":"ebtables""#).unwrap_err();
    assert_eq!(problems, [r#"data_plane: must be nftables or iptables (the value is "ebtables")"#]);
}

/// As the BOSH job renders it, all keys of docs/compatibility/vxlan-policy-agent.md#configuration.
#[test]
fn the_originals_file_is_accepted() {
    let Loaded { config, unknown } = read(
        r#","poll_interval":5,"enable_asg_syncing":true,"asg_poll_interval":60,
        "policy_server_url":"https://policy-server.service.cf.internal:4003","vni":1,
        "metron_address":"127.0.0.1:3457","client_timeout_seconds":5,
        "iptables_lock_file":"/var/vcap/data/garden-cni/iptables.lock",
        "debug_server_host":"127.0.0.1","debug_server_port":8721,"log_level":"info",
        "log_prefix":"cfnetworking","iptables_c2c_logging":false,
        "iptables_accepted_udp_logs_per_sec":100,"enable_overlay_ingress_rules":false,
        "force_policy_poll_cycle_host":"127.0.0.1","force_policy_poll_cycle_port":8722,
        "disable_container_network_policy":false,"underlay_ips":["10.0.0.4"],
        "iptables_asg_logging":true,"iptables_denied_logs_per_sec":3,
        "deny_networks":{"always":["10.0.0.0/8"],"running":[],"staging":["10.11.1.0/16"]},
        "outbound_connections":{"limit":true,"logging":true,"burst":9,"rate_per_sec":2,"dry_run":false},
        "loggregator":{"loggregator_use_v2_api":false}"#,
    )
    .unwrap();
    assert_eq!(unknown, Vec::<String>::new());
    let limit = ConnectionLimit { per_second: 2, burst: 9, log: true, destinations: 16_384 };
    assert_eq!(config.settings.connection_limit, Some(limit));
    assert_eq!(config.settings.deny_networks.staging[0].to_string(), "10.11.0.0/16");
    assert!(config.settings.log_all);
}

#[test]
fn a_store_that_is_named_pushes_and_a_server_that_is_named_is_polled() {
    for more in ["", r#","policy_server_url":"https://p:4003""#] {
        let source = read(more).unwrap().config.source;
        assert!(matches!(&source, Source::Grpc(store) if store.as_str() == "127.0.0.1:4004"));
    }
    let polled = |timeout| Source::Http {
        url: "https://p:4003".to_owned(),
        timeout: Duration::from_secs(timeout),
    };
    let told = r#","policy_server_url":"https://p:4003","policy_server_api":"http","client_timeout_seconds":7"#;
    assert_eq!(read(told).unwrap().config.source, polled(7));
    let original =
        LEAST.replace(r#""cell_id":"cell-1","policy_store_address":"127.0.0.1:4004","#, "");
    let original = format!(r#"{{{original},"policy_server_url":"https://p:4003"}}"#);
    let config = parse::<Config>(&original).unwrap().config;
    assert_eq!(config.source, polled(5));
    for (more, key) in [
        (r#","policy_server_api":"carrier""#, "policy_server_api"),
        (r#","policy_server_api":"http""#, "policy_server_url"),
        (r#","policy_server_api":"http","policy_server_url":"ftp://x""#, "policy_server_url"),
    ] {
        let problems = read(more).unwrap_err();
        assert!(problems[0].starts_with(&format!("{key}: ")), "{problems:?}");
    }
}

#[test]
fn a_limit_that_is_off_is_none() {
    let config = read(r#","outbound_connections":{"limit":false,"dry_run":true}"#).unwrap();
    assert_eq!(config.config.settings.connection_limit, None);
}

#[test]
fn a_limit_above_the_maximum_is_an_error() {
    for (key, most) in [
        ("iptables_denied_logs_per_sec", 10_000),
        ("iptables_accepted_udp_logs_per_sec", 10_000),
        ("outbound_connections.burst", 1_000_000),
        ("outbound_connections.rate_per_sec", 1_000_000),
    ] {
        let with = |number: u32| match key.split_once('.') {
            Some((section, key)) => read(&format!(r#","{section}":{{"{key}":{number}}}"#)),
            None => read(&format!(r#","{key}":{number}"#)),
        };
        with(most).unwrap();
        let problems = with(most + 1).unwrap_err();
        let told = format!("{key}: must be at most {most} ");
        assert!(problems[0].starts_with(&told), "{problems:?}");
    }
}

#[test]
fn all_problems_are_reported_with_their_keys() {
    let problems = parse::<Config>(
        r#"{"overlay_network":"10.255.0.0","iptables_denied_logs_per_sec":0,"asg_poll_interval":0,
        "drift_interval":"0s","underlay_ips":["x"],"deny_networks":{"always":["y"]},"cell_id":"a\nb"}"#,
    )
    .unwrap_err()
    .problems()
    .to_vec();
    for key in [
        "cell_id",
        "policy_store_address",
        "ca_cert_file",
        "client_cert_file",
        "client_key_file",
        "cni_datastore_path",
        "overlay_network",
        "iptables_denied_logs_per_sec",
        "asg_poll_interval",
        "drift_interval",
        "underlay_ips",
        "deny_networks.always",
    ] {
        let told = problems.iter().filter(|problem| problem.starts_with(&format!("{key}: ")));
        assert_eq!(told.count(), 1, "{key} in {problems:#?}");
    }
}

#[test]
fn the_documentation_is_complete() {
    let text = include_str!("../../docs/config/cell-agent.md");
    let example = text.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let Loaded { unknown, .. } = parse::<Config>(example).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    let source = include_str!("config.rs");
    let keys = source.split('"').skip(1).step_by(2).filter(|text| {
        text.contains('_') && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    });
    let mut count = 0;
    for key in keys {
        let forms = [format!("`{key}`"), format!("`{key}."), format!(".{key}`")];
        assert!(forms.iter().any(|form| text.contains(form)), "{key} is not documented");
        count += 1;
    }
    assert!(count >= 30, "only {count} keys were found in the source");
}

#[test]
fn uses_of_rules_are_counted_only_if_asked() {
    let uses = |section: &str| {
        let read = read(&format!(r#","rule_use":{{{section}}}"#));
        read.map(|read| (read.config.settings.count_use, read.config.use_interval.as_secs()))
    };
    assert!(!read("").unwrap().config.settings.count_use);
    assert_eq!(uses(""), Ok((false, 60)));
    assert_eq!(uses(r#""enabled":true,"interval_seconds":5"#), Ok((true, 5)));
    let problems = uses(r#""interval_seconds":121"#).unwrap_err();
    assert_eq!(problems, ["rule_use.interval_seconds: must be at most 120 (the value is 121)"]);
}
