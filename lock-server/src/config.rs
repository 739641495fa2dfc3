//! The configuration file: the original's keys (contracts/locket.md 4.2).

use std::{path::PathBuf, time::Duration};

use runtime::{
    config::{Configure, GoDuration, HostPort, Reader},
    lager::{self, Level, TimeFormat},
    tls,
};

/// How long a request waits for the store when nothing else is said.
const OPERATION_TIMEOUT: GoDuration = GoDuration::from_seconds(10);
/// What Go listens on when no address is given: any free port, everywhere.
const ANY_ADDRESS: &str = ":0";

/// Keys that have no meaning here. Those of SQL servers, because there is none;
/// those of the loggregator agent and of redaction, because metrics are served as
/// Prometheus text and no line carries a secret.
const IGNORED: &[&str] = &[
    "max_open_database_connections",
    "max_database_connection_lifetime",
    "sql_ca_cert_file",
    "sql_enable_identity_verification",
    "db_connection_timeout",
    "db_read_timeout",
    "db_write_timeout",
    "report_interval",
    "enable_db_health_check",
    "health_check_timeout",
    "health_check_interval",
    "health_check_failure_threshold",
    "redact_secrets",
    "redact_patterns",
    "max_data_string_length",
    "loggregator",
];

/// What the file says.
#[derive(Debug, Clone)]
pub struct Config {
    /// `listen_address`: where gRPC is served.
    pub listen_address: String,
    /// `ca_file`, `cert_file`, `key_file`.
    pub tls: tls::Files,
    /// `database_connection_string`: the path of the SQLite file.
    pub database: PathBuf,
    /// `db_operation_timeout`: how long a request waits for the store.
    pub operation_timeout: Duration,
    /// `debug_address`: metrics, health and log level; not served when absent.
    pub debug_address: Option<HostPort>,
    /// `log_level`.
    pub log_level: Level,
    /// `time_format`.
    pub time_format: TimeFormat,
}

impl Config {
    /// How it wants the log.
    pub fn log(&self) -> lager::Options {
        lager::Options {
            source: "locket".to_owned(),
            level: self.log_level,
            format: self.time_format,
        }
    }
}

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        keys.ignore(IGNORED);
        let listen_address = keys.optional::<HostPort>("listen_address");
        let ca = keys.required("ca_file");
        let cert = keys.required("cert_file");
        let key = keys.required("key_file");
        let driver = keys.or("database_driver", "sqlite".to_owned());
        let database = keys.required("database_connection_string");
        let operation_timeout = keys.or("db_operation_timeout", OPERATION_TIMEOUT);
        let debug_address = keys.optional("debug_address");
        let log_level = keys.required("log_level");
        let time_format = keys.or("time_format", TimeFormat::UnixEpoch);
        if driver.is_some_and(|driver| driver != "sqlite") {
            keys.problem("database_driver", "is not supported; this release knows `sqlite`");
            return None;
        }
        let operation_timeout = operation_timeout
            .map(|timeout| if timeout <= GoDuration::ZERO { OPERATION_TIMEOUT } else { timeout })?;
        Some(Self {
            listen_address: listen_address?
                .map_or_else(|| ANY_ADDRESS.to_owned(), |address| address.to_string()),
            tls: tls::Files { ca: ca?, cert: cert?, key: key? },
            database: database?,
            operation_timeout: operation_timeout.to_duration(),
            debug_address: debug_address?,
            log_level: log_level?,
            time_format: time_format?,
        })
    }
}

#[cfg(test)]
mod tests {
    use runtime::config::parse;

    use super::*;

    const MINIMAL: &str = r#"{
        "ca_file": "ca", "cert_file": "cert", "key_file": "key",
        "database_connection_string": "locket.db", "log_level": "info"
    }"#;

    /// The minimal file with more keys.
    fn with(more: &str) -> String {
        MINIMAL.replacen('{', &format!("{{{more},"), 1)
    }

    #[test]
    fn what_is_not_said_is_as_in_the_original() {
        let loaded = parse::<Config>(MINIMAL).unwrap();
        assert!(loaded.unknown.is_empty());
        let Config {
            listen_address,
            tls,
            database,
            operation_timeout,
            debug_address,
            log_level,
            time_format,
        } = loaded.config;
        assert_eq!(listen_address, ":0");
        assert_eq!((tls.ca, tls.cert, tls.key), ("ca".into(), "cert".into(), "key".into()));
        assert_eq!(database, PathBuf::from("locket.db"));
        assert_eq!(operation_timeout, Duration::from_secs(10));
        assert_eq!(debug_address, None);
        assert_eq!((log_level, time_format), (Level::Info, TimeFormat::UnixEpoch));
    }

    #[test]
    fn a_timeout_that_is_none_is_the_default() {
        for (given, expected) in
            [("1m30s", 90_000), ("500ms", 500), ("0s", 10_000), ("-5s", 10_000)]
        {
            let json = with(&format!(r#""db_operation_timeout": "{given}""#));
            let timeout = parse::<Config>(&json).unwrap().config.operation_timeout;
            assert_eq!(timeout, Duration::from_millis(expected), "{given}");
        }
    }

    #[test]
    fn keys_of_the_original_are_known() {
        for key in IGNORED {
            let loaded = parse::<Config>(&with(&format!(r#""{key}": "anything""#))).unwrap();
            assert!(loaded.unknown.is_empty(), "{key}");
        }
    }

    #[test]
    fn another_driver_is_one_problem_among_all() {
        let error = parse::<Config>(r#"{"database_driver": "mysql"}"#).unwrap_err();
        assert_eq!(error.problems().len(), 6, "{error}");
        let driver = error.problems().iter().find(|problem| problem.contains("database_driver"));
        assert!(driver.unwrap().contains("mysql"), "{error}");
    }
}
