//! The configuration file: the original's keys (docs/compatibility/locket.md#configuration), and
//! additional keys of this server.
//!
//! A duration that is not positive means the default, as the original's zero value
//! does, unless the key is documented otherwise.

use std::{path::PathBuf, time::Duration};

use runtime::{
    config::{Configure, GoDuration, HostPort, Reader, Value},
    lager::{self, Redactor, TimeFormat},
    loggregator,
    server::Limits,
    tls::{self, Pattern},
};
use serde_json::Value as Json;
use storage::server::{Dialect, Options, Tls};

use crate::{
    access::{Access, KeyRule},
    store::shared::HealthCheck,
};

/// Go's listen address when none is configured: any free port on all interfaces.
const ANY_ADDRESS: &str = ":0";

const SECOND: Duration = Duration::from_secs(1);
/// Store timeout of a request.
const OPERATION: Duration = Duration::from_secs(10);
/// Connect timeout of a database server. The original's is ten minutes, longer than
/// any client waits.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the start waits for a database that is not reachable yet.
const START: GoDuration = GoDuration::from_seconds(300);
const REPORT: Duration = Duration::from_secs(60);

/// Parsed configuration file.
#[derive(Debug, Clone)]
pub struct Config {
    /// `listen_address`: listen address of the gRPC server.
    pub listen_address: String,
    /// `ca_file`, `cert_file`, `key_file`.
    pub tls: tls::Files,
    /// Database that stores the locks.
    pub database: Database,
    /// `db_operation_timeout`: store timeout of a request.
    pub operation_timeout: Duration,
    /// `drain_timeout`: time limit for open calls after SIGTERM.
    pub drain_timeout: Duration,
    /// `max_connections`: limit of concurrent client connections.
    pub max_connections: usize,
    /// `writer_identities`, `reader_identities`, `key_identities`, `max_lock_ttl`.
    pub access: Access,
    /// `enable_db_health_check` and its keys.
    pub health_check: Option<HealthCheck>,
    /// `report_interval`: period of the metrics for the loggregator agent.
    pub report_interval: Duration,
    /// `loggregator`: the loggregator agent; disabled without certificates.
    pub loggregator: Option<loggregator::Config>,
    /// `debug_address`: endpoint for metrics, health and log level; disabled when absent.
    pub debug_address: Option<HostPort>,
    /// `log_level`, `time_format`.
    pub log: lager::Options,
    /// `redact_secrets`, `redact_patterns`, `max_data_string_length`.
    pub redactor: Redactor,
}

/// Database that stores the locks: `database_driver` and its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// `sqlite`: a local file.
    Embedded(PathBuf),
    /// `postgres`, `mysql`: a server that several instances can share.
    Shared(Options),
}

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let listen_address = keys.optional::<HostPort>("listen_address");
        let tls = tls::Files::required(keys, ["ca_file", "cert_file", "key_file"]);
        let operation_timeout = duration(keys, "db_operation_timeout", OPERATION);
        let database = database(keys, operation_timeout.unwrap_or(OPERATION));
        let drain_timeout = duration(keys, "drain_timeout", operation_timeout.unwrap_or(OPERATION));
        let max_connections = keys.or("max_connections", 0_usize);
        let access = access(keys);
        let health_check = health_check(keys);
        let report_interval = duration(keys, "report_interval", REPORT);
        let loggregator = keys.section("loggregator");
        let debug_address = keys.optional("debug_address");
        let log = log(keys);
        let redactor = Redactor::read(keys);
        Some(Self {
            listen_address: listen_address?
                .map_or_else(|| ANY_ADDRESS.to_owned(), |address| address.to_string()),
            tls: tls?,
            database: database?,
            operation_timeout: operation_timeout?,
            drain_timeout: drain_timeout?,
            max_connections: match max_connections? {
                0 => Limits::default().connections,
                some => some,
            },
            access: access?,
            health_check: health_check?,
            report_interval: report_interval?,
            loggregator: loggregator?,
            debug_address: debug_address?,
            log: log?,
            redactor: redactor?,
        })
    }
}

/// Reads a duration; absent or not positive means the default.
fn duration(keys: &mut Reader<'_>, key: &'static str, default: Duration) -> Option<Duration> {
    Some(positive(keys, key)?.unwrap_or(default))
}

/// Reads a duration that is present and positive.
fn positive(keys: &mut Reader<'_>, key: &'static str) -> Option<Option<Duration>> {
    let given: Option<GoDuration> = keys.optional(key)?;
    Some(given.filter(|given| *given > GoDuration::ZERO).map(GoDuration::to_duration))
}

/// Reads the common keys whatever the driver is, so that an invalid value is reported
/// before the key is needed.
fn database(keys: &mut Reader<'_>, operation: Duration) -> Option<Database> {
    let driver: Option<String> = keys.or("database_driver", "sqlite".to_owned());
    let connection: Option<String> = keys.required("database_connection_string");
    let max_open = keys.or::<i64>("max_open_database_connections", 0);
    let max_lifetime = positive(keys, "max_database_connection_lifetime");
    let ca = keys.optional("sql_ca_cert_file");
    let verify_identity = keys.or("sql_enable_identity_verification", false);
    let connect_timeout = duration(keys, "db_connection_timeout", CONNECT);
    let read_timeout = duration(keys, "db_read_timeout", operation);
    let write_timeout = duration(keys, "db_write_timeout", operation);
    let start_timeout = keys.or("db_start_timeout", START).map(GoDuration::to_duration);
    let dialect = match driver?.as_str() {
        "sqlite" => None,
        "postgres" => Some(Dialect::Postgres),
        "mysql" => Some(Dialect::MySql),
        _ => {
            let text = "invalid-driver-name: expects sqlite, postgres or mysql";
            keys.problem("database_driver", text);
            return None;
        }
    };
    let (connection_string, ca, verify_identity) = (connection?, ca?, verify_identity?);
    let (max_open, max_lifetime) = (max_open?, max_lifetime?);
    let (connect_timeout, start_timeout) = (connect_timeout?, start_timeout?);
    // The timeout of a call is the shortest of the three.
    let operation_timeout = operation.min(read_timeout?).min(write_timeout?);
    Some(match dialect {
        None => Database::Embedded(connection_string.into()),
        Some(dialect) => Database::Shared(Options {
            tls: ca.map(|ca| Tls { ca, verify_identity }),
            max_open: usize::try_from(max_open).unwrap_or(0),
            max_lifetime,
            connect_timeout,
            operation_timeout,
            start_timeout,
            application_name: "locket".to_owned(),
            ..Options::new(dialect, connection_string)
        }),
    })
}

fn access(keys: &mut Reader<'_>) -> Option<Access> {
    let writers = keys.optional::<Vec<Pattern>>("writer_identities");
    let readers = keys.optional::<Vec<Pattern>>("reader_identities");
    let rules = keys.optional::<KeyRules>("key_identities");
    let longest = positive(keys, "max_lock_ttl");
    let KeyRules(rules) = rules?.unwrap_or_default();
    Some(Access { writers: writers?, readers: readers?, keys: rules, longest: longest? })
}

/// `key_identities`: a list of objects with `keys` and `identities`.
#[derive(Debug, Default)]
struct KeyRules(Vec<KeyRule>);

impl Value for KeyRules {
    fn from_json(json: &Json) -> Result<Self, String> {
        let list = json.as_array().ok_or("must be a list of objects")?;
        list.iter()
            .enumerate()
            .map(|(at, json)| rule(json).map_err(|problem| format!("[{at}]: {problem}")))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }
}

fn rule(json: &Json) -> Result<KeyRule, String> {
    let object = json.as_object().ok_or("must be an object with keys and identities")?;
    if let Some(other) = object.keys().find(|key| !matches!(key.as_str(), "keys" | "identities")) {
        return Err(format!("{other:?} is not one of keys and identities"));
    }
    let keys = object.get("keys").and_then(Json::as_str).ok_or("keys must be a text")?;
    if keys.is_empty() || keys.matches('*').count() > 1 {
        return Err(format!("keys: {keys:?} must be a text with at most one *"));
    }
    let identities = object.get("identities").ok_or("identities is missing")?;
    let identities = Vec::<Pattern>::from_json(identities);
    let identities = identities.map_err(|problem| format!("identities: {problem}"))?;
    Ok(KeyRule { keys: keys.to_owned(), identities })
}

fn health_check(keys: &mut Reader<'_>) -> Option<Option<HealthCheck>> {
    let wanted = keys.or("enable_db_health_check", false);
    let timeout = duration(keys, "health_check_timeout", 5 * SECOND);
    let interval = duration(keys, "health_check_interval", 10 * SECOND);
    let attempts = keys.or::<i64>("health_check_failure_threshold", 0);
    let attempts = u32::try_from(attempts?).ok().filter(|attempts| *attempts > 0).unwrap_or(3);
    let check = HealthCheck { timeout: timeout?, interval: interval?, attempts };
    Some(wanted?.then_some(check))
}

fn log(keys: &mut Reader<'_>) -> Option<lager::Options> {
    let level = keys.required("log_level");
    let format = keys.or("time_format", TimeFormat::UnixEpoch);
    Some(lager::Options { source: "locket".to_owned(), level: level?, format: format? })
}

#[cfg(test)]
mod tests;
