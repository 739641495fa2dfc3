//! The configuration file; docs/config/policy-store.md has every key.

use std::{path::PathBuf, time::Duration};

use runtime::{
    config::{Configure, HostPort, Reader, Seconds},
    lager::Level,
    tls::Files,
};

use crate::access::{Access, CellIdentity, Pattern};

/// Everything that a process is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where gRPC is served.
    pub grpc_listen_address: HostPort,
    /// Where operators find metrics and health.
    pub admin_listen_address: HostPort,
    /// Certificates.
    pub tls: Files,
    /// The database's file.
    pub database: PathBuf,
    /// Who may what.
    pub access: Access,
    /// Without a confirmed Replace for so long, the store is not ready.
    pub stale_after: Option<Duration>,
    /// How often reports are written down.
    pub report_save_interval: Duration,
    /// How long a Replace may take, from its first message to its last answer.
    pub replace_timeout: Duration,
    /// How long open calls may take to end.
    pub drain_timeout: Duration,
    /// What is logged.
    pub log_level: Level,
    /// The first part of the log's source.
    pub log_prefix: String,
}

const UNUSED: &[&str] = &[
    "listen_host",
    "internal_listen_port",
    "debug_server_host",
    "debug_server_port",
    "health_check_port",
    "tag_length",
    "metron_address",
    "max_idle_connections",
    "max_open_connections",
    "connections_max_lifetime_seconds",
    "request_timeout",
];

impl Configure for Config {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        keys.ignore(UNUSED);
        let grpc_listen_address = address(keys, "grpc_listen_address", "0.0.0.0:4004");
        let admin_listen_address = address(keys, "admin_listen_address", "127.0.0.1:4005");
        let ca = keys.required("ca_cert_file");
        let cert = keys.required("server_cert_file");
        let key = keys.required("server_key_file");
        let database: Option<Database> = keys.required_section("database");
        let access = access(keys);
        let stale_after = keys.or("stale_after_seconds", Seconds::new(600));
        let report_save_interval = keys.or("report_save_interval_seconds", Seconds::new(5));
        if report_save_interval == Some(Seconds::new(0)) {
            keys.problem("report_save_interval_seconds", "must not be zero");
        }
        let replace_timeout = keys.or("replace_timeout_seconds", Seconds::new(600));
        if replace_timeout == Some(Seconds::new(0)) {
            keys.problem("replace_timeout_seconds", "must not be zero");
        }
        let drain_timeout = keys.or("drain_timeout_seconds", Seconds::new(10));
        let log_level = keys.or("log_level", Level::Info);
        let log_prefix = keys.or("log_prefix", "cfnetworking".to_owned());
        Some(Self {
            grpc_listen_address: grpc_listen_address?,
            admin_listen_address: admin_listen_address?,
            tls: Files { ca: ca?, cert: cert?, key: key? },
            database: database?.0,
            access: access?,
            stale_after: Some(stale_after?.0).filter(|after| !after.is_zero()),
            report_save_interval: report_save_interval?.0,
            replace_timeout: replace_timeout?.0,
            drain_timeout: drain_timeout?.0,
            log_level: log_level?,
            log_prefix: log_prefix?,
        })
    }
}

fn address(keys: &mut Reader<'_>, key: &'static str, default: &str) -> Option<HostPort> {
    keys.or(key, HostPort::parse(default).expect("the default is an address"))
}

fn access(keys: &mut Reader<'_>) -> Option<Access> {
    let writers = patterns(keys, "writer_identities", "cn=syncer");
    let cells = patterns(keys, "cell_identities", "ou=cell");
    let operators = patterns(keys, "operator_identities", "cn=operator");
    let cell_identity: Option<String> = keys.or("cell_id_from", "cn".to_owned());
    let cell_identity: Option<CellIdentity> = cell_identity.and_then(|text| {
        text.parse().map_err(|problem: String| keys.problem("cell_id_from", problem)).ok()
    });
    Some(Access {
        writers: writers?,
        cells: cells?,
        operators: operators?,
        cell_identity: cell_identity?,
    })
}

fn patterns(keys: &mut Reader<'_>, key: &'static str, default: &str) -> Option<Vec<Pattern>> {
    let texts: Vec<String> = keys.or(key, vec![default.to_owned()])?;
    let patterns: Result<_, String> = texts.iter().map(|text| text.parse()).collect();
    patterns.map_err(|problem| keys.problem(key, problem)).ok()
}

/// The file of the embedded database.
struct Database(PathBuf);

const UNUSED_OF_DATABASE: &[&str] = &[
    "user",
    "password",
    "host",
    "port",
    "timeout",
    "require_ssl",
    "ca_cert",
    "skip_hostname_validation",
];

impl Configure for Database {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        keys.ignore(UNUSED_OF_DATABASE);
        let kind: Option<String> = keys.required("type");
        let path: Option<Option<PathBuf>> = keys.optional("path");
        let name: Option<Option<PathBuf>> = keys.optional("database_name");
        if kind.as_ref().is_some_and(|kind| kind != "sqlite") {
            keys.problem("type", "must be sqlite");
            return None;
        }
        let path = path?.or(name?);
        if kind.is_some() && path.is_none() {
            keys.problem("path", "missing: the file of the database");
        }
        kind.and(path).map(Self)
    }
}
