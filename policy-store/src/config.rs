//! The configuration file; docs/config/policy-store.md describes every key.

mod database;
mod rollout;

use std::{sync::Arc, time::Duration};

use runtime::{
    config::{Configure, HostPort, Reader, Seconds, Value},
    lager::Level,
    otlp,
    tls::Files,
};

pub use self::database::Database;
use crate::{
    access::{Access, CellIdentity, Pattern},
    groups::rollout::Plan,
};

/// Parsed configuration file.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listen address of the gRPC server.
    pub grpc_listen_address: HostPort,
    /// Listen address of the original's HTTP API, if enabled.
    pub internal_listen_address: Option<HostPort>,
    /// Listen address of the original's health checks, if enabled.
    pub health_check_address: Option<HostPort>,
    /// Listen address for metrics and health.
    pub admin_listen_address: HostPort,
    /// Certificates.
    pub tls: Files,
    /// Database that stores the groups.
    pub database: Database,
    /// Access control.
    pub access: Access,
    /// The store is not ready when no Replace was confirmed for this time.
    pub stale_after: Option<Duration>,
    /// Interval at which cell reports are stored.
    pub report_save_interval: Duration,
    /// Limits of a Replace.
    pub replaces: Replaces,
    /// Limit of concurrent lists of the HTTP API.
    pub concurrent_lists: usize,
    /// Length of a tag in bytes.
    pub tag_length: usize,
    /// Time limit for open calls during shutdown.
    pub drain_timeout: Duration,
    /// Part of the drain timeout over which clients are disconnected.
    pub drain_spread: Duration,
    /// Limits of the history.
    pub history: History,
    /// Steps in which a generation reaches the cells; absent: all at once.
    pub rollout: Option<Arc<Plan>>,
    /// Whether the admin address serves the web page.
    pub web_page: bool,
    /// Target of the original's metrics, if enabled.
    pub metron_address: Option<HostPort>,
    /// OpenTelemetry collector for the spans of changes, if any.
    pub otlp: Option<otlp::Config>,
    /// Log level.
    pub log_level: Level,
    /// First part of the log source.
    pub log_prefix: String,
}

/// Limits of a Replace.
#[derive(Debug, Clone, Copy)]
pub struct Replaces {
    /// Time limit from the first message to the last response.
    pub timeout: Duration,
    /// Largest accepted step from the newest fencing token to the next one; absent for no
    /// limit.
    pub token_step: Option<u64>,
}

/// Limits of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Older entries are dropped.
    pub time: Duration,
    /// Size limit in bytes.
    pub size: u64,
}

const UNUSED: &[&str] = &[
    "max_idle_connections",
    "max_open_connections",
    "connections_max_lifetime_seconds",
    "request_timeout",
];

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        keys.ignore(UNUSED);
        let grpc_listen_address = address(keys, "grpc_listen_address", "0.0.0.0:4004");
        let internal_listen_address = host_and_port(keys, INTERNAL, "0.0.0.0");
        let health_check_address = keys
            .optional("health_check_port")
            .map(|port| port.and_then(|port| joined("127.0.0.1", port)));
        let debug_server = host_and_port(keys, DEBUG, "127.0.0.1");
        let admin_listen_address = admin(keys, debug_server);
        let tls = Files::required(keys, ["ca_cert_file", "server_cert_file", "server_key_file"]);
        let database: Option<Database> = keys.required_section("database");
        let access = access(keys);
        let stale_after = keys.or("stale_after_seconds", Seconds::new(600));
        let report_save_interval = keys.nonzero("report_save_interval_seconds", Seconds::new(5));
        let replace_timeout = keys.nonzero("replace_timeout_seconds", Seconds::new(600));
        let token_step: Option<u64> = keys.or("max_fencing_token_step", 1_000_000);
        let concurrent_lists = keys.nonzero("concurrent_lists", 256);
        let tag_length: Option<usize> = keys.or("tag_length", 2);
        if tag_length.is_some_and(|bytes| !(1..=3).contains(&bytes)) {
            keys.problem("tag_length", "must be from 1 to 3");
        }
        let drain_timeout = keys.or("drain_timeout_seconds", Seconds::new(10));
        let drain_spread = drain_spread(keys, drain_timeout);
        let history_days: Option<u32> = keys.nonzero("history_days", 90);
        let history_size: Option<u64> = keys.nonzero("history_size", 1 << 30);
        let rollout: Option<Option<Plan>> = keys.section("rollout");
        let web_page = keys.or("web_page", false);
        let metron_address = keys.optional("metron_address");
        let otlp = keys.section("otlp");
        let log_level = keys.or("log_level", Level::Info);
        let log_prefix = keys.or("log_prefix", "cfnetworking".to_owned());
        Some(Self {
            grpc_listen_address: grpc_listen_address?,
            internal_listen_address: internal_listen_address?,
            health_check_address: health_check_address?,
            admin_listen_address: admin_listen_address?,
            tls: tls?,
            database: database?,
            access: access?,
            stale_after: Some(stale_after?.0).filter(|after| !after.is_zero()),
            report_save_interval: report_save_interval?.0,
            replaces: Replaces {
                timeout: replace_timeout?.0,
                token_step: Some(token_step?).filter(|step| *step > 0),
            },
            concurrent_lists: concurrent_lists?,
            tag_length: tag_length?,
            drain_timeout: drain_timeout?.0,
            drain_spread: drain_spread?,
            history: History {
                time: Duration::from_secs(u64::from(history_days?) * 86_400),
                size: history_size?,
            },
            rollout: rollout?.map(Arc::new),
            web_page: web_page?,
            metron_address: metron_address?,
            otlp: otlp?,
            log_level: log_level?,
            log_prefix: log_prefix?,
        })
    }
}

fn address(keys: &mut Reader<'_>, key: &'static str, default: &str) -> Option<HostPort> {
    keys.or(key, HostPort::parse(default).expect("the default is an address"))
}

/// Default: half of the drain timeout, so that the clients disconnected last have the
/// other half for their open calls.
fn drain_spread(keys: &mut Reader<'_>, timeout: Option<Seconds>) -> Option<Duration> {
    let spread: Option<Option<Seconds>> = keys.optional("drain_spread_seconds");
    let (spread, Seconds(timeout)) = (spread?, timeout?);
    let spread = spread.map_or(timeout / 2, |Seconds(spread)| spread);
    if spread > timeout {
        keys.problem("drain_spread_seconds", "must not be more than drain_timeout_seconds");
    }
    Some(spread)
}

/// Host key and port key of a listener of the original.
type Keys = (&'static str, &'static str);

const INTERNAL: Keys = ("listen_host", "internal_listen_port");
const DEBUG: Keys = ("debug_server_host", "debug_server_port");

/// Reads a listener, which is enabled when its port is configured.
fn host_and_port(
    keys: &mut Reader<'_>,
    (host_key, port_key): Keys,
    default: &str,
) -> Option<Option<HostPort>> {
    let host = keys.or(host_key, default.to_owned());
    let host = host.filter(|host| {
        let is_host = joined(host, 0).is_some();
        if !is_host {
            keys.problem(host_key, "must be an address or a name");
        }
        is_host
    });
    let port: Option<Option<u16>> = keys.optional(port_key);
    let (host, port) = (host?, port?);
    Some(port.and_then(|port| joined(&host, port)))
}

fn joined(host: &str, port: u16) -> Option<HostPort> {
    let is_bare = host.contains(':') && !host.starts_with('[');
    let text = if is_bare { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    HostPort::parse(&text).ok()
}

/// Address of the admin server; by default that of the original's debug server, if configured.
fn admin(keys: &mut Reader<'_>, debug_server: Option<Option<HostPort>>) -> Option<HostPort> {
    let address: Option<Option<HostPort>> = keys.optional("admin_listen_address");
    let default = || HostPort::parse("127.0.0.1:4005").expect("it is an address");
    Some(address?.or(debug_server?).unwrap_or_else(default))
}

fn access(keys: &mut Reader<'_>) -> Option<Access> {
    let pattern = |text: &str| vec![text.parse::<Pattern>().expect("the default is a pattern")];
    let writers = keys.or("writer_identities", pattern("cn=syncer"));
    let cells = keys.or("cell_identities", pattern("ou=cell"));
    let operators = keys.or("operator_identities", pattern("cn=operator"));
    let pollers = keys.optional::<Vec<Pattern>>("internal_api_identities");
    let cell_identity = keys.or("cell_id_from", CellIdentity::CommonName);
    Some(Access {
        writers: writers?,
        cells: cells?,
        operators: operators?,
        pollers: pollers?,
        cell_identity: cell_identity?,
    })
}

impl Value for CellIdentity {
    const EMPTY_IS_ABSENT: bool = true;

    fn from_json(json: &serde_json::Value) -> Result<Self, String> {
        match String::from_json(json)?.as_str() {
            "cn" => Ok(Self::CommonName),
            "dns" => Ok(Self::DnsName),
            "any" => Ok(Self::Unproven),
            other => Err(format!("{other:?} is not one of cn, dns and any")),
        }
    }
}
